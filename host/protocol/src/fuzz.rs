//! What fuzzers feed: every decoder, and what must hold of what it accepts. `cargo xtask fuzz` runs them; a test sends
//! the kept corpus through them.

use bytes::Bytes;
use modelhost_core::infer::conform_outputs;
use modelhost_core::model::Signature;
use modelhost_core::room::Room;
use modelhost_core::tensor::{Column, ColumnKind, DType, Tensor, TensorSpec};
use modelhost_core::version::Model;
use prost::Message;

use crate::oip_rest::Framing;
use crate::testing::{version, with_inputs};
use crate::{ReplyForm, csv, mlflow, oip_grpc, oip_rest, openapi, page, records, tf_serving};

/// A decoder under test: takes any bytes, panics when something is wrong.
type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Target); 9] = [
    ("oip_rest", oip_rest_infer),
    ("oip_raw", oip_rest_raw),
    ("oip_control", oip_rest_control),
    ("oip_grpc", oip_grpc_infer),
    ("tf_serving", tf_serving_predict),
    ("mlflow", mlflow_invocations),
    ("records", records_rows),
    ("csv", csv_file),
    ("guest", guest_says),
];

/// Two bytes say how much of the rest is JSON.
fn oip_rest_infer(data: &[u8]) {
    let Some((length, body)) = data.split_first_chunk::<2>() else { return };
    let body = Bytes::copy_from_slice(body);
    let header = u16::from_le_bytes(*length).to_string();
    let framing = Framing::of((header != "65535").then_some(header.as_bytes()), body.len());
    let Ok(Framing::Json(json)) = framing else { return };
    let Ok((request, form)) = oip_rest::decode(&body, json, &Room::unbounded()) else { return };
    echo_rest(&request.inputs, &form);
}

fn oip_rest_raw(data: &[u8]) {
    let body = Bytes::copy_from_slice(data);
    if let Ok((request, form)) = oip_rest::decode_raw(&body, &version().report.signature, &Room::unbounded())
    {
        assert_eq!(request.inputs.first().map(Tensor::data), Some(&body));
        echo_rest(&request.inputs, &form);
    }
}

/// What was accepted can be written, as JSON and as bytes.
fn echo_rest(tensors: &[Tensor], form: &ReplyForm) {
    for form in [form, &ReplyForm { binary: true, outputs: Vec::new() }] {
        if let Ok(encoded) = oip_rest::encode(&version(), Some("id"), tensors, form, &Room::unbounded()) {
            let json = encoded.json_length.unwrap_or(encoded.body.len());
            assert!(json <= encoded.body.len());
        }
    }
}

fn oip_rest_control(data: &[u8]) {
    drop(oip_rest::read_index(data));
    drop(oip_rest::read_load(data));
    drop(oip_rest::read_log_settings(data));
    drop(oip_rest::read_trace_settings(data));
}

/// An echo must come back as it went: raw, and typed where the datatypes are.
fn oip_grpc_infer(data: &[u8]) {
    let Ok(message) = oip_grpc::pb::ModelInferRequest::decode(data) else { return };
    let Ok((request, _)) = oip_grpc::decode(message, &Room::unbounded()) else { return };
    for binary in [true, false] {
        let form = ReplyForm { binary, outputs: Vec::new() };
        let Ok(response) = oip_grpc::encode(&version(), None, &request.inputs, &form, &Room::unbounded())
        else {
            continue;
        };
        let inputs =
            response.outputs.into_iter().map(|output| oip_grpc::pb::model_infer_request::InferInputTensor {
                name: output.name,
                datatype: output.datatype,
                shape: output.shape,
                contents: output.contents,
                ..Default::default()
            });
        let again = oip_grpc::pb::ModelInferRequest {
            inputs: inputs.collect(),
            raw_input_contents: response.raw_output_contents,
            ..Default::default()
        };
        assert_eq!(
            oip_grpc::decode(again, &Room::unbounded()).map(|(request, _)| request.inputs),
            Ok(request.inputs.clone())
        );
    }
}

/// The first byte chooses the model.
fn tf_serving_predict(data: &[u8]) {
    let Some((model, body)) = data.split_first() else { return };
    let body = Bytes::copy_from_slice(body);
    drop(tf_serving::first_field(&body, "user", &Room::unbounded()));
    if let Ok((request, layout)) =
        tf_serving::decode(&body, &any_version(*model), Some("user"), &Room::unbounded())
    {
        drop(tf_serving::encode(&request.inputs, layout, &Room::unbounded()));
    }
}

fn mlflow_invocations(data: &[u8]) {
    let Some((model, body)) = data.split_first() else { return };
    let body = Bytes::copy_from_slice(body);
    drop(mlflow::first_field(&body, "user", &Room::unbounded()));
    if let Ok(request) = mlflow::decode(&body, &any_version(*model), Some("user"), &Room::unbounded()) {
        drop(mlflow::encode(&request.inputs, &Room::unbounded()));
    }
}

