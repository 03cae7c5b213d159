use super::*;
use crate::{ApiServer, Config, Running};

/// A server with a root CA.
async fn start(controllers: BuiltinControllers, shutdown: &CancellationToken) -> Running {
    let config = Config {
        root_ca: Some("roots".into()),
        controllers,
        ..Config::default()
    };
    ApiServer::start(config, shutdown.clone())
        .await
        .expect("API server")
}

fn target(registry: &Registry, plural: &str, namespace: &str, name: &str) -> Target {
    own_target(registry, "", "v1", plural, namespace, name).expect("a built-in resource")
}

/// Polls until an object is as wanted.
async fn until(registry: &Registry, target: &Target, wanted: impl Fn(Option<&Value>) -> bool) {
    let key = Key::new(&target.namespace, &target.name);
    let come = async {
        loop {
            let found = registry.storage.get(&target.resource.storage, &key);
            if wanted(found.map(|stored| stored.value()).as_ref()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), come).await;
    waited.unwrap_or_else(|_| panic!("{} {} stays otherwise", target.resource.plural, target.name));
}

#[tokio::test]
async fn what_every_namespace_has_comes_back_when_it_is_deleted_or_changed() {
    let shutdown = CancellationToken::new();
    let running = start(BuiltinControllers::default(), &shutdown).await;
    let registry = running.registry();
    let account = target(registry, "serviceaccounts", "default", "default");
    let roots = target(registry, "configmaps", "default", "kube-root-ca.crt");
    let right = |object: Option<&Value>| object.is_some_and(|o| o["data"]["ca.crt"] == "roots");
    until(registry, &account, |object| object.is_some()).await;
    until(registry, &roots, right).await;
    registry
        .delete(&account, &DeleteOptions::default())
        .await
        .expect("deleted");
    until(registry, &account, |object| object.is_some()).await;
    let spoil = |object: &mut Value| {
        object["data"] = json!({"ca.crt": "forged"});
        Ok(())
    };
    registry.modify(&roots, &spoil).await.expect("changed");
    until(registry, &roots, right).await;
    shutdown.cancel();
}

#[tokio::test]
async fn what_is_left_to_controllers_is_not_done() {
    let shutdown = CancellationToken::new();
    let controllers = BuiltinControllers {
        namespace: false,
        service_account: false,
        ..BuiltinControllers::default()
    };
    let running = start(controllers, &shutdown).await;
    let registry = running.registry();
    // The root CA comes after the account would have.
    let roots = target(registry, "configmaps", "default", "kube-root-ca.crt");
    until(registry, &roots, |object| object.is_some()).await;
    let account = Key::new("default", "default");
    assert!(
        registry
            .storage
            .get(&"/serviceaccounts".into(), &account)
            .is_none()
    );
    let namespace = target(registry, "namespaces", "", "left");
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "left"}});
    registry
        .create(&namespace, object, None)
        .await
        .expect("created");
    registry
        .delete(&namespace, &DeleteOptions::default())
        .await
        .expect("deleted");
    // Something that comes after the deletion was seen.
    let spoil = |object: &mut Value| {
        object["data"] = json!({});
        Ok(())
    };
    registry.modify(&roots, &spoil).await.expect("changed");
    until(registry, &roots, |object| {
        object.is_some_and(|o| o["data"]["ca.crt"] == "roots")
    })
    .await;
    let left = registry
        .storage
        .get(&namespace.resource.storage, &Key::new("", "left"));
    assert_eq!(
        left.expect("it stays").value()["status"]["phase"],
        "Terminating"
    );
    shutdown.cancel();
}
