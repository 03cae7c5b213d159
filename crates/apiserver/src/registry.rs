//! What the verbs of the API mean: from a decoded request to a change of the storage.
//!
//! [`Registry::create`], [`Registry::update`], [`Registry::patch`] and [`Registry::delete`] are the same for every kind;
//! what differs by kind is in [`strategy`] (what the server sets itself), [`schema`] (defaults and validation) and
//! [`services`] (addresses).

pub(crate) mod admission;
mod create;
mod delete;
mod grants;
mod list;
mod schema;
mod services;
pub(crate) mod strategy;
mod update;

pub use delete::{DeleteOptions, Deleted};
pub use list::{Page, Selection};
pub use services::ServiceRange;

use crate::{
    authn::User,
    authz::{AuthorizationMode, Authorizer},
    conversion, crd,
    resources::{Catalog, Resource},
    storage::{Key, Storage, Stored, WriteError},
    validation,
    webhook::{Caller, ServiceResolver},
};
use arc_swap::ArcSwap;
use serde_json::Value;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use yurt_wire::{Reason, Status, status::Cause};

/// A result whose error is what the client gets.
pub type Reply<T> = Result<T, Box<Status>>;

/// The partition of namespaces.
pub(crate) static NAMESPACES: LazyLock<Arc<str>> = LazyLock::new(|| "/namespaces".into());
/// The partition of CRDs.
pub(crate) static CRDS: LazyLock<Arc<str>> =
    LazyLock::new(|| "apiextensions.k8s.io/customresourcedefinitions".into());

/// How often a read-modify-write is tried again when somebody else was faster.
const MAX_RETRIES: usize = 32;

/// How unknown fields in a request are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Dropped silently.
    Ignore,
    /// Dropped with a warning header.
    #[default]
    Warn,
    /// Refused.
    Strict,
}

/// The options of a write.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Everything but the write.
    pub dry_run: bool,
    /// Who the managed fields are recorded for.
    pub field_manager: String,
    /// What to do with unknown fields.
    pub field_validation: FieldValidation,
    /// Server-side apply takes fields from other managers.
    pub force: bool,
    /// Whether the request is a patch.
    pub patch: bool,
}

/// What a write is about.
#[derive(Clone, Debug)]
pub struct Target {
    /// The resource, in the version asked for.
    pub resource: Arc<Resource>,
    /// `""` for cluster-scoped resources.
    pub namespace: String,
    /// `""` for creation with a generated name.
    pub name: String,
    /// `""`, `status`, ...
    pub subresource: String,
    /// Who asks.
    pub user: User,
    /// How.
    pub options: WriteOptions,
}

impl Target {
    fn key(&self) -> Key {
        Key::new(&self.namespace, &self.name)
    }
    /// 404 for this object.
    pub fn not_found(&self) -> Box<Status> {
        Box::new(Status::not_found(
            &self.resource.group,
            &self.resource.plural,
            &self.name,
        ))
    }
    fn conflict(&self, why: &str) -> Box<Status> {
        Box::new(Status::conflict(
            &self.resource.group,
            &self.resource.plural,
            &self.name,
            why,
        ))
    }
    fn invalid(&self, name: &str, causes: Vec<Cause>) -> Box<Status> {
        Box::new(Status::invalid(
            &self.resource.group,
            &self.resource.kind,
            name,
            causes,
        ))
    }
}

/// An object as a response carries it.
#[derive(Clone, Debug)]
pub enum Content {
    /// As stored, in the stored version.
    Stored(Arc<Stored>),
    /// A value in the served version (dry run, other versions, subresources).
    Value(Value),
}

impl Content {
    /// An object that was just written: in the version served, `written` is what it was before it was stored.
    pub(crate) fn written(
        resource: &Resource,
        stored: Arc<Stored>,
        written: Option<Value>,
    ) -> Self {
        match written {
            Some(mut value) => {
                value["metadata"]["resourceVersion"] = stored.revision.to_string().into();
                Self::Value(value)
            }
            None => Self::of(resource, stored),
        }
    }

    /// A stored object in the version `resource` serves. Objects that a webhook converts are in it already.
    pub fn of(resource: &Resource, stored: Arc<Stored>) -> Self {
        if resource.is_storage_version() {
            Self::Stored(stored)
        } else {
            Self::Value(conversion::to_served(resource, stored.value()))
        }
    }
    /// As a value.
    pub fn into_value(self) -> Value {
        match self {
            Self::Stored(stored) => stored.value(),
            Self::Value(value) => value,
        }
    }
}

