//! Deployments: named pools that versions run in, each with bounds of its own.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ErrorCode};
use crate::name;
use crate::version::Isolation;

/// A deployment's name. The default deployment holds every version that is not placed elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeploymentName(String);

impl DeploymentName {
    /// Reads a [`crate::name`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        name::check("deployment", text)?;
        Ok(Self(text.to_owned()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for DeploymentName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl fmt::Display for DeploymentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a deployment may take, all its versions together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Predictions that run at once, each in an instance.
    pub instances: u32,
    /// Predictions that wait for an instance. When more come, the newest is refused.
    pub queue: u32,
    /// Linear memory of its live instances, in bytes.
    pub memory_bytes: u64,
    /// Code, images and idle instances of the versions in memory, in bytes. Beyond it the least valuable version is
    /// unloaded.
    pub loaded_bytes: u64,
    /// Threads for predictions that run long. `None`: one for each core.
    pub threads: Option<u32>,
    /// For versions whose manifest asks for no isolation.
    pub isolation: Option<Isolation>,
    /// Imports beyond the harmless ones that manifests may ask for.
    pub capabilities: Vec<String>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            instances: 1000,
            queue: 65_536,
            memory_bytes: 16 << 30,
            loaded_bytes: 4 << 30,
            threads: None,
            isolation: None,
            capabilities: Vec::new(),
        }
    }
}

/// Most threads that one deployment may ask for.
const MAX_THREADS: u32 = 1024;

impl Bounds {
    /// The bounds of a deployment that asks for none, on a host with so many instance slots.
    pub fn on_host(instances: u32) -> Self {
        Self { instances, ..Self::default() }
    }

    /// Whether a host with so many instance slots can keep these bounds. Errors: invalid argument, naming the bound.
    pub fn check(&self, host_instances: u32) -> Result<(), Error> {
        let mib = 1_u64 << 20;
        for (name, asked, least, most) in [
            ("instances", u64::from(self.instances), 1, u64::from(host_instances)),
            ("memory_mib", self.memory_bytes / mib, 1, u64::MAX / mib),
            ("loaded_mib", self.loaded_bytes / mib, 1, u64::MAX / mib),
            ("threads", u64::from(self.threads.unwrap_or(1)), 1, u64::from(MAX_THREADS)),
        ] {
            if asked < least || asked > most {
                return Err(Error::invalid(format!("{name} = {asked} is not between {least} and {most}")));
            }
        }
        Ok(())
    }

    /// Whether manifests may ask for these imports. Errors: invalid argument, naming the first that they may not ask
    /// for.
    pub fn allow(&self, name: &DeploymentName, capabilities: &[String]) -> Result<(), Error> {
        match capabilities.iter().find(|asked| !self.capabilities.contains(asked)) {
            None => Ok(()),
            Some(asked) => Err(Error::invalid(format!(
                "capabilities: deployment {name} does not allow {asked:?}; it allows {:?}; an operator allows \
                 more with `deployment update {name} --capability {asked}`",
                self.capabilities
            ))),
        }
    }
}

/// The linear memory of a deployment's live instances, all together. An instance takes memory as it grows and gives
/// it back when it ends.
#[derive(Debug)]
pub struct MemoryBudget {
    limit: AtomicU64,
    used: AtomicU64,
}

impl MemoryBudget {
    /// At most so many bytes.
    pub fn new(limit: u64) -> Self {
        Self { limit: AtomicU64::new(limit), used: AtomicU64::new(0) }
    }

    /// From now on at most so many bytes. Bytes that are taken already stay taken.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Takes so many bytes. Errors: resource exhausted, when fewer are left; none are taken then.
    pub fn take(&self, bytes: u64) -> Result<(), Error> {
        let limit = self.limit.load(Ordering::Relaxed);
        let fits = |used: u64| used.checked_add(bytes).filter(|used| *used <= limit);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        taken.map(drop).map_err(|used| {
            let (used, limit) = (used >> 20, limit >> 20);
            let text = format!(
                "its deployment's instances use {used} of the {limit} MiB that they may have together"
            );
            Error::new(ErrorCode::ResourceExhausted, text)
        })
    }

    /// Gives back bytes that were taken.
    pub fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes that are taken now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_name_what_does_not_fit() {
        let check = |bounds: Bounds, text: &str| {
            let error = bounds.check(1000).unwrap_err();
            assert!(error.message.contains(text), "{error}");
        };
        assert_eq!(Bounds::default().check(1000), Ok(()));
        check(Bounds { instances: 0, ..Bounds::default() }, "instances = 0 is not between 1 and 1000");
        check(Bounds { instances: 1001, ..Bounds::default() }, "instances = 1001");
        check(Bounds { memory_bytes: 5, ..Bounds::default() }, "memory_mib = 0");
        check(Bounds { threads: Some(0), ..Bounds::default() }, "threads = 0");
    }

    #[test]
    fn a_budget_is_never_passed() {
        let budget = MemoryBudget::new(10);
        assert_eq!(budget.take(8), Ok(()));
        assert_eq!(budget.take(3).unwrap_err().code, ErrorCode::ResourceExhausted);
        assert_eq!(budget.take(u64::MAX).unwrap_err().code, ErrorCode::ResourceExhausted);
        budget.give_back(8);
        assert_eq!((budget.take(10), budget.used()), (Ok(()), 10));
        budget.set_limit(5);
        assert!(budget.take(0).is_err(), "a lowered limit lets nothing more in");
    }
}
