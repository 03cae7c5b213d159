//! Asking webhooks: which are concerned, in which version, and what follows from their answers.

use super::{
    attributes::{Attributes, Operation},
    conditions::Match,
    hooks::{Hook, Hooks},
    review::{self, Answer, Shown},
    rules::{self, Asked},
};
use crate::{
    meta,
    registry::{NAMESPACES, Registry, Reply, schema},
    resources::{Catalog, Resource},
    storage::{Key, Storage},
    types,
    webhook::Caller,
};
use serde_json::Value;
use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio::task::JoinSet;
use yurt_cel::{Budget, Val};
use yurt_wire::{Gvk, Status, patch, selector::LabelSelector};

/// All webhooks of a request together.
const REQUEST_PATIENCE: Duration = Duration::from_secs(60);
/// Warnings of webhooks that a response carries at most.
const MAX_WARNINGS: usize = 16;

/// The objects of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Objects<'a> {
    pub(crate) new: Option<&'a Value>,
    pub(crate) old: Option<&'a Value>,
}

/// What a call is about: a webhook, and the version in which it wants to see the object.
struct Invocation {
    resource: Arc<Resource>,
    kind: Gvk,
}

/// How a webhook failed a request.
enum Failure {
    /// It could not be asked, or its answer means nothing: the failure policy decides.
    Call(String),
    /// The request ends with this.
    Refused(Box<Status>),
}

impl Failure {
    /// What becomes of the request.
    fn settle(self, hook: &Hook) -> Reply<()> {
        match self {
            Self::Refused(status) => Err(status),
            Self::Call(why) if hook.ignores_failures => {
                tracing::warn!(webhook = hook.name, why, "failing open");
                Ok(())
            }
            Self::Call(why) => Err(Box::new(Status::internal_error(format!(
                "failed calling webhook {:?}: {why}",
                hook.name
            )))),
        }
    }
}

/// Configurations of admission are never sent to webhooks: a broken one could not be mended.
fn is_exempt(attributes: &Attributes<'_>) -> bool {
    attributes.kind.group == "admissionregistration.k8s.io"
}

impl Registry {
    /// Reads the configurations anew.
    pub(crate) fn reload_hooks(&self) {
        // One at a time, so that an older reading never replaces a newer one.
        let _turn = self.reload.lock().unwrap_or_else(PoisonError::into_inner);
        self.hooks.store(Arc::new(Hooks::read(&self.storage)));
    }

