//! Where requests pass admission: the verbs call these, which cost nothing while nothing is configured.

use super::{Attributes, Objects, Operation};
use crate::{
    authn::User,
    registry::{DeleteOptions, Registry, Reply, Target, WriteOptions},
    subresources::scale,
};
use serde_json::{Value, json};
use yurt_wire::{
    Gvk, RequestInfo,
    request::{query_pairs, truthy},
};

impl Registry {
    /// Whether nothing is configured that would have to be asked.
    pub(crate) fn admits_everything(&self) -> bool {
        self.hooks.load().is_empty()
    }

    /// Lets webhooks change a new object; whether one did.
    pub(crate) async fn mutate_created(
        &self,
        target: &Target,
        object: &mut Value,
        warnings: &mut Vec<String>,
    ) -> Reply<bool> {
        if self.admits_everything() {
            return Ok(false);
        }
        let name = crate::meta::name(object).to_owned();
        let attributes = Attributes::new(target, Operation::Create, &name);
        let mut new = Some(object.take());
        let changed = self
            .ask_mutating(&attributes, &mut new, None, warnings)
            .await;
        *object = new.unwrap_or_default();
        changed
    }

    /// Asks about a new object as it will be stored.
    pub(crate) async fn validate_created(
        &self,
        target: &Target,
        object: &Value,
        warnings: &mut Vec<String>,
    ) -> Reply<()> {
        if self.admits_everything() {
            return Ok(());
        }
        let attributes = Attributes::new(target, Operation::Create, crate::meta::name(object));
        let objects = Objects {
            new: Some(object),
            old: None,
        };
        self.ask_validating(&attributes, objects, warnings).await
    }

    /// Lets webhooks change an update; whether one did.
    pub(crate) async fn mutate_updated(
        &self,
        target: &Target,
        live: &Value,
        object: &mut Value,
        warnings: &mut Vec<String>,
    ) -> Reply<bool> {
        if self.admits_everything() {
            return Ok(false);
        }
        let attributes = Attributes::new(target, Operation::Update, &target.name);
        if target.subresource != "scale" {
            let mut new = Some(object.take());
            let changed = self
                .ask_mutating(&attributes, &mut new, Some(live), warnings)
                .await;
            *object = new.unwrap_or_default();
            return changed;
        }
        let resource = &target.resource;
        let old = scale::of(resource, live)?;
        let mut new = Some(scale::of(resource, object)?);
        let changed = self
            .ask_mutating(&attributes, &mut new, Some(&old), warnings)
            .await?;
        if let Some(new) = new.filter(|_| changed) {
            scale::set(resource, object, &new)?;
        }
        Ok(changed)
    }

    /// Asks about an update as it will be stored.
    pub(crate) async fn validate_updated(
        &self,
        target: &Target,
        live: &Value,
        object: &Value,
        warnings: &mut Vec<String>,
    ) -> Reply<()> {
        if self.admits_everything() {
            return Ok(());
        }
        let attributes = Attributes::new(target, Operation::Update, &target.name);
        if target.subresource != "scale" {
            let objects = Objects {
                new: Some(object),
                old: Some(live),
            };
            return self.ask_validating(&attributes, objects, warnings).await;
        }
        let new = scale::of(&target.resource, object)?;
        let old = scale::of(&target.resource, live)?;
        let objects = Objects {
            new: Some(&new),
            old: Some(&old),
        };
        self.ask_validating(&attributes, objects, warnings).await
    }

    /// Asks about a deletion.
    pub(crate) async fn admit_deletion(
        &self,
        target: &Target,
        live: &Value,
        options: &DeleteOptions,
        warnings: &mut Vec<String>,
    ) -> Reply<()> {
        if self.admits_everything() {
            return Ok(());
        }
        let mut attributes = Attributes::new(target, Operation::Delete, &target.name);
        attributes.options = delete_options(options);
        attributes.dry_run = options.dry_run;
        let mut nothing = None;
        self.ask_mutating(&attributes, &mut nothing, Some(live), warnings)
            .await?;
        let objects = Objects {
            new: None,
            old: Some(live),
        };
        self.ask_validating(&attributes, objects, warnings).await
    }

