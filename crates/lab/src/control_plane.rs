//! Files with which a real kube-controller-manager or kube-scheduler takes over from the native ones.

use crate::{
    cluster::LabError,
    credentials,
    directory::{Directory, DirectoryError},
};
use yurt_pki::Ca;

/// The components that may run beside the lab.
const COMPONENTS: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];

/// Writes `<component>.kubeconfig` for each of them, and the key of service account tokens (`pki/sa.key`, `pki/sa.pub`).
pub(crate) fn write(directory: &Directory, ca: &Ca, server: &str) -> Result<(), LabError> {
    for component in COMPONENTS {
        let user = credentials::client(ca, &format!("system:{component}"), &[])?;
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
