use super::*;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};
use yurt_wire::{Encoding, Object};

/// What was done to a packet filter, and how many times it still refuses.
#[derive(Clone, Debug, Default)]
struct Fake(Arc<Mutex<(Vec<String>, usize)>>);

impl Fake {
    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().0)
    }
}

impl Firewall for Fake {
    async fn apply(&mut self, rules: &Rules) -> Result<(), FirewallError> {
        let mut state = self.0.lock().unwrap();
        if state.1 > 0 {
            state.1 -= 1;
            state.0.push("refused".into());
            return Err(FirewallError::Slow("nft"));
        }
        state.0.push(format!("{:?}", rules.endpoints()));
        Ok(())
    }
    async fn clear(&mut self, service: IpAddr) -> Result<(), FirewallError> {
        self.0.lock().unwrap().0.push(format!("clear {service}"));
        Ok(())
    }
}

fn objects(endpoints: Option<&str>) -> Option<Objects> {
    let object = |ip| {
        let text = format!(
            r#"{{"kind":"Endpoints","apiVersion":"v1","metadata":{{"name":"tenant-apiserver","resourceVersion":"1"}},
               "subsets":[{{"addresses":[{{"ip":"{ip}"}}],"ports":[{{"port":6443}}]}}]}}"#
        );
        let object = Object {
            encoding: Encoding::Json,
            bytes: text.into(),
        };
        (format!("{NAMESPACE}/{NAME}").into(), object)
    };
    Some(Arc::new(
        endpoints
            .map(object)
            .into_iter()
            .collect::<BTreeMap<_, _>>(),
    ))
}

#[tokio::test(start_paused = true)]
async fn rules_follow_the_endpoints_and_are_renewed() {
    let (tell, known) = watch::channel(None);
    let (fake, shutdown) = (Fake::default(), CancellationToken::new());
    let keeping = {
        let (mut fake, shutdown) = (fake.clone(), shutdown.clone());
        let service = "10.0.0.1:443".parse().unwrap();
        tokio::spawn(async move { keep(service, known, &mut fake, &shutdown).await })
    };
    let settle = || tokio::time::sleep(Duration::from_millis(1));
    settle().await;
    assert_eq!(
        fake.log(),
        [""; 0],
        "nothing is touched before something is known"
    );
    tell.send_replace(objects(Some("10.1.0.1")));
    settle().await;
    assert_eq!(fake.log(), ["[10.1.0.1:6443]"]);
    tokio::time::sleep(RENEW).await;
    assert_eq!(fake.log(), ["[10.1.0.1:6443]"], "once a minute");
    fake.0.lock().unwrap().1 = 1;
    tell.send_replace(objects(None));
    settle().await;
    assert_eq!(fake.log(), ["refused"]);
    tokio::time::sleep(RETRY).await;
    assert_eq!(fake.log(), ["[]"], "endpoints that are gone are gone");
    shutdown.cancel();
    keeping.await.unwrap();
    assert_eq!(fake.log(), [""; 0]);
}

#[test]
fn the_service_is_one_address() {
    let config = |servers: &str| {
        let servers = format!("--server-addr={servers}");
        Config::parse([
            "--node-name=n",
            "--working-mode=local",
            "--host-control-plane-address=10.9.9.9:6443",
            &servers,
        ])
        .unwrap()
    };
    assert_eq!(
        service(&config("10.0.0.1:443")).unwrap(),
        "10.0.0.1:443".parse().unwrap()
    );
    assert_eq!(
        service(&config("[fd00::a]:6443")).unwrap(),
        "[fd00::a]:6443".parse().unwrap()
    );
    for bad in ["tenant.example:443", "10.0.0.1:443,10.0.0.2:443"] {
        assert_eq!(service(&config(bad)).unwrap_err().flag, "server-addr");
    }
}

#[test]
fn a_ca_that_is_named_must_be_there() {
    let root = tempfile::tempdir().unwrap();
    let root_dir = format!("--root-dir={}", root.path().display());
    let config = |more: &[&str]| {
        let mut flags = vec![
            "--node-name=n",
            "--working-mode=local",
            "--host-control-plane-address=https://10.9.9.9",
            "--server-addr=10.0.0.1:443",
            &root_dir,
        ];
        flags.extend(more);
        Config::parse(flags).unwrap()
    };
    assert_eq!(
        config(&[]).host_control_plane.as_deref(),
        Some("10.9.9.9:443")
    );
    assert!(
        Host::of(&config(&[])).is_ok(),
        "as OpenYurt's, with a warning"
    );
    let named = Host::of(&config(&["--ca-file=/nonexistent/ca.crt"]));
    assert!(matches!(named, Err(LocalModeError::Certificate(_))));
}
