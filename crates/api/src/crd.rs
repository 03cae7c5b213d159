//! The definitions of the custom resources, as the API server takes them.

use crate::{
    apps::{
        nodebucket::NodeBucket, nodepool, yurtappdaemon::YurtAppDaemon,
        yurtappoverrider::YurtAppOverrider, yurtappset, yurtstaticset::YurtStaticSet,
    },
    meta::Resource,
    names,
    network::poolservice::PoolService,
};
use serde_json::{Map, Value, json};

/// A custom resource.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Definition {
    pub group: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub short_name: &'static str,
    /// Whether `kubectl get yurt` shows it.
    pub in_category: bool,
    pub namespaced: bool,
    /// Oldest first; the stored one is the hub of all conversions.
    pub versions: &'static [Version],
}

/// A served version of a custom resource.
#[derive(Clone, Copy, Debug)]
pub struct Version {
    /// Its name.
    pub name: &'static str,
    /// Whether objects are stored in it.
    pub stored: bool,
    /// What users of a deprecated version are told.
    pub deprecation: Option<&'static str>,
    /// What `kubectl get` shows.
    columns: &'static [Column],
    /// Whether it has a status.
    status: bool,
    scale: Option<Scale>,
    schema: fn() -> Value,
}

/// Name, type, JSON path and description, which may be empty.
type Column = (&'static str, &'static str, &'static str, &'static str);

/// Where the scale subresource finds its numbers.
#[derive(Clone, Copy, Debug)]
struct Scale {
    replicas: &'static str,
    status_replicas: &'static str,
    selector: &'static str,
}

/// How the API server converts between versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conversion {
    /// By the webhook of the manager.
    Webhook(WebhookClient),
    /// Only the version is changed: for a cluster without a manager. Fields that a version does not have are lost in it.
    None,
}

/// Where the webhook of the manager is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookClient {
    /// Of its service.
    pub namespace: String,
    /// Its service.
    pub service: String,
    /// PEM of the CA of its certificate, in base64; the manager fills it in when absent.
    pub ca_bundle: Option<String>,
}

impl Default for Conversion {
    fn default() -> Self {
        Self::Webhook(WebhookClient {
            namespace: names::objects::MANAGER_NAMESPACE.into(),
            service: names::objects::WEBHOOK_SERVICE.into(),
            ca_bundle: None,
        })
    }
}

const AGE: Column = ("AGE", "date", ".metadata.creationTimestamp", "");

const POOL_COLUMNS: &[Column] = &[
    ("Type", "string", ".spec.type", "Edge or Cloud."),
    (
        "ReadyNodes",
        "integer",
        ".status.readyNodeNum",
        "How many nodes are ready.",
    ),
    (
        "NotReadyNodes",
        "integer",
        ".status.unreadyNodeNum",
        "How many nodes are not ready.",
    ),
    ("Age", "date", ".metadata.creationTimestamp", ""),
];

const LED_POOL_COLUMNS: &[Column] = &[
    POOL_COLUMNS[0],
    POOL_COLUMNS[1],
    POOL_COLUMNS[2],
    (
        "LeaderNodes",
        "integer",
        ".status.leaderNum",
        "How many nodes lead.",
    ),
    (
        "LeaderElectionAge",
        "date",
        ".status.leaderLastElectedTime",
        "When the leaders last changed.",
    ),
    POOL_COLUMNS[3],
];

/// The schema of an object, of its body's.
fn root<T: Resource>() -> Value {
    let mut schema = T::schema();
    for (field, kind) in [
        ("apiVersion", "string"),
        ("kind", "string"),
        ("metadata", "object"),
    ] {
        schema["properties"][field] = json!({"type": kind});
    }
    schema
}

/// A version that is stored, without deprecation or scale.
const fn version<T: Resource>(columns: &'static [Column]) -> Version {
    Version {
        name: T::VERSION,
        stored: true,
        deprecation: None,
        columns,
        status: true,
        scale: None,
        schema: root::<T>,
    }
}

const fn definition<T: Resource>(
    short_name: &'static str,
    in_category: bool,
    versions: &'static [Version],
) -> Definition {
    Definition {
        group: T::GROUP,
        kind: T::KIND,
        plural: T::PLURAL,
        short_name,
        in_category,
        namespaced: T::NAMESPACED,
        versions,
    }
}

const NODE_POOL: &[Version] = &[
    Version {
        stored: false,
        deprecation: Some(
            "apps.openyurt.io/v1alpha1 NodePool is deprecated; use apps.openyurt.io/v1beta2 NodePool",
        ),
        ..version::<nodepool::v1alpha1::NodePool>(POOL_COLUMNS)
    },
    Version {
        stored: false,
        ..version::<nodepool::v1beta1::NodePool>(POOL_COLUMNS)
    },
    version::<nodepool::NodePool>(LED_POOL_COLUMNS),
];

