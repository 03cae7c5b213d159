//! Requests about resources: from the verb to the registry.

use super::{
    Server, body, code, no_such_path,
    respond::{self, Wanted},
    watch,
};
use crate::{
    authn::User,
    meta,
    registry::{Content, FieldValidation, Page, Reply, Target, WriteOptions, Written},
    resources::Resource,
    reviews,
    subresources::{binding, eviction, scale, token},
};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header, request::Parts};
use serde_json::{Value, json};
use std::sync::Arc;
use yurt_transport::Body;
use yurt_wire::{Gvk, RequestInfo, Status, Verb, patch::PatchType, request::query_pairs};

/// Field managers are at most this long.
const MAX_MANAGER: usize = 128;

impl Server {
    pub(super) async fn resource(
        &self,
        parts: &Parts,
        bytes: Bytes,
        info: &RequestInfo,
        wanted: &Wanted,
        user: User,
    ) -> Reply<Response<Body>> {
        let catalog = self.registry.catalog();
        let resource = catalog
            .find(&info.group, &info.version, &info.resource)
            .ok_or_else(no_such_path)?;
        let target = target(resource, info, &parts.headers, user)?;
        served(&target, info)?;
        let mut response = self.verb(parts, bytes, info, wanted, &target).await?;
        respond::warn(&mut response, resource.deprecation().as_slice());
        Ok(response)
    }

