//! A page per model: what it is, who gets which share, a form to try it, snippets. HTML that works without scripts.
//!
//! The form posts `application/x-www-form-urlencoded`: a field a column where the input is a table, else a field an
//! input, its value JSON. Where an input is BYTES it posts `multipart/form-data`, so that a file (a picture, say) can
//! be its element.

use std::collections::HashMap;

use askama::Template;
use bytes::Bytes;
use modelhost_core::error::Error;
use modelhost_core::infer::InferRequest;
use modelhost_core::room::Room;
use modelhost_core::routing::BUCKETS;
use modelhost_core::tensor::{Column, ColumnKind, DType, DisplayShape, MAX_RANK, Tensor, TensorSpec};
use modelhost_core::version::{Model, Version};

use crate::example::{self, ExampleField, MAX_EXAMPLE};
use crate::json::Reader;
use crate::json_tensor::read_nested;
use crate::table::Rows;

/// Most bytes of an answer that a page shows: a person reads it.
const MAX_ANSWER: usize = 128 << 10;

/// Most bytes of a description in a list: the model's own page has all of it.
const MAX_SUMMARY: usize = 256;

/// The list of models (`GET /`).
#[derive(Template)]
#[template(path = "models.html")]
struct ModelsPage {
    models: Vec<ModelRow>,
}

struct ModelRow {
    name: String,
    description: String,
    versions: usize,
    primary: String,
}

/// One model's page.
#[derive(Template)]
#[template(path = "model.html")]
struct ModelPage<'a> {
    name: &'a str,
    /// Where this page and the form post to.
    path: String,
    /// How to reach the host.
    origin: String,
    /// The same without its scheme.
    authority: &'a str,
    version: u32,
    explicit: bool,
    description: &'a str,
    author: &'a str,
    platform: &'a str,
    isolation: &'a str,
    training: &'a [(String, String)],
    versions: Vec<VersionRow>,
    inputs: Vec<TensorRow>,
    outputs: Vec<TensorRow>,
    fields: Vec<Field>,
    takes_files: bool,
    answer: Option<AnswerRows>,
    error: Option<&'a str>,
    snippet_record: Option<String>,
    snippet_input: Option<SnippetInput>,
}

struct VersionRow {
    number: u32,
    share: String,
    role: &'static str,
    aliases: String,
    description: String,
}

struct TensorRow {
    name: String,
    datatype: &'static str,
    shape: String,
}

/// One thing to fill in.
struct Field {
    name: String,
    kind: FieldKind,
    /// As the form shows it now.
    value: String,
    required: bool,
    hint: String,
    description: String,
}

enum FieldKind {
    Number,
    Choice(Vec<Choice>),
    Json,
    /// JSON, or a file.
    File,
}

struct Choice {
    value: String,
    chosen: bool,
}

struct AnswerRows {
    version: u32,
    outputs: Vec<(String, String)>,
}

struct SnippetInput {
    name: String,
    datatype: &'static str,
    numpy: &'static str,
    values: String,
}

/// What a filled-in form led to.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// Nothing was posted.
    Empty,
    /// The answer and who gave it.
    Answered(&'a Version, &'a [Tensor]),
    /// Why there is none.
    Failed(&'a Error),
}

/// Writes the list of models. Errors: internal.
pub fn models(models: &[std::sync::Arc<Model>]) -> Result<String, Error> {
    let row = |model: &std::sync::Arc<Model>| {
        let primary = model.policy.as_ref().map(|policy| policy.primary());
        let described = primary.or_else(|| model.versions.keys().next_back().copied());
        let version = described.and_then(|number| model.versions.get(&number));
        ModelRow {
            name: model.name.to_string(),
            description: version.map(|version| summary(&version.card.description)).unwrap_or_default(),
            versions: model.versions.len(),
            primary: primary.map_or_else(|| "none promoted".to_owned(), |number| format!("v{number}")),
        }
    };
    render(&ModelsPage { models: models.iter().map(row).collect() })
}