/// What a write did.
#[derive(Clone, Debug)]
pub struct Written {
    /// The object after it.
    pub content: Content,
    /// Whether it is new.
    pub created: bool,
    /// For `Warning` headers.
    pub warnings: Vec<String>,
}

/// All objects and what is served of them.
#[derive(Debug)]
pub struct Registry {
    /// The objects.
    pub storage: Storage,
    /// Who may do what with them.
    pub authorizer: Authorizer,
    catalog: ArcSwap<Catalog>,
    reload: Mutex<()>,
    services: services::Allocator,
    hooks: ArcSwap<admission::Hooks>,
    pub(crate) caller: Arc<Caller>,
    turns: admission::Turns,
}

impl Registry {
    /// A registry over a storage; CRDs in it are served at once. `webhooks` says where webhooks that are services of the
    /// cluster are reached, if not at their endpoints.
    pub fn new(
        storage: Storage,
        range: ServiceRange,
        mode: AuthorizationMode,
        webhooks: Option<ServiceResolver>,
    ) -> Self {
        let registry = Self {
            authorizer: Authorizer::new(mode, storage.clone()),
            storage,
            catalog: ArcSwap::from_pointee(Catalog::new(&[])),
            reload: Mutex::new(()),
            services: services::Allocator::new(range),
            hooks: ArcSwap::default(),
            caller: Arc::new(Caller::new(webhooks)),
            turns: admission::Turns::default(),
        };
        registry.reload_crds();
        registry.reload_hooks();
        registry
    }

    /// What is served now.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.load_full()
    }

    /// Reads the CRDs anew.
    pub(crate) fn reload_crds(&self) {
        // One at a time, so that an older reading never replaces a newer one.
        let _turn = self.reload.lock().unwrap_or_else(PoisonError::into_inner);
        let (stored, _) = self.storage.list(&CRDS, "", None);
        let crds: Vec<Arc<crd::Crd>> = stored
            .iter()
            .filter_map(|definition| schema::established(&definition.value()))
            .map(Arc::new)
            .collect();
        self.catalog.store(Arc::new(Catalog::new(&crds)));
    }

    /// One object.
    pub fn get(&self, target: &Target) -> Reply<Arc<Stored>> {
        self.storage
            .get(&target.resource.storage, &target.key())
            .ok_or_else(|| target.not_found())
    }

    /// The status of a failed write that is not a conflict.
    fn write_failed(&self, target: &Target, error: &WriteError) -> Box<Status> {
        let status = match error {
            WriteError::Conflict => return target.conflict(MODIFIED),
            WriteError::Busy => {
                let mut status = Status::new(
                    Reason::TooManyRequests,
                    "the disk does not follow, please try again later",
                );
                status.retry_after_seconds = Some(1);
                status
            }
            WriteError::TooLarge(_) => Status::new(
                Reason::RequestEntityTooLarge,
                format!("Request entity is too large: {error}"),
            ),
            WriteError::Store(_) | WriteError::Unprintable(_) => {
                Status::new(Reason::InternalError, error.to_string())
            }
            WriteError::Closed => Status::new(
                Reason::ServiceUnavailable,
                "the API server is shutting down",
            ),
        };
        Box::new(status)
    }
}

/// The reason of every lost race.
const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// Turns unknown fields into an error or warnings.
fn judge_unknown_fields(
    target: &Target,
    object: &mut Value,
    raw: Option<&[u8]>,
) -> Reply<Vec<String>> {
    judge_fields(
        target,
        schema::unknown_fields(&target.resource, object, raw),
    )
}

/// Turns fields that a patch gives twice into an error or warnings.
fn judge_duplicate_fields(target: &Target, raw: &[u8]) -> Reply<Vec<String>> {
    if target.options.field_validation == FieldValidation::Ignore {
        return Ok(Vec::new());
    }
    judge_fields(target, validation::duplicate_fields(raw))
}

fn judge_fields(target: &Target, complaints: Vec<String>) -> Reply<Vec<String>> {
    match target.options.field_validation {
        _ if complaints.is_empty() => Ok(Vec::new()),
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(complaints),
        FieldValidation::Strict => Err(Box::new(Status::new(
            Reason::BadRequest,
            format!(
                "{} in version \"{}\" cannot be handled as a {}: strict decoding error: {}",
                target.resource.kind,
                target.resource.version,
                target.resource.kind,
                complaints.join(", ")
            ),
        ))),
    }
}
