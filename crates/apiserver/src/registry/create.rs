//! Creation.

use super::{
    CRDS, Content, NAMESPACES, Registry, Reply, Target, Written, judge_unknown_fields, schema,
    strategy,
};
use crate::{
    meta,
    storage::{Expect, Key, WriteError},
};
use serde_json::Value;
use yurt_wire::{Reason, Status, status::Cause};

/// How often a generated name is drawn again when it is taken.
const NAME_RETRIES: usize = 8;

impl Registry {
    /// Creates an object. `raw` is the body as sent, where it was JSON or YAML.
    pub async fn create(
        &self,
        target: &Target,
        mut object: Value,
        raw: Option<&[u8]>,
    ) -> Reply<Written> {
        let warnings = judge_unknown_fields(target, &mut object, raw)?;
        let rv = meta::text(&object, "resourceVersion");
        if !rv.is_empty() {
            return Err(Box::new(Status::new(
                Reason::BadRequest,
                "resourceVersion should not be set on objects to be created",
            )));
        }
        adopt_coordinates(target, &mut object)?;
        self.create_prepared(target, object, warnings, true).await
    }

    /// The rest of a creation; `track` is false when managed fields are complete already (server-side apply).
    pub(super) async fn create_prepared(
        &self,
        target: &Target,
        mut object: Value,
        mut warnings: Vec<String>,
        track: bool,
    ) -> Reply<Written> {
        self.require_namespace(target)?;
        self.require_living_definition(target)?;
        let resource = &target.resource;
        let now = meta::now();
        if !meta::name(&object).is_empty() {
            self.require_free_name(target, meta::name(&object)).await?;
        }
        strategy::prepare_create(resource, &mut object);
        schema::apply_defaults(resource, &mut object);
        if track {
            let writer = schema::Writer {
                manager: &target.options.field_manager,
                subresource: &target.subresource,
                now: &now,
            };
            schema::track(resource, None, &mut object, writer);
        }
        self.restrict_node(target, None, Some(&object))?;
        self.apply_limit_ranges(target, &mut object);
        self.admit(target, &mut object).await?;
        if self
            .mutate_created(target, &mut object, &mut warnings)
            .await?
        {
            strategy::prepare_create(resource, &mut object);
            self.admit(target, &mut object).await?;
            adopt_coordinates(target, &mut object)?;
        }
        if !meta::name(&object).is_empty() {
            return self.create_named(target, object, warnings, &now).await;
        }
        let prefix = meta::text(&object, "generateName").to_owned();
        if prefix.is_empty() {
            return Err(target.invalid(
                "",
                vec![Cause {
                    reason: "FieldValueRequired".into(),
                    message: "Required value: name or generateName is required".into(),
                    field: "metadata.name".into(),
                }],
            ));
        }
        let mut tries = 0;
        loop {
            object["metadata"]["name"] = meta::generate_name(&prefix).into();
            let attempt = self
                .create_named(target, object.clone(), warnings.clone(), &now)
                .await;
            match attempt {
                Err(status) if status.reason == Reason::AlreadyExists && tries < NAME_RETRIES => {
                    tries += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// The name must be possible, and free.
    async fn require_free_name(&self, target: &Target, name: &str) -> Reply<()> {
        check_name(target, name)?;
        let resource = &target.resource;
        let key = Key::new(&target.namespace, name);
        if self.storage.current(&resource.storage, &key).is_none() {
            return Ok(());
        }
        self.storage.settle(&resource.storage, &key).await;
        Err(taken(target, name))
    }

    async fn create_named(
        &self,
        target: &Target,
        mut object: Value,
        mut warnings: Vec<String>,
        now: &str,
    ) -> Reply<Written> {
        let resource = &target.resource;
        let name = meta::name(&object).to_owned();
        self.require_free_name(target, &name).await?;
        self.check_grant(target, None, &object)?;
        strategy::identify(&mut object, now);
        strategy::initial_state(resource, &mut object, &target.user);
        let _allocation = self.allocate(target, None, &mut object).await?;
        let mut causes = schema::validate_create(resource, &object);
        causes.extend(schema::broken_rules(resource, &object, None, &causes).await);
        if !causes.is_empty() {
            return Err(target.invalid(&name, causes));
        }
        schema::settle(&self.storage, resource, &mut object, now);
        self.check_limit_ranges(target, &object)?;
        self.validate_created(target, &object, &mut warnings)
            .await?;
        let _charge = self.charge(target, None, &object).await?;
        if target.options.dry_run {
            return Ok(Written {
                content: Content::Value(object),
                created: true,
                warnings,
            });
        }
        let key = Key::new(&target.namespace, &name);
        let shown = resource.asks_webhook().then(|| object.clone());
        let object = self.stored_value(resource, object).await?;
        let written = self
            .storage
            .put(&resource.storage, key.clone(), Expect::Absent, object)
            .await;
        let stored = match written {
            Ok(stored) => stored,
            Err(WriteError::Conflict) => {
                self.storage.settle(&resource.storage, &key).await;
                return Err(taken(target, &name));
            }
            Err(error) => return Err(self.write_failed(target, &error)),
        };
        self.after_write(resource);
        Ok(Written {
            content: Content::written(resource, stored, shown),
            created: true,
            warnings,
        })
    }

    /// A definition that is going away takes no more objects.
    fn require_living_definition(&self, target: &Target) -> Reply<()> {
        let Some(custom) = &target.resource.custom else {
            return Ok(());
        };
        let name = format!("{}.{}", custom.crd.names.plural, custom.crd.group);
        let definition = self.storage.current(&CRDS, &Key::new("", &name));
        if definition.is_some_and(|definition| !definition.is_deleting()) {
            return Ok(());
        }
        Err(Box::new(Status::new(
            Reason::MethodNotAllowed,
            "create not allowed while custom resource definition is terminating",
        )))
    }

    /// The namespace must exist and must not be going away.
    fn require_namespace(&self, target: &Target) -> Reply<()> {
        if !target.resource.namespaced {
            return Ok(());
        }
        let key = Key::new("", &target.namespace);
        let namespace = self
            .storage
            .current(&NAMESPACES, &key)
            .ok_or_else(|| Box::new(Status::not_found("", "namespaces", &target.namespace)))?;
        if !namespace.is_deleting() {
            return Ok(());
        }
        let mut status = Status::forbidden(
            &target.resource.group,
            &target.resource.plural,
            &target.name,
            &format!(
                "unable to create new content in namespace {} because it is being terminated",
                target.namespace
            ),
        );
        status.causes.push(Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {} is being terminated", target.namespace),
            field: "metadata.namespace".into(),
        });
        Err(Box::new(status))
    }
}

fn taken(target: &Target, name: &str) -> Box<Status> {
    let resource = &target.resource;
    Box::new(Status::already_exists(
        &resource.group,
        &resource.plural,
        name,
    ))
}

/// Fills name and namespace of a body from the request and refuses bodies that say otherwise.
pub(super) fn adopt_coordinates(target: &Target, object: &mut Value) -> Reply<()> {
    let bad = |message: String| Err(Box::new(Status::new(Reason::BadRequest, message)));
    let namespace = meta::text(object, "namespace");
    if target.resource.namespaced {
        if namespace.is_empty() {
            object["metadata"]["namespace"] = target.namespace.clone().into();
        } else if namespace != target.namespace {
            return bad(format!(
                "the namespace of the provided object does not match the namespace sent on the request ({namespace} does not match {})",
                target.namespace
            ));
        }
    } else if !namespace.is_empty() {
        meta::remove(object, "namespace");
    }
    let name = meta::name(object);
    if !target.name.is_empty() {
        if name.is_empty() {
            object["metadata"]["name"] = target.name.clone().into();
        } else if name != target.name {
            return bad(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                target.name
            ));
        }
    }
    Ok(())
}

/// What no name may be, whatever the kind: it is one segment of a path. (Kinds ask for more in validation.)
fn check_name(target: &Target, name: &str) -> Reply<()> {
    let why = if name.len() > 253 {
        "must be no more than 253 bytes"
    } else if name == "." || name == ".." {
        "may not be '.' or '..'"
    } else if name.contains(['/', '%', '\0']) {
        "may not contain '/' or '%'"
    } else {
        return Ok(());
    };
    Err(target.invalid(
        name,
        vec![Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: \"{name}\": {why}"),
            field: "metadata.name".into(),
        }],
    ))
}