const NODE_BUCKET: &[Version] = &[version::<NodeBucket>(&[
    (
        "NUM-NODES",
        "integer",
        ".numNodes",
        "How many nodes are in the bucket.",
    ),
    AGE,
])];

const YURT_APP_SET: &[Version] = &[
    Version {
        stored: false,
        deprecation: Some(
            "apps.openyurt.io/v1alpha1 YurtAppSet is deprecated; use apps.openyurt.io/v1beta1 YurtAppSet; v1alpha1 YurtAppSet.Status.WorkloadSummary should not be used",
        ),
        ..version::<yurtappset::v1alpha1::YurtAppSet>(&[
            (
                "READY",
                "integer",
                ".status.readyReplicas",
                "How many pods are ready.",
            ),
            (
                "WorkloadTemplate",
                "string",
                ".status.templateType",
                "Deployment or StatefulSet.",
            ),
            AGE,
            (
                "OverriderRef",
                "string",
                ".status.overriderRef",
                "The name of the YurtAppOverrider of this set.",
            ),
        ])
    },
    Version {
        scale: Some(Scale {
            replicas: ".spec.replicas",
            status_replicas: ".status.replicas",
            selector: ".status.selector",
        }),
        ..version::<yurtappset::YurtAppSet>(&[
            (
                "TOTAL",
                "integer",
                ".status.totalWorkloads",
                "How many workloads there are.",
            ),
            (
                "READY",
                "integer",
                ".status.readyWorkloads",
                "How many workloads are ready.",
            ),
            (
                "UPDATED",
                "integer",
                ".status.updatedWorkloads",
                "How many workloads are of the newest revision.",
            ),
            AGE,
        ])
    },
];

const YURT_APP_DAEMON: &[Version] = &[Version {
    deprecation: Some(
        "apps.openyurt.io/v1alpha1 YurtAppDaemon is deprecated; use apps.openyurt.io/v1beta1 YurtAppSet",
    ),
    ..version::<YurtAppDaemon>(&[
        (
            "WorkloadTemplate",
            "string",
            ".status.templateType",
            "Deployment or StatefulSet.",
        ),
        AGE,
        (
            "OverriderRef",
            "string",
            ".status.overriderRef",
            "The name of the YurtAppOverrider of this daemon.",
        ),
    ])
}];

const YURT_APP_OVERRIDER: &[Version] = &[Version {
    deprecation: Some(
        "apps.openyurt.io/v1alpha1 YurtAppOverrider is deprecated; use apps.openyurt.io/v1beta1 YurtAppSet WorkloadTweaks",
    ),
    status: false,
    ..version::<YurtAppOverrider>(&[
        (
            "Subject",
            "string",
            ".subject.kind",
            "YurtAppSet or YurtAppDaemon.",
        ),
        (
            "Name",
            "string",
            ".subject.name",
            "The name of the subject.",
        ),
        AGE,
    ])
}];

const YURT_STATIC_SET: &[Version] = &[version::<YurtStaticSet>(&[
    AGE,
    (
        "Total",
        "integer",
        ".status.totalNumber",
        "How many nodes have the pod.",
    ),
    (
        "Ready",
        "integer",
        ".status.readyNumber",
        "On how many nodes it is ready.",
    ),
    (
        "Upgraded",
        "integer",
        ".status.upgradedNumber",
        "On how many nodes it is of the current template.",
    ),
])];

const POOL_SERVICE: &[Version] = &[version::<PoolService>(&[AGE])];

/// All custom resources. Those of Raven (`raven.openyurt.io`) and PlatformAdmin (`iot.openyurt.io`) come here with their components.
pub const DEFINITIONS: &[Definition] = &[
    definition::<nodepool::NodePool>("np", true, NODE_POOL),
    definition::<NodeBucket>("nb", true, NODE_BUCKET),
    definition::<yurtappset::YurtAppSet>("yas", true, YURT_APP_SET),
    definition::<YurtAppDaemon>("yad", true, YURT_APP_DAEMON),
    definition::<YurtAppOverrider>("yao", false, YURT_APP_OVERRIDER),
    definition::<YurtStaticSet>("yss", false, YURT_STATIC_SET),
    definition::<PoolService>("ps", true, POOL_SERVICE),
];

/// A definition by its kind, plural, singular or short name, whatever the case.
pub fn find(name: &str) -> Option<&'static Definition> {
    DEFINITIONS.iter().find(|definition| {
        [definition.kind, definition.plural, definition.short_name]
            .iter()
            .any(|known| known.eq_ignore_ascii_case(name))
    })
}

impl Definition {
    /// `nodepools.apps.openyurt.io`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }

