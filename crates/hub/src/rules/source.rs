//! Where rules come from: the key `rules` of the config map `yurt-hub-cfg`, and a file of the node's. A rule of the file takes the place
//! of the map's of the same name, so that a node's owner can do otherwise.
//!
//! What was right stays in force while what came after it is not: a rule that makes no sense any more as it was, all of them when
//! a document cannot be read at all.

use super::{Complaint, Entry, InForce, Reading, document, read};
use crate::{filter::Filter, metrics::Metrics, proxy::Hub};
use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

/// Between looks at the file.
const LOOK: Duration = Duration::from_secs(2);

/// Where rules come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The config map `yurt-hub-cfg`.
    ConfigMap,
    /// A file.
    File,
}

impl Origin {
    /// In metrics and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::File => "file",
        }
    }
}

/// What one place gives.
#[derive(Debug, Default)]
struct Source {
    rules: Vec<Arc<InForce>>,
    complaints: Vec<Complaint>,
}

impl Source {
    /// Takes a document in place of the one before; whether other rules are in force then. A rule that is written as before stays the
    /// very same.
    fn take(&mut self, read: Result<Reading, Complaint>, metrics: &Metrics) -> bool {
        let reading = match read {
            Ok(reading) => reading,
            Err(complaint) => {
                self.complaints = vec![complaint];
                return false;
            }
        };
        let before = |name: &str| self.rules.iter().find(|known| known.name() == name);
        let rules: Vec<Arc<InForce>> = reading
            .entries
            .into_iter()
            .filter_map(|entry| match entry {
                Entry::Rule(rule) => Some(match before(rule.name()) {
                    Some(known) if *known.rule() == *rule => known.clone(),
                    _ => InForce::new(*rule, metrics.clone()),
                }),
                Entry::Broken(name) => before(&name).cloned(),
            })
            .collect();
        let is_other = rules.len() != self.rules.len()
            || rules
                .iter()
                .zip(&self.rules)
                .any(|(a, b)| !Arc::ptr_eq(a, b));
        self.rules = rules;
        self.complaints = reading.complaints;
        is_other
    }
}

/// The rules of a hub.
#[derive(Debug)]
pub struct Rules {
    file: Option<PathBuf>,
    metrics: Metrics,
    sources: Mutex<[(Origin, Source); 2]>,
}

impl Rules {
    /// None yet.
    pub fn new(file: Option<PathBuf>, metrics: Metrics) -> Self {
        Self {
            file,
            metrics,
            sources: Mutex::new([Origin::ConfigMap, Origin::File].map(|o| (o, Source::default()))),
        }
    }

    fn sources(&self) -> std::sync::MutexGuard<'_, [(Origin, Source); 2]> {
        // What a panic left behind is whole: it is replaced field by field.
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a place says now; whether other rules are in force then.
    pub fn take(&self, from: Origin, read: Result<Reading, Complaint>) -> bool {
        let mut sources = self.sources();
        let Some((_, source)) = sources.iter_mut().find(|(origin, _)| *origin == from) else {
            return false;
        };
        let before = std::mem::take(&mut source.complaints);
        let old: Vec<Arc<InForce>> = source.rules.clone();
        let changed = source.take(read, &self.metrics);
        for complaint in source.complaints.iter().filter(|c| !before.contains(c)) {
            tracing::warn!(source = from.as_str(), "rules: {complaint}");
        }
        for rule in &source.rules {
            if !old.iter().any(|known| Arc::ptr_eq(known, rule)) {
                for warning in rule.rule().warnings() {
                    tracing::warn!(
                        source = from.as_str(),
                        rule = rule.name(),
                        "this rule {warning}"
                    );
                }
            }
        }
        if changed {
            let names: Vec<&str> = source.rules.iter().map(|rule| rule.name()).collect();
            tracing::info!(source = from.as_str(), rules = ?names, "rules changed");
        }
        let metrics = self.metrics.rules();
        metrics.source(from.as_str(), source.rules.len(), source.complaints.len());
        changed
    }

