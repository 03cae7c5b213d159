//! Lists: selection, paging, and the revision they show.

use super::{Registry, Reply};
use crate::{
    meta,
    resources::Resource,
    selectable,
    storage::{Key, Listed, Range, Stored, TooOld, Topic},
};
use base64::{DecodeError, Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use yurt_wire::{
    Reason, Status,
    request::ListOptions,
    selector::{FieldSelector, LabelSelector},
    status::Cause,
};

/// Part of a list.
#[derive(Clone, Debug)]
pub struct Page {
    /// The objects, by namespace and name.
    pub items: Vec<Arc<Stored>>,
    /// The revision they show.
    pub revision: u64,
    /// Where the next page begins, `""` when this is the last.
    pub continue_token: String,
    /// Objects after this page, where known.
    pub remaining: Option<i64>,
}

/// Which objects of a resource a list or watch is about.
#[derive(Clone, Debug)]
pub struct Selection {
    labels: LabelSelector,
    /// Paths are those of the stored version.
    fields: FieldSelector,
    resource: Arc<Resource>,
}

impl Selection {
    /// From list options; a 400 Status for fields that cannot be selected by.
    pub fn new(resource: &Arc<Resource>, options: &ListOptions) -> Reply<Self> {
        let mut fields = options.fields.clone();
        for requirement in &mut fields.requirements {
            let path = requirement.path.as_str();
            let known = path == "metadata.name"
                || (path == "metadata.namespace" && resource.namespaced)
                || resource
                    .selectable_fields
                    .iter()
                    .any(|f| f.trim_start_matches('.') == path);
            if !known {
                return Err(unknown_field(resource, path));
            }
            requirement.path = selectable::stored_path(&resource.group, path);
        }
        Ok(Self {
            labels: options.labels.clone(),
            fields,
            resource: resource.clone(),
        })
    }

    /// Whether an object is selected.
    pub fn matches(&self, object: &Stored) -> bool {
        self.labels.matches(&object.labels)
            && (self.fields.is_empty()
                || self
                    .fields
                    .matches(|path| object.field(path, &self.resource.selectable_fields)))
    }

    /// What the selection is confined to, where it is one object or one node's pods.
    pub(crate) fn topic(&self, namespace: &str) -> Option<Topic> {
        let named = self.fields.exact("metadata.name");
        if let Some(name) = named.filter(|_| !namespace.is_empty() || !self.resource.namespaced) {
            return Some(Topic::Object(Key::new(namespace, name)));
        }
        let is_pods = self.resource.group.is_empty() && self.resource.plural == "pods";
        let node = self.fields.exact("spec.nodeName").filter(|_| is_pods)?;
        Some(Topic::Node(node.into()))
    }

    /// Whether everything is selected.
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }
}