/// Writes a model's page as `version` takes and gives. `explicit`: the caller named the version. `posted`: the form as
/// it was filled in. `authority`: the host and port that the caller reached the host under, for the snippets. Errors:
/// internal.
pub fn model(
    model: &Model,
    version: &Version,
    explicit: bool,
    authority: &str,
    posted: &[(String, String)],
    outcome: &Outcome<'_>,
) -> Result<String, Error> {
    let signature = &version.report.signature;
    let name = model.name.as_str();
    let tensors = |specs: &[TensorSpec]| specs.iter().map(tensor_row).collect();
    let example = example::fields(version);
    let table_example = example.as_deref().filter(|_| signature.table().is_some());
    let answer = match outcome {
        Outcome::Answered(version, outputs) => Some(answer(version, outputs)),
        Outcome::Empty | Outcome::Failed(_) => None,
    };
    let error = match outcome {
        Outcome::Failed(error) => Some(error.message.as_str()),
        Outcome::Empty | Outcome::Answered(..) => None,
    };
    render(&ModelPage {
        name,
        path: if explicit {
            format!("/models/{name}/v{}/", version.number)
        } else {
            format!("/models/{name}/")
        },
        origin: format!("http://{authority}"),
        authority,
        version: version.number.get(),
        explicit,
        description: &version.card.description,
        author: &version.card.author,
        platform: &version.platform,
        isolation: version.report.isolation.as_str(),
        training: &version.card.training,
        versions: versions(model),
        inputs: tensors(&signature.inputs),
        outputs: tensors(&signature.outputs),
        fields: fields(version, posted, example.as_deref()),
        takes_files: signature.inputs.iter().any(|spec| spec.dtype == DType::Bytes),
        answer,
        error,
        snippet_record: table_example.map(|fields| example::record(fields).to_string()),
        snippet_input: signature.inputs.first().map(|spec| snippet_input(spec, version)),
    })
}

/// The start of a description, with a sign where it was cut.
fn summary(description: &str) -> String {
    let start = description.get(..description.floor_char_boundary(MAX_SUMMARY)).unwrap_or_default();
    let cut = if start.len() < description.len() { "…" } else { "" };
    format!("{start}{cut}")
}

fn render(page: &impl Template) -> Result<String, Error> {
    page.render().map_err(|error| Error::internal("a page could not be written").because(error))
}

fn tensor_row(spec: &TensorSpec) -> TensorRow {
    TensorRow {
        name: spec.name.clone(),
        datatype: spec.dtype.as_str(),
        shape: DisplayShape(&spec.shape).to_string(),
    }
}

fn versions(model: &Model) -> Vec<VersionRow> {
    let policy = model.policy.as_ref();
    let shares = policy.map(|policy| policy.shares()).unwrap_or_default();
    let mut aliases = HashMap::<_, Vec<&str>>::new();
    for (alias, number) in &model.aliases {
        aliases.entry(*number).or_default().push(alias);
    }
    let row = |version: &std::sync::Arc<Version>| {
        let number = version.number;
        let share = shares.iter().find(|(other, _)| *other == number).map_or(0, |(_, buckets)| *buckets);
        let is_challenger = policy.is_some_and(|policy| policy.challengers().contains(&number));
        VersionRow {
            number: number.get(),
            share: format!("{} %", f64::from(share) * 100.0 / f64::from(BUCKETS)),
            role: match policy {
                Some(policy) if policy.primary() == number => "primary",
                _ if is_challenger => "challenger",
                _ if share > 0 => "split",
                _ => "",
            },
            aliases: aliases.get(&number).map(|aliases| aliases.join(", ")).unwrap_or_default(),
            description: summary(&version.card.description),
        }
    };
    model.versions.values().rev().map(row).collect()
}

/// What is to be filled in: with what was posted, else with the manifest's first example.
fn fields(version: &Version, posted: &[(String, String)], example: Option<&[ExampleField]>) -> Vec<Field> {
    // Where a field was posted twice, the first one counts.
    let values: HashMap<&str, &str> = if posted.is_empty() {
        example.iter().copied().flatten().map(|field| (&*field.name, &*field.text)).collect()
    } else {
        posted.iter().rev().map(|(name, value)| (&**name, &**value)).collect()
    };
    let value = |name: &str| values.get(name).copied().unwrap_or_default().to_owned();
    match crate::table::table(version) {
        Some(table) => table.columns.iter().map(|column| column_field(column, value(&column.name))).collect(),
        None => {
            let field = |spec: &TensorSpec| Field {
                name: spec.name.clone(),
                kind: if spec.dtype == DType::Bytes { FieldKind::File } else { FieldKind::Json },
                value: value(&spec.name),
                required: true,
                hint: format!("{} {}", spec.dtype, DisplayShape(&spec.shape)),
                description: String::new(),
            };
            version.report.signature.inputs.iter().map(field).collect()
        }
    }
}

