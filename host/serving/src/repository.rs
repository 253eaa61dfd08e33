//! The versions in memory, as protocols show and control them: index, statistics, load, unload.

use std::sync::Arc;

use modelhost_core::error::Error;
use modelhost_core::event::Statistics;
use modelhost_core::version::{Model, Version};

use crate::lifecycle::{Route, Serving};
use crate::residence::Who;
use crate::resolve::Target;
use crate::slot::Slot;

/// A version, and why it cannot answer.
pub type Availability = (Arc<Version>, Option<String>);

impl Serving {
    /// All models by name.
    pub fn models(&self) -> Vec<Arc<Model>> {
        let mut models: Vec<_> = self.table.load().values().map(|route| Arc::clone(&route.model)).collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    /// All versions, or those of one model, by name and number. Errors: not found.
    pub fn availability(&self, model: Option<&str>) -> Result<Vec<Availability>, Error> {
        let slots = self.slots_of(model)?;
        Ok(slots.iter().map(|slot| (Arc::clone(&slot.version), slot.residence.unavailable())).collect())
    }

    /// What versions did as primaries: of one version, of a model, or all. Errors: not found.
    pub fn statistics(&self, target: Option<Target<'_>>) -> Result<Vec<(Arc<Version>, Statistics)>, Error> {
        let mut slots = self.slots_of(target.map(|target| target.model))?;
        if let Some(target) = target.filter(|target| target.version.is_some()) {
            let (_, version) = self.describe(target)?;
            slots.retain(|slot| slot.version.number == version.number);
        }
        Ok(slots.iter().map(|slot| (Arc::clone(&slot.version), slot.recorder.statistics())).collect())
    }

    /// Loads the versions of the model's policy, or its latest version. Lets all versions of the model answer again.
    /// Errors: not found; those of the load.
    pub async fn load_model(&self, model: &str) -> Result<(), Error> {
        let route = self.bring_back(model)?;
        let named = route.model.policy.as_ref().map(|policy| policy.versions());
        let wanted =
            named.unwrap_or_else(|| route.model.versions.keys().next_back().copied().into_iter().collect());
        for slot in wanted.into_iter().filter_map(|number| route.slot(number)) {
            slot.load(Who::Operator).await?;
        }
        Ok(())
    }

    /// Unloads all versions of the model. None answers until the model is loaded again or promoted. Running requests
    /// finish. Errors: not found.
    pub fn unload_model(&self, model: &str) -> Result<(), Error> {
        let _same_table = self.pools(); // else a new slot could miss it
        self.route(model)?.slots().for_each(|slot| slot.withdraw());
        Ok(())
    }

    fn bring_back(&self, model: &str) -> Result<Arc<Route>, Error> {
        let _same_table = self.pools();
        let route = self.route(model)?;
        route.slots().for_each(|slot| slot.residence.bring_back());
        Ok(route)
    }

    fn slots_of(&self, model: Option<&str>) -> Result<Vec<Arc<Slot>>, Error> {
        let mut routes: Vec<Arc<Route>> = match model {
            Some(model) => vec![self.route(model)?],
            None => self.table.load().values().cloned().collect(),
        };
        routes.sort_by(|a, b| a.model.name.cmp(&b.model.name));
        Ok(routes.iter().flat_map(|route| route.slots().cloned().collect::<Vec<_>>()).collect())
    }
}
