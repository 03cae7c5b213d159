//! What the parts of a lab prove themselves with: the lab's certificate authority, certificates, kubeconfigs and tokens.

use crate::{
    cluster::LabError,
    directory::{Directory, DirectoryError},
    kubeconfig::{self, Credentials},
};
use std::{
    fs::File,
    io::Read,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};
use yurt_pki::{Ca, KeyPairPem, PkiError, Profile};

/// Validity of the lab's certificates, days.
const DAYS: u32 = 3650;
/// The cluster IP of the `kubernetes` service, a name of the API server's certificate.
const SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The administrator, and the group that may do everything.
pub(crate) const ADMIN: &str = "kubernetes-admin";
pub(crate) const MASTERS: &str = "system:masters";

/// The lab's certificate authority, made when there is none yet.
pub(crate) fn certificate_authority(directory: &Directory) -> Result<Ca, LabError> {
    directory.create("pki")?;
    if let (Some(cert), Some(key)) = (directory.read("pki/ca.crt")?, directory.read("pki/ca.key")?)
    {
        return Ok(Ca::from_pem(&KeyPairPem { cert, key })?);
    }
    let ca = Ca::new("kubernetes", DAYS)?;
    let pem = ca.to_pem();
    directory.write("pki/ca.key", &pem.key)?;
    directory.write("pki/ca.crt", &pem.cert)?;
    Ok(ca)
}

/// A certificate for a client: a user and its groups.
pub(crate) fn client(ca: &Ca, user: &str, groups: &[&str]) -> Result<KeyPairPem, PkiError> {
    ca.issue(&Profile {
        common_name: user.into(),
        organizations: owned(groups),
        client: true,
        days: DAYS,
        ..Profile::default()
    })
}

/// A certificate for a server that pods reach as the API server, at these addresses and (beside `kubernetes`) names.
pub(crate) fn serving(
    ca: &Ca,
    name: &str,
    groups: &[&str],
    names: &[&str],
    addresses: &[IpAddr],
) -> Result<KeyPairPem, PkiError> {
    let mut dns = ["", ".default", ".default.svc", ".default.svc.cluster.local"]
        .map(|end| format!("kubernetes{end}"))
        .to_vec();
    dns.extend(owned(names));
    let mut ips = addresses.to_vec();
    ips.push(SERVICE_IP.into());
    ca.issue(&Profile {
        common_name: name.into(),
        organizations: owned(groups),
        dns,
        ips,
        server: true,
        days: DAYS,
        ..Profile::default()
    })
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// The kubeconfig of a client that has such a certificate.
pub(crate) fn kubeconfig(ca: &Ca, client: &KeyPairPem, cluster: &str, server: &str) -> String {
    let credentials = Credentials::Certificate {
        cert: &client.cert,
        key: &client.key,
    };
    kubeconfig::render(cluster, server, &ca.cert_pem(), &credentials)
}

/// A secret of 192 bits, hexadecimal.
pub(crate) fn random_token() -> Result<String, LabError> {
    let path = PathBuf::from("/dev/urandom");
    let mut bytes = [0u8; 24];
    File::open(&path)
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|source| DirectoryError::Io { path, source })?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