/// As kube-apiserver says it: kinds with fields of their own have their own words.
fn unknown_field(resource: &Resource, path: &str) -> Box<Status> {
    let plain = resource.custom.is_some() || resource.selectable_fields.is_empty();
    Box::new(Status::bad_request(if plain {
        format!(
            "\"{path}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        )
    } else if resource.kind == "Job" {
        format!("field label \"{path}\" not supported for Job")
    } else {
        format!("field label not supported: {path}")
    }))
}

/// Where a page ended. The form is kube-apiserver's, though clients must not look inside.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    v: String,
    /// The revision the list shows; [`NEWEST`] for whatever is newest.
    rv: i64,
    start: String,
    /// When the first page was read, Unix seconds: kube-apiserver's tokens die with the compaction of their revision,
    /// ours of old age.
    #[serde(default, skip_serializing_if = "is_zero")]
    at: i64,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";
/// The `rv` of a token that goes on at a newer state.
const NEWEST: i64 = -1;
/// How long a list may take from its first page to its last, seconds: the interval of kube-apiserver's compaction.
const TOKEN_SECONDS: i64 = 5 * 60;

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// A list that goes on.
#[derive(Debug, PartialEq, Eq)]
struct Continuation {
    /// The revision the first page showed; `None` when it is gone and the newest will do.
    revision: Option<u64>,
    /// After this object.
    start: Key,
    /// When the first page was read, Unix seconds.
    begun: i64,
}

impl Token {
    fn encode(revision: Option<u64>, last: &Key, begun: i64) -> String {
        let token = Self {
            v: TOKEN_VERSION.into(),
            rv: revision.map_or(NEWEST, |r| i64::try_from(r).unwrap_or(i64::MAX)),
            start: format!("{}/{}\u{0}", last.namespace, last.name),
            at: begun,
        };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    fn decode(text: &str) -> Reply<Continuation> {
        let invalid = |why: String| {
            Box::new(Status::bad_request(format!(
                "invalid continue token: continue key is not valid: {why}"
            )))
        };
        let json = URL_SAFE_NO_PAD.decode(text).map_err(|error| {
            let at = match error {
                DecodeError::InvalidByte(at, _)
                | DecodeError::InvalidLastSymbol { offset: at, .. } => at,
                DecodeError::InvalidLength(length) => length,
                DecodeError::InvalidPadding => text.len(),
            };
            invalid(format!("illegal base64 data at input byte {at}"))
        })?;
        let token: Self =
            serde_json::from_slice(&json).map_err(|error| invalid(error.to_string()))?;
        if token.v != TOKEN_VERSION {
            return Err(invalid(format!(
                "server does not recognize this encoded version {}",
                token.v
            )));
        }
        let revision = match token.rv {
            NEWEST => None,
            rv => Some(u64::try_from(rv).ok().filter(|rv| *rv > 0).ok_or_else(|| {
                invalid(format!(
                    "incorrect encoded start resourceVersion (version {TOKEN_VERSION})"
                ))
            })?),
        };
        if token.start.is_empty() {
            let why = format!("encoded start key empty (version {TOKEN_VERSION})");
            return Err(invalid(why));
        }
        let place = token
            .start
            .strip_suffix('\0')
            .and_then(|start| start.split_once('/'))
            .filter(|(namespace, name)| *namespace != ".." && !name.contains('/'));
        let (namespace, name) = place.ok_or_else(|| invalid(token.start.clone()))?;
        Ok(Continuation {
            revision,
            start: Key::new(namespace, name),
            begun: token.at,
        })
    }
}

/// At which revision a list is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Newest,
    NotOlderThan(u64),
    Exactly(u64),
}

/// (Contradictory options have been refused when they were read.)
fn wanted_revision(options: &ListOptions) -> Reply<At> {
    let text = options.resource_version.as_str();
    if text.is_empty() {
        return Ok(At::Newest);
    }
    let Ok(revision) = text.parse::<u64>() else {
        return Err(Box::new(Status::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"
        ))));
    };
    Ok(match options.resource_version_match.as_str() {
        "Exact" => At::Exactly(revision),
        // With a limit the first page has always been exact.
        "" if options.limit > 0 && revision > 0 => At::Exactly(revision),
        _ => At::NotOlderThan(revision),
    })
}

