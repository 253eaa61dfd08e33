//! What the admin API does, free of HTTP.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use modelhost_core::artifact::{Artifact, Digest};
use modelhost_core::deployment::{DeploymentName, MemoryBudget};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::model::{ModelName, ModelVersion};
use modelhost_core::ports::{Lifecycle, ModelRuntime};
use modelhost_core::routing::{BUCKETS, Policy, StickyKey};
use modelhost_core::version::{Limits, Model, Package, Version};
use modelhost_registry::{Back, Blobs, Catalog, Change, HistoryEntry, Manifest, Registration};
use tokio::sync::oneshot;

use crate::intake::Intake;
use crate::wire;

/// Most lines that a history answers with.
const HISTORY: u32 = 1000;

/// How often a challenger compared how, by outcome: served version, challenger.
pub type CountComparisons =
    dyn Fn(&ModelName, ModelVersion, ModelVersion) -> Vec<(&'static str, u64)> + Send + Sync;

/// Makes a list aside: what it is called, and what writes it.
pub type MakeAside = dyn Fn(
        String,
        Box<dyn FnOnce() -> Result<Vec<u8>, Error> + Send>,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, Error>> + Send>>
    + Send
    + Sync;

/// Everything that operators can change.
pub struct Admin {
    /// What is registered.
    pub catalog: Arc<Catalog>,
    /// The content of artifacts and components.
    pub blobs: Blobs,
    /// Tries a version before it is registered.
    pub runtime: Arc<dyn ModelRuntime>,
    /// What is in memory.
    pub lifecycle: Arc<dyn Lifecycle>,
    /// Shipped runtimes by name.
    pub runtimes: BTreeMap<String, Digest>,
    /// Counts of challengers' comparisons.
    pub comparisons: Box<CountComparisons>,
    /// What a manifest may ask for at most.
    pub limits_cap: Limits,
    /// Instances that this host has room for.
    pub host_instances: u32,
    /// Largest file that can be uploaded.
    pub max_blob_bytes: u64,
    /// What bounds bodies.
    pub intake: Intake,
    /// Where lists are made.
    pub aside: Box<MakeAside>,
}

impl Admin {
    /// Loads a version and, if all its steps pass, registers it. Trying it ends when its caller `left`; what was tried
    /// is registered to the end. Errors: what the failing step says; nothing changes then.
    pub async fn register(
        &self,
        name: &ModelName,
        request: &wire::Register,
        left: oneshot::Receiver<()>,
    ) -> Result<wire::Registered, Error> {
        let deployment =
            request.deployment.as_deref().map(DeploymentName::parse).transpose()?.unwrap_or_default();
        let bounds = self.bounds(&deployment)?;
        let text = request.manifest.clone();
        let manifest = self.intake.work(move || Manifest::parse_new(&text)).await?;
        let (card, platform) = (manifest.card(), manifest.platform());
        let mut package = self.package(name, manifest, &request.files).await?;
        bounds.allow(&deployment, &package.capabilities)?;
        package.isolation = package.isolation.or(bounds.isolation);
        // One instance, within the version's own limit; the deployment's instances are not pushed aside for it.
        let memory = Arc::new(MemoryBudget::new(u64::MAX));
        let loaded = tokio::select! {
            loaded = self.runtime.load(&package, None, &memory) => loaded?,
            _ = left => return Err(Error::new(ErrorCode::Unavailable, "nobody waits for the registration any more")),
        };
        let report = loaded.report().clone();
        let manifest = &request.manifest;
        let registration =
            Registration { model: name, manifest, package, report, card, platform, deployment };
        let version =
            self.catalog.register(registration, |snapshot| self.lifecycle.publish(snapshot)).await?;
        tracing::info!(model = %name, version = %version.number, digest = %version.digest, "registered");
        if request.promote {
            let registered = |error: Error| {
                error.within(format_args!("version {} is registered, but not promoted", version.number))
            };
            self.promote(name, version.number).await.map_err(registered)?;
        }
        Ok(wire::Registered {
            model: name.to_string(),
            version: version.number.get(),
            digest: version.digest.to_string(),
            isolation: version.report.isolation.as_str().to_owned(),
            note: version.report.isolation_note.clone(),
        })
    }

    async fn package(
        &self,
        model: &ModelName,
        manifest: Manifest,
        files: &BTreeMap<String, String>,
    ) -> Result<Package, Error> {
        let component = match (&manifest.runtime, &manifest.component) {
            (Some(runtime), _) => *self.runtimes.get(runtime).ok_or_else(|| {
                let known: Vec<_> = self.runtimes.keys().collect();
                Error::invalid(format!(
                    "runtime {runtime:?} is not shipped with this host, which has {known:?}"
                ))
            })?,
            (None, component) => {
                self.file(model, component.as_deref().unwrap_or_default(), files).await?.digest
            }
        };
        let mut artifacts = Vec::new();
        for name in &manifest.artifacts {
            artifacts.push(self.file(model, name, files).await?);
        }
        manifest.check_limits(&self.limits_cap)?;
        let cap = self.limits_cap;
        let package = self.intake.work(move || manifest.package(component, artifacts, &cap)).await?;
        package.check_artifacts().map_err(|error| Error::invalid(error.message))?;
        Ok(package)
    }

    async fn file(
        &self,
        model: &ModelName,
        name: &str,
        files: &BTreeMap<String, String>,
    ) -> Result<Artifact, Error> {
        let digest = files.get(name).ok_or_else(|| Error::invalid(format!("file {name:?} was not sent")))?;
        let digest = Digest::parse(digest)?;
        let missing = || {
            let prefix = model.prefix();
            Error::invalid(format!("file {name:?}: blob {digest} was not uploaded to prefix {prefix:?}"))
        };
        let bytes = self.blob(model, digest).await?.ok_or_else(missing)?;
        Ok(Artifact { name: name.to_owned(), digest, bytes })
    }

    /// Stores a file that versions of the model's prefix may then name. Errors: as of [`Intake::file`].
    pub(crate) async fn upload(&self, model: &ModelName, digest: Digest, body: Body) -> Result<(), Error> {
        self.intake.file(&self.blobs, digest, self.max_blob_bytes, body).await?;
        self.catalog.possess(model.prefix(), digest).await
    }

    /// Bytes of a file that the model's prefix brought, if it did. Errors: internal.
    pub(crate) async fn blob(&self, model: &ModelName, digest: Digest) -> Result<Option<u64>, Error> {
        let possesses = self.catalog.possesses(model.prefix(), digest).await?;
        Ok(possesses.then(|| self.blobs.size(digest)).flatten())
    }

    /// All traffic to one version. Errors: not found; what loading it says.
    pub async fn promote(&self, name: &ModelName, number: ModelVersion) -> Result<wire::Policy, Error> {
        let pinned = |model: &Model| model.policy.as_ref().is_some_and(Policy::is_pinned);
        let plan = |model: &Model| {
            let policy = Policy::single(number).with_pin(pinned(model));
            Ok(Change { action: format!("promote {number}"), policy, back: Back::ToThePolicyBefore })
        };
        self.set_policy(name, plan).await
    }

    /// Keeps the versions that the policy names in memory, or no longer does. Errors: not found; conflict when nothing
    /// was promoted; what loading says.
    pub async fn pin(&self, name: &ModelName, pinned: bool) -> Result<wire::Policy, Error> {
        let plan = |model: &Model| {
            let conflict =
                || Error::new(ErrorCode::Conflict, format!("model {name} has no promoted version to pin"));
            let policy = model.policy.clone().ok_or_else(conflict)?.with_pin(pinned);
            let action = if pinned { "pin" } else { "pin --off" }.to_owned();
            Ok(Change { action, policy, back: Back::AsBefore })
        };
        self.set_policy(name, plan).await
    }

    /// Brings a version into memory. Errors: not found; what loading says.
    pub async fn preload(&self, name: &ModelName, number: ModelVersion) -> Result<wire::Preloaded, Error> {
        let version = self.version(name, number)?;
        self.lifecycle.ready(&version).await?;
        Ok(wire::Preloaded { loaded: true })
    }

    /// Traffic by weight. Errors: not found; conflict when nothing was promoted; what loading says.
    pub async fn split(&self, name: &ModelName, split: &wire::Split) -> Result<wire::Policy, Error> {
        let weights = split
            .weights
            .iter()
            .map(|weight| Ok((ModelVersion::new(weight.version)?, weight.weight)))
            .collect::<Result<Vec<_>, Error>>()?;
        let sticky = split.sticky.as_deref().map(StickyKey::parse).transpose()?;
        let text: Vec<_> = weights.iter().map(|(version, weight)| format!("{version}={weight}")).collect();
        let plan = |model: &Model| {
            let first = weights.first().map_or(ModelVersion::FIRST, |(version, _)| *version);
            let current = model.policy.clone().unwrap_or_else(|| Policy::single(first));
            let policy = current.with_split(&weights, sticky)?;
            Ok(Change { action: format!("split {}", text.join(" ")), policy, back: Back::ToThePolicyBefore })
        };
        self.set_policy(name, plan).await
    }

    /// Who sees requests in the shadow. Errors: not found; conflict when nothing was promoted; what loading says.
    pub async fn challenge(
        &self,
        name: &ModelName,
        challenge: &wire::Challenge,
    ) -> Result<wire::Policy, Error> {
        let numbers = challenge.challengers.iter().map(|number| ModelVersion::new(*number));
        let challengers = numbers.collect::<Result<Vec<_>, _>>()?;
        let text: Vec<_> = challengers.iter().map(ToString::to_string).collect();
        let action =
            if text.is_empty() { "challenge --none".into() } else { format!("challenge {}", text.join(" ")) };
        let plan = |model: &Model| {
            let conflict = || {
                Error::new(ErrorCode::Conflict, format!("model {name} has no promoted version to challenge"))
            };
            let policy = model.policy.as_ref().ok_or_else(conflict)?.with_challengers(challengers)?;
            Ok(Change { action, policy, back: Back::AsBefore })
        };
        self.set_policy(name, plan).await
    }

    /// Back to the policy before. Errors: not found; conflict when there is none; what loading says.
    pub async fn rollback(&self, name: &ModelName) -> Result<wire::Policy, Error> {
        let plan = |model: &Model| {
            let nothing = || {
                Error::new(ErrorCode::Conflict, format!("model {name} has no earlier policy to roll back to"))
            };
            let policy = model.previous.clone().ok_or_else(nothing)?;
            Ok(Change { action: "rollback".to_owned(), policy, back: Back::Further })
        };
        self.set_policy(name, plan).await
    }

    async fn set_policy(
        &self,
        name: &ModelName,
        plan: impl FnOnce(&Model) -> Result<Change, Error>,
    ) -> Result<wire::Policy, Error> {
        let prepare = async |versions: Vec<Arc<Version>>| self.prepare(versions).await;
        let publish = |snapshot| self.lifecycle.publish(snapshot);
        let policy = self.catalog.set_policy(name, plan, prepare, publish).await?;
        tracing::info!(model = %name, traffic = ?policy.shares(), "policy changed");
        Ok(policy_wire(&policy))
    }

    /// What gets traffic is in memory first, so that no caller waits for it.
    async fn prepare(&self, versions: Vec<Arc<Version>>) -> Result<(), Error> {
        for version in versions {
            self.lifecycle
                .ready(&version)
                .await
                .map_err(|error| error.within(format_args!("version {} does not load", version.number)))?;
        }
        Ok(())
    }

    /// Points an alias at a version, or removes it. Errors: not found; what loading says.
    pub async fn alias(
        &self,
        name: &ModelName,
        alias: &str,
        number: Option<ModelVersion>,
    ) -> Result<(), Error> {
        let prepare = async |versions: Vec<Arc<Version>>| self.prepare(versions).await;
        self.catalog
            .set_alias(name, alias, number, prepare, |snapshot| self.lifecycle.publish(snapshot))
            .await
    }

    /// Forgets a loaded version; its next request loads it again. Errors: not found.
    pub fn unload(&self, name: &ModelName, number: ModelVersion) -> Result<wire::Unloaded, Error> {
        Ok(wire::Unloaded { unloaded: self.lifecycle.unload(&*self.version(name, number)?) })
    }

    /// Every prefix and how many models it holds.
    pub fn prefixes(&self) -> Vec<wire::PrefixRow> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for name in self.catalog.snapshot().models.keys() {
            *counts.entry(name.prefix().to_owned()).or_default() += 1;
        }
        counts.into_iter().map(|(prefix, models)| wire::PrefixRow { prefix, models }).collect()
    }

    /// Every model, or those of one prefix, by name.
    pub fn models(&self, prefix: Option<&str>) -> Vec<wire::ModelRow> {
        let snapshot = self.catalog.snapshot();
        let wanted = |name: &ModelName| prefix.is_none_or(|prefix| name.prefix() == prefix);
        let mut models: Vec<_> = snapshot.models.values().filter(|model| wanted(&model.name)).collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        let row = |model: &Arc<Model>| wire::ModelRow {
            model: model.name.to_string(),
            versions: model.versions.len(),
            latest: model.versions.keys().next_back().map(|number| number.get()),
            policy: model.policy.as_ref().map(policy_wire),
        };
        models.into_iter().map(row).collect()
    }

    /// One model with its versions. Errors: not found.
    pub fn show(&self, name: &ModelName) -> Result<wire::ModelDetail, Error> {
        let model = self.model(name)?;
        let policy = model.policy.as_ref().map(policy_wire);
        let shares = policy.iter().flat_map(|policy| &policy.shares);
        let percents: HashMap<u32, f64> = shares.map(|share| (share.version, share.percent)).collect();
        let mut aliases: HashMap<ModelVersion, Vec<String>> = HashMap::new();
        for (alias, number) in &model.aliases {
            aliases.entry(*number).or_default().push(alias.clone());
        }
        let row = |version: &Arc<Version>| {
            let number = version.number;
            wire::VersionRow {
                version: number.get(),
                digest: version.digest.to_string(),
                isolation: version.report.isolation.as_str().to_owned(),
                loaded: self.lifecycle.is_ready(version),
                percent: percents.get(&number.get()).copied().unwrap_or(0.0),
                challenger: model
                    .policy
                    .as_ref()
                    .is_some_and(|policy| policy.challengers().contains(&number)),
                aliases: aliases.get(&number).cloned().unwrap_or_default(),
                description: version.card.description.clone(),
                deployment: model.deployment(number).to_string(),
            }
        };
        Ok(wire::ModelDetail {
            model: name.to_string(),
            versions: model.versions.values().map(row).collect(),
            policy,
            aliases: self.aliases(name)?,
            challengers: self.comparisons_of(&model),
        })
    }

    /// A model's aliases. Errors: not found.
    pub(crate) fn aliases(&self, name: &ModelName) -> Result<BTreeMap<String, u32>, Error> {
        let model = self.model(name)?;
        Ok(model.aliases.iter().map(|(alias, number)| (alias.clone(), number.get())).collect())
    }

    fn comparisons_of(&self, model: &Model) -> Vec<wire::Comparisons> {
        let Some(policy) = &model.policy else { return Vec::new() };
        let served = policy.shares();
        let pairs = policy.challengers().iter().flat_map(|challenger| {
            served
                .iter()
                .map(|(served, _)| (*served, *challenger))
                .filter(|(served, challenger)| served != challenger)
        });
        let counted = |(served, challenger): (ModelVersion, ModelVersion)| {
            let counts = (self.comparisons)(&model.name, served, challenger);
            let outcomes = counts.into_iter().map(|(outcome, count)| (outcome.to_owned(), count)).collect();
            wire::Comparisons { served: served.get(), challenger: challenger.get(), outcomes }
        };
        pairs.map(counted).collect()
    }

    /// Every policy the model had, the latest first. Errors: not found; internal.
    pub(crate) async fn history(&self, name: &ModelName) -> Result<Vec<HistoryEntry>, Error> {
        self.catalog.history(name, HISTORY).await
    }

    fn version(&self, name: &ModelName, number: ModelVersion) -> Result<Arc<Version>, Error> {
        let found = self.model(name)?.versions.get(&number).cloned();
        found.ok_or_else(|| Error::not_found(format!("model {name} has no version {number}")))
    }

    pub(crate) fn model(&self, name: &ModelName) -> Result<Arc<Model>, Error> {
        let found = self.catalog.snapshot().models.get(name).cloned();
        found.ok_or_else(|| Error::not_found(format!("model {name} is not registered")))
    }
}

impl From<HistoryEntry> for wire::HistoryRow {
    fn from(entry: HistoryEntry) -> Self {
        let policy = policy_wire(&entry.policy);
        Self { policy, action: entry.action, at_ms: entry.at_ms, current: entry.current }
    }
}

pub(crate) fn policy_wire(policy: &Policy) -> wire::Policy {
    let share = |(version, buckets): (ModelVersion, u16)| wire::Share {
        version: version.get(),
        percent: f64::from(buckets) * 100.0 / f64::from(BUCKETS),
    };
    wire::Policy {
        primary: policy.primary().get(),
        shares: policy.shares().into_iter().map(share).collect(),
        challengers: policy.challengers().iter().map(|version| version.get()).collect(),
        sticky: policy.sticky().map(ToString::to_string),
        pinned: policy.is_pinned(),
    }
}