fn column_field(column: &Column, value: String) -> Field {
    let kind = match &column.kind {
        ColumnKind::Numeric => FieldKind::Number,
        ColumnKind::Categorical(values) => {
            let choice = |text: &String| Choice { value: text.clone(), chosen: *text == value };
            FieldKind::Choice(values.iter().map(choice).collect())
        }
    };
    let range = match (column.minimum, column.maximum) {
        (Some(least), Some(most)) => Some(format!("{least} to {most}")),
        (Some(least), None) => Some(format!("from {least}")),
        (None, Some(most)) => Some(format!("up to {most}")),
        (None, None) => None,
    };
    let missing = column.missing.then(|| "may be empty".to_owned());
    Field {
        name: column.name.clone(),
        kind,
        value,
        required: !column.missing,
        hint: [range, column.unit.clone(), missing].into_iter().flatten().collect::<Vec<_>>().join(", "),
        description: column.description.clone().unwrap_or_default(),
    }
}

fn answer(version: &Version, outputs: &[Tensor]) -> AnswerRows {
    let (mut rows, mut left) = (Vec::new(), MAX_ANSWER);
    for output in outputs {
        // The form asks one row: its answer needs no list around it.
        let is_row = version.report.signature.table().is_some() && output.shape().first() == Some(&1);
        let text = example::written(output, is_row, left);
        left -= text.as_ref().map_or(0, String::len);
        rows.push((output.name().to_owned(), text.unwrap_or_else(|| "too long to be shown here".to_owned())));
    }
    AnswerRows { version: version.number.get(), outputs: rows }
}

fn snippet_input(spec: &TensorSpec, version: &Version) -> SnippetInput {
    let example = version.package.examples.first().and_then(|example| example.request.inputs.first());
    let values = example.and_then(|tensor| {
        let has_rows = tensor.shape().first().is_some_and(|rows| *rows > 0) && tensor.shape().len() > 1;
        let text = example::written(tensor, has_rows, MAX_EXAMPLE)?;
        Some(if has_rows { format!("[{text}]") } else { text })
    });
    let numpy = match spec.dtype {
        DType::Bool => "bool_",
        DType::Uint8 => "uint8",
        DType::Uint16 => "uint16",
        DType::Uint32 => "uint32",
        DType::Uint64 => "uint64",
        DType::Int8 => "int8",
        DType::Int16 => "int16",
        DType::Int32 => "int32",
        DType::Int64 => "int64",
        DType::Fp16 => "float16",
        DType::Fp64 => "float64",
        DType::Bytes => "object_",
        DType::Bf16 | DType::Fp32 => "float32",
    };
    SnippetInput {
        name: spec.name.clone(),
        datatype: spec.dtype.as_str(),
        numpy,
        values: values.unwrap_or_else(|| zeros(spec)),
    }
}

/// A value of the shape, each list cut so that all stays short enough to show: numpy says itself that it is not the
/// whole.
fn zeros(spec: &TensorSpec) -> String {
    let zero = if spec.dtype == DType::Bytes { "\"\"" } else { "0" };
    spec.shape.iter().take(MAX_RANK).rev().fold(zero.to_owned(), |inner, dim| {
        let wanted = dim.map_or(1, |dim| usize::try_from(dim).unwrap_or(usize::MAX));
        let most = (MAX_EXAMPLE / (2 * (inner.len() + 2))).clamp(1, 64);
        format!("[{}]", vec![inner; wanted.min(most)].join(", "))
    })
}

/// A form as it was filled in.
#[derive(Debug, Default)]
pub struct Posted {
    /// Names and values, in the order they came.
    pub fields: Vec<(String, String)>,
    /// Names and contents of files that were chosen.
    pub files: Vec<(String, Bytes)>,
}

