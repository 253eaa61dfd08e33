//! Decides which version answers a request: the policy is data, and a pure function reads it.
//!
//! A policy cuts the 10,000 buckets of a hash (or of a random draw) into runs. Each run belongs to one version. A new
//! split moves as few buckets as its weights require and leaves the rest where they are. So raising a version's share
//! never moves a caller that already reaches it, however many versions there are.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::error::Error;
use crate::model::ModelVersion;

#[cfg(test)]
mod tests;

/// The unit of a share: one bucket is 0.01 % of the traffic.
pub const BUCKETS: u16 = 10_000;

/// Most versions in one split or challenging one model.
pub const MAX_VERSIONS: usize = 16;

/// Consecutive buckets that one version serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The version that serves them.
    pub version: ModelVersion,
    /// The number of buckets.
    pub buckets: u16,
}

/// What identifies a caller, so that the same caller reaches the same version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StickyKey {
    /// The value of this HTTP header.
    Header(String),
    /// The request parameter of this name. For JSON records it is this field of the first record.
    Field(String),
}

impl StickyKey {
    /// Reads `header:x-user-id` or `field:customer`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        match text.split_once(':') {
            Some(("header", name)) if !name.is_empty() => Ok(Self::Header(name.to_ascii_lowercase())),
            Some(("field", name)) if !name.is_empty() => Ok(Self::Field(name.to_owned())),
            _ => Err(Error::invalid(format!("sticky key {text:?} is neither header:NAME nor field:NAME"))),
        }
    }
}

impl std::fmt::Display for StickyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Field(name) => write!(f, "field:{name}"),
        }
    }
}

/// How a model's traffic is routed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    primary: ModelVersion,
    runs: Vec<Run>,
    challengers: Vec<ModelVersion>,
    sticky: Option<StickyKey>,
    pinned: bool,
}

/// Which version answers, and which see a copy of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Answers the caller.
    pub serve: ModelVersion,
    challengers: &'a [ModelVersion],
}

impl Decision<'_> {
    /// The versions that see a copy: every challenger except the one that answers.
    pub fn mirror(&self) -> impl Iterator<Item = ModelVersion> {
        self.challengers.iter().copied().filter(|version| *version != self.serve)
    }
}

impl Policy {
    /// All traffic to one version.
    pub fn single(version: ModelVersion) -> Self {
        let runs = vec![Run { version, buckets: BUCKETS }];
        Self { primary: version, runs, challengers: Vec::new(), sticky: None, pinned: false }
    }

    /// A policy from storage. Errors: runs that do not add up to [`BUCKETS`], or a primary that serves nothing.
    pub fn from_parts(
        primary: ModelVersion,
        runs: Vec<Run>,
        challengers: Vec<ModelVersion>,
        sticky: Option<StickyKey>,
    ) -> Result<Self, Error> {
        let total: u32 = runs.iter().map(|run| u32::from(run.buckets)).sum();
        if total != u32::from(BUCKETS) || !runs.iter().any(|run| run.version == primary) {
            return Err(Error::internal(format!("a stored policy covers {total} of {BUCKETS} buckets")));
        }
        Ok(Self { primary, runs, challengers, sticky, pinned: false })
    }

    /// The version that the others are measured against.
    pub fn primary(&self) -> ModelVersion {
        self.primary
    }

    /// The runs, in bucket order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The versions that see a copy of every request.
    pub fn challengers(&self) -> &[ModelVersion] {
        &self.challengers
    }

    /// What identifies a caller. Without it every request is drawn anew.
    pub fn sticky(&self) -> Option<&StickyKey> {
        self.sticky.as_ref()
    }

    /// Whether the versions it names stay in memory, and are loaded when the host starts.
    pub fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// The same policy, its versions pinned or not.
    pub fn with_pin(self, pinned: bool) -> Self {
        Self { pinned, ..self }
    }

    /// Every version that serves, with its buckets out of [`BUCKETS`], in order of first appearance.
    pub fn shares(&self) -> Vec<(ModelVersion, u16)> {
        let mut shares: Vec<(ModelVersion, u16)> = Vec::new();
        for run in &self.runs {
            match shares.iter_mut().find(|(version, _)| *version == run.version) {
                Some((_, buckets)) => *buckets += run.buckets,
                None => shares.push((run.version, run.buckets)),
            }
        }
        shares
    }

    /// Every version that the policy names, to serve or to challenge.
    pub fn versions(&self) -> Vec<ModelVersion> {
        let mut versions: Vec<_> = self.runs.iter().map(|run| run.version).collect();
        versions.extend(&self.challengers);
        versions.sort_unstable();
        versions.dedup();
        versions
    }

    /// The same policy with other challengers. Errors: more than [`MAX_VERSIONS`].
    pub fn with_challengers(&self, challengers: Vec<ModelVersion>) -> Result<Self, Error> {
        if challengers.len() > MAX_VERSIONS {
            return Err(Error::invalid(format!("{} challengers: at most {MAX_VERSIONS}", challengers.len())));
        }
        Ok(Self { challengers, ..self.clone() })
    }