    /// Asks about a body that is not stored: bindings, evictions, token requests, reviews. Returns it as webhooks left it.
    pub(crate) async fn admit_body(
        &self,
        target: &Target,
        body: Value,
        warnings: &mut Vec<String>,
    ) -> Reply<Value> {
        if self.admits_everything() {
            return Ok(body);
        }
        let name = match target.name.as_str() {
            "" => crate::meta::name(&body).to_owned(),
            name => name.to_owned(),
        };
        let attributes = Attributes::new(target, Operation::Create, &name);
        let mut new = Some(body);
        self.ask_mutating(&attributes, &mut new, None, warnings)
            .await?;
        let objects = Objects {
            new: new.as_ref(),
            old: None,
        };
        self.ask_validating(&attributes, objects, warnings).await?;
        Ok(new.unwrap_or_default())
    }

    /// Asks about a connection (exec, attach, port-forward, proxy).
    pub(crate) async fn admit_connection(&self, info: &RequestInfo, user: &User) -> Reply<()> {
        if self.admits_everything() {
            return Ok(());
        }
        let catalog = self.catalog();
        let Some(resource) = catalog.find(&info.group, &info.version, &info.resource) else {
            return Ok(());
        };
        let target = Target {
            resource: resource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            subresource: info.subresource.clone(),
            user: user.clone(),
            options: WriteOptions::default(),
        };
        let mut attributes = Attributes::new(&target, Operation::Connect, &target.name);
        let options = connect_options(info);
        let kind = options["kind"].as_str().unwrap_or_default();
        attributes.kind = Gvk::from_api_version("v1", kind);
        let mut new = Some(options);
        let mut warnings = Vec::new();
        self.ask_mutating(&attributes, &mut new, None, &mut warnings)
            .await?;
        let objects = Objects {
            new: new.as_ref(),
            old: None,
        };
        self.ask_validating(&attributes, objects, &mut warnings)
            .await
    }
}

/// `PodExecOptions` and its kin, from a query.
fn connect_options(info: &RequestInfo) -> Value {
    let kind = match (info.resource.as_str(), info.subresource.as_str()) {
        (_, "exec") => "PodExecOptions",
        (_, "attach") => "PodAttachOptions",
        (_, "portforward") => "PodPortForwardOptions",
        ("services", _) => "ServiceProxyOptions",
        ("nodes", _) => "NodeProxyOptions",
        _ => "PodProxyOptions",
    };
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    let (mut command, mut ports) = (Vec::new(), Vec::new());
    for (name, value) in query_pairs(&info.query) {
        match name.as_str() {
            "stdin" | "stdout" | "stderr" | "tty" => options[&name] = truthy(&value).into(),
            "container" | "path" => options[&name] = value.into(),
            "command" => command.push(Value::from(value)),
            "ports" => ports.extend(value.parse::<u16>().map(Value::from)),
            _ => {}
        }
    }
    if !command.is_empty() {
        options["command"] = command.into();
    }
    if !ports.is_empty() {
        options["ports"] = ports.into();
    }
    options
}

fn delete_options(options: &DeleteOptions) -> Value {
    let mut value = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
    if let Some(seconds) = options.grace_period {
        value["gracePeriodSeconds"] = seconds.into();
    }
    if let Some(uid) = &options.uid {
        value["preconditions"]["uid"] = uid.clone().into();
    }
    if let Some(revision) = &options.resource_version {
        value["preconditions"]["resourceVersion"] = revision.clone().into();
    }
    if let Some(policy) = &options.propagation {
        value["propagationPolicy"] = policy.clone().into();
    }
    if options.dry_run {
        value["dryRun"] = json!(["All"]);
    }
    value
}