/// Most fields and files of one form.
const MAX_FIELDS: usize = 4096;

/// Most bytes of what is filled in, files apart: people type or paste it, and it stays on the page.
const MAX_TYPED: usize = 1 << 20;

impl Posted {
    /// Takes a url-encoded form apart. Errors: invalid argument, when there is too much in it.
    pub fn read(body: &[u8]) -> Result<Self, Error> {
        check_typed(body.len())?;
        let mut posted = Self::default();
        for (name, value) in form_urlencoded::parse(body) {
            posted.add_field(name.into_owned(), value.into_owned())?;
        }
        Ok(posted)
    }

    /// One more field. Errors: invalid argument, when there is too much in the form.
    pub fn add_field(&mut self, name: String, value: String) -> Result<(), Error> {
        self.check_count()?;
        self.fields.push((name, value));
        check_typed(self.fields.iter().map(|(name, value)| name.len() + value.len()).sum())
    }

    /// One more file. Errors: invalid argument, when there are too many.
    pub fn add_file(&mut self, name: String, content: Bytes) -> Result<(), Error> {
        self.check_count()?;
        self.files.push((name, content));
        Ok(())
    }

    fn check_count(&self) -> Result<(), Error> {
        if self.fields.len() + self.files.len() < MAX_FIELDS {
            return Ok(());
        }
        Err(Error::invalid(format!("form: more than {MAX_FIELDS} fields")))
    }
}

fn check_typed(bytes: usize) -> Result<(), Error> {
    if bytes <= MAX_TYPED {
        return Ok(());
    }
    Err(Error::invalid(format!("form: more than {MAX_TYPED} bytes of text; send more than that as JSON")))
}

