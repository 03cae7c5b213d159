//! Changes of objects that exist: update, patch and server-side apply share one read-modify-write loop.

use super::{
    Content, MAX_RETRIES, MODIFIED, Registry, Reply, Target, Written, create::adopt_coordinates,
    judge_duplicate_fields, judge_unknown_fields, schema, strategy,
};
use crate::{
    meta,
    resources::Resource,
    storage::{Expect, Stored, WriteError},
    subresources::scale,
    types,
};
use serde_json::Value;
use std::sync::Arc;
use yurt_wire::{
    Reason, Status,
    patch::{self, PatchError, PatchType},
    status::Cause,
};

/// What to do with the live object.
enum Edit<'a> {
    /// Replace it by this.
    Replace(&'a Value, Option<&'a [u8]>),
    /// Patch it by this, as it was sent.
    Patch(PatchType, &'a Value, &'a [u8]),
    /// Change it by code (subresources such as binding).
    With(&'a (dyn Fn(&mut Value) -> Reply<()> + Sync)),
}

impl Registry {
    /// Replaces an object, or creates it where the resource allows that.
    pub async fn update(
        &self,
        target: &Target,
        mut object: Value,
        raw: Option<&[u8]>,
    ) -> Reply<Written> {
        if target.subresource != "scale" {
            adopt_coordinates(target, &mut object)?;
        }
        match self.edit(target, &Edit::Replace(&object, raw)).await {
            Err(status)
                if status.reason == Reason::NotFound
                    && target.resource.create_on_update
                    && target.subresource.is_empty()
                    && meta::text(&object, "resourceVersion").is_empty()
                    && meta::uid(&object).is_empty() =>
            {
                self.create(target, object, raw).await
            }
            outcome => outcome,
        }
    }

    /// Patches an object. `raw` is the patch as sent.
    pub async fn patch(
        &self,
        target: &Target,
        kind: PatchType,
        patch: &Value,
        raw: &[u8],
    ) -> Reply<Written> {
        if kind != PatchType::Apply {
            return self.edit(target, &Edit::Patch(kind, patch, raw)).await;
        }
        let mut config = patch.clone();
        if target.subresource != "scale" {
            adopt_coordinates(target, &mut config)?;
        }
        for _ in 0..MAX_RETRIES {
            match self.edit(target, &Edit::Patch(kind, &config, raw)).await {
                Err(status)
                    if status.reason == Reason::NotFound && target.subresource.is_empty() => {}
                outcome => return outcome,
            }
            let warnings = judge_duplicate_fields(target, raw)?;
            let now = meta::now();
            let object = schema::apply(
                &target.resource,
                None,
                &config,
                schema::Writer {
                    manager: &target.options.field_manager,
                    subresource: "",
                    now: &now,
                },
                target.options.force,
            )?;
            match self.create_prepared(target, object, warnings, false).await {
                // Somebody created it in between.
                Err(status) if status.reason == Reason::AlreadyExists => {}
                outcome => return outcome,
            }
        }
        Err(target.conflict(MODIFIED))
    }

    /// Changes an object by code.
    pub(crate) async fn modify(
        &self,
        target: &Target,
        change: &(dyn Fn(&mut Value) -> Reply<()> + Sync),
    ) -> Reply<Written> {
        self.edit(target, &Edit::With(change)).await
    }

    async fn edit(&self, target: &Target, edit: &Edit<'_>) -> Reply<Written> {
        for _ in 0..MAX_RETRIES {
            let outcome = self.try_edit(target, edit).await;
            if !matches!(outcome, Ok(None)) {
                // What was seen to refuse the edit, or to make it void, must not be taken back later.
                let storage = &target.resource.storage;
                self.storage.settle(storage, &target.key()).await;
            }
            if let Some(written) = outcome? {
                return Ok(written);
            }
        }
        Err(target.conflict(MODIFIED))
    }

