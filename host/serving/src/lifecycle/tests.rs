use modelhost_core::deployment::Bounds;
use modelhost_core::error::ErrorCode;
use modelhost_core::routing::Policy;

use super::*;
use crate::fakes::{Counts, Runtime, version};

impl Observer for Counts {
    fn recorder(&self, _: &ModelName, _: ModelVersion) -> Arc<dyn Recorder> {
        Arc::new(Self::default())
    }
}

const ONE: ModelVersion = ModelVersion::FIRST;

fn serving(runtime: &Arc<Runtime>) -> Arc<Serving> {
    let runtime = Arc::clone(runtime) as Arc<dyn ModelRuntime>;
    Serving::new(Config::default(), runtime, Arc::new(Counts::default()))
}

fn deployment(name: &str) -> DeploymentName {
    DeploymentName::parse(name).unwrap()
}

/// Two deployments, and one version of each model in the given one.
fn snapshot(models: &[(&str, &str)]) -> Snapshot {
    let bounds = || Bounds { threads: Some(1), ..Bounds::default() };
    let deployments = ["default", "other"].map(|name| (deployment(name), bounds()));
    let model = |(name, place): &(&str, &str)| {
        let version = version(name, 1, 4);
        let mut model = Model::new(version.model.clone());
        model.placed.insert(ONE, deployment(place));
        model.versions.insert(ONE, version);
        (model.name.clone(), Arc::new(model))
    };
    Snapshot { models: models.iter().map(model).collect(), deployments: deployments.into() }
}

fn slot(serving: &Serving, model: &str) -> Arc<Slot> {
    serving.route(model).unwrap().slot(ONE).unwrap()
}

async fn load(serving: &Serving, model: &str) -> Option<ErrorCode> {
    slot(serving, model).load(Who::Caller).await.err().map(|error| error.code)
}

#[tokio::test]
async fn a_withdrawn_version_stays_so_wherever_it_goes_until_it_is_loaded() {
    let serving = serving(&Runtime::quick());
    serving.publish(Arc::new(snapshot(&[("m/a", "default"), ("m/b", "default")])));
    assert_eq!(load(&serving, "m/a").await, None);
    serving.unload_model("m/a").unwrap();
    assert_eq!(load(&serving, "m/a").await, Some(ErrorCode::Unavailable));
    serving.recreate(&deployment("default")).unwrap();
    assert_eq!(load(&serving, "m/a").await, Some(ErrorCode::Unavailable), "recreated");
    serving.publish(Arc::new(snapshot(&[("m/a", "other"), ("m/b", "default")])));
    assert_eq!(load(&serving, "m/a").await, Some(ErrorCode::Unavailable), "moved");
    assert_eq!(load(&serving, "m/b").await, None, "another model");
    serving.load_model("m/a").await.unwrap();
    assert_eq!(load(&serving, "m/a").await, None);
}

#[tokio::test]
async fn a_moved_version_leaves_nothing_behind() {
    let serving = serving(&Runtime::quick());
    serving.publish(Arc::new(snapshot(&[("m/a", "default"), ("m/b", "default")])));
    for model in ["m/a", "m/b"] {
        assert_eq!(load(&serving, model).await, None);
    }
    let (before, stays) = (slot(&serving, "m/a"), slot(&serving, "m/b"));
    serving.publish(Arc::new(snapshot(&[("m/a", "other"), ("m/b", "default")])));
    let loaded: Vec<_> = serving.deployments().iter().map(|row| (row.versions, row.loaded)).collect();
    assert_eq!(loaded, [(1, 1), (1, 0)]);
    assert!(Arc::ptr_eq(&stays, &slot(&serving, "m/b")) && stays.is_ready());
    // An earlier request still gets its answer from the old slot. That version does not stay in memory either.
    assert!(before.load(Who::Caller).await.is_ok() && !before.is_ready());
}

#[tokio::test]
async fn only_what_is_pinned_is_loaded_beforehand() {
    let serving = serving(&Runtime::quick());
    let mut snapshot = snapshot(&[("m/a", "default"), ("m/b", "default")]);
    let pinned = snapshot.models.values_mut().find(|model| model.name.as_str() == "m/b").unwrap();
    let policy = Policy::single(ONE).with_pin(true);
    *pinned = Arc::new(Model { policy: Some(policy), ..Model::clone(pinned) });
    serving.publish(Arc::new(snapshot));
    serving.preload().await;
    assert_eq!(["m/a", "m/b"].map(|model| slot(&serving, model).is_ready()), [false, true]);
}

#[tokio::test]
async fn a_load_that_does_not_end_is_told_of() {
    let (runtime, now) = (Runtime::new(), Instant::now());
    let serving = serving(&runtime);
    serving.publish(Arc::new(snapshot(&[("m/a", "default")])));
    let slot = slot(&serving, "m/a");
    let load = tokio::spawn(async move { slot.load(Who::Caller).await.map(drop) });
    runtime.begins().await;
    let later = now + Duration::from_secs(3600);
    assert_eq!(serving.stalled(now), None);
    assert!(serving.stalled(later).is_some_and(|why| why.contains("model m/a version 1")));
    runtime.end.add_permits(1);
    load.await.unwrap().unwrap();
    while serving.stalled(later).is_some() {
        tokio::task::yield_now().await; // it is counted until the task that loaded it has ended
    }
}