    /// The same challengers under new weights. As few buckets as possible move. Weights are relative to their sum.
    /// The primary stays if it still serves; otherwise the first version that is named takes over. Errors: no weight,
    /// all zero, a version twice, more than [`MAX_VERSIONS`].
    pub fn with_split(
        &self,
        weights: &[(ModelVersion, u32)],
        sticky: Option<StickyKey>,
    ) -> Result<Self, Error> {
        let targets = bucket_targets(weights)?;
        let serving = targets.iter().filter(|(_, buckets)| *buckets > 0);
        let versions: Vec<_> = serving.map(|(version, _)| *version).collect();
        let kept = versions.contains(&self.primary).then_some(self.primary);
        let primary = kept.or(versions.first().copied()).unwrap_or(self.primary);
        let runs = reassign(&self.runs, targets);
        Ok(Self { primary, runs, challengers: self.challengers.clone(), sticky, pinned: self.pinned })
    }
}

/// Decides which version answers. `key` identifies the caller when the policy is sticky. `draw` is 64 random bits for
/// the case without a key. `seed` (from the model's name) makes the choice for one caller independent between models.
/// Pure: the same arguments give the same decision on every host and release (XXH3-64).
pub fn decide<'a>(policy: &'a Policy, seed: u64, key: Option<&[u8]>, draw: u64) -> Decision<'a> {
    let hash = key.map_or(draw, |key| xxh3_64_with_seed(key, seed));
    Decision { serve: version_at(policy, bucket(hash)), challengers: &policy.challengers }
}

/// The seed that belongs to a model's name.
pub fn seed(model: &str) -> u64 {
    xxh3_64_with_seed(model.as_bytes(), 0)
}

/// Scales 64 bits to a bucket without the bias of a remainder (Lemire 2019, "Fast random integer generation").
fn bucket(hash: u64) -> u16 {
    let scaled = (u128::from(hash) * u128::from(BUCKETS)) >> 64;
    u16::try_from(scaled).unwrap_or(BUCKETS - 1)
}

fn version_at(policy: &Policy, bucket: u16) -> ModelVersion {
    let mut end = 0;
    for run in &policy.runs {
        end += run.buckets;
        if bucket < end {
            return run.version;
        }
    }
    policy.primary
}

/// Buckets per version by largest remainder, so that they add up to exactly [`BUCKETS`].
fn bucket_targets(weights: &[(ModelVersion, u32)]) -> Result<Vec<(ModelVersion, u16)>, Error> {
    let total: u64 = weights.iter().map(|(_, weight)| u64::from(*weight)).sum();
    if total == 0 {
        return Err(Error::invalid("a split needs at least one version with a weight above 0"));
    }
    if weights.len() > MAX_VERSIONS {
        return Err(Error::invalid(format!(
            "a split over {} versions: at most {MAX_VERSIONS}",
            weights.len()
        )));
    }
    let mut targets = Vec::with_capacity(weights.len());
    let mut remainders = Vec::with_capacity(weights.len());
    for (at, (version, weight)) in weights.iter().enumerate() {
        if weights.iter().take(at).any(|(earlier, _)| earlier == version) {
            return Err(Error::invalid(format!("version {version} stands twice in the split")));
        }
        let exact = u64::from(*weight) * u64::from(BUCKETS);
        targets.push((*version, u16::try_from(exact / total).unwrap_or(BUCKETS)));
        remainders.push((exact % total, at));
    }
    let given: u16 = targets.iter().map(|(_, buckets)| buckets).sum();
    remainders.sort_by_key(|(remainder, at)| (std::cmp::Reverse(*remainder), *at));
    for (_, at) in remainders.iter().take(usize::from(BUCKETS - given)) {
        if let Some((_, buckets)) = targets.get_mut(*at) {
            *buckets += 1;
        }
    }
    Ok(targets)
}

/// Every version keeps its buckets up to its target. Buckets beyond the target go, in bucket order, to the versions
/// that have too few.
fn reassign(runs: &[Run], mut targets: Vec<(ModelVersion, u16)>) -> Vec<Run> {
    let mut kept: Vec<(Option<ModelVersion>, u16)> = Vec::new();
    for run in runs {
        let room = targets.iter_mut().find(|(version, _)| *version == run.version);
        let keep = room.map_or(0, |(_, room)| {
            let keep = run.buckets.min(*room);
            *room -= keep;
            keep
        });
        kept.push((Some(run.version), keep));
        kept.push((None, run.buckets - keep));
    }
    let mut result: Vec<Run> = Vec::new();
    let mut push = |version, buckets: u16| match result.last_mut() {
        Some(last) if last.version == version => last.buckets += buckets,
        _ if buckets > 0 => result.push(Run { version, buckets }),
        _ => {}
    };
    let mut short = targets.into_iter().filter(|(_, buckets)| *buckets > 0);
    let mut next = short.next();
    for (owner, mut free) in kept {
        if let Some(version) = owner {
            push(version, free);
            continue;
        }
        while let Some((version, needed)) = next.as_mut() {
            let take = free.min(*needed);
            push(*version, take);
            *needed -= take;
            free -= take;
            if *needed > 0 {
                break;
            }
            next = short.next();
        }
    }
    result
}