    /// One round; `None` when somebody else was faster and the edit may be tried on the new state.
    async fn try_edit(&self, target: &Target, edit: &Edit<'_>) -> Reply<Option<Written>> {
        let resource = &target.resource;
        let key = target.key();
        let current = self
            .storage
            .current(&resource.storage, &key)
            .ok_or_else(|| target.not_found())?;
        let live = self.served_value(resource, current.value()).await?;
        let now = meta::now();
        let (mut new, mut warnings) = edited(target, edit, &live, &now)?;
        check_preconditions(target, &live, &new)?;
        let replaces = matches!(edit, Edit::Replace(..));
        let explicit = replaces && !meta::text(&new, "resourceVersion").is_empty();
        if replaces && !explicit && !resource.unconditional_update && target.subresource.is_empty()
        {
            return Err(target.invalid(
                &target.name,
                vec![Cause::invalid(
                    "metadata.resourceVersion",
                    &0.into(),
                    "must be specified for an update",
                )],
            ));
        }
        meta::copy(&live, &mut new, "resourceVersion");
        strategy::prepare_update(resource, &target.subresource, &live, &mut new);
        schema::apply_defaults(resource, &mut new);
        if !matches!(edit, Edit::Patch(PatchType::Apply, ..)) {
            let writer = schema::Writer {
                manager: &target.options.field_manager,
                subresource: &target.subresource,
                now: &now,
            };
            schema::track(resource, Some(&live), &mut new, writer);
        }
        self.restrict_node(target, Some(&live), Some(&new))?;
        // Changes by code are the server's own.
        let asks = !matches!(edit, Edit::With(_));
        if asks
            && self
                .mutate_updated(target, &live, &mut new, &mut warnings)
                .await?
        {
            strategy::prepare_update(resource, &target.subresource, &live, &mut new);
            meta::copy(&live, &mut new, "resourceVersion");
        }
        self.check_signer(target, Some(&live), Some(&new))?;
        self.check_grant(target, Some(&live), &new)?;
        let _allocation = self.allocate(target, Some(&live), &mut new).await?;
        strategy::count_generation(resource, &live, &mut new);
        let mut causes = finalizers_while_deleting(&live, &new);
        causes.extend(schema::validate_update(
            resource,
            &target.subresource,
            &live,
            &new,
        ));
        causes.extend(schema::broken_rules(resource, &new, Some(&live), &causes).await);
        if !causes.is_empty() {
            return Err(target.invalid(&target.name, causes));
        }
        schema::settle(&self.storage, resource, &mut new, &now);
        if asks {
            self.validate_updated(target, &live, &new, &mut warnings)
                .await?;
        }
        let _charge = if asks && is_charged(target) {
            self.charge(target, Some(&live), &new).await?
        } else {
            None
        };
        warnings.dedup();
        let content = |content: Content| Written {
            content: shown(target, content),
            created: false,
            warnings: warnings.clone(),
        };
        if new == live {
            return Ok(Some(content(Content::written(
                resource,
                current,
                resource.asks_webhook().then_some(live),
            ))));
        }
        if target.options.dry_run {
            return Ok(Some(content(Content::Value(new))));
        }
        let finished = is_finished(resource, &new);
        let expect = Expect::At(current.revision);
        let written = resource.asks_webhook().then(|| new.clone());
        let new = self.stored_value(resource, new).await?;
        let outcome = if finished {
            self.storage
                .delete(&resource.storage, key, expect, new)
                .await
        } else {
            self.storage.put(&resource.storage, key, expect, new).await
        };
        match outcome {
            Ok(stored) => {
                self.after_write(resource);
                Ok(Some(content(Content::written(resource, stored, written))))
            }
            Err(WriteError::Conflict) if !explicit => Ok(None),
            Err(error) => Err(self.write_failed(target, &error)),
        }
    }

    /// What follows a write of special kinds.
    pub(super) fn after_write(&self, resource: &Resource) {
        if resource.storage == *super::CRDS {
            self.reload_crds();
        } else if resource.group == "admissionregistration.k8s.io" {
            self.reload_hooks();
        }
    }
}

/// The object an edit makes of the live one, before the server has its say.
fn edited(
    target: &Target,
    edit: &Edit<'_>,
    live: &Value,
    now: &str,
) -> Reply<(Value, Vec<String>)> {
    let resource = &target.resource;
    let is_scale = target.subresource == "scale";
    let before = if is_scale {
        scale::of(resource, live)?
    } else {
        live.clone()
    };
    let (mut after, raw) = match edit {
        Edit::Replace(object, raw) => ((*object).clone(), *raw),
        Edit::With(change) => {
            let mut object = before.clone();
            change(&mut object)?;
            (object, None)
        }
        Edit::Patch(PatchType::Apply, config, raw) => {
            // Fields that the kind does not have are refused when the configuration is merged.
            let warnings = judge_duplicate_fields(target, raw)?;
            let writer = schema::Writer {
                manager: &target.options.field_manager,
                subresource: &target.subresource,
                now,
            };
            if is_scale {
                let mut object = live.clone();
                scale::set(resource, &mut object, config)?;
                return Ok((object, warnings));
            }
            let applied =
                schema::apply(resource, Some(live), config, writer, target.options.force)?;
            return Ok((applied, warnings));
        }
        Edit::Patch(kind, patch, _) => (patched(target, *kind, before, patch)?, None),
    };
    if is_scale {
        let mut object = live.clone();
        scale::set(resource, &mut object, &after)?;
        // The caller's precondition, if any.
        meta::copy(&after, &mut object, "resourceVersion");
        return Ok((object, Vec::new()));
    }
    types::check(resource, &after)?;
    let warnings = match edit {
        Edit::With(_) => Vec::new(),
        Edit::Patch(_, _, raw) => {
            let mut warnings = judge_duplicate_fields(target, raw)?;
            warnings.extend(judge_unknown_fields(target, &mut after, None)?);
            warnings
        }
        Edit::Replace(..) => judge_unknown_fields(target, &mut after, raw)?,
    };
    Ok((after, warnings))
}

