use super::*;
use jiff::Timestamp;

const DAY: i64 = 24 * 3600;
const NAMES: &str = "yurt-manager-webhook-service.kube-system.svc";

fn names() -> Names {
    Names::of(&Options::default())
}

fn terms() -> Terms {
    Terms::default()
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

fn after(known: Option<&Bundle>, at: i64) -> Option<Bundle> {
    renewed(known, &names(), &terms(), at).expect("no failure")
}

fn serves(bundle: &Bundle, at: i64) -> bool {
    yurt_pki::verify_server(&bundle.authorities, &bundle.own.cert, NAMES, at).is_ok()
}

fn count(pem: &str) -> usize {
    certs_from_pem(pem).expect("PEM").len()
}

#[test]
fn what_is_made_serves_and_stays() {
    let made = after(None, now()).expect("something new");
    assert!(serves(&made, now()));
    assert!(yurt_pki::verify_server(&made.authorities, &made.own.cert, "localhost", now()).is_ok());
    assert_eq!(count(&made.authorities), 1);
    assert_eq!(after(Some(&made), now()), None);
    assert_eq!(after(Some(&made), now() + 200 * DAY), None);
}

#[test]
fn a_certificate_is_renewed_before_its_end_by_the_same_ca() {
    let made = after(None, now()).expect("something new");
    for at in [250 * DAY, 364 * DAY] {
        let next = after(Some(&made), now() + at).expect("another");
        assert_eq!(next.authorities, made.authorities);
        assert_ne!(next.own.cert, made.own.cert);
        assert!(serves(&next, now()));
    }
}

#[test]
fn another_name_needs_another_certificate_of_the_same_ca() {
    let made = after(None, now()).expect("something new");
    for host in ["webhooks.example.com", "192.0.2.7", "fd00::7"] {
        let host = Names {
            primary: host.into(),
        };
        let next = renewed(Some(&made), &host, &terms(), now())
            .expect("no failure")
            .expect("another");
        assert_eq!(next.authorities, made.authorities);
        let verified =
            yurt_pki::verify_server(&next.authorities, &next.own.cert, &host.primary, now());
        assert!(verified.is_ok(), "{verified:?}");
    }
}

/// A bundle whose CA is valid for some days and certificate for others.
fn aged(ca_days: u32, days: u32) -> Bundle {
    let ca = Ca::new(CA_NAME, ca_days).expect("a CA");
    let terms = Terms {
        certificate_days: days,
        ..terms()
    };
    issued(&ca, ca.cert_pem(), &names(), &terms).expect("issued")
}

#[test]
fn a_new_ca_comes_before_it_is_used_and_the_old_one_goes_after() {
    let old = aged(10, 10);
    let (start, overlap) = (now() + 7 * DAY, 15 * 60);
    // Told, not used.
    let told = after(Some(&old), start).expect("a new CA");
    assert_eq!(count(&told.authorities), 2);
    assert_eq!(told.own.cert, old.own.cert);
    assert!(told.authorities.ends_with("-----END CERTIFICATE-----\n"));
    // The new one is made now, whatever time the plan is for.
    let start = now();
    assert_eq!(after(Some(&told), start), None);
    // Used: those who trust both, and those who know only the new one, believe it.
    let used = after(Some(&told), start + overlap + 1).expect("a certificate of the new CA");
    assert_eq!(used.authorities, told.authorities);
    assert!(serves(&used, start));
    let only = yurt_pki::verify_server(first(&used.authorities), &used.own.cert, NAMES, start);
    assert!(only.is_ok());
    assert_eq!(after(Some(&used), start), None);
    // Gone.
    let last = after(Some(&used), start + overlap + 1).expect("one CA");
    assert_eq!(count(&last.authorities), 1);
    assert_eq!(last.own, used.own);
    assert_eq!(last.authority_key, used.authority_key);
    assert!(serves(&last, start));
    assert_eq!(after(Some(&last), start + overlap + 1), None);
}

#[test]
fn what_is_of_no_use_is_made_anew_at_once() {
    let good = after(None, now()).expect("something new");
    let strange = aged(100, 100);
    let text = |text: &str| text.to_owned();
    let broken = [
        Bundle {
            authorities: text(""),
            ..good.clone()
        },
        Bundle {
            authorities: text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----"),
            ..good.clone()
        },
        Bundle {
            authority_key: text("no key"),
            ..good.clone()
        },
        Bundle {
            authority_key: strange.authority_key.clone(),
            ..good.clone()
        },
        Bundle {
            own: strange.own.clone(),
            ..good.clone()
        },
        Bundle {
            own: KeyPairPem {
                key: strange.own.key.clone(),
                ..good.own.clone()
            },
            ..good.clone()
        },
        Bundle {
            own: KeyPairPem {
                cert: text(""),
                ..good.own.clone()
            },
            ..good.clone()
        },
    ];
    for broken in broken {
        let next = after(Some(&broken), now()).expect("something new");
        assert!(serves(&next, now()), "{broken:?}");
        assert_eq!(after(Some(&next), now()), None);
    }
    // The cluster slept until everything ended.
    let next = after(Some(&aged(10, 10)), now() + 11 * DAY).expect("something new");
    assert_eq!(count(&next.authorities), 1);
    // Only the certificate ended, and the CA is about to.
    let next = after(Some(&aged(10, 1)), now() + 9 * DAY).expect("something new");
    assert_eq!(count(&next.authorities), 2);
    assert!(serves(&next, now()));
}

/// A bundle as OpenYurt's manager makes it: RSA, PKCS#1, twenty years.
fn openyurts() -> Bundle {
    let text = str::to_owned;
    Bundle {
        authorities: text(include_str!("openyurt/ca-cert.pem")),
        authority_key: text(include_str!("openyurt/ca-key.pem")),
        own: KeyPairPem {
            cert: text(include_str!("openyurt/cert.pem")),
            key: text(include_str!("openyurt/key.pem")),
        },
    }
}

#[test]
fn what_openyurt_made_is_taken_over() {
    // The time of the fixture, whatever the clock says.
    let at = Span::of(&openyurts().own.cert).expect("a span").from + DAY;
    assert!(serves(&openyurts(), at));
    assert_eq!(after(Some(&openyurts()), at), None);
    // Its CA signs the next, when it is time: half a year before the end.
    assert_eq!(after(Some(&openyurts()), at + 7000 * DAY), None);
    let next = after(Some(&openyurts()), at + 7200 * DAY).expect("another certificate");
    assert_eq!(next.authorities, openyurts().authorities);
    assert!(serves(&next, now()));
    // In another namespace it is of no use, but its CA is.
    let options = Options {
        namespace: "edge".into(),
        ..Options::default()
    };
    let next = renewed(Some(&openyurts()), &Names::of(&options), &terms(), at)
        .expect("no failure")
        .expect("another certificate");
    assert_eq!(next.authorities, openyurts().authorities);
    assert_ne!(next.own.cert, openyurts().own.cert);
}

#[tokio::test]
async fn a_directory_keeps_what_only_we_may_read() {
    use std::os::unix::fs::PermissionsExt;
    let root = std::env::temp_dir().join(format!("yurt-certificates-{}", fastrand::u64(..)));
    let store = || Store::Directory(root.join("certs"));
    let clock: Clock = Arc::new(now);
    let keeper = Keeper::new(store(), names(), terms(), clock.clone()).expect("a keeper");
    keeper.tend().await.expect("made");
    let made = keeper.bundle().borrow().clone().expect("served");
    for name in [
        "ca-key.pem",
        "ca-cert.pem",
        "tls.key",
        "key.pem",
        "tls.crt",
        "cert.pem",
    ] {
        let mode = std::fs::metadata(root.join("certs").join(name))
            .expect(name)
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600, "{name}");
    }
    let again = Keeper::new(store(), names(), terms(), clock).expect("a keeper");
    again.tend().await.expect("read");
    assert_eq!(again.bundle().borrow().clone().expect("served"), made);
    // Half of it is lost.
    for name in ["tls.key", "key.pem"] {
        std::fs::remove_file(root.join("certs").join(name)).expect(name);
    }
    again.tend().await.expect("made anew");
    assert_ne!(again.bundle().borrow().clone().expect("served"), made);
    std::fs::remove_dir_all(root).expect("removed");
}