    /// All rules in force with where they come from, in the order in which they are applied.
    pub fn in_force(&self) -> Vec<(Origin, Arc<InForce>)> {
        let sources = self.sources();
        let mut all: Vec<(Origin, Arc<InForce>)> = Vec::new();
        for (origin, source) in sources.iter() {
            for rule in &source.rules {
                match all
                    .iter_mut()
                    .find(|(_, known)| known.name() == rule.name())
                {
                    Some(known) => *known = (*origin, rule.clone()),
                    None => all.push((*origin, rule.clone())),
                }
            }
        }
        all
    }

    /// Where the rules in force come from, by their names.
    pub fn origins(&self) -> BTreeMap<String, Origin> {
        let rules = self.in_force().into_iter();
        rules
            .map(|(origin, rule)| (rule.name().to_owned(), origin))
            .collect()
    }

    /// What is wrong with rules as they are written now, and as they turned out.
    pub fn complaints(&self) -> Vec<(Origin, Complaint)> {
        let sources = self.sources();
        let of = |(origin, source): &(Origin, Source)| {
            let aside = source.rules.iter().filter(|rule| rule.is_aside());
            let aside = aside.map(|rule| Complaint {
                line: 0,
                column: 0,
                rule: rule.name().to_owned(),
                at: String::new(),
                why: super::ASIDE.to_owned(),
            });
            let complaints = source.complaints.iter().cloned().chain(aside);
            complaints
                .map(|complaint| (*origin, complaint))
                .collect::<Vec<_>>()
        };
        sources.iter().flat_map(of).collect()
    }

    fn filters(&self) -> Vec<Arc<dyn Filter>> {
        let rules = self.in_force().into_iter();
        rules.map(|(_, rule)| rule as Arc<dyn Filter>).collect()
    }
}

/// What tells that a file is another: when it changed, how long it is.
type Stamp = Option<(SystemTime, u64)>;

fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// Reads rules from a file.
pub fn read_file(path: &Path) -> Result<Reading, Complaint> {
    let text = || -> std::io::Result<String> {
        // A pipe would be waited for.
        if !std::fs::metadata(path)?.is_file() {
            return Err(std::io::Error::other("it is no file"));
        }
        let file = std::fs::File::open(path)?;
        let mut text = String::new();
        // One byte more than is taken, so that a file that is too long is noticed.
        file.take(document::MOST_BYTES as u64 + 1)
            .read_to_string(&mut text)?;
        Ok(text)
    };
    let text = text().map_err(|error| Complaint {
        line: 0,
        column: 0,
        rule: String::new(),
        at: String::new(),
        why: format!("{} cannot be read: {error}", path.display()),
    })?;
    read(&text)
}

/// Keeps the hub's rules true until it shuts down.
pub(crate) async fn follow(hub: Arc<Hub>) {
    let rules = &hub.rules;
    let mut settings = hub.settings.clone();
    let mut text: Option<Box<str>> = None;
    let mut seen: Option<Stamp> = None;
    loop {
        let mut changed = false;
        let now = settings.borrow_and_update().rules.clone();
        if now != text {
            changed |= rules.take(Origin::ConfigMap, read(now.as_deref().unwrap_or_default()));
            text = now;
        }
        if let Some(path) = &rules.file {
            let now = stamp(path);
            if seen != Some(now) {
                // Looked at before it is read: what changes in between is read again.
                changed |= rules.take(Origin::File, read_file(path));
                seen = Some(now);
            }
        }
        if changed {
            hub.filters.set_users(rules.filters());
        }
        let look = async {
            match rules.file {
                Some(_) => tokio::time::sleep(LOOK).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = look => {}
            changed = settings.changed() => if changed.is_err() {
                return;
            },
            () = hub.shutdown.cancelled() => return,
        }
    }
}