    async fn verb(
        &self,
        parts: &Parts,
        bytes: Bytes,
        info: &RequestInfo,
        wanted: &Wanted,
        target: &Target,
    ) -> Reply<Response<Body>> {
        let resource = &target.resource;
        match info.verb {
            Verb::Get => self.get(target, wanted).await,
            Verb::List => {
                let options = info.list_options()?;
                self.registry.wait_for(&options).await;
                let page = self.registry.list(resource, &target.namespace, &options)?;
                let items = self.registry.shown(resource, page.items).await?;
                respond::page(wanted, resource, Page { items, ..page }).await
            }
            Verb::Watch => {
                wanted.streamed()?;
                let options = info.list_options()?;
                watch::watch(
                    &self.registry,
                    resource,
                    &target.namespace,
                    &options,
                    wanted,
                    self.metrics.events(resource),
                    self.shutdown.clone(),
                )
                .await
            }
            Verb::Create => {
                // What is answered and forgotten has no tables.
                wanted.negotiate(true, resource.serves("get"))?;
                self.create(target, &parts.headers, bytes, wanted).await
            }
            Verb::Update => {
                let decoded = body::decode(&parts.headers, bytes, &body_kind(target))?;
                check_types(target, &decoded.value)?;
                let (registry, owned) = (self.registry.clone(), target.clone());
                let written = finished(async move {
                    registry
                        .update(&owned, decoded.value, decoded.raw.as_deref())
                        .await
                });
                self.written(wanted, target, written.await?).await
            }
            Verb::Patch => {
                let (kind, patch) = body::decode_patch(&parts.headers, &bytes, &body_kind(target))?;
                check_manager(target, kind, &info.query)?;
                if kind == PatchType::Apply {
                    check_types(target, &patch)?;
                }
                let (registry, owned) = (self.registry.clone(), target.clone());
                let written =
                    finished(async move { registry.patch(&owned, kind, &patch, &bytes).await });
                self.written(wanted, target, written.await?).await
            }
            Verb::Delete => {
                let options = body::delete_options(&parts.headers, &bytes, &info.query)?;
                let (registry, owned) = (self.registry.clone(), target.clone());
                let deleted =
                    finished(async move { registry.delete(&owned, &options).await }).await?;
                if !deleted.gone || resource.returns_deleted {
                    let content = deleted.content;
                    let mut response =
                        respond::object(wanted, resource, content, StatusCode::OK).await?;
                    respond::warn(&mut response, &deleted.warnings);
                    return Ok(response);
                }
                let object = deleted.content.into_value();
                let mut details = json!({"name": target.name, "kind": resource.plural,
                    "uid": meta::uid(&object)});
                if !resource.group.is_empty() {
                    details["group"] = resource.group.clone().into();
                }
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
                    "status": "Success", "details": details});
                let mut response = respond::value(wanted, &status, StatusCode::OK).await?;
                respond::warn(&mut response, &deleted.warnings);
                Ok(response)
            }
            Verb::DeleteCollection => {
                let options = body::delete_options(&parts.headers, &bytes, &info.query)?;
                let selection = info.list_options()?;
                let (registry, owned) = (self.registry.clone(), target.clone());
                let deleted = finished(async move {
                    registry
                        .delete_collection(&owned, &selection, &options)
                        .await
                })
                .await?;
                let revision = self.registry.storage.revision();
                respond::contents(wanted, resource, deleted, revision).await
            }
            Verb::Proxy | Verb::Connect | Verb::Other => Err(not_allowed(target, info)),
        }
    }

    async fn get(&self, target: &Target, wanted: &Wanted) -> Reply<Response<Body>> {
        let stored = self.registry.get(target)?;
        let stored = self.registry.shown_one(&target.resource, stored).await?;
        if target.subresource == "scale" {
            let object = Content::of(&target.resource, stored).into_value();
            let scale = scale::of(&target.resource, &object)?;
            return respond::value(wanted, &scale, StatusCode::OK).await;
        }
        let content = Content::Stored(stored);
        respond::object(wanted, &target.resource, content, StatusCode::OK).await
    }

    async fn create(
        &self,
        target: &Target,
        headers: &HeaderMap,
        bytes: Bytes,
        wanted: &Wanted,
    ) -> Reply<Response<Body>> {
        let mut decoded = body::decode(headers, bytes, &body_kind(target))?;
        let resource = &target.resource;
        let is_stored = target.subresource.is_empty() && resource.serves("get");
        if !is_stored {
            let mut warnings = Vec::new();
            decoded.value = self
                .registry
                .admit_body(target, decoded.value, &mut warnings)
                .await?;
        }
        match target.subresource.as_str() {
            "" => {}
            "binding" => {
                binding::bind(&self.registry, target, &decoded.value).await?;
                return respond::value(wanted, &binding::created(), StatusCode::CREATED).await;
            }
            "eviction" => {
                let mut options = body::eviction_options(&decoded.value)?;
                options.dry_run |= target.options.dry_run;
                options.admitted = true;
                eviction::evict(&self.registry, target, &decoded.value, options).await?;
                return respond::value(wanted, &binding::created(), StatusCode::CREATED).await;
            }
            "token" => {
                let issuer = self.authenticator.issuer();
                let answer = token::request(&self.registry, issuer, target, decoded.value)?;
                return respond::value(wanted, &answer, StatusCode::CREATED).await;
            }
            _ => return Err(no_such_path()),
        }
        let review = reviews::answer(
            &self.registry,
            &self.authenticator,
            resource,
            &target.namespace,
            &target.user,
            &decoded.value,
        );
        if let Some(answer) = review {
            return respond::value(wanted, &answer?, StatusCode::CREATED).await;
        }
        if resource.kind == "Binding" && resource.group.is_empty() {
            let catalog = self.registry.catalog();
            let pods = catalog.find("", "v1", "pods").ok_or_else(no_such_path)?;
            let pod = Target {
                resource: pods.clone(),
                name: meta::name(&decoded.value).to_owned(),
                subresource: "binding".into(),
                ..target.clone()
            };
            binding::bind(&self.registry, &pod, &decoded.value).await?;
            return respond::value(wanted, &binding::created(), StatusCode::CREATED).await;
        }
        check_types(target, &decoded.value)?;
        let (registry, owned) = (self.registry.clone(), target.clone());
        let written = finished(async move {
            registry
                .create(&owned, decoded.value, decoded.raw.as_deref())
                .await
        });
        self.written(wanted, target, written.await?).await
    }

    async fn written(
        &self,
        wanted: &Wanted,
        target: &Target,
        written: Written,
    ) -> Reply<Response<Body>> {
        let code = code(written.created);
        let mut response = match (target.subresource.as_str(), written.content) {
            ("scale", content) => respond::value(wanted, &content.into_value(), code).await?,
            (_, content) => respond::object(wanted, &target.resource, content, code).await?,
        };
        respond::warn(&mut response, &written.warnings);
        Ok(response)
    }
}

/// Runs a write to its end even when the client goes away meanwhile: what follows a write (a CRD that is served, an
/// address that is taken) must not be left out.
async fn finished<T: Send + 'static>(
    write: impl Future<Output = Reply<T>> + Send + 'static,
) -> Reply<T> {
    match tokio::spawn(write).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Box::new(Status::internal_error(error))),
    }
}

