//! `model.toml`: the author's description of a version.

mod bounds;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use modelhost_core::artifact::{Artifact, Digest};
use modelhost_core::error::Error;
use modelhost_core::graph::{Backend, Batching, GraphOptions, Target};
use modelhost_core::infer::InferRequest;
use modelhost_core::tensor::{Column, ColumnKind, DType, Tensor};
use modelhost_core::version::{Card, Example, Isolation, Limits, Package};
use serde::Deserialize;

/// A parsed `model.toml`. Unknown keys are errors.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// One or two sentences for people.
    #[serde(default)]
    pub description: String,
    /// The person to ask.
    #[serde(default)]
    pub author: String,
    /// The name of a shipped runtime. A manifest has either this or `component`.
    pub runtime: Option<String>,
    /// The package's own component, a file beside the manifest.
    pub component: Option<String>,
    /// Files beside the manifest, in the order that the runtime sees.
    #[serde(default)]
    pub artifacts: Vec<String>,
    isolation: Option<IsolationKey>,
    /// Whether the response cache may answer equal requests.
    #[serde(default)]
    response_cache: bool,
    /// Imports beyond the harmless ones.
    #[serde(default)]
    pub capabilities: Vec<String>,
    #[serde(default)]
    graphs: GraphKeys,
    batching: Option<BatchingKeys>,
    #[serde(default)]
    limits: LimitKeys,
    /// Parameters of the runtime.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// The columns of the input table.
    #[serde(default)]
    pub features: Vec<Feature>,
    /// How the model was made.
    pub training: Option<Training>,
    #[serde(default)]
    examples: Vec<ExampleKeys>,
}

/// One column of the input table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// Unique in its table.
    pub name: String,
    /// The values of a categorical column. A value is sent as its index.
    pub categories: Option<Vec<String>>,
    /// For people.
    pub description: Option<String>,
    /// Unit of measure.
    pub unit: Option<String>,
    /// Smallest value seen in training.
    pub minimum: Option<f64>,
    /// Largest value seen in training.
    pub maximum: Option<f64>,
    /// Whether a row may leave the column out.
    #[serde(default)]
    pub missing: bool,
    /// What a text counts as that is none of the categories.
    #[serde(default)]
    pub unknown: Unknown,
}

/// What a text counts as that is none of a column's categories.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unknown {
    /// The caller's mistake.
    #[default]
    Error,
    /// A missing value.
    Missing,
}