    /// Lets mutating webhooks change the new object; whether one did.
    pub(crate) async fn ask_mutating(
        &self,
        attributes: &Attributes<'_>,
        object: &mut Option<Value>,
        old: Option<&Value>,
        warnings: &mut Vec<String>,
    ) -> Reply<bool> {
        let hooks = self.hooks.load_full();
        if hooks.mutating.is_empty() || is_exempt(attributes) {
            return Ok(false);
        }
        let rounds = self.mutate(&hooks.mutating, attributes, object, old, warnings);
        match tokio::time::timeout(REQUEST_PATIENCE, rounds).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Box::new(Status::timeout(
                "request did not complete within requested timeout",
                0,
            ))),
        }
    }

    async fn mutate(
        &self,
        hooks: &[Hook],
        attributes: &Attributes<'_>,
        object: &mut Option<Value>,
        old: Option<&Value>,
        warnings: &mut Vec<String>,
    ) -> Reply<bool> {
        let mut any = false;
        // Webhooks that had their turn and want another one if the object changes, and those to whom that happened.
        let mut previous: Vec<usize> = Vec::new();
        let mut due: Vec<usize> = Vec::new();
        for round in 0..2 {
            for (index, hook) in hooks.iter().enumerate() {
                if round == 1 && !due.contains(&index) {
                    continue;
                }
                let objects = Objects {
                    new: object.as_ref(),
                    old,
                };
                let Some(invocation) = self.concerned(hook, attributes, objects).await? else {
                    continue;
                };
                let changed = match self
                    .mutated_by(hook, &invocation, attributes, objects, warnings)
                    .await
                {
                    Ok(None) => false,
                    Ok(Some(changed)) => {
                        *object = Some(changed);
                        true
                    }
                    Err(failure) => {
                        failure.settle(hook)?;
                        continue;
                    }
                };
                if changed {
                    any = true;
                    due.append(&mut previous);
                }
                if hook.reinvoked && round == 0 {
                    previous.push(index);
                }
            }
            if due.is_empty() {
                break;
            }
        }
        Ok(any)
    }

    /// Asks validating webhooks, all at once.
    pub(crate) async fn ask_validating(
        &self,
        attributes: &Attributes<'_>,
        objects: Objects<'_>,
        warnings: &mut Vec<String>,
    ) -> Reply<()> {
        let hooks = self.hooks.load_full();
        if is_exempt(attributes) {
            return Ok(());
        }
        if !hooks.policies.is_empty() {
            self.ask_policies(&hooks.policies, attributes, objects, warnings)
                .await?;
        }
        if hooks.validating.is_empty() {
            return Ok(());
        }
        let mut calls = JoinSet::new();
        for (index, hook) in hooks.validating.iter().enumerate() {
            let Some(invocation) = self.concerned(hook, attributes, objects).await? else {
                continue;
            };
            let question = match self.question(hook, &invocation, attributes, objects).await {
                Ok(question) => question,
                Err(failure) => {
                    failure.settle(hook)?;
                    continue;
                }
            };
            let (caller, storage) = (self.caller.clone(), self.storage.clone());
            let hooks = hooks.clone();
            calls.spawn(async move {
                let hook = &hooks.validating[index];
                let answer = ask(&caller, &storage, hook, question, false).await;
                let outcome = match answer {
                    Ok(answer) => match answer.denial {
                        None => (Ok(()), answer.warnings),
                        Some(status) => (
                            Err(review::denied(&hook.name, status.as_ref())),
                            answer.warnings,
                        ),
                    },
                    Err(failure) => (failure.settle(hook), Vec::new()),
                };
                (index, outcome)
            });
        }
        let mut outcomes = calls.join_all().await;
        // In the order of the configurations, whatever the order of the answers.
        outcomes.sort_by_key(|(index, _)| *index);
        let mut verdict = Ok(());
        for (_, (outcome, said)) in outcomes {
            warn(warnings, said);
            verdict = verdict.and(outcome);
        }
        verdict
    }

    /// Whether a webhook wants to know of a request, and how it wants to see it.
    async fn concerned(
        &self,
        hook: &Hook,
        attributes: &Attributes<'_>,
        objects: Objects<'_>,
    ) -> Reply<Option<Invocation>> {
        if !rules::selects_object(&hook.objects, objects.new, objects.old) {
            return Ok(None);
        }
        let catalog = self.catalog();
        let Some(resource) = matching(&catalog, &hook.rules, hook.equivalent, attributes) else {
            return Ok(None);
        };
        if !self.selects_namespace(&hook.namespaces, attributes, objects)? {
            return Ok(None);
        }
        let kind = match resource.subresource(&attributes.target.subresource) {
            Some(_) => attributes.kind.clone(),
            None => resource.gvk(),
        };
        let invocation = Invocation { resource, kind };
        if !hook.conditions.is_empty()
            && !self
                .meets_conditions(hook, &invocation, attributes, objects)
                .await?
        {
            return Ok(None);
        }
        Ok(Some(invocation))
    }

    async fn meets_conditions(
        &self,
        hook: &Hook,
        invocation: &Invocation,
        attributes: &Attributes<'_>,
        objects: Objects<'_>,
    ) -> Reply<bool> {
        let new = self.as_wanted(invocation, attributes, objects.new).await?;
        let old = self.as_wanted(invocation, attributes, objects.old).await?;
        let shown = Shown {
            resource: &invocation.resource,
            kind: &invocation.kind,
            object: None,
            old: None,
        };
        let request = review::request(attributes, &shown, &meta::new_uid());
        let (new, old) = (new.unwrap_or_default(), old.unwrap_or_default());
        let variables = [
            ("object", Val::of(&new, None)),
            ("oldObject", Val::of(&old, None)),
            ("request", Val::of(&request, None)),
        ];
        match hook.conditions.evaluate(&variables, &mut Budget::default()) {
            Match::Yes => Ok(true),
            Match::No => Ok(false),
            Match::Unknown(_) if hook.ignores_failures => Ok(false),
            Match::Unknown(why) => {
                let resource = &attributes.target.resource;
                Err(Box::new(Status::forbidden(
                    &resource.group,
                    &resource.plural,
                    attributes.name,
                    &why,
                )))
            }
        }
    }

    /// Whether a namespace selector takes the namespace of a request. Objects outside of namespaces are taken always.
    pub(super) fn selects_namespace(
        &self,
        selector: &LabelSelector,
        attributes: &Attributes<'_>,
        objects: Objects<'_>,
    ) -> Reply<bool> {
        if selector.is_empty() {
            return Ok(true);
        }
        if attributes.is_about_namespace() && attributes.operation != Operation::Delete {
            return Ok(objects
                .new
                .is_some_and(|namespace| selector.matches(&rules::labels(namespace))));
        }
        let name = attributes.namespace();
        if name.is_empty() {
            return Ok(true);
        }
        match self.storage.current(&NAMESPACES, &Key::new("", name)) {
            Some(namespace) => Ok(selector.matches(&namespace.labels)),
            None => Err(Box::new(Status::not_found("", "namespaces", name))),
        }
    }

    /// The review that a webhook is sent, and its uid.
    async fn question(
        &self,
        hook: &Hook,
        invocation: &Invocation,
        attributes: &Attributes<'_>,
        objects: Objects<'_>,
    ) -> Result<Question, Failure> {
        if attributes.dry_run && !hook.allows_dry_run {
            return Err(Failure::Refused(Box::new(Status::bad_request(format!(
                "admission webhook {:?} does not support dry run",
                hook.name
            )))));
        }
        let Some(version) = hook.version else {
            return Err(Failure::Call(
                "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)".into(),
            ));
        };
        let new = self.as_wanted(invocation, attributes, objects.new).await;
        let old = self.as_wanted(invocation, attributes, objects.old).await;
        let (new, old) = (
            new.map_err(Failure::Refused)?,
            old.map_err(Failure::Refused)?,
        );
        let shown = Shown {
            resource: &invocation.resource,
            kind: &invocation.kind,
            object: new.as_ref(),
            old: old.as_ref(),
        };
        let uid = meta::new_uid();
        let request = review::request(attributes, &shown, &uid);
        Ok(Question {
            version,
            review: review::review(version, request),
            uid,
        })
    }

    /// An object in the version a webhook wants to see.
    async fn as_wanted(
        &self,
        invocation: &Invocation,
        attributes: &Attributes<'_>,
        object: Option<&Value>,
    ) -> Reply<Option<Value>> {
        let Some(object) = object else {
            return Ok(None);
        };
        let own = &attributes.target.resource;
        if attributes.kind != own.gvk() {
            return Ok(Some(object.clone()));
        }
        self.converted(own, &invocation.resource, object.clone())
            .await
            .map(Some)
    }

    /// The object as a webhook changed it; `None` when it did not.
    async fn mutated_by(
        &self,
        hook: &Hook,
        invocation: &Invocation,
        attributes: &Attributes<'_>,
        objects: Objects<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Value>, Failure> {
        let question = self.question(hook, invocation, attributes, objects).await?;
        let shown = question.review["request"]["object"].clone();
        let answer = ask(&self.caller, &self.storage, hook, question, true).await?;
        warn(warnings, answer.warnings);
        if let Some(status) = answer.denial {
            return Err(Failure::Refused(review::denied(
                &hook.name,
                status.as_ref(),
            )));
        }
        let Some(operations) = answer.patch.filter(|p| p != &Value::Array(Vec::new())) else {
            return Ok(None);
        };
        let internal = |why: String| Failure::Refused(Box::new(Status::internal_error(why)));
        if shown.is_null() {
            return Err(internal(format!(
                "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                hook.name
            )));
        }
        let mut patched = shown.clone();
        patch::json_patch(&mut patched, &operations)
            .map_err(|error| internal(error.to_string()))?;
        if patched == shown {
            return Ok(None);
        }
        complete(attributes, &invocation.resource, &mut patched)
            .map_err(|status| internal(status.message))?;
        let own = &attributes.target.resource;
        if attributes.kind == own.gvk() {
            patched = self
                .converted(&invocation.resource, own, patched)
                .await
                .map_err(Failure::Refused)?;
        }
        if !has_readable_managers(&patched)
            && let Some(before) = objects.new
        {
            meta::copy(before, &mut patched, "managedFields");
        }
        Ok(Some(patched))
    }
}

