//! Files with which a real kube-controller-manager, kube-scheduler or yurt-manager takes over from the native ones.

use crate::{
    cluster::LabError,
    credentials::{self, MASTERS},
    directory::{Directory, DirectoryError},
    manager,
};
use yurt_pki::Ca;

/// The components that may run beside the lab: their users and groups. What the manager may do its chart says in a real cluster.
const COMPONENTS: [(&str, &str, &[&str]); 3] = [
    (
        "kube-controller-manager",
        "system:kube-controller-manager",
        &[],
    ),
    ("kube-scheduler", "system:kube-scheduler", &[]),
    ("yurt-manager", manager::USER, &[MASTERS]),
];

/// Writes `<component>.kubeconfig` for each of them, and the key of service account tokens (`pki/sa.key`, `pki/sa.pub`).
pub(crate) fn write(directory: &Directory, ca: &Ca, server: &str) -> Result<(), LabError> {
    for (component, user, groups) in COMPONENTS {
        let user = credentials::client(ca, user, groups)?;
        directory.write(
            format!("{component}.kubeconfig"),
            &credentials::kubeconfig(ca, &user, "yurt-lab", server),
        )?;
    }
    // The API server makes it when it starts for the first time.
    let path = directory.join("apiserver/service-account.key");
    let key = std::fs::read(&path).map_err(|source| DirectoryError::Io { path, source })?;
    let key = yurt_pki::key_pem(&key)?;
    directory.write("pki/sa.key", &key.private)?;
    directory.write("pki/sa.pub", &key.public)?;
    Ok(())
}
