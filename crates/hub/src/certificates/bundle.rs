//! The CAs that are believed: a bundle that new ones are added to, and that those leave which have ended. Pure.

use base64::{Engine, engine::general_purpose::STANDARD};
use std::fmt::Write;
use yurt_pki::{Leaf, PkiError, certs_from_pem};

/// Most CAs in a bundle.
const MOST: usize = 16;

/// CA certificates, in DER, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle {
    certificates: Vec<Authority>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Authority {
    der: Vec<u8>,
    user: String,
    not_after: i64,
}

impl Bundle {
    /// Reads all `CERTIFICATE` blocks; one that is no certificate spoils the whole.
    pub fn parse(pem: &str) -> Result<Self, PkiError> {
        let mut bundle = Self::default();
        for der in certs_from_pem(pem)? {
            let leaf = Leaf::of(&der)?;
            bundle.add(Authority {
                der: der.to_vec(),
                user: leaf.identity.user,
                not_after: leaf.not_after,
            });
        }
        if bundle.certificates.len() > MOST {
            return Err(PkiError::Invalid {
                what: "CA bundle".into(),
                why: format!("more than {MOST} certificates"),
            });
        }
        Ok(bundle)
    }

    fn add(&mut self, authority: Authority) {
        if !self.certificates.contains(&authority) {
            self.certificates.push(authority);
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.certificates.is_empty()
    }

    /// As PEM.
    pub fn pem(&self) -> String {
        let mut pem = String::new();
        for authority in &self.certificates {
            pem.push_str("-----BEGIN CERTIFICATE-----\n");
            let text = STANDARD.encode(&authority.der);
            let mut rest = text.as_str();
            while !rest.is_empty() {
                let (line, left) = rest.split_at(rest.len().min(64));
                // Writing to a String does not fail.
                let _ = writeln!(pem, "{line}");
                rest = left;
            }
            pem.push_str("-----END CERTIFICATE-----\n");
        }
        pem
    }

    /// The bundle that also believes the CAs `learned`, newest first, without those that ended before `now`. `None` when nothing is
    /// new: the old one is kept then, ended CAs and all.
    pub fn with(&self, learned: &Self, now: i64) -> Option<Self> {
        let news = |authority: &&Authority| !self.certificates.contains(authority);
        if !learned.certificates.iter().any(|a| news(&a)) {
            return None;
        }
        let mut merged = Self::default();
        let old = self.certificates.iter();
        for authority in learned.certificates.iter().chain(old) {
            if authority.not_after > now && merged.certificates.len() < MOST {
                merged.add(authority.clone());
            }
        }
        // A clock in the far future must not end the belief in everybody.
        (!merged.is_empty() && merged != *self).then_some(merged)
    }

    /// Keeps the certificates that `wanted` says yes to.
    pub fn only(&self, wanted: impl Fn(&[u8]) -> bool) -> Self {
        let certificates = self.certificates.iter();
        Self {
            certificates: certificates.filter(|a| wanted(&a.der)).cloned().collect(),
        }
    }

    /// Names of the CAs, and when the last of them ends.
    pub fn summary(&self) -> Option<(String, i64)> {
        let last = self.certificates.iter().map(|a| a.not_after).max()?;
        let names: Vec<&str> = self.certificates.iter().map(|a| a.user.as_str()).collect();
        Some((names.join(", "), last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::plan;
    use yurt_pki::Ca;

    fn ca(name: &str, days: u32) -> Bundle {
        Bundle::parse(&Ca::new(name, days).unwrap().cert_pem()).unwrap()
    }

    #[test]
    fn a_bundle_reads_back() {
        let (one, two) = (ca("one", 1), ca("two", 2));
        let both = Bundle::parse(&format!("{}# two\n{}{}", one.pem(), two.pem(), one.pem()));
        let both = both.unwrap();
        assert_eq!(both.certificates.len(), 2, "each once");
        assert_eq!(Bundle::parse(&both.pem()).unwrap(), both);
        assert_eq!(both.summary().unwrap().0, "one, two");
        assert!(Bundle::parse("").is_err());
        let broken = one.pem().replace(
            "-----BEGIN CERTIFICATE-----\nM",
            "-----BEGIN CERTIFICATE-----\nA",
        );
        assert!(Bundle::parse(&broken).is_err());
    }

    #[test]
    fn a_new_ca_is_believed_beside_the_old_until_that_ends() {
        let (old, new) = (ca("old", 1), ca("new", 10));
        let now = plan::now();
        assert_eq!(old.with(&old, now), None);
        let both = old.with(&new, now).unwrap();
        assert_eq!(both.summary().unwrap().0, "new, old");
        assert_eq!(both.with(&new, now), None, "nothing new");
        let third = ca("third", 10);
        let later = both.with(&third, now + 2 * 24 * 3600).unwrap();
        assert_eq!(later.summary().unwrap().0, "third, new");
        // Everything ended long ago by this clock.
        assert_eq!(old.with(&new, i64::MAX), None);
    }
}