/// A review on its way.
struct Question {
    version: review::Version,
    review: Value,
    uid: String,
}

async fn ask(
    caller: &Caller,
    storage: &Storage,
    hook: &Hook,
    question: Question,
    mutating: bool,
) -> Result<Answer, Failure> {
    let answer = caller
        .call(storage, &hook.client, &question.review, hook.patience)
        .await
        .map_err(|error| Failure::Call(format!("failed to call webhook: {error}")))?;
    review::answer(question.version, &question.uid, mutating, &answer)
        .map_err(|why| Failure::Call(format!("received invalid webhook response: {why}")))
}

fn warn(warnings: &mut Vec<String>, said: Vec<String>) {
    let room = MAX_WARNINGS.saturating_sub(warnings.len());
    warnings.extend(said.into_iter().take(room));
}

/// The resource under whose name a request matches: its own, or one that shows the same objects.
pub(super) fn matching(
    catalog: &Catalog,
    rules: &[rules::Rule],
    equivalent: bool,
    attributes: &Attributes<'_>,
) -> Option<Arc<Resource>> {
    let target = attributes.target;
    let asked = |resource: &Resource| -> bool {
        let asked = Asked {
            operation: attributes.operation.as_str(),
            group: &resource.group,
            version: &resource.version,
            resource: &resource.plural,
            subresource: &target.subresource,
            name: attributes.name,
            namespaced: !target.namespace.is_empty(),
        };
        rules.iter().any(|rule| rule.matches(&asked))
    };
    if asked(&target.resource) {
        return Some(target.resource.clone());
    }
    if !equivalent {
        return None;
    }
    // Earlier rules count more than the order of versions, but one resource rarely matches two rules differently.
    catalog
        .resources()
        .iter()
        .find(|other| {
            other.storage == target.resource.storage
                && (&other.group, &other.version)
                    != (&target.resource.group, &target.resource.version)
                && asked(other)
        })
        .cloned()
}

/// What decoding does to an object that came from a webhook: types are checked, unknown fields go, defaults come.
fn complete(attributes: &Attributes<'_>, resource: &Resource, object: &mut Value) -> Reply<()> {
    if attributes.kind != attributes.target.resource.gvk() {
        return types::check_kind(&attributes.kind, object);
    }
    types::check(resource, object)?;
    schema::unknown_fields(resource, object, None);
    schema::apply_defaults(resource, object);
    Ok(())
}

/// Whether `managedFields` can be read; what a webhook made of them may be anything.
fn has_readable_managers(object: &Value) -> bool {
    let Some(managers) = object["metadata"].get("managedFields") else {
        return true;
    };
    managers.as_array().is_some_and(|entries| {
        entries.iter().all(|entry| {
            entry["fieldsType"] == "FieldsV1"
                && entry["fieldsV1"].is_object()
                && matches!(entry["operation"].as_str(), Some("Apply" | "Update"))
                && entry["apiVersion"].is_string()
        })
    })
}