/// What a request is about, with its options.
fn target(
    resource: &Arc<Resource>,
    info: &RequestInfo,
    headers: &HeaderMap,
    user: User,
) -> Reply<Target> {
    let in_path = !info.namespace.is_empty() && info.resource != "namespaces";
    if in_path && !resource.namespaced {
        return Err(no_such_path());
    }
    let namespace = if resource.namespaced {
        info.namespace.clone()
    } else {
        String::new()
    };
    let single = !matches!(info.verb, Verb::List | Verb::Watch | Verb::DeleteCollection);
    if resource.namespaced
        && namespace.is_empty()
        && (single || info.verb == Verb::DeleteCollection)
    {
        return Err(no_such_path());
    }
    let name = if single {
        info.name.clone()
    } else {
        String::new()
    };
    Ok(Target {
        resource: resource.clone(),
        namespace,
        name,
        subresource: info.subresource.clone(),
        user,
        options: WriteOptions {
            patch: info.verb == Verb::Patch,
            ..write_options(headers, &info.query)?
        },
    })
}

fn write_options(headers: &HeaderMap, query: &str) -> Reply<WriteOptions> {
    let mut options = WriteOptions::default();
    for (name, value) in query_pairs(query) {
        match name.as_str() {
            "dryRun" => options.dry_run = body::check_dry_run(&value)?,
            "fieldManager" => options.field_manager = value,
            "force" => options.force = value == "true" || value == "1",
            "fieldValidation" => {
                options.field_validation = match value.as_str() {
                    "" | "Warn" => FieldValidation::Warn,
                    "Ignore" => FieldValidation::Ignore,
                    "Strict" => FieldValidation::Strict,
                    other => {
                        return Err(Box::new(Status::invalid(
                            "meta.k8s.io",
                            "Options",
                            "",
                            vec![yurt_wire::status::Cause::not_supported(
                                "fieldValidation",
                                other,
                                &["Ignore", "Warn", "Strict"],
                            )],
                        )));
                    }
                }
            }
            _ => {}
        }
    }
    if options.field_manager.is_empty() {
        let agent = headers
            .get(header::USER_AGENT)
            .and_then(|agent| agent.to_str().ok())
            .and_then(|agent| agent.split('/').next())
            .filter(|agent| !agent.is_empty())
            .unwrap_or("unknown");
        options.field_manager = agent.chars().take(MAX_MANAGER).collect();
    } else if options.field_manager.len() > MAX_MANAGER {
        return Err(Box::new(Status::bad_request(
            "fieldManager: may not be longer than 128 characters",
        )));
    }
    Ok(options)
}

/// Server-side apply needs to know for whom.
fn check_manager(target: &Target, kind: PatchType, query: &str) -> Reply<()> {
    let named = query_pairs(query)
        .iter()
        .any(|(name, value)| name == "fieldManager" && !value.is_empty());
    let why = match kind {
        PatchType::Apply if !named => {
            yurt_wire::status::Cause::required("fieldManager", "is required for apply patch")
        }
        PatchType::Json | PatchType::Merge | PatchType::StrategicMerge if target.options.force => {
            yurt_wire::status::Cause::forbidden("force", "may not be specified for non-apply patch")
        }
        _ => return Ok(()),
    };
    Err(Box::new(Status::invalid(
        "meta.k8s.io",
        "PatchOptions",
        "",
        vec![why],
    )))
}

/// Whether the resource or subresource serves the verb.
fn served(target: &Target, info: &RequestInfo) -> Reply<()> {
    let verb = info.verb.as_str();
    if target.subresource.is_empty() {
        if target.resource.serves(verb) {
            return Ok(());
        }
        return Err(not_allowed(target, info));
    }
    let sub = target
        .resource
        .subresource(&target.subresource)
        .ok_or_else(no_such_path)?;
    if info.parts.len() > 3 {
        return Err(no_such_path());
    }
    if sub.verbs.iter().any(|v| v == verb) {
        return Ok(());
    }
    Err(not_allowed(target, info))
}

fn not_allowed(target: &Target, info: &RequestInfo) -> Box<Status> {
    Box::new(Status::method_not_allowed(
        &target.resource.group,
        &target.resource.plural,
        info.verb.as_str(),
    ))
}

/// The kind of a request's body.
fn body_kind(target: &Target) -> Gvk {
    match target.resource.subresource(&target.subresource) {
        Some(sub) => Gvk {
            group: sub.group.clone(),
            version: sub.version.clone(),
            kind: sub.kind.clone(),
        },
        None => target.resource.gvk(),
    }
}

fn check_types(target: &Target, object: &Value) -> Reply<()> {
    if target.subresource == "scale" {
        crate::types::check_kind(&scale::gvk(), object)
    } else {
        crate::types::check(&target.resource, object)
    }
}