/// How the model was made, for people and for the record.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Library and version, e.g. `xgboost 3.1.0`.
    pub library: String,
    /// For example `gradient-boosted trees`.
    pub algorithm: Option<String>,
    /// Where the data came from.
    pub data: Option<String>,
    /// Link to the notebook or script.
    pub notebook: Option<String>,
    /// Hyperparameters.
    #[serde(default)]
    pub parameters: BTreeMap<String, toml::Value>,
    /// Measured metrics, e.g. `auc = 0.79`.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum IsolationKey {
    Request,
    Instance,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitKeys {
    memory_mib: Option<u64>,
    deadline_ms: Option<u64>,
    concurrency: Option<u32>,
    queue: Option<u32>,
    artifact_mib: Option<u64>,
    graph_mib: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct GraphKeys {
    backend: BackendKey,
    target: TargetKey,
    device: u32,
    threads: Option<u32>,
    sessions: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum BackendKey {
    #[default]
    Auto,
    Tract,
    OnnxRuntime,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TargetKey {
    Auto,
    #[default]
    Cpu,
    Gpu,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchingKeys {
    max_batch: u32,
    #[serde(default)]
    max_delay_us: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExampleKeys {
    inputs: Vec<TensorKeys>,
    outputs: Vec<TensorKeys>,
    #[serde(default = "default_tolerance")]
    tolerance: f64,
}

fn default_tolerance() -> f64 {
    1e-6
}

/// A tensor as in the Open Inference Protocol, with flat `data`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorKeys {
    name: String,
    datatype: String,
    shape: Vec<u64>,
    data: Vec<toml::Value>,
}

impl Manifest {
    /// Reads the `model.toml` of a new version. Errors: as [`Self::parse`]; invalid argument, naming the bound that
    /// is exceeded.
    pub fn parse_new(text: &str) -> Result<Self, Error> {
        bounds::check_text(text)?;
        let manifest = Self::parse(text)?;
        bounds::check(&manifest)?;
        Ok(manifest)
    }

    /// Reads a stored `model.toml`. Errors: invalid argument, with the line, the key and what was expected.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let manifest: Self =
            toml::from_str(text).map_err(|error| Error::invalid(format!("model.toml: {error}")))?;
        if manifest.runtime.is_some() == manifest.component.is_some() {
            return Err(Error::invalid("model.toml: name either a shipped `runtime` or a `component` file"));
        }
        let names: HashSet<_> = manifest.artifacts.iter().collect();
        if names.len() != manifest.artifacts.len() {
            return Err(Error::invalid("model.toml: an artifact is named twice"));
        }
        Ok(manifest)
    }

    /// The package of this manifest, with its component and artifacts. Its limits are the manifest's or the defaults,
    /// within the operator's `cap`. Errors: invalid argument, on invalid examples or features.
    pub fn package(
        &self,
        component: Digest,
        artifacts: Vec<Artifact>,
        cap: &Limits,
    ) -> Result<Package, Error> {
        let limits = self.limits_or(&Limits::DEFAULT).capped(cap);
        Ok(Package {
            component,
            artifacts,
            parameters: self.parameters.clone().into_iter().collect(),
            columns: self.features.iter().cloned().map(column).collect::<Result<_, _>>()?,
            capabilities: self.capabilities.clone(),
            isolation: self.isolation.map(|key| match key {
                IsolationKey::Request => Isolation::Request,
                IsolationKey::Instance => Isolation::Instance,
            }),
            response_cache: self.response_cache,
            graphs: self.graphs.options()?,
            batching: self.batching.as_ref().map_or(Ok(Batching::NONE), BatchingKeys::batching)?,
            limits,
            examples: self.examples.iter().map(ExampleKeys::example).collect::<Result<_, _>>()?,
        })
    }

    /// The information for people.
    pub fn card(&self) -> Card {
        let training = self.training.as_ref().map(Training::rows).unwrap_or_default();
        Card { description: self.description.clone(), author: self.author.clone(), training }
    }

    /// `<project>_<format>`, as the Open Inference Protocol requires.
    pub fn platform(&self) -> String {
        format!("modelhost_{}", self.runtime.as_deref().unwrap_or("component"))
    }

    /// Checks that the manifest asks for no more than the operator allows. Errors: invalid argument, naming the
    /// limit.
    pub fn check_limits(&self, cap: &Limits) -> Result<(), Error> {
        self.limits_or(cap).check(cap)
    }

    fn limits_or(&self, default: &Limits) -> Limits {
        let asked = &self.limits;
        let mib = |asked: Option<u64>, default| asked.map_or(default, |mib| mib.saturating_mul(1 << 20));
        Limits {
            memory_bytes: mib(asked.memory_mib, default.memory_bytes),
            deadline: asked.deadline_ms.map_or(default.deadline, Duration::from_millis),
            concurrency: asked.concurrency.unwrap_or(default.concurrency),
            queue: asked.queue.unwrap_or(default.queue),
            artifact_bytes: mib(asked.artifact_mib, default.artifact_bytes),
            graph_bytes: mib(asked.graph_mib, default.graph_bytes),
        }
    }
}

impl GraphKeys {
    fn options(&self) -> Result<GraphOptions, Error> {
        let default = GraphOptions::default();
        let options = GraphOptions {
            backend: match self.backend {
                BackendKey::Auto => Backend::Auto,
                BackendKey::Tract => Backend::Tract,
                BackendKey::OnnxRuntime => Backend::OnnxRuntime,
            },
            target: match self.target {
                TargetKey::Auto => Target::Auto,
                TargetKey::Cpu => Target::Cpu,
                TargetKey::Gpu => Target::Gpu,
            },
            device: self.device,
            threads: self.threads.unwrap_or(default.threads),
            sessions: self.sessions,
        };
        options.check()?;
        Ok(options)
    }
}

impl BatchingKeys {
    fn batching(&self) -> Result<Batching, Error> {
        let max_delay = Duration::from_micros(self.max_delay_us);
        let batching = Batching { max_batch: self.max_batch, max_delay };
        batching.check()?;
        Ok(batching)
    }
}

impl Training {
    fn rows(&self) -> Vec<(String, String)> {
        let texts = [
            ("library", Some(&self.library)),
            ("algorithm", self.algorithm.as_ref()),
            ("data", self.data.as_ref()),
            ("notebook", self.notebook.as_ref()),
        ];
        let texts = texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?.clone())));
        let metrics = self.metrics.iter().map(|(name, value)| (name.clone(), value.to_string()));
        let parameters = self.parameters.iter().map(|(name, value)| match value {
            toml::Value::String(text) => (name.clone(), text.clone()),
            other => (name.clone(), other.to_string()),
        });
        texts.chain(metrics).chain(parameters).collect()
    }
}

