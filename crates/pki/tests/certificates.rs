//! Certificates as another implementation (x509-parser, rustls) reads them.

use rustls::{ClientConnection, ServerConnection};
use rustls_pki_types::ServerName;
use std::{collections::HashSet, io, net::IpAddr, sync::Arc};
use x509_parser::{extensions::GeneralName, prelude::*};
use yurt_pki::*;

fn node_profile() -> Profile {
    Profile {
        common_name: "system:node:edge-1".into(),
        organizations: vec![
            "system:nodes".into(),
            "openyurt:pool:a".into(),
            "another".into(),
        ],
        client: true,
        days: 30,
        ..Profile::default()
    }
}

fn server_profile() -> Profile {
    Profile {
        common_name: "kube-apiserver".into(),
        dns: vec!["kubernetes.default.svc".into()],
        ips: vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
        server: true,
        days: 1,
        ..Profile::default()
    }
}

fn der(pem: &str) -> Vec<u8> {
    certs_from_pem(pem).unwrap()[0].to_vec()
}

#[test]
fn repeated_organizations_survive_in_order() {
    let ca = Ca::new("kubernetes", 365).unwrap();
    let issued = ca.issue(&node_profile()).unwrap();
    let identity = identity_of(&der(&issued.cert)).unwrap();
    assert_eq!(identity.user, "system:node:edge-1");
    assert_eq!(
        identity.groups,
        ["system:nodes", "openyurt:pool:a", "another"]
    );
}

#[test]
fn certificates_verify_and_carry_what_the_profile_asks() {
    let ca = Ca::new("kubernetes", 365).unwrap();
    let ca_der = der(&ca.cert_pem());
    let (_, ca_cert) = X509Certificate::from_der(&ca_der).unwrap();
    assert!(ca_cert.is_ca());
    ca_cert.verify_signature(None).unwrap();
    let issued = ca.issue(&server_profile()).unwrap();
    let leaf_der = der(&issued.cert);
    let (_, leaf) = X509Certificate::from_der(&leaf_der).unwrap();
    leaf.verify_signature(Some(ca_cert.public_key())).unwrap();
    assert!(!leaf.is_ca());
    assert_eq!(leaf.issuer(), ca_cert.subject());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth);
    let names = &leaf
        .subject_alternative_name()
        .unwrap()
        .unwrap()
        .value
        .general_names;
    assert_eq!(
        names.as_slice(),
        [
            GeneralName::DNSName("kubernetes.default.svc"),
            GeneralName::IPAddress(&[127, 0, 0, 1]),
            GeneralName::IPAddress(&"::1".parse::<std::net::Ipv6Addr>().unwrap().octets()),
        ]
    );
    let subject_key = |cert: &X509Certificate<'_>| {
        cert.iter_extensions()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            })
    };
    let authority_key =
        leaf.iter_extensions()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    id.key_identifier.as_ref().map(|id| id.0.to_vec())
                }
                _ => None,
            });
    assert!(subject_key(&leaf).is_some());
    assert_eq!(authority_key, subject_key(&ca_cert));
    let lifetime = not_after(&leaf_der).unwrap() - leaf.validity().not_before.timestamp();
    assert_eq!(lifetime, 24 * 3600 + 300);
}

#[test]
fn serial_numbers_differ() {
    let ca = Ca::new("kubernetes", 365).unwrap();
    let serials: HashSet<Vec<u8>> = (0..20)
        .map(|_| {
            let issued = ca.issue(&node_profile()).unwrap();
            let der = der(&issued.cert);
            X509Certificate::from_der(&der)
                .unwrap()
                .1
                .raw_serial()
                .to_vec()
        })
        .collect();
    assert_eq!(serials.len(), 20);
}

#[test]
fn a_ca_survives_its_pem() {
    let ca = Ca::new("kubernetes", 365).unwrap();
    let again = Ca::from_pem(&ca.to_pem()).unwrap();
    assert_eq!(again.cert_pem(), ca.cert_pem());
    let issued = again.issue(&node_profile()).unwrap();
    assert_eq!(
        handshake(&ca, &ca, Some(&issued)).unwrap().unwrap().user,
        "system:node:edge-1"
    );
}

#[test]
fn a_ca_takes_neither_a_foreign_key_nor_a_leaf() {
    let (one, two) = (Ca::new("one", 1).unwrap(), Ca::new("two", 1).unwrap());
    let mixed = KeyPairPem {
        cert: one.cert_pem(),
        key: two.to_pem().key,
    };
    assert!(matches!(
        Ca::from_pem(&mixed),
        Err(PkiError::Invalid { .. })
    ));
    let leaf = one.issue(&node_profile()).unwrap();
    assert!(matches!(Ca::from_pem(&leaf), Err(PkiError::Invalid { .. })));
}