impl Registry {
    /// Lists the objects of a namespace (`""`: of all). Does not wait: see [`Registry::wait_for`].
    pub fn list(
        &self,
        resource: &Arc<Resource>,
        namespace: &str,
        options: &ListOptions,
    ) -> Reply<Page> {
        let selection = Selection::new(resource, options)?;
        let now = meta::now_seconds();
        let mut begun = now;
        let limit = usize::try_from(options.limit).unwrap_or(usize::MAX);
        let mut range = Range {
            namespace,
            // With a selector more must be looked at than is shown.
            limit: (limit > 0 && selection.is_everything()).then_some(limit),
            start: None,
        };
        let token;
        let (mut listed, revision) = if options.continue_token.is_empty() {
            self.first_page(resource, &selection, &range, wanted_revision(options)?)?
        } else {
            if !options.resource_version.is_empty() && options.resource_version != "0" {
                return Err(Box::new(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                )));
            }
            token = Token::decode(&options.continue_token)?;
            begun = token.begun;
            range.start = Some(&token.start);
            self.next_page(resource, &range, &token, now)?
        };
        let countable = selection.is_everything();
        if !countable {
            listed.items.retain(|object| selection.matches(object));
            if limit > 0 && listed.items.len() > limit {
                listed.rest = listed.items.len() - limit;
                listed.items.truncate(limit);
            }
        }
        let more = listed.rest > 0;
        let last = listed.items.last().filter(|_| more);
        Ok(Page {
            continue_token: last.map_or_else(String::new, |last| {
                Token::encode(Some(revision), &last.key, begun)
            }),
            remaining: (more && countable).then(|| i64::try_from(listed.rest).unwrap_or(i64::MAX)),
            items: listed.items,
            revision,
        })
    }

    /// What comes after a token, and the revision it shows.
    fn next_page(
        &self,
        resource: &Resource,
        range: &Range<'_>,
        token: &Continuation,
        now: i64,
    ) -> Reply<(Listed, u64)> {
        let Some(revision) = token.revision else {
            return Ok(self.storage.page(&resource.storage, range));
        };
        if now.saturating_sub(token.begun) > TOKEN_SECONDS {
            return Err(expired_token(&token.start, now));
        }
        self.storage
            .page_at(&resource.storage, range, revision)
            .map(|listed| (listed, revision))
            .map_err(|_| expired_token(&token.start, now))
    }

    /// The first objects, and the revision they show.
    fn first_page(
        &self,
        resource: &Resource,
        selection: &Selection,
        range: &Range<'_>,
        at: At,
    ) -> Reply<(Listed, u64)> {
        match at {
            At::Newest => {}
            At::NotOlderThan(wanted) => self.reached(wanted)?,
            At::Exactly(wanted) => {
                self.reached(wanted)?;
                return self
                    .storage
                    .page_at(&resource.storage, range, wanted)
                    .map(|listed| (listed, wanted))
                    .map_err(|e| too_old(&e));
            }
        }
        if let Some(Topic::Object(key)) = selection.topic(range.namespace) {
            // One object needs no search.
            let (found, revision) = self.storage.find(&resource.storage, &key);
            let listed = Listed {
                items: found.into_iter().collect(),
                rest: 0,
            };
            return Ok((listed, revision));
        }
        Ok(self.storage.page(&resource.storage, range))
    }

    /// A revision from the future cannot be shown.
    pub(crate) fn reached(&self, wanted: u64) -> Reply<()> {
        let current = self.storage.revision();
        if wanted <= current {
            return Ok(());
        }
        let message = format!("Too large resource version: {wanted}, current: {current}");
        let mut status = Status::timeout(&message, 1);
        status.causes.push(Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        });
        Err(Box::new(status))
    }

    /// Waits, for a bounded time, until the revision that list options ask for is there.
    pub async fn wait_for(&self, options: &ListOptions) {
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);
        let Ok(wanted) = options.resource_version.parse::<u64>() else {
            return;
        };
        if wanted <= self.storage.revision() {
            return;
        }
        let mut published = self.storage.subscribe();
        // When it does not come, the list says so.
        let _ = tokio::time::timeout(PATIENCE, published.wait_for(|r| *r >= wanted)).await;
    }
}

/// 410 for a revision that has left the window.
fn too_old(error: &TooOld) -> Box<Status> {
    Box::new(Status::new(Reason::Expired, error.to_string()))
}

/// 410, with a token that goes on at the newest state for clients that can live with the seam.
fn expired_token(start: &Key, now: i64) -> Box<Status> {
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    status.continue_token = Token::encode(None, start, now);
    Box::new(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back() {
        let key = Key::new("ns", "a");
        for revision in [Some(7), None] {
            let token = Token::encode(revision, &key, 100);
            let continuation = Continuation {
                revision,
                start: key.clone(),
                begun: 100,
            };
            assert_eq!(Token::decode(&token).ok(), Some(continuation));
        }
        for text in ["", "x", "e30", "!!"] {
            assert!(Token::decode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn revision_and_match_go_together() {
        let options = |rv: &str, how: &str, limit| ListOptions {
            resource_version: rv.into(),
            resource_version_match: how.into(),
            limit,
            ..ListOptions::default()
        };
        let at = |rv, how, limit| wanted_revision(&options(rv, how, limit)).ok();
        assert_eq!(at("", "", 0), Some(At::Newest));
        assert_eq!(at("0", "", 5), Some(At::NotOlderThan(0)));
        assert_eq!(at("5", "", 0), Some(At::NotOlderThan(5)));
        assert_eq!(at("5", "", 1), Some(At::Exactly(5)));
        assert_eq!(at("5", "Exact", 0), Some(At::Exactly(5)));
        assert_eq!(at("x", "", 0), None);
    }
}