fn any_version(number: u8) -> modelhost_core::version::Version {
    let dtype = |number: u8| DType::ALL.get(usize::from(number)).copied();
    match dtype(number) {
        Some(dtype) => with_inputs(&[("a", dtype, &[None]), ("b", DType::Bytes, &[None, None])]),
        None => {
            dtype(number.wrapping_sub(20)).map_or_else(version, |dtype| with_inputs(&[("a", dtype, &[None])]))
        }
    }
}

fn records_rows(data: &[u8]) {
    drop(records::first_field(data, "user", &Room::unbounded()));
    if let Ok(request) = records::decode(data, &version(), Some("user"), &Room::unbounded()) {
        drop(records::encode(&version(), &request.inputs, &Room::unbounded()));
    }
}

/// The first byte is the size of the pieces; they must not matter.
fn csv_file(data: &[u8]) {
    let Some((size, file)) = data.split_first() else { return };
    drop(csv::first_field(file, "user"));
    let version = version();
    let room = Room::unbounded();
    let read = |size: usize| -> Option<Vec<u8>> {
        let mut decoder = csv::Decoder::new(&version, Some("user")).ok()?;
        let mut all = Vec::new();
        for piece in file.chunks(size).chain([&[][..]]) {
            decoder.feed(piece, &room).ok()?;
            if let Some(request) = decoder.take(&room).ok()? {
                all.extend_from_slice(request.inputs.first()?.data());
                csv::encode(&version, &request.inputs, true, &room).ok()?;
            }
        }
        Some(all)
    };
    assert_eq!(read(usize::from(*size).max(1)), read(file.len().max(1)));
}

/// A plugin's signature and answer, spelled by the bytes. What passes the host's checks can be shown and written in
/// every dialect, in bounded space.
fn guest_says(data: &[u8]) {
    let mut said = Said(data);
    let mut version = version();
    version.report.signature = Signature { inputs: said.list(Said::spec), outputs: said.list(Said::spec) };
    let model = Model::new(version.model.clone());
    // Renderers hold for what an older host registered, too.
    let size = openapi::document(&model, &version).to_string().len();
    assert!(size < (1 << 20) + 64 * data.len(), "{size} bytes of OpenAPI");
    if version.report.signature.check().is_err() {
        return;
    }
    let tensors = said.list(Said::tensor);
    let answer: Option<Vec<_>> = tensors.into_iter().collect();
    let Some(Ok(outputs)) = answer.map(|outputs| conform_outputs(&version.report.signature, &[], outputs))
    else {
        return drop(page::model(&model, &version, false, "h", &[], &page::Outcome::Empty));
    };
    drop(page::model(&model, &version, false, "h", &[], &page::Outcome::Answered(&version, &outputs)));
    drop(oip_rest::model_metadata(&model, &version));
    drop(oip_rest::model_config(&version, &[]));
    echo_rest(&outputs, &ReplyForm::default());
    let room = Room::unbounded();
    drop(oip_grpc::encode(&version, None, &outputs, &ReplyForm::default(), &room));
    drop(records::encode(&version, &outputs, &room));
    drop(csv::encode(&version, &outputs, true, &room));
    drop(mlflow::encode(&outputs, &room));
    drop(tf_serving::encode(&outputs, tf_serving::Layout::Rows, &room));
    drop(tf_serving::encode(&outputs, tf_serving::Layout::Columns, &room));
}

/// What is left of the bytes; zeros follow them.
struct Said<'a>(&'a [u8]);

impl Said<'_> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or_default()
    }

    fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.byte()).map_while(|_| (!self.0.is_empty()).then(|| one(self))).collect()
    }

    fn text(&mut self) -> String {
        let length = usize::from(self.byte()).min(self.0.len());
        let text = self.0.split_off(..length).unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }

    fn dtype(&mut self) -> DType {
        let at = usize::from(self.byte()) % DType::ALL.len();
        DType::ALL.get(at).copied().unwrap_or(DType::Fp32)
    }

    /// 0 to 63, or a power of two.
    fn dim(&mut self) -> u64 {
        match self.byte() {
            small @ 0..64 => small.into(),
            power => 1 << (power % 64),
        }
    }

    fn spec(&mut self) -> TensorSpec {
        let (name, dtype) = (self.text(), self.dtype());
        let shape = self.list(|said| Some(said.dim()).filter(|dim| *dim != 63));
        let columns = self.list(|said| Column {
            name: said.text(),
            kind: match said.list(Said::text) {
                values if values.is_empty() => ColumnKind::Numeric,
                values => ColumnKind::Categorical(values.into()),
            },
            description: Some(said.text()),
            unit: None,
            minimum: Some(f64::from(said.byte()) / 0.0),
            maximum: None,
            missing: said.byte() > 9,
            unknown_is_missing: said.byte() > 9,
        });
        TensorSpec { name, dtype, shape, columns: columns.into() }
    }

    fn tensor(&mut self) -> Option<Tensor> {
        let (name, dtype, shape) = (self.text(), self.dtype(), self.list(Self::dim));
        let data = self.list(Self::byte);
        Tensor::new(name, dtype, shape, data.into()).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_kept_corpus_still_passes() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus");
        for (name, target) in TARGETS {
            let files = fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut count = 0;
            for file in files {
                target(&fs::read(file.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count > 0, "no corpus for {name}");
        }
    }
}
