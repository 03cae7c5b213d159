//! The config map `yurt-tunnel-server-cfg`: which ports besides the kubelets' go through the tunnel.

use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::sync::watch;
use yurt_controller::{Context, Key, Scope, collections::CONFIG_MAPS};

/// Namespace of everything that the tunnel reads and writes.
pub const NAMESPACE: &str = "kube-system";
/// Name of the config map.
pub const CONFIG_MAP: &str = "yurt-tunnel-server-cfg";
/// The kubelets' own ports, which the config map has no say in: TLS, and plain text.
pub const KUBELET_HTTPS: u16 = 10250;
/// The kubelets' port for plain text.
pub const KUBELET_HTTP: u16 = 10255;
/// What listens on a node's loopback address unless the config map says otherwise: agent and hub.
const LOCALHOST_PORTS: [u16; 2] = [10266, 10267];
/// Ports taken of one list; more are a mistake.
const MOST: usize = 256;

/// What the config map says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// By destination port, whether the connection is TLS; the kubelets' own ports are not in it.
    pub ports: BTreeMap<u16, Scheme>,
    /// Ports that are served on the loopback address of nodes.
    pub localhost: BTreeSet<u16>,
}

/// How the tunnel is spoken to for a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// TLS: the secure address.
    Https,
    /// Plain text: the insecure address.
    Http,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ports: BTreeMap::new(),
            localhost: LOCALHOST_PORTS.into(),
        }
    }
}

fn ports(text: &str) -> impl Iterator<Item = u16> {
    let ports = text.split(',').take(MOST);
    ports.filter_map(|port| port.trim().parse().ok().filter(|port| *port > 0))
}

impl Settings {
    /// Reads the config map's `data`; what is no port is passed over. `insecure_port` is where the plain listener is: the only target
    /// that `dnat-ports-pair` may name.
    pub fn parse(data: &Value, insecure_port: u16) -> Self {
        let text = |key: &str| data[key].as_str().unwrap_or_default();
        let mut read = Self::default();
        let pairs = text("dnat-ports-pair");
        if pairs.contains('=') {
            for pair in pairs.split(',').take(MOST) {
                let Some((port, target)) = pair.split_once('=') else {
                    continue;
                };
                if target.trim().parse() == Ok(insecure_port) {
                    read.ports
                        .extend(ports(port).map(|port| (port, Scheme::Http)));
                }
            }
        } else {
            read.ports
                .extend(ports(pairs).map(|port| (port, Scheme::Http)));
        }
        for (key, scheme) in [
            ("http-proxy-ports", Scheme::Http),
            ("https-proxy-ports", Scheme::Https),
        ] {
            read.ports
                .extend(ports(text(key)).map(|port| (port, scheme)));
        }
        for own in [KUBELET_HTTPS, KUBELET_HTTP] {
            read.ports.remove(&own);
        }
        if let Some(localhost) = data["localhost-proxy-ports"].as_str() {
            read.localhost = ports(localhost).collect();
        }
        read
    }

    /// Every port that goes through the tunnel.
    pub fn all_ports(&self) -> BTreeMap<u16, Scheme> {
        let mut all = self.ports.clone();
        all.insert(KUBELET_HTTPS, Scheme::Https);
        all.insert(KUBELET_HTTP, Scheme::Http);
        all
    }
}

/// Follows the config map with `context`'s caches; what it does not say, or when it is gone, is as in [`Settings::default`].
pub fn follow(context: &Context, insecure_port: u16) -> watch::Receiver<Arc<Settings>> {
    let scope = Scope {
        fields: format!("metadata.name={CONFIG_MAP}"),
        ..Scope::default().within(NAMESPACE)
    };
    let maps = context.scoped(&CONFIG_MAPS, &scope);
    let (sender, receiver) = watch::channel(Arc::new(Settings::default()));
    maps.subscribe(move |change| {
        if change.key() != Key::new(NAMESPACE, CONFIG_MAP) {
            return;
        }
        let data = change.new.as_ref().map_or(&Value::Null, |map| &map["data"]);
        let settings = Settings::parse(data, insecure_port);
        sender.send_if_modified(|known| {
            let changed = **known != settings;
            if changed {
                tracing::info!(?settings, "ports of the tunnel");
                *known = Arc::new(settings);
            }
            changed
        });
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(data: Value) -> Settings {
        Settings::parse(&data, 10264)
    }

    #[test]
    fn what_the_config_map_says() {
        let settings = read(
            json!({"http-proxy-ports": "9445, 9100,10250,0,70000,x", "https-proxy-ports": "9100,9443,10255",
            "localhost-proxy-ports": "10266, 10267, 9999"}),
        );
        let wanted = [
            (9100, Scheme::Https),
            (9443, Scheme::Https),
            (9445, Scheme::Http),
        ];
        assert_eq!(settings.ports, wanted.into());
        assert_eq!(settings.localhost, [9999, 10266, 10267].into());
        let all = settings.all_ports();
        assert_eq!(
            (all.len(), all[&10250], all[&10255]),
            (5, Scheme::Https, Scheme::Http)
        );
    }

    #[test]
    fn old_pairs_name_the_plain_listener_or_nothing() {
        let pairs = |text: &str| read(json!({"dnat-ports-pair": text})).ports;
        let http = |port| BTreeMap::from([(port, Scheme::Http)]);
        assert_eq!(pairs("9100=10264,9200=10263, 9300"), http(9100));
        assert_eq!(pairs("9100"), http(9100));
        assert!(pairs("10255=10264,=10264,a=b=c").is_empty());
    }

    #[test]
    fn without_a_map_there_are_the_usual_ports() {
        assert_eq!(read(Value::Null), Settings::default());
        assert!(
            read(json!({"localhost-proxy-ports": ""}))
                .localhost
                .is_empty()
        );
    }

    #[tokio::test]
    async fn the_config_map_is_followed_until_it_is_gone() {
        let stage = Box::pin(yurt_controlplane::stage::Stage::of(|_| {})).await;
        let mut settings = follow(&stage.context, 10264);
        assert_eq!(**settings.borrow(), Settings::default());
        let maps = "/api/v1/namespaces/kube-system/configmaps";
        let map =
            |name: &str| json!({"metadata": {"name": name}, "data": {"https-proxy-ports": "9443"}});
        stage.create(maps, map("another")).await;
        stage.create(maps, map(CONFIG_MAP)).await;
        let named = |settings: &Arc<Settings>| settings.ports.get(&9443) == Some(&Scheme::Https);
        settings.wait_for(named).await.unwrap();
        let path = format!("{maps}/{CONFIG_MAP}");
        stage.kube.delete(&path).await.unwrap();
        let usual = |settings: &Arc<Settings>| **settings == Settings::default();
        settings.wait_for(usual).await.unwrap();
    }
}
