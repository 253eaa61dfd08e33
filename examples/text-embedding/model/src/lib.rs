//! Computes sentence embeddings. The component tokenizes texts in its sandbox. The transformer is the graph
//! `model.onnx`, which the host evaluates through the standard `wasi:nn`.

use modelhost_sdk::nn::errors::{Error as NnError, ErrorCode};
use modelhost_sdk::nn::graph::load_by_name;
use modelhost_sdk::nn::tensor::{Tensor as NnTensor, TensorType};
use modelhost_sdk::{Config, Datatype, Error, Model, Request, Signature, Tensor, TensorSpec, artifact};
use tokenizers::{Tokenizer, TruncationParams};

/// The length of an embedding.
const SIZE: i64 = 384;

/// The tokenizer. The host has the graph.
pub struct TextEmbedding {
    tokenizer: Tokenizer,
}

/// The graph's inputs: token ids, and a mask that is 1 for tokens and 0 for padding. Shape: [texts, longest text].
struct Tokens {
    ids: Vec<i64>,
    mask: Vec<i64>,
    shape: [u32; 2],
}

impl Model for TextEmbedding {
    fn load(config: &Config) -> Result<(Self, Signature), Error> {
        let max_tokens = config.parameter("max_tokens").unwrap_or("256");
        let max_tokens = max_tokens.parse().map_err(|_| {
            Error::Model(format!("parameter max_tokens = {max_tokens:?} is not a whole number"))
        })?;
        let wrong = |error: tokenizers::Error| Error::Model(format!("tokenizer.json: {error}"));
        let mut tokenizer = Tokenizer::from_bytes(artifact("tokenizer.json")?).map_err(wrong)?;
        let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
        tokenizer.with_padding(None).with_truncation(Some(truncation)).map_err(wrong)?;
        let signature = Signature {
            inputs: vec![TensorSpec::new("text", Datatype::Bytes, &[-1])],
            outputs: vec![TensorSpec::new("embedding", Datatype::Fp32, &[-1, SIZE])],
        };
        Ok((Self { tokenizer }, signature))
    }

    fn infer(&self, request: &Request) -> Result<Vec<Tensor>, Error> {
        let texts = request.input("text")?;
        let Tokens { ids, mask, shape } = self.tokens(&texts.bytes_elements()?)?;
        let tensor = |values: &[i64]| NnTensor::new(&shape, TensorType::I64, bytemuck::cast_slice(values));
        let inputs =
            vec![("input_ids".to_owned(), tensor(&ids)), ("attention_mask".to_owned(), tensor(&mask))];
        let graph = load_by_name("model").map_err(said)?;
        let outputs =
            graph.init_execution_context().and_then(|context| context.compute(inputs)).map_err(said)?;
        let (_, embedding) =
            outputs.into_iter().next().ok_or_else(|| Error::Model("the graph has no output".into()))?;
        let name = "embedding".to_owned();
        let shape = embedding.dimensions().into_iter().map(u64::from).collect();
        Ok(vec![Tensor { name, datatype: Datatype::Fp32, shape, data: embedding.data() }])
    }
}

impl TextEmbedding {
    fn tokens(&self, texts: &[&[u8]]) -> Result<Tokens, Error> {
        let encode = |(at, text): (usize, &&[u8])| {
            let wrong = |why: String| Error::InvalidInput(format!("input \"text\", element {at}: {why}"));
            let text = str::from_utf8(text).map_err(|error| wrong(format!("not UTF-8: {error}")))?;
            self.tokenizer.encode_fast(text, true).map_err(|error| wrong(error.to_string()))
        };
        let encodings = texts.iter().enumerate().map(encode).collect::<Result<Vec<_>, _>>()?;
        let longest = encodings.iter().map(|encoding| encoding.len()).max().unwrap_or(0);
        let room = longest * encodings.len();
        let (mut ids, mut mask) = (Vec::with_capacity(room), Vec::with_capacity(room));
        for encoding in &encodings {
            let padding = std::iter::repeat_n(0, longest - encoding.len());
            ids.extend(encoding.get_ids().iter().map(|id| i64::from(*id)).chain(padding.clone()));
            mask.extend(encoding.get_ids().iter().map(|_| 1).chain(padding));
        }
        let size = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        Ok(Tokens { ids, mask, shape: [size(encodings.len()), size(longest)] })
    }
}

/// Converts an error of `wasi:nn`. An invalid argument is the caller's fault, anything else the model's.
fn said(error: NnError) -> Error {
    match error.code() {
        ErrorCode::InvalidArgument => Error::InvalidInput(error.data()),
        _ => Error::Model(error.data()),
    }
}

#[cfg(target_family = "wasm")]
modelhost_sdk::export!(TextEmbedding);
