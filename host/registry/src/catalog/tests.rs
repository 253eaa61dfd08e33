use super::*;
use modelhost_core::model::Signature;

const MANIFEST: &str = "runtime = 'linear'\ndescription = 'a test'";

fn name() -> ModelName {
    ModelName::parse("marketing/churn").unwrap()
}

fn version(number: u32) -> ModelVersion {
    ModelVersion::new(number).unwrap()
}

async fn open(dir: &Path) -> Catalog {
    Catalog::open(&dir.join("catalogue.db"), &Limits::DEFAULT, &Bounds::default()).await.unwrap()
}

async fn register(catalog: &Catalog) -> ModelVersion {
    let package = Manifest::parse(MANIFEST)
        .unwrap()
        .package(Digest::from_bytes([7; 32]), Vec::new(), &Limits::DEFAULT)
        .unwrap();
    assert_eq!(package.limits, Limits::DEFAULT);
    let report =
        LoadReport { signature: Signature::default(), isolation: Isolation::Request, isolation_note: None };
    let registration = Registration {
        model: &name(),
        manifest: MANIFEST,
        package,
        report,
        deployment: DeploymentName::default(),
    };
    catalog.register(registration, |_| {}).await.unwrap().number
}

async fn promote(catalog: &Catalog, number: u32) {
    let change = |_: &Model| Ok(Policy::single(version(number)));
    catalog.set_policy(&name(), "promote", false, change, async |_| Ok(()), |_| {}).await.unwrap();
}

async fn serving(catalog: &Catalog) -> u32 {
    let snapshot = catalog.snapshot();
    snapshot.models[&name()].policy.as_ref().unwrap().primary().get()
}

#[tokio::test]
async fn comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let before = {
        let catalog = open(dir.path()).await;
        assert_eq!(register(&catalog).await, version(1));
        assert_eq!(register(&catalog).await, version(2));
        promote(&catalog, 1).await;
        promote(&catalog, 2).await;
        catalog.set_alias(&name(), "stable", Some(version(1)), async |_| Ok(()), |_| {}).await.unwrap();
        format!("{:?}", catalog.snapshot())
    };
    let catalog = open(dir.path()).await;
    assert_eq!(format!("{:?}", catalog.snapshot()), before);
    catalog.rollback(&name(), async |_| Ok(()), |_| {}).await.unwrap();
    assert_eq!(serving(&catalog).await, 1);
}

#[tokio::test]
async fn rolling_back_again_goes_further_back() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    for number in 1..=3 {
        register(&catalog).await;
        promote(&catalog, number).await;
    }
    for expected in [2, 1] {
        catalog.rollback(&name(), async |_| Ok(()), |_| {}).await.unwrap();
        assert_eq!(serving(&catalog).await, expected);
    }
    let error = catalog.rollback(&name(), async |_| Ok(()), |_| {}).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Conflict);
    let actions: Vec<_> =
        catalog.history(&name(), 10).await.unwrap().into_iter().map(|entry| entry.action).collect();
    assert_eq!(actions, ["rollback", "rollback", "promote", "promote", "promote"]);
}

#[tokio::test]
async fn deployments_and_who_runs_in_them_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let gpu = DeploymentName::parse("gpu").unwrap();
    let before = {
        let catalog = open(dir.path()).await;
        register(&catalog).await;
        let missing = catalog.place(&name(), None, &gpu, |_| {}).await.unwrap_err();
        assert_eq!(missing, Error::not_found("deployment gpu does not exist"));
        let bounds = Bounds {
            threads: Some(3),
            isolation: Some(Isolation::Instance),
            capabilities: vec!["wasi:nn".into()],
            ..Bounds::default()
        };
        catalog.set_deployments([(gpu.clone(), bounds)].into(), |_| {}).await.unwrap();
        catalog.place(&name(), Some(version(1)), &gpu, |_| {}).await.unwrap();
        format!("{:?}", catalog.snapshot())
    };
    let catalog = open(dir.path()).await;
    assert_eq!(format!("{:?}", catalog.snapshot()), before);
    let held = catalog.delete_deployment(&gpu, |_| {}).await.unwrap_err();
    assert!(held.message.contains("holds 1 versions (marketing/churn version 1, …)"), "{held}");
    catalog.place(&name(), None, &DeploymentName::default(), |_| {}).await.unwrap();
    catalog.delete_deployment(&gpu, |_| {}).await.unwrap();
    let default = catalog.delete_deployment(&DeploymentName::default(), |_| {}).await.unwrap_err();
    assert_eq!(default.code, ErrorCode::Conflict);
    let snapshot = open(dir.path()).await.snapshot();
    assert_eq!(snapshot.deployments.len(), 1);
    assert_eq!(snapshot.models[&name()].deployment(version(1)), DeploymentName::default());
}

#[tokio::test]
async fn what_does_not_load_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    register(&catalog).await;
    register(&catalog).await;
    promote(&catalog, 1).await;
    let refused = catalog
        .set_policy(
            &name(),
            "promote",
            false,
            |_| Ok(Policy::single(version(2))),
            async |_| Err(Error::internal("no")),
            |_| panic!("published"),
        )
        .await;
    assert!(refused.is_err());
    assert_eq!(serving(&catalog).await, 1);
}

#[tokio::test]
async fn refuses_versions_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    register(&catalog).await;
    let change = |_: &Model| Ok(Policy::single(version(9)));
    let error =
        catalog.set_policy(&name(), "promote", false, change, async |_| Ok(()), |_| {}).await.unwrap_err();
    assert_eq!(error, Error::not_found("model marketing/churn has no version 9"));
}