#[test]
fn bad_profiles_are_refused() {
    let ca = Ca::new("kubernetes", 365).unwrap();
    for bad in [
        Profile {
            days: 0,
            ..node_profile()
        },
        Profile {
            days: u32::MAX,
            ..node_profile()
        },
        Profile {
            dns: vec!["bücher.example".into()],
            ..server_profile()
        },
    ] {
        assert!(
            matches!(ca.issue(&bad), Err(PkiError::Invalid { .. })),
            "{bad:?}"
        );
    }
}

#[test]
fn somebody_without_a_name_is_nobody() {
    let ca = Ca::new("kubernetes", 365).unwrap();
    let issued = ca
        .issue(&Profile {
            common_name: String::new(),
            ..node_profile()
        })
        .unwrap();
    assert!(identity_of(&der(&issued.cert)).is_err());
    assert!(identity_of(b"no certificate").is_err());
    assert!(certs_from_pem("no certificate").is_err());
}

/// Runs a TLS handshake in memory; the identity the server sees.
fn handshake(
    trusted: &Ca,
    server_ca: &Ca,
    client: Option<&KeyPairPem>,
) -> Result<Option<Identity>, rustls::Error> {
    let server = server_config(
        &server_ca.issue(&server_profile()).unwrap(),
        Some(&server_ca.cert_pem()),
        true,
    )
    .unwrap();
    handshake_with(trusted, server, client)
}

fn handshake_with(
    trusted: &Ca,
    server: Arc<rustls::ServerConfig>,
    client: Option<&KeyPairPem>,
) -> Result<Option<Identity>, rustls::Error> {
    let client = client_config(&trusted.cert_pem(), client, &["h2"]).unwrap();
    let name = ServerName::from("127.0.0.1".parse::<IpAddr>().unwrap());
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        feed(&wire, |read| server.read_tls(read));
        server.process_new_packets()?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        feed(&wire, |read| client.read_tls(read));
        client.process_new_packets()?;
    }
    assert_eq!(client.alpn_protocol(), Some(&b"h2"[..]));
    Ok(server
        .peer_certificates()
        .map(|chain| identity_of(&chain[0]).unwrap()))
}

fn feed(wire: &[u8], mut read: impl FnMut(&mut dyn io::Read) -> io::Result<usize>) {
    let mut rest = wire;
    while !rest.is_empty() {
        read(&mut rest).unwrap();
    }
}

#[test]
fn client_certificates_are_optional_but_never_wrong() {
    let (ours, theirs) = (Ca::new("ours", 1).unwrap(), Ca::new("theirs", 1).unwrap());
    let node = ours.issue(&node_profile()).unwrap();
    assert_eq!(handshake(&ours, &ours, None).unwrap(), None);
    let seen = handshake(&ours, &ours, Some(&node)).unwrap().unwrap();
    assert_eq!(seen.groups.len(), 3);
    let stranger = theirs.issue(&node_profile()).unwrap();
    assert!(handshake(&ours, &ours, Some(&stranger)).is_err());
    // A server's certificate is no client's.
    let server = ours.issue(&server_profile()).unwrap();
    assert!(handshake(&ours, &ours, Some(&server)).is_err());
    // The client refuses a server of another authority.
    assert!(handshake(&theirs, &ours, None).is_err());
}

#[test]
fn keys_of_other_tools_are_read() {
    let fixture = |name: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys");
        KeyPairPem::read(
            &path.join(format!("{name}.crt")),
            &path.join(format!("{name}.key")),
        )
        .unwrap()
    };
    for (name, label) in [
        ("rsa-pkcs1", "BEGIN RSA PRIVATE KEY"),
        ("rsa-pkcs8", "BEGIN PRIVATE KEY"),
        ("ec-sec1", "BEGIN EC PRIVATE KEY"),
    ] {
        let pem = fixture(name);
        assert!(pem.key.contains(label));
        let ca = Ca::from_pem(&pem).unwrap_or_else(|e| panic!("{name}: {e}"));
        let issued = ca.issue(&node_profile()).unwrap();
        // As a CA it signs what rustls accepts, and as a TLS key it is taken too.
        assert!(
            handshake(&ca, &ca, Some(&issued)).unwrap().is_some(),
            "{name}"
        );
        server_config(&pem, None, true).unwrap();
    }
    let missing = KeyPairPem::read("/nowhere.crt".as_ref(), "/nowhere.key".as_ref());
    assert!(matches!(missing, Err(PkiError::Io { .. })));
}

#[test]
fn a_private_key_is_not_shown() {
    let ca = Ca::new("kubernetes", 1).unwrap();
    let shown = format!("{ca:?} {:?}", ca.to_pem());
    assert!(!shown.contains("PRIVATE"));
}
