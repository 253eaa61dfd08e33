//! The JSON of signatures and policies in the catalogue. It has types of its own, so that the domain can change
//! without changing stored rows.

use modelhost_core::deployment::Bounds;
use modelhost_core::error::Error;
use modelhost_core::model::{ModelVersion, Signature};
use modelhost_core::routing::{Policy, Run, StickyKey};
use modelhost_core::tensor::{Column, ColumnKind, DType, TensorSpec};
use modelhost_core::version::Isolation;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub(crate) struct SignatureRow {
    inputs: Vec<SpecRow>,
    outputs: Vec<SpecRow>,
}

#[derive(Serialize, Deserialize)]
struct SpecRow {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    columns: Vec<ColumnRow>,
}

#[derive(Serialize, Deserialize)]
struct ColumnRow {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    categories: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    minimum: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    maximum: Option<f64>,
    #[serde(default)]
    missing: bool,
}

impl From<&Signature> for SignatureRow {
    fn from(signature: &Signature) -> Self {
        let rows = |specs: &[TensorSpec]| specs.iter().map(SpecRow::from).collect();
        Self { inputs: rows(&signature.inputs), outputs: rows(&signature.outputs) }
    }
}

impl From<&TensorSpec> for SpecRow {
    fn from(spec: &TensorSpec) -> Self {
        let dim = |dim: &Option<u64>| dim.and_then(|dim| i64::try_from(dim).ok()).unwrap_or(-1);
        Self {
            name: spec.name.clone(),
            datatype: spec.dtype.to_string(),
            shape: spec.shape.iter().map(dim).collect(),
            columns: spec.columns.iter().map(ColumnRow::from).collect(),
        }
    }
}

impl From<&Column> for ColumnRow {
    fn from(column: &Column) -> Self {
        let column = column.clone();
        Self {
            name: column.name,
            categories: match column.kind {
                ColumnKind::Numeric => None,
                ColumnKind::Categorical(values) => Some(values.into()),
            },
            description: column.description,
            unit: column.unit,
            minimum: column.minimum,
            maximum: column.maximum,
            missing: column.missing,
        }
    }
}

impl SignatureRow {
    pub(crate) fn signature(self) -> Result<Signature, Error> {
        let specs = |rows: Vec<SpecRow>| rows.into_iter().map(SpecRow::spec).collect::<Result<_, _>>();
        Ok(Signature { inputs: specs(self.inputs)?, outputs: specs(self.outputs)? })
    }
}

impl SpecRow {
    fn spec(self) -> Result<TensorSpec, Error> {
        Ok(TensorSpec {
            name: self.name,
            dtype: DType::parse(&self.datatype)?,
            shape: self.shape.into_iter().map(|dim| u64::try_from(dim).ok()).collect(),
            columns: self.columns.into_iter().map(ColumnRow::column).collect(),
        })
    }
}

impl ColumnRow {
    fn column(self) -> Column {
        Column {
            name: self.name,
            kind: self
                .categories
                .map_or(ColumnKind::Numeric, |values| ColumnKind::Categorical(values.into())),
            description: self.description,
            unit: self.unit,
            minimum: self.minimum,
            maximum: self.maximum,
            missing: self.missing,
            unknown_is_missing: false,
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct PolicyRow {
    primary: u32,
    runs: Vec<ShareRow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    challengers: Vec<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sticky: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pinned: bool,
}

/// The number of hash buckets, out of 10,000, that one version serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShareRow {
    /// The version.
    pub version: u32,
    /// Its buckets.
    pub buckets: u16,
}

impl From<&Policy> for PolicyRow {
    fn from(policy: &Policy) -> Self {
        let run = |run: &Run| ShareRow { version: run.version.get(), buckets: run.buckets };
        Self {
            primary: policy.primary().get(),
            runs: policy.runs().iter().map(run).collect(),
            challengers: policy.challengers().iter().map(|version| version.get()).collect(),
            sticky: policy.sticky().map(ToString::to_string),
            pinned: policy.is_pinned(),
        }
    }
}

impl PolicyRow {
    pub(crate) fn policy(self) -> Result<Policy, Error> {
        let run = |row: ShareRow| Ok(Run { version: ModelVersion::new(row.version)?, buckets: row.buckets });
        Policy::from_parts(
            ModelVersion::new(self.primary)?,
            self.runs.into_iter().map(run).collect::<Result<_, Error>>()?,
            self.challengers.into_iter().map(ModelVersion::new).collect::<Result<_, _>>()?,
            self.sticky.as_deref().map(StickyKey::parse).transpose()?,
        )
        .map(|policy| policy.with_pin(self.pinned))
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct BoundsRow {
    instances: u32,
    queue: u32,
    memory_bytes: u64,
    loaded_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    threads: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    isolation: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    capabilities: Vec<String>,
}

impl From<&Bounds> for BoundsRow {
    fn from(bounds: &Bounds) -> Self {
        let Bounds { instances, queue, memory_bytes, loaded_bytes, threads, isolation, capabilities } =
            bounds.clone();
        let isolation = isolation.map(|isolation| isolation.as_str().to_owned());
        Self { instances, queue, memory_bytes, loaded_bytes, threads, isolation, capabilities }
    }
}

impl BoundsRow {
    pub(crate) fn bounds(self) -> Result<Bounds, Error> {
        let Self { instances, queue, memory_bytes, loaded_bytes, threads, isolation, capabilities } = self;
        let isolation = isolation.as_deref().map(Isolation::parse).transpose()?;
        Ok(Bounds { instances, queue, memory_bytes, loaded_bytes, threads, isolation, capabilities })
    }
}

/// Reads stored JSON. Errors: internal, because the host wrote it.
pub(crate) fn read<T: for<'de> Deserialize<'de>>(what: &str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text)
        .map_err(|error| Error::internal(format!("a stored {what} cannot be read")).because(error))
}

/// Writes JSON to be stored. Errors: internal.
pub(crate) fn write<T: Serialize>(what: &str, row: &T) -> Result<String, Error> {
    serde_json::to_string(row)
        .map_err(|error| Error::internal(format!("a {what} cannot be stored")).because(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_reads_back_bucket_for_bucket() {
        let version = |number| ModelVersion::new(number).unwrap();
        let policy = Policy::single(version(6))
            .with_split(&[(version(6), 2), (version(7), 1)], Some(StickyKey::Header("x-user".into())))
            .and_then(|policy| policy.with_challengers(vec![version(8)]))
            .unwrap()
            .with_pin(true);
        let text = write("policy", &PolicyRow::from(&policy)).unwrap();
        assert_eq!(read::<PolicyRow>("policy", &text).unwrap().policy(), Ok(policy));
    }
}