/// Reads a form as a request. An empty field is a missing value. Errors: invalid argument naming the field; resource
/// exhausted.
pub fn decode(
    posted: &Posted,
    version: &Version,
    sticky_field: Option<&str>,
    room: &Room,
) -> Result<InferRequest, Error> {
    let signature = &version.report.signature;
    if signature.table().is_some() {
        let mut rows = Rows::new(version, sticky_field)?;
        for (name, value) in &posted.fields {
            if let crate::table::Field::Column(at) = rows.field(name)? {
                rows.text(value.as_bytes(), at)?;
            }
        }
        rows.end_row(room)?;
        return rows.take(room);
    }
    let mut request = InferRequest::default();
    let spec_of = |name: &str| {
        let spec = signature.inputs.iter().find(|spec| spec.name == name);
        spec.ok_or_else(|| Error::invalid(format!("input {name:?} is not in the signature")))
    };
    for (name, file) in &posted.files {
        let shape = vec![1; spec_of(name)?.shape.len()];
        room.take(file.len())?;
        request.inputs.push(Tensor::from_bytes_elements(name.clone(), shape, [file.as_ref()])?);
    }
    let is_file = |name: &String| posted.files.iter().any(|(file, _)| file == name);
    for (name, value) in posted.fields.iter().filter(|(name, _)| !is_file(name)) {
        let spec = spec_of(name)?;
        let mut reader = Reader::new(value.as_bytes(), room);
        let read = read_nested(&mut reader, spec.dtype);
        let read = read.and_then(|read| reader.finish().map(|()| read));
        let (shape, data) = read.map_err(|error| error.within(format_args!("input {name:?}")))?;
        request.inputs.push(Tensor::new(name.clone(), spec.dtype, shape, data)?);
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{fp32, version, with_inputs};

    fn page(version: &Version, posted: &[(String, String)], outcome: &Outcome<'_>) -> String {
        let shown = Model::new(version.model.clone());
        model(&shown, version, false, "h:1", posted, outcome).unwrap()
    }

    fn posted(form: &[u8]) -> Posted {
        Posted::read(form).unwrap()
    }

    #[test]
    fn a_form_has_a_bound() {
        let error = Posted::read("&a".repeat(10_000).as_bytes()).unwrap_err();
        assert_eq!(error.message, "form: more than 4096 fields");
        let mut form = Posted::default();
        form.add_field("a".into(), "x".repeat(MAX_TYPED - 1)).unwrap();
        assert!(form.add_field("b".into(), String::new()).unwrap_err().message.contains("bytes of text"));
        assert!(Posted::read(&vec![b'a'; MAX_TYPED + 1]).unwrap_err().message.contains("bytes of text"));
    }

    #[test]
    fn a_long_answer_is_not_shown() {
        let outputs = [fp32("p", &[1 << 20], &vec![0.5; 1 << 20]), fp32("q", &[1], &[0.25])];
        let html =
            page(&with_inputs(&[("x", DType::Fp32, &[None])]), &[], &Outcome::Answered(&version(), &outputs));
        assert!(
            html.contains("too long to be shown") && html.contains("0.25") && html.len() < 64 << 10,
            "{html}"
        );
    }

    #[test]
    fn a_form_is_a_row() {
        let decode =
            |form: &[u8], sticky| super::decode(&posted(form), &version(), sticky, &Room::unbounded());
        let request = decode(b"age=1.5&purpose=tv&user=u%31", Some("user")).unwrap();
        assert_eq!(request.inputs, [fp32("input", &[1, 2], &[1.5, 1.0])]);
        let wrong = decode(b"age=old&purpose=", None).unwrap_err();
        assert_eq!(wrong.message, "record 0, field \"age\": \"old\" is not a number");
    }

    #[test]
    fn a_form_is_json_where_the_input_is_no_table() {
        let version = with_inputs(&[("x", DType::Int8, &[None])]);
        let decode = |form: &[u8]| super::decode(&posted(form), &version, None, &Room::unbounded());
        let request = decode(b"x=[1,2]").unwrap();
        assert_eq!(format!("{:?}", request.inputs), "[x INT8[2] (2 bytes)]");
        assert_eq!(
            decode(b"x=[1,a]").unwrap_err().message.split(": body").next(),
            Some("input \"x\": element 1")
        );
        assert!(decode(b"y=1").unwrap_err().message.contains("\"y\""));
    }

    #[test]
    fn a_file_is_the_element_of_an_input_of_bytes() {
        let version = with_inputs(&[("picture", DType::Bytes, &[None])]);
        assert!(page(&version, &[], &Outcome::Empty).contains("multipart/form-data"));
        let posted = Posted {
            fields: vec![("picture".to_owned(), String::new())],
            files: vec![("picture".to_owned(), Bytes::from_static(b"\xffpng"))],
        };
        let request = decode(&posted, &version, None, &Room::unbounded()).unwrap();
        assert_eq!(request.inputs[0].bytes_elements().collect::<Vec<_>>(), [b"\xffpng"]);
    }

    #[test]
    fn a_page_stays_short_whatever_the_shape() {
        for shape in [&[Some(64); 8][..], &[Some(u64::MAX); 32], &[None; 10_000]] {
            for dtype in [DType::Fp32, DType::Bytes] {
                let html = page(&with_inputs(&[("x", dtype, shape)]), &[], &Outcome::Empty);
                assert!(html.len() < 256 << 10, "{} bytes", html.len());
            }
        }
        let mut version = with_inputs(&[("x", DType::Fp32, &[None, Some(1 << 20)])]);
        let example = fp32("x", &[1, 1 << 20], &vec![0.5; 1 << 20]);
        version.package.examples = vec![modelhost_core::version::Example {
            request: InferRequest { inputs: vec![example], ..InferRequest::default() },
            outputs: Vec::new(),
            tolerance: 0.0,
        }];
        let html = page(&version, &[], &Outcome::Empty);
        assert!(html.len() < 256 << 10, "{} bytes", html.len());
    }

    #[test]
    fn what_others_wrote_is_escaped() {
        let mut version = version();
        version.card.description = "<script>alert(1)</script>".into();
        let posted = [("age".to_owned(), "\"><b>".to_owned())];
        let error = Error::invalid("<i>wrong</i>");
        let html = page(&version, &posted, &Outcome::Failed(&error));
        for raw in ["<script>alert", "\"><b>", "<i>wrong"] {
            assert!(!html.contains(raw), "{raw} is not escaped");
        }
        assert!(html.contains("<option"), "{html}");
        let outputs = [fp32("p", &[1], &[0.25])];
        assert!(page(&version, &posted, &Outcome::Answered(&version, &outputs)).contains("0.25"));
    }
}
