//! Caches answers to equal requests, for versions whose manifest asks for it. Such a version runs in fresh instances,
//! so equal requests get equal bytes, and an answer stays right until it is evicted.
//!
//! The key is a digest of the model's name, the version's digest and the canonical request. So models never share
//! answers. The cache is bounded in bytes. Concurrent equal requests run once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::infer::InferRequest;
use modelhost_core::tensor::Tensor;
use modelhost_core::version::Version;
use moka::future::Cache;
use sha2::{Digest, Sha256};

/// Bytes of an entry besides its tensors.
const OVERHEAD: usize = 256;

pub(crate) struct ResponseCache {
    entries: Cache<[u8; 32], Entry>,
}

#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) outputs: Arc<Vec<Tensor>>,
    made: Instant,
}

/// What the cache did for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cached {
    /// The answer was in the cache since this time, or was just being made for another request.
    Hit(Duration),
    /// The answer was made for this request and is cached.
    Miss,
}

impl ResponseCache {
    /// A cache of at most `bytes`.
    pub(crate) fn new(bytes: u64) -> Self {
        let weigh = |_: &[u8; 32], entry: &Entry| {
            let bytes: usize =
                entry.outputs.iter().map(|output| output.data().len() + output.name().len()).sum();
            u32::try_from(bytes + OVERHEAD).unwrap_or(u32::MAX)
        };
        Self { entries: Cache::builder().max_capacity(bytes).weigher(weigh).build() }
    }

    /// Returns the cached answer, or makes it with `make`. Concurrent callers of the same key wait for that until
    /// `until`. If the maker leaves, another one of them makes the answer. Errors: those of `make`; deadline
    /// exceeded.
    pub(crate) async fn answer(
        &self,
        key: [u8; 32],
        until: Instant,
        make: impl Future<Output = Result<Arc<Vec<Tensor>>, Error>>,
    ) -> Result<(Arc<Vec<Tensor>>, Cached), Error> {
        let made = async { make.await.map(|outputs| Entry { outputs, made: Instant::now() }) };
        let found = self.entries.entry(key).or_try_insert_with(made);
        let late = |_| {
            let text = "the request's deadline passed while an equal one was answered";
            Error::new(ErrorCode::DeadlineExceeded, text)
        };
        let entry = tokio::time::timeout_at(until.into(), found).await.map_err(late)?;
        let entry = entry.map_err(|error: Arc<Error>| Error::clone(&error))?;
        let cached = if entry.is_fresh() { Cached::Miss } else { Cached::Hit(entry.value().made.elapsed()) };
        Ok((entry.into_value().outputs, cached))
    }
}

/// The inputs of a conforming request have the signature's order. The parameters are sorted by name, and the id is
/// left out. Each part is preceded by its length, so that different requests have different keys.
pub(crate) fn key(version: &Version, request: &InferRequest) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(version.model.as_str().as_bytes());
    part(version.digest.to_string().as_bytes());
    part(&(request.inputs.len() as u64).to_le_bytes());
    for input in &request.inputs {
        part(input.name().as_bytes());
        part(input.dtype().as_str().as_bytes());
        part(&input.shape().iter().flat_map(|dim| dim.to_le_bytes()).collect::<Vec<_>>());
        part(input.data());
    }
    part(&(request.outputs.len() as u64).to_le_bytes());
    for output in &request.outputs {
        part(output.as_bytes());
    }
    let mut parameters: Vec<_> = request.parameters.iter().collect();
    parameters.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, value) in parameters {
        part(name.as_bytes());
        part(format!("{value:?}").as_bytes());
    }
    hash.finalize().into()
}
