use modelhost_core::error::ErrorCode;
use modelhost_core::routing::Policy;

use super::*;
use crate::manifest::Manifest;
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
    let parsed = Manifest::parse(MANIFEST).unwrap();
    let package = parsed.package(Digest::from_bytes([7; 32]), Vec::new(), &Limits::DEFAULT).unwrap();
    assert_eq!(package.limits, Limits::DEFAULT);
    let report =
        LoadReport { signature: Signature::default(), isolation: Isolation::Request, isolation_note: None };
    let registration = Registration {
        model: &name(),
        manifest: MANIFEST,
        package,
        report,
        card: parsed.card(),
        platform: parsed.platform(),
        deployment: DeploymentName::default(),
    };
    catalog.register(registration, |_| {}).await.unwrap().number
}

async fn promote(catalog: &Catalog, number: u32) {
    catalog.set_policy(&name(), to(number), async |_| Ok(()), |_| {}).await.unwrap();
}

/// All traffic to this version.
fn to(number: u32) -> impl FnOnce(&Model) -> Result<Change, Error> {
    move |_| {
        let (action, policy) = (format!("promote {number}"), Policy::single(version(number)));
        Ok(Change { action, policy, back: Back::ToThePolicyBefore })
    }
}

fn back(model: &Model) -> Result<Change, Error> {
    let policy = model.previous.clone().ok_or_else(|| Error::new(ErrorCode::Conflict, "nothing before"))?;
    Ok(Change { action: "rollback".into(), policy, back: Back::Further })
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
    catalog.set_policy(&name(), back, async |_| Ok(()), |_| {}).await.unwrap();
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
        catalog.set_policy(&name(), back, async |_| Ok(()), |_| {}).await.unwrap();
        assert_eq!(serving(&catalog).await, expected);
    }
    let error = catalog.set_policy(&name(), back, async |_| Ok(()), |_| {}).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Conflict);
    let actions: Vec<_> =
        catalog.history(&name(), 10).await.unwrap().into_iter().map(|entry| entry.action).collect();
    assert_eq!(actions, ["rollback", "rollback", "promote 3", "promote 2", "promote 1"]);
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
        .set_policy(&name(), to(2), async |_| Err(Error::internal("no")), |_| panic!("published"))
        .await;
    assert!(refused.is_err());
    assert_eq!(serving(&catalog).await, 1);
}

#[tokio::test]
async fn refuses_versions_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    register(&catalog).await;
    let error = catalog.set_policy(&name(), to(9), async |_| Ok(()), |_| {}).await.unwrap_err();
    assert_eq!(error, Error::not_found("model marketing/churn has no version 9"));
}

#[tokio::test]
async fn a_preparation_that_never_ends_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    for number in 1..=2 {
        register(&catalog).await;
        promote(&catalog, number).await;
    }
    let for_ever = async |_: Vec<Arc<Version>>| std::future::pending::<Result<(), Error>>().await;
    let model = name();
    let promoting = catalog.set_policy(&model, to(1), for_ever, |_| panic!("published"));
    let rolling_back = catalog.set_policy(&model, back, for_ever, |_| panic!("published"));
    let naming = catalog.set_alias(&model, "stable", Some(version(1)), for_ever, |_| panic!("published"));
    let (mut promoting, mut rolling_back, mut naming) =
        (std::pin::pin!(promoting), std::pin::pin!(rolling_back), std::pin::pin!(naming));
    let others = async {
        register(&catalog).await;
        promote(&catalog, 3).await;
        catalog.set_alias(&name(), "stable", Some(version(2)), async |_| Ok(()), |_| {}).await.unwrap();
        catalog.set_policy(&name(), back, async |_| Ok(()), |_| {}).await.unwrap();
        catalog.place(&name(), None, &DeploymentName::default(), |_| {}).await.unwrap();
    };
    tokio::select! {
        biased;
        _ = &mut promoting => panic!("it never ends"),
        _ = &mut rolling_back => panic!("it never ends"),
        _ = &mut naming => panic!("it never ends"),
        () = others => {}
    }
    assert_eq!(serving(&catalog).await, 2);
}

#[tokio::test]
async fn what_changed_while_a_change_was_prepared_is_told_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    for number in 1..=3 {
        register(&catalog).await;
        promote(&catalog, number).await;
    }
    let meanwhile = async |_: Vec<Arc<Version>>| {
        promote(&catalog, 2).await;
        Ok(())
    };
    let error = catalog.set_policy(&name(), to(1), meanwhile, |_| panic!("published")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Conflict);
    assert!(error.message.contains("changed meanwhile by \"promote 2\""), "{error}");
    assert_eq!(serving(&catalog).await, 2);
    let meanwhile = async |_: Vec<Arc<Version>>| {
        catalog.set_policy(&name(), back, async |_| Ok(()), |_| {}).await.map(drop)
    };
    let error = catalog.set_policy(&name(), back, meanwhile, |_| panic!("published")).await.unwrap_err();
    assert!(error.message.contains("\"rollback\""), "{error}");
    assert_eq!(serving(&catalog).await, 3, "rolled back once");
    // A registration does not change the policy.
    let meanwhile = async |_: Vec<Arc<Version>>| {
        register(&catalog).await;
        Ok(())
    };
    catalog.set_policy(&name(), to(1), meanwhile, |_| {}).await.unwrap();
    let alias = async |number: u32| {
        catalog.set_alias(&name(), "a", Some(version(number)), async |_| Ok(()), |_| {}).await
    };
    let meanwhile = async |_: Vec<Arc<Version>>| alias(2).await;
    let error = catalog.set_alias(&name(), "a", Some(version(1)), meanwhile, |_| panic!("published")).await;
    assert!(error.unwrap_err().message.contains("alias \"a\" was set to 2 meanwhile"));
    let snapshot = open(dir.path()).await.snapshot();
    assert_eq!(format!("{snapshot:?}"), format!("{:?}", catalog.snapshot()), "as told, so on disk");
}