fn patched(target: &Target, kind: PatchType, mut object: Value, patch: &Value) -> Reply<Value> {
    let resource = &target.resource;
    let outcome = match kind {
        PatchType::Json => patch::json_patch(&mut object, patch),
        PatchType::Merge => {
            patch::merge_patch(&mut object, patch);
            Ok(())
        }
        PatchType::StrategicMerge if resource.custom.is_some() => {
            return Err(Box::new(Status::new(
                Reason::UnsupportedMediaType,
                "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
            )));
        }
        PatchType::StrategicMerge | PatchType::Apply => {
            let gvk = if target.subresource == "scale" {
                scale::gvk()
            } else {
                resource.gvk()
            };
            patch::strategic_merge_patch(&gvk, &mut object, patch)
        }
    };
    match outcome {
        Ok(()) if object.is_object() => Ok(object),
        Ok(()) => Err(Box::new(Status::new(
            Reason::BadRequest,
            "the patch does not leave an object",
        ))),
        Err(PatchError::Malformed(why)) => Err(Box::new(Status::new(Reason::BadRequest, why))),
        Err(PatchError::DoesNotApply(why)) => {
            let mut status = Status::new(
                Reason::Invalid,
                format!("the server rejected our request due to an error in our request: {why}"),
            );
            status.group.clone_from(&resource.group);
            status.kind.clone_from(&resource.plural);
            status.name.clone_from(&target.name);
            Err(Box::new(status))
        }
    }
}

/// Whether an update may take more of a quota than the object had.
fn is_charged(target: &Target) -> bool {
    let resource = &target.resource;
    resource.group.is_empty()
        && matches!(
            (resource.plural.as_str(), target.subresource.as_str()),
            ("services" | "persistentvolumeclaims", "") | ("pods", "resize")
        )
}

/// What the subresource shows of the object written.
fn shown(target: &Target, content: Content) -> Content {
    if target.subresource != "scale" {
        return content;
    }
    let object = content.into_value();
    Content::Value(scale::of(&target.resource, &object).unwrap_or(object))
}

/// A body's resourceVersion and uid are preconditions.
fn check_preconditions(target: &Target, live: &Value, new: &Value) -> Reply<()> {
    let uid = meta::uid(new);
    if !uid.is_empty() && uid != meta::uid(live) {
        return Err(target.conflict(&format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            meta::uid(live)
        )));
    }
    let revision = meta::text(new, "resourceVersion");
    if !revision.is_empty() && revision != "0" && revision != meta::text(live, "resourceVersion") {
        return Err(target.conflict(MODIFIED));
    }
    Ok(())
}

/// Finalizers may only go once deletion has begun.
fn finalizers_while_deleting(live: &Value, new: &Value) -> Vec<Cause> {
    if !meta::is_deleting(live) {
        return Vec::new();
    }
    let before = meta::finalizers(live);
    let added: Vec<String> = meta::finalizers(new)
        .into_iter()
        .filter(|f| !before.contains(f))
        .collect();
    if added.is_empty() {
        return Vec::new();
    }
    vec![Cause {
        reason: "FieldValueForbidden".into(),
        message: format!(
            "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
        ),
        field: "metadata.finalizers".into(),
    }]
}

/// Whether a deletion that had begun is complete with this state.
pub(super) fn is_finished(resource: &Resource, object: &Value) -> bool {
    let is_namespace = resource.group.is_empty() && resource.kind == "Namespace";
    let held = is_namespace
        && object["spec"]["finalizers"]
            .as_array()
            .is_some_and(|f| !f.is_empty());
    meta::is_deleting(object)
        && meta::finalizers(object).is_empty()
        && object["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or_default()
            == 0
        && !held
}

/// An object that is stored, for callers that need it as it is now.
impl Registry {
    /// As the next writer sees it.
    pub(crate) fn current(&self, target: &Target) -> Reply<Arc<Stored>> {
        self.storage
            .current(&target.resource.storage, &target.key())
            .ok_or_else(|| target.not_found())
    }
}