    /// The version in which objects are stored.
    pub fn stored(&self) -> Option<&'static Version> {
        self.versions.iter().find(|version| version.stored)
    }

    /// The `CustomResourceDefinition`.
    pub fn render(&self, conversion: &Conversion) -> Value {
        let versions: Vec<Value> = self.versions.iter().map(Version::render).collect();
        let mut spec = json!({
            "group": self.group,
            "scope": if self.namespaced { "Namespaced" } else { "Cluster" },
            "names": {
                "plural": self.plural,
                "singular": self.kind.to_ascii_lowercase(),
                "kind": self.kind,
                "listKind": format!("{}List", self.kind),
                "shortNames": [self.short_name],
            },
            "versions": versions,
        });
        if self.in_category {
            spec["names"]["categories"] = json!(["yurt"]);
        }
        match conversion {
            Conversion::Webhook(client) if self.versions.len() > 1 => {
                spec["conversion"] = client.render();
            }
            _ => {}
        }
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": self.name()},
            "spec": spec,
        })
    }

    /// The `CustomResourceDefinition` as YAML.
    pub fn to_yaml(&self, conversion: &Conversion) -> Result<String, serde_saphyr::ser::Error> {
        serde_saphyr::to_string(&self.render(conversion))
    }
}

impl Version {
    fn render(&self) -> Value {
        let columns: Vec<Value> = self.columns.iter().map(column).collect();
        let mut subresources = Map::new();
        if self.status {
            subresources.insert("status".into(), json!({}));
        }
        if let Some(scale) = &self.scale {
            let paths = json!({
                "specReplicasPath": scale.replicas,
                "statusReplicasPath": scale.status_replicas,
                "labelSelectorPath": scale.selector,
            });
            subresources.insert("scale".into(), paths);
        }
        let mut version = json!({
            "name": self.name,
            "served": true,
            "storage": self.stored,
            "schema": {"openAPIV3Schema": (self.schema)()},
            "additionalPrinterColumns": columns,
            "subresources": subresources,
        });
        if let Some(warning) = self.deprecation {
            version["deprecated"] = true.into();
            version["deprecationWarning"] = warning.into();
        }
        version
    }
}

fn column(&(name, kind, path, description): &Column) -> Value {
    let mut column = json!({"name": name, "type": kind, "jsonPath": path});
    if !description.is_empty() {
        column["description"] = description.into();
    }
    column
}

impl WebhookClient {
    fn render(&self) -> Value {
        let mut client = json!({"service": {
            "namespace": self.namespace, "name": self.service, "path": crate::conversion::PATH}});
        if let Some(bundle) = &self.ca_bundle {
            client["caBundle"] = bundle.as_str().into();
        }
        json!({"strategy": "Webhook", "webhook": {
            "clientConfig": client, "conversionReviewVersions": crate::conversion::REVIEW_VERSIONS}})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    #[test]
    fn every_definition_stores_one_version_and_is_found_by_its_names() {
        for definition in DEFINITIONS {
            let stored = definition.versions.iter().filter(|version| version.stored);
            assert_eq!(stored.count(), 1, "{}", definition.kind);
            for name in [definition.kind, definition.plural, definition.short_name] {
                let found = find(&name.to_uppercase()).expect("a definition");
                assert_eq!(found.kind, definition.kind);
            }
        }
        assert!(find("gateways").is_none());
    }

    #[test]
    fn what_is_shipped_is_what_the_code_says() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
        let mut shipped: Vec<String> = fs::read_dir(&dir)
            .expect("deploy/crds")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .into_string()
                    .expect("UTF-8")
            })
            .collect();
        shipped.sort();
        let mut named: Vec<String> = DEFINITIONS
            .iter()
            .map(|definition| format!("{}.yaml", definition.name()))
            .collect();
        named.sort();
        assert_eq!(
            shipped, named,
            "run: cargo run -- crds --output-dir deploy/crds"
        );
        for definition in DEFINITIONS {
            let rendered = definition.render(&Conversion::default());
            let yaml = definition.to_yaml(&Conversion::default()).expect("YAML");
            let read: Value = serde_saphyr::from_str(&yaml).expect("YAML");
            assert_eq!(read, rendered, "{}", definition.name());
            let file = dir.join(format!("{}.yaml", definition.name()));
            let shipped = fs::read_to_string(&file).expect("a file");
            assert!(
                shipped == yaml,
                "{} differs from the code; run: cargo run -- crds --output-dir deploy/crds",
                file.display()
            );
        }
    }

    #[test]
    fn without_a_manager_nothing_asks_a_webhook() {
        let pools = find("np").expect("a definition");
        assert!(pools.render(&Conversion::None)["spec"]["conversion"].is_null());
        let client = WebhookClient {
            namespace: "edge".into(),
            service: "hooks".into(),
            ca_bundle: Some("Q0E=".into()),
        };
        let crd = pools.render(&Conversion::Webhook(client));
        let config = &crd["spec"]["conversion"]["webhook"]["clientConfig"];
        assert_eq!(
            *config,
            json!({"caBundle": "Q0E=", "service": {"namespace": "edge", "name": "hooks", "path": "/convert"}})
        );
        // One version needs no conversion.
        assert!(
            find("nb")
                .expect("a definition")
                .render(&Conversion::default())["spec"]["conversion"]
                .is_null()
        );
    }
}