#[tokio::test]
async fn changes_of_one_deployment_are_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    let gpu = DeploymentName::parse("gpu").unwrap();
    let changes = (0..20_u32).map(|_| {
        let more = |now: Option<&Bounds>| {
            let queue = now.map_or(0, |bounds| bounds.queue) + 1;
            Ok(Bounds { queue, ..Bounds::default() })
        };
        catalog.change_deployment(&gpu, more, drop)
    });
    futures_util::future::try_join_all(changes).await.unwrap();
    assert_eq!(catalog.snapshot().deployments[&gpu].queue, 20);
}

#[tokio::test]
async fn a_prefix_has_what_it_brought_as_long_as_a_version_uses_it() {
    let dir = tempfile::tempdir().unwrap();
    let (used, unused) = (Digest::from_bytes([7; 32]), Digest::from_bytes([8; 32]));
    let has = async |catalog: &Catalog, prefix, digest| catalog.possesses(prefix, digest).await.unwrap();
    let catalog = open(dir.path()).await;
    for digest in [used, unused, used] {
        assert!(!has(&catalog, "other", digest).await);
        catalog.possess("marketing", digest).await.unwrap();
        assert!(has(&catalog, "marketing", digest).await);
    }
    register(&catalog).await;
    catalog.close().await;
    let catalog = open(dir.path()).await;
    assert_eq!(catalog.blobs().await.unwrap(), HashSet::from([used]));
    assert!(has(&catalog, "marketing", used).await);
    assert!(!has(&catalog, "marketing", unused).await, "no version uses it: it is removed from disk");
}

#[tokio::test]
async fn versions_of_an_older_catalogue_belong_to_their_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    register(&catalog).await;
    for undo in ["DROP TABLE possessions", "DELETE FROM _sqlx_migrations WHERE version = 3"] {
        sqlx::query(undo).execute(&catalog.pool).await.unwrap();
    }
    catalog.close().await;
    let catalog = open(dir.path()).await;
    let digest = Digest::from_bytes([7; 32]);
    assert!(catalog.possesses("marketing", digest).await.unwrap());
    assert!(!catalog.possesses("market", digest).await.unwrap());
}

#[tokio::test]
async fn what_cannot_be_read_stays_and_keeps_nothing_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    for number in 1..=3 {
        register(&catalog).await;
        promote(&catalog, number).await;
    }
    for damage in [
        "UPDATE versions SET manifest = 'colour = 1',
         component = '0808080808080808080808080808080808080808080808080808080808080808' WHERE number = 2",
        "INSERT INTO models (name, created_ms) VALUES ('no-slash', 0)",
        "INSERT INTO deployments (name, bounds, created_ms) VALUES ('gpu', '{}', 0), ('not a name', '{}', 0)",
        "INSERT INTO placements SELECT model_id, number, 'not a name' FROM versions WHERE number = 1",
        "INSERT INTO aliases SELECT model_id, 'zero', 0 FROM versions WHERE number = 1",
        "INSERT INTO artifacts SELECT model_id, 1, 0, 'a', 'no digest', 1 FROM versions WHERE number = 1",
    ] {
        sqlx::query(damage).execute(&catalog.pool).await.unwrap();
    }
    catalog.close().await;
    let catalog = open(dir.path()).await;
    let snapshot = catalog.snapshot();
    assert_eq!(snapshot.models[&name()].versions.keys().copied().collect::<Vec<_>>(), [version(3)]);
    assert_eq!(serving(&catalog).await, 3);
    assert_eq!(catalog.blobs().await.unwrap().len(), 2, "content of what cannot be read is not removed");
    assert_eq!(register(&catalog).await, version(4), "numbers are not used again");
}

#[tokio::test]
async fn a_lowered_limit_is_told_by_the_version_that_is_beyond_it() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    register(&catalog).await;
    let artifact = "INSERT INTO artifacts SELECT id, 1, 0, 'w',
         '0808080808080808080808080808080808080808080808080808080808080808', 3000000 FROM models";
    sqlx::query(artifact).execute(&catalog.pool).await.unwrap();
    catalog.close().await;
    let cap = Limits { artifact_bytes: 1 << 20, ..Limits::DEFAULT };
    let path = dir.path().join("catalogue.db");
    let catalog = Catalog::open(&path, &cap, &Bounds::default()).await.unwrap();
    let snapshot = catalog.snapshot();
    let error = snapshot.models[&name()].versions[&version(1)].package.check_artifacts().unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(error.message.contains("3000000 bytes: limit artifact_mib = 1"), "{error}");
}

#[tokio::test]
async fn what_the_database_says_is_for_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    register(&catalog).await;
    sqlx::query("DROP TABLE policies").execute(&catalog.pool).await.unwrap();
    let error = catalog.history(&name(), 10).await.map(drop).unwrap_err();
    assert_eq!(
        (error.code, &*error.message),
        (ErrorCode::Internal, "the catalogue cannot be read or written")
    );
    assert!(error.chain().to_string().contains("no such table: policies"), "{}", error.chain());
    drop(catalog);
    let path = dir.path().join("nowhere/catalogue.db");
    let error = Catalog::open(&path, &Limits::DEFAULT, &Bounds::default()).await.map(drop).unwrap_err();
    assert_eq!((error.code, &*error.message), (ErrorCode::Internal, "the catalogue cannot be opened"));
    assert!(error.chain().to_string().contains(&path.display().to_string()), "{}", error.chain());
}
