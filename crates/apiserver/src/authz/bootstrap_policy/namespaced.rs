//! The roles and bindings of `kube-system` and `kube-public`.

use super::{
    EVENTS, Named, On, READ, Row,
    To::{self, Account, User},
};

const SYSTEM: &str = "kube-system";
const PUBLIC: &str = "kube-public";

/// Namespace, name, rules.
pub(super) const ROLES: &[(&str, &str, &[Row])] = &[
    (
        SYSTEM,
        "extension-apiserver-authentication-reader",
        &[Named(
            READ,
            "core",
            "configmaps",
            "extension-apiserver-authentication",
        )],
    ),
    (
        SYSTEM,
        "system:controller:bootstrap-signer",
        &[On(READ, "core", "secrets")],
    ),
    (
        SYSTEM,
        "system:controller:cloud-provider",
        &[On("create get list watch", "core", "configmaps")],
    ),
    (
        SYSTEM,
        "system:controller:token-cleaner",
        &[On("delete get list watch", "core", "secrets"), EVENTS],
    ),
    (
        SYSTEM,
        "system::leader-locking-kube-controller-manager",
        &[
            On("watch", "core", "configmaps"),
            Named(
                "get update",
                "core",
                "configmaps",
                "kube-controller-manager",
            ),
        ],
    ),
    (
        SYSTEM,
        "system::leader-locking-kube-scheduler",
        &[
            On("watch", "core", "configmaps"),
            Named("get update", "core", "configmaps", "kube-scheduler"),
        ],
    ),
    (
        PUBLIC,
        "system:controller:bootstrap-signer",
        &[
            On(READ, "core", "configmaps"),
            Named("update", "core", "configmaps", "cluster-info"),
            EVENTS,
        ],
    ),
];

const CONTROLLER_MANAGER: To = User("system:kube-controller-manager");
const SCHEDULER: To = User("system:kube-scheduler");

/// Namespace, name, role, who has it.
pub(super) const BINDINGS: &[(&str, &str, &str, &[To])] = &[
    (
        SYSTEM,
        "system::extension-apiserver-authentication-reader",
        "extension-apiserver-authentication-reader",
        &[CONTROLLER_MANAGER, SCHEDULER],
    ),
    (
        SYSTEM,
        "system::leader-locking-kube-controller-manager",
        "system::leader-locking-kube-controller-manager",
        &[CONTROLLER_MANAGER, Account("kube-controller-manager")],
    ),
    (
        SYSTEM,
        "system::leader-locking-kube-scheduler",
        "system::leader-locking-kube-scheduler",
        &[SCHEDULER, Account("kube-scheduler")],
    ),
    (
        SYSTEM,
        "system:controller:bootstrap-signer",
        "system:controller:bootstrap-signer",
        &[Account("bootstrap-signer")],
    ),
    (
        SYSTEM,
        "system:controller:cloud-provider",
        "system:controller:cloud-provider",
        &[Account("cloud-provider")],
    ),
    (
        SYSTEM,
        "system:controller:token-cleaner",
        "system:controller:token-cleaner",
        &[Account("token-cleaner")],
    ),
    (
        PUBLIC,
        "system:controller:bootstrap-signer",
        "system:controller:bootstrap-signer",
        &[Account("bootstrap-signer")],
    ),
];
