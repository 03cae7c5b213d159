use super::*;
use crate::{KeyPairPem, certs_from_pem, identity_of};
use std::time::Duration;
use x509_parser::certificate::X509Certificate;

fn profile() -> Profile {
    Profile {
        common_name: "system:node:edge-1".into(),
        organizations: vec!["system:nodes".into()],
        dns: vec!["edge-1".into()],
        ips: vec![
            IpAddr::from([10, 0, 0, 7]),
            IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]),
        ],
        ..Profile::default()
    }
}

fn usages(names: &[&str]) -> Usages {
    Usages::from_names(names.iter().copied()).expect("known usages")
}

#[test]
fn a_request_says_what_it_asks_for() {
    let made = request(&profile()).expect("made");
    let read = SigningRequest::from_pem(&made.request).expect("read");
    assert_eq!(read.subject.user, "system:node:edge-1");
    assert_eq!(read.subject.groups, ["system:nodes"]);
    assert_eq!(read.dns, ["edge-1"]);
    assert_eq!(read.ips, profile().ips);
    assert!(read.emails.is_empty() && read.uris.is_empty());
}

#[test]
fn a_request_signed_by_another_key_is_refused() {
    let made = request(&profile()).expect("made");
    let (_, mut der) = pem::decode_vec(made.request.as_bytes()).expect("PEM");
    // A bit of the name.
    let at = der
        .windows(6)
        .position(|window| window == b"edge-1")
        .expect("the name");
    der[at] ^= 1;
    let forged = pem::encode_string("CERTIFICATE REQUEST", LineEnding::LF, &der).expect("PEM");
    assert!(SigningRequest::from_pem(&forged).is_err());
    for bad in [
        "",
        "no PEM",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    ] {
        assert!(SigningRequest::from_pem(bad).is_err(), "{bad}");
    }
}

#[test]
fn what_is_signed_is_what_was_asked_for_the_given_time() {
    let ca = Ca::new("test", 10).expect("a CA");
    let made = request(&profile()).expect("made");
    let read = SigningRequest::from_pem(&made.request).expect("read");
    let now = SystemTime::now();
    let kubelet = usages(&["digital signature", "key encipherment", "server auth"]);
    let long = now + Duration::from_secs(3600 * 24 * 365);
    let pem = ca.sign_request(&read, &kubelet, now, long).expect("signed");
    let der = certs_from_pem(&pem).expect("a certificate").remove(0);
    assert_eq!(identity_of(&der).expect("an identity"), read.subject);
    let (_, certificate) = X509Certificate::from_der(&der).expect("a certificate");
    let ca_der = certs_from_pem(&ca.cert_pem())
        .expect("a certificate")
        .remove(0);
    let (_, authority) = X509Certificate::from_der(&ca_der).expect("a certificate");
    assert!(
        certificate
            .verify_signature(Some(authority.public_key()))
            .is_ok()
    );
    assert_eq!(
        certificate.validity().not_after,
        authority.validity().not_after,
        "not longer than the CA"
    );
    let usage = certificate
        .key_usage()
        .expect("readable")
        .expect("there")
        .value;
    assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
    let extended = certificate
        .extended_key_usage()
        .expect("readable")
        .expect("there")
        .value;
    assert!(extended.server_auth && !extended.client_auth);
    let names = certificate
        .subject_alternative_name()
        .expect("readable")
        .expect("there")
        .value;
    assert_eq!(names.general_names.len(), 3);
    assert!(!certificate.is_ca());
    // The key fits: a TLS configuration is made of the two.
    let pair = KeyPairPem {
        cert: pem,
        key: made.key,
    };
    assert!(crate::server_config(&pair, None, false).is_ok());
}

#[test]
fn usages_that_do_not_exist_are_named() {
    let unknown = Usages::from_names(["client auth", "world peace"]).expect_err("unknown");
    assert_eq!(unknown.0, ["world peace"]);
    assert_eq!(
        usages(&["s/mime", "email protection"]),
        usages(&["email protection"])
    );
}

#[test]
fn a_pending_request_is_gone_on_with_only_when_it_is_still_wanted() {
    let wanted = profile();
    let made = request(&wanted).expect("made");
    assert!(made.asks_for(&wanted));
    let moved = Profile {
        ips: vec![[10, 0, 0, 8].into()],
        ..profile()
    };
    assert!(!made.asks_for(&moved));
    let other = Profile {
        common_name: "system:node:edge-2".into(),
        ..profile()
    };
    assert!(!made.asks_for(&other));
    let broken = Request {
        request: "x".into(),
        key: String::new(),
    };
    assert!(!broken.asks_for(&wanted));
}