fn column(feature: Feature) -> Result<Column, Error> {
    let unknown_is_missing = feature.unknown == Unknown::Missing;
    if unknown_is_missing && !feature.missing {
        let name = &feature.name;
        let text = format!("model.toml: feature {name:?}: unknown = \"missing\" needs missing = true");
        return Err(Error::invalid(text));
    }
    Ok(Column {
        name: feature.name,
        kind: feature.categories.map_or(ColumnKind::Numeric, |values| ColumnKind::Categorical(values.into())),
        description: feature.description,
        unit: feature.unit,
        minimum: feature.minimum,
        maximum: feature.maximum,
        missing: feature.missing,
        unknown_is_missing,
    })
}

impl ExampleKeys {
    fn example(&self) -> Result<Example, Error> {
        let tensors = |keys: &[TensorKeys]| keys.iter().map(TensorKeys::tensor).collect::<Result<_, _>>();
        let request = InferRequest { inputs: tensors(&self.inputs)?, ..InferRequest::default() };
        Ok(Example { request, outputs: tensors(&self.outputs)?, tolerance: self.tolerance })
    }
}

impl TensorKeys {
    fn tensor(&self) -> Result<Tensor, Error> {
        let dtype = DType::parse(&self.datatype)?;
        let mut data = Vec::new();
        for (at, value) in self.data.iter().enumerate() {
            push(dtype, value, &mut data).ok_or_else(|| {
                Error::invalid(format!(
                    "model.toml: example tensor {:?}, element {at}: {value} is no {dtype}",
                    self.name
                ))
            })?;
        }
        Tensor::new(self.name.clone(), dtype, self.shape.clone(), data.into())
    }
}

fn push(dtype: DType, value: &toml::Value, data: &mut Vec<u8>) -> Option<()> {
    let int = || value.as_integer();
    #[expect(clippy::cast_precision_loss, reason = "TOML allows 1 where 1.0 is meant")]
    let float = || value.as_float().or(value.as_integer().map(|int| int as f64));
    match dtype {
        DType::Bool => data.push(u8::from(value.as_bool()?)),
        DType::Uint8 => data.extend(u8::try_from(int()?).ok()?.to_le_bytes()),
        DType::Uint16 => data.extend(u16::try_from(int()?).ok()?.to_le_bytes()),
        DType::Uint32 => data.extend(u32::try_from(int()?).ok()?.to_le_bytes()),
        DType::Uint64 => data.extend(u64::try_from(int()?).ok()?.to_le_bytes()),
        DType::Int8 => data.extend(i8::try_from(int()?).ok()?.to_le_bytes()),
        DType::Int16 => data.extend(i16::try_from(int()?).ok()?.to_le_bytes()),
        DType::Int32 => data.extend(i32::try_from(int()?).ok()?.to_le_bytes()),
        DType::Int64 => data.extend(int()?.to_le_bytes()),
        #[expect(clippy::cast_possible_truncation, reason = "FP32 is what the author asked for")]
        DType::Fp32 => data.extend((float()? as f32).to_le_bytes()),
        DType::Fp64 => data.extend(float()?.to_le_bytes()),
        DType::Bytes => {
            let text = value.as_str()?;
            data.extend(u32::try_from(text.len()).ok()?.to_le_bytes());
            data.extend(text.as_bytes());
        }
        DType::Fp16 | DType::Bf16 => return None, // no text form in the protocol either
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let error = Manifest::parse(text)
            .and_then(|manifest| manifest.package(Digest::from_bytes([0; 32]), Vec::new(), &Limits::DEFAULT))
            .unwrap_err();
        assert!(error.message.contains(expected), "{error}");
    }

    #[test]
    fn names_what_is_wrong() {
        check("", "either a shipped `runtime` or a `component`");
        check("runtime = 'a'\ncomponent = 'b'", "either");
        check("runtime = 'a'\ncolour = 'red'", "unknown field `colour`");
        check("runtime = 'a'\nisolation = 'none'", "`request` or `instance`");
        check("runtime = 'a'\nartifacts = ['x', 'x']", "named twice");
        check(
            "runtime = 'a'\n[[features]]\nname = 'x'\nunknown = 'missing'",
            "feature \"x\": unknown = \"missing\" needs missing = true",
        );
        check("runtime = 'a'\n[[features]]\nname = 'x'\nunknown = 'zero'", "`error` or `missing`");
        check(
            "runtime = 'a'\n[[examples]]\ninputs = [{name='x', datatype='INT8', shape=[1], data=[300]}]\noutputs=[]",
            "tensor \"x\", element 0: 300 is no INT8",
        );
    }

    #[test]
    fn limits_take_the_manifests_units() {
        let text = "runtime = 'a'\n[limits]\nmemory_mib = 3\ndeadline_ms = 20";
        let limits = Manifest::parse(text).unwrap().limits_or(&Limits::DEFAULT);
        assert_eq!((limits.memory_bytes, limits.deadline), (3 << 20, Duration::from_millis(20)));
        assert_eq!(limits.concurrency, Limits::DEFAULT.concurrency);
    }
}
