//! What becomes of a certificate, as Events of Kubernetes: where people look who wonder why agents are away.

use serde_json::json;
use std::{collections::BTreeSet, sync::Arc};
use tokio_util::sync::CancellationToken;
use yurt_controller::{Context, Key, collections::SERVICES, kube::Kube};
use yurt_pki::Leaf;

/// Most names that an Event lists; its message is bounded.
const NAMES: usize = 24;
/// The names of a certificate are others than before.
pub(super) const CHANGED: &str = "CertificateNamesChanged";
/// There is no certificate for what it should be for.
pub(super) const FAILED: &str = "CertificateNotIssued";

/// Where Events are told: about a Service.
#[derive(Clone, Debug)]
pub struct Events {
    kube: Kube,
    context: Arc<Context>,
    component: &'static str,
    service: Key,
}

impl Events {
    /// Told by `component` about the Service of this namespace and name, until `shutdown`.
    pub fn about_service(
        kube: &Kube,
        shutdown: &CancellationToken,
        component: &'static str,
        namespace: &str,
        name: &str,
    ) -> Self {
        Self {
            kube: kube.clone(),
            context: Context::new(kube.clone(), shutdown.clone()),
            component,
            service: Key::new(namespace, name),
        }
    }

    /// Tells without waiting for it. Whoever describes the Service sees what is told about its UID, which is asked for.
    pub(super) fn tell(&self, kind: &'static str, reason: &'static str, message: String) {
        let this = self.clone();
        tokio::spawn(async move {
            let path = SERVICES.object_path(&this.service);
            let mut about = this.kube.get(&path).await.unwrap_or_else(|_| {
                let Key { namespace, name } = &this.service;
                json!({"metadata": {"namespace": namespace, "name": name}})
            });
            about["apiVersion"] = json!("v1");
            about["kind"] = json!("Service");
            this.context
                .event(this.component, &about, kind, reason, &message);
        });
    }
}

fn names(leaf: &Leaf) -> BTreeSet<String> {
    let ips = leaf.ips.iter().map(ToString::to_string);
    leaf.dns.iter().cloned().chain(ips).collect()
}

/// What of the names is new and what is gone, in words; `None`: they are the same.
pub(super) fn change(before: Option<&Leaf>, after: &Leaf) -> Option<String> {
    let (old, new) = (before.map(names).unwrap_or_default(), names(after));
    let listed = |what: &str, names: Vec<&String>| {
        let more = names.len().saturating_sub(NAMES);
        let shown: Vec<&str> = names.iter().take(NAMES).map(|name| name.as_str()).collect();
        let more = (more > 0).then(|| format!(" and {more} more"));
        (!shown.is_empty()).then(|| {
            let more = more.unwrap_or_default();
            format!("{what} {}{more}", shown.join(", "))
        })
    };
    let parts = [
        listed("now also for", new.difference(&old).collect()),
        listed("not any more for", old.difference(&new).collect()),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_pki::{Ca, Profile, store::Pair};

    #[test]
    fn what_changed_is_said_in_a_bounded_way() {
        let ca = Ca::new("test", 10).unwrap();
        let leaf = |dns: &[String]| {
            let profile = Profile {
                dns: dns.to_vec(),
                ips: vec![[127, 0, 0, 1].into()],
                server: true,
                days: 1,
                ..Profile::default()
            };
            Pair::of(ca.issue(&profile).unwrap()).unwrap().leaf
        };
        let (a, b) = (leaf(&["a".into()]), leaf(&["b".into(), "c".into()]));
        assert_eq!(change(Some(&a), &a), None);
        assert_eq!(change(None, &a).unwrap(), "now also for 127.0.0.1, a");
        assert_eq!(
            change(Some(&a), &b).unwrap(),
            "now also for b, c; not any more for a"
        );
        let many: Vec<String> = (0..90).map(|n| format!("name-{n}.example.com")).collect();
        let told = change(Some(&a), &leaf(&many)).unwrap();
        assert!(told.contains("and 66 more") && told.len() < 1024, "{told}");
    }
}
