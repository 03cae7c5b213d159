//! `ValidatingAdmissionPolicy` and its bindings: expressions instead of a webhook.

use super::{
    attributes::{Attributes, Operation},
    conditions::{self, Conditions, Match},
    review::{self, Shown},
    rules::{self, Rule},
    webhooks::{Objects, matching},
};
use crate::{
    meta,
    registry::{NAMESPACES, Registry, Reply},
    resources::{Catalog, Resource},
    storage::{Key, Storage},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};
use yurt_cel::{Budget, Error, Expression, Key as Name, Val};
use yurt_wire::{
    Gvk, Reason, Status,
    selector::{LabelSelector, SelectorError},
    status::Cause,
};

static POLICIES: LazyLock<Arc<str>> =
    LazyLock::new(|| "admissionregistration.k8s.io/validatingadmissionpolicies".into());
static BINDINGS: LazyLock<Arc<str>> =
    LazyLock::new(|| "admissionregistration.k8s.io/validatingadmissionpolicybindings".into());

/// The names that expressions of a policy know.
pub(crate) const NAMES: &[&str] = &[
    "object",
    "oldObject",
    "request",
    "params",
    "namespaceObject",
    "variables",
];

/// `matchConstraints` or `matchResources`.
#[derive(Debug)]
struct Matcher {
    /// `None` when nothing is said of resources: everything then.
    rules: Option<Vec<Rule>>,
    excluded: Vec<Rule>,
    equivalent: bool,
    namespaces: LabelSelector,
    objects: LabelSelector,
}

/// A check of a policy.
#[derive(Debug)]
struct Validation {
    expression: Expression,
    source: String,
    message: String,
    message_expression: Option<Expression>,
    reason: Option<Reason>,
}

/// A policy that has been read.
#[derive(Debug)]
pub(super) struct Policy {
    name: String,
    matcher: Matcher,
    conditions: Conditions,
    variables: Vec<(String, Expression)>,
    validations: Vec<Validation>,
    ignores_failures: bool,
    params: Option<Gvk>,
    bindings: Vec<Binding>,
}

#[derive(Debug)]
struct Binding {
    name: String,
    matcher: Option<Matcher>,
    denies: bool,
    warns: bool,
    param_ref: Value,
}

impl Matcher {
    fn read(constraints: &Value) -> Result<Self, SelectorError> {
        Ok(Self {
            rules: constraints
                .get("resourceRules")
                .filter(|rules| !rules.is_null())
                .map(Rule::list_from_json),
            excluded: Rule::list_from_json(&constraints["excludeResourceRules"]),
            equivalent: constraints["matchPolicy"] != "Exact",
            namespaces: rules::selector(&constraints["namespaceSelector"])?,
            objects: rules::selector(&constraints["objectSelector"])?,
        })
    }

    /// The version in which the object is looked at, when the request matches.
    fn matches(
        &self,
        registry: &Registry,
        catalog: &Catalog,
        attributes: &Attributes<'_>,
        objects: Objects<'_>,
    ) -> Reply<Option<Arc<Resource>>> {
        if !rules::selects_object(&self.objects, objects.new, objects.old) {
            return Ok(None);
        }
        if matching(catalog, &self.excluded, self.equivalent, attributes).is_some() {
            return Ok(None);
        }
        let resource = match &self.rules {
            None => Some(attributes.target.resource.clone()),
            Some(rules) => matching(catalog, rules, self.equivalent, attributes),
        };
        match resource {
            Some(resource)
                if registry.selects_namespace(&self.namespaces, attributes, objects)? =>
            {
                Ok(Some(resource))
            }
            _ => Ok(None),
        }
    }
}

/// Reads all policies that have bindings, in the order of their names.
pub(super) fn read(storage: &Storage) -> Vec<Policy> {
    let (bindings, _) = storage.list(&BINDINGS, "", None);
    let mut of_policy: BTreeMap<String, Vec<Binding>> = BTreeMap::new();
    for binding in bindings {
        let binding = binding.value();
        let spec = &binding["spec"];
        let acts = |what: &str| {
            let actions = spec["validationActions"].as_array();
            actions.is_some_and(|actions| actions.iter().any(|action| action == what))
        };
        let matcher = match spec["matchResources"].is_object() {
            true => match Matcher::read(&spec["matchResources"]) {
                Ok(matcher) => Some(matcher),
                Err(error) => {
                    tracing::error!(binding = meta::name(&binding), %error, "a policy binding is not used");
                    continue;
                }
            },
            false => None,
        };
        let policy = spec["policyName"].as_str().unwrap_or_default().to_owned();
        of_policy.entry(policy).or_default().push(Binding {
            name: meta::name(&binding).to_owned(),
            matcher,
            denies: acts("Deny"),
            warns: acts("Warn"),
            param_ref: spec["paramRef"].clone(),
        });
    }
    let (policies, _) = storage.list(&POLICIES, "", None);
    policies
        .iter()
        .filter_map(|policy| {
            let bindings = of_policy.remove(&*policy.key.name)?;
            match Policy::read(&policy.value(), bindings) {
                Ok(policy) => Some(policy),
                Err(why) => {
                    tracing::error!(policy = %policy.key.name, why, "a policy is not used");
                    None
                }
            }
        })
        .collect()
}

impl Policy {
    fn read(policy: &Value, bindings: Vec<Binding>) -> Result<Self, String> {
        let spec = &policy["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |name: &str| spec[name].as_array().into_iter().flatten();
        let compile = |source: &Value| {
            conditions::compile(source.as_str().unwrap_or_default(), NAMES)
                .map(|(expression, _)| expression)
        };
        let variables = list("variables")
            .map(|variable| Ok((text(&variable["name"]), compile(&variable["expression"])?)))
            .collect::<Result<_, String>>()?;
        let validations = list("validations")
            .map(|validation| {
                let message = &validation["messageExpression"];
                Ok(Validation {
                    expression: compile(&validation["expression"])?,
                    source: text(&validation["expression"]),
                    message: text(&validation["message"]).trim().to_owned(),
                    message_expression: match message.as_str() {
                        None | Some("") => None,
                        Some(_) => Some(compile(message)?),
                    },
                    reason: Reason::parse(&text(&validation["reason"])),
                })
            })
            .collect::<Result<_, String>>()?;
        let kind = &spec["paramKind"];
        Ok(Self {
            name: meta::name(policy).to_owned(),
            matcher: Matcher::read(&spec["matchConstraints"]).map_err(|e| e.to_string())?,
            conditions: Conditions::read(&spec["matchConditions"], NAMES)?,
            variables,
            validations,
            ignores_failures: spec["failurePolicy"] == "Ignore",
            params: kind
                .is_object()
                .then(|| Gvk::from_api_version(&text(&kind["apiVersion"]), &text(&kind["kind"]))),
            bindings,
        })
    }
}

/// A value that may be missing.
fn value<'v>(value: Option<&'v Value>) -> Val<'v> {
    value.map_or(Val::Null, |value| Val::of(value, None))
}

/// Something a policy has against a request.
struct Objection {
    message: String,
    reason: Reason,
}

impl Registry {
    /// Asks the policies.
    pub(super) async fn ask_policies(
        &self,
        policies: &[Policy],
        attributes: &Attributes<'_>,
        objects: Objects<'_>,
        warnings: &mut Vec<String>,
    ) -> Reply<()> {
        let catalog = self.catalog();
        let mut budget = Budget::default();
        for policy in policies {
            let matched = policy
                .matcher
                .matches(self, &catalog, attributes, objects)?;
            let Some(resource) = matched else {
                continue;
            };
            for binding in &policy.bindings {
                if let Some(matcher) = &binding.matcher
                    && matcher
                        .matches(self, &catalog, attributes, objects)?
                        .is_none()
                {
                    continue;
                }
                let objections = self
                    .objections(policy, binding, &resource, attributes, objects, &mut budget)
                    .await?;
                for objection in objections {
                    if binding.warns {
                        warnings.push(format!(
                            "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                            policy.name, binding.name, objection.message
                        ));
                    }
                    if binding.denies {
                        return Err(denied(attributes, policy, binding, &objection));
                    }
                }
            }
        }
        Ok(())
    }

    async fn objections(
        &self,
        policy: &Policy,
        binding: &Binding,
        resource: &Arc<Resource>,
        attributes: &Attributes<'_>,
        objects: Objects<'_>,
        budget: &mut Budget,
    ) -> Reply<Vec<Objection>> {
        let own = &attributes.target.resource;
        let (mut new, mut old) = (objects.new.cloned(), objects.old.cloned());
        if attributes.kind == own.gvk() {
            for object in [&mut new, &mut old].into_iter().flatten() {
                *object = self.converted(own, resource, object.take()).await?;
            }
        }
        let kind = match resource.subresource(&attributes.target.subresource) {
            Some(_) => attributes.kind.clone(),
            None => resource.gvk(),
        };
        let shown = Shown {
            resource,
            kind: &kind,
            object: None,
            old: None,
        };
        let request = review::request(attributes, &shown, &meta::new_uid());
        let namespace = match attributes.namespace() {
            "" => None,
            name => self.storage.current(&NAMESPACES, &Key::new("", name)),
        };
        let namespace = namespace.map(|namespace| namespace.value());
        let mut found = Vec::new();
        let params = match self.params(policy, binding, attributes) {
            Ok(params) => params,
            Err(_) if policy.ignores_failures => return Ok(found),
            Err(why) => {
                found.push(Objection {
                    message: format!("failed to configure binding: {why}"),
                    reason: Reason::Invalid,
                });
                return Ok(found);
            }
        };
        let facts = Facts {
            new: new
                .as_ref()
                .filter(|_| attributes.operation != Operation::Delete),
            old: old.as_ref(),
            request: &request,
            namespace: namespace.as_ref(),
        };
        for param in &params {
            policy.examine(&facts, param.as_ref(), budget, &mut found);
        }
        Ok(found)
    }

    /// The parameters a binding names; one `None` for a policy without.
    fn params(
        &self,
        policy: &Policy,
        binding: &Binding,
        attributes: &Attributes<'_>,
    ) -> Result<Vec<Option<Value>>, String> {
        let (Some(kind), true) = (&policy.params, binding.param_ref.is_object()) else {
            return Ok(vec![None]);
        };
        let catalog = self.catalog();
        let resource = catalog
            .resources()
            .iter()
            .find(|r| r.group == kind.group && r.version == kind.version && r.kind == kind.kind)
            .ok_or_else(|| {
                format!(
                    "failed to find resource referenced by paramKind: '{}/{}, Kind={}'",
                    kind.group, kind.version, kind.kind
                )
            })?;
        let given = &binding.param_ref;
        let text = |name: &str| given[name].as_str().unwrap_or_default();
        let namespace = match (resource.namespaced, text("namespace")) {
            (false, _) => "",
            (true, "") => attributes.namespace(),
            (true, namespace) => namespace,
        };
        if resource.namespaced && namespace.is_empty() {
            return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into());
        }
        let found: Vec<Option<Value>> = if text("name").is_empty() {
            let selector =
                rules::selector(&given["selector"]).map_err(|error| error.to_string())?;
            let (objects, _) = self.storage.list(&resource.storage, namespace, None);
            let objects = objects.iter().filter(|o| selector.matches(&o.labels));
            objects.map(|object| Some(object.value())).collect()
        } else {
            let key = Key::new(namespace, text("name"));
            let object = self.storage.current(&resource.storage, &key);
            object
                .map(|object| Some(object.value()))
                .into_iter()
                .collect()
        };
        if found.is_empty() && text("parameterNotFoundAction") == "Deny" {
            return Err(
                "no params found for policy binding with `Deny` parameterNotFoundAction".into(),
            );
        }
        Ok(found)
    }
}

/// What expressions are about.
struct Facts<'v> {
    new: Option<&'v Value>,
    old: Option<&'v Value>,
    request: &'v Value,
    namespace: Option<&'v Value>,
}

impl Policy {
    /// Runs the checks for one parameter.
    fn examine(
        &self,
        facts: &Facts<'_>,
        param: Option<&Value>,
        budget: &mut Budget,
        found: &mut Vec<Objection>,
    ) {
        let mut variables = vec![
            ("object", value(facts.new)),
            ("oldObject", value(facts.old)),
            ("request", Val::of(facts.request, None)),
            ("params", value(param)),
            ("namespaceObject", value(facts.namespace)),
        ];
        let mut object = |why: String, reason: Reason| {
            found.push(Objection {
                message: why,
                reason,
            });
        };
        match self.conditions.evaluate(&variables, budget) {
            Match::Yes => {}
            Match::No => return,
            Match::Unknown(_) if self.ignores_failures => return,
            Match::Unknown(why) => {
                object(why, Reason::Invalid);
                return;
            }
        }
        // Each variable sees those before it; one without a value is missed only by those who look for it.
        let mut named: BTreeMap<Name, Val<'_>> = BTreeMap::new();
        let mut failed: BTreeMap<String, String> = BTreeMap::new();
        for (name, expression) in &self.variables {
            variables.push(("variables", Val::Map(Arc::new(named.clone()))));
            let outcome = expression.evaluate(&variables, budget);
            variables.pop();
            match outcome {
                Ok(value) => {
                    named.insert(Name::String(name.as_str().into()), value);
                }
                Err(error) => {
                    failed.insert(name.clone(), error.to_string());
                }
            }
        }
        variables.push(("variables", Val::Map(Arc::new(named))));
        for validation in &self.validations {
            let reason = validation.reason.unwrap_or(Reason::Invalid);
            match validation.expression.evaluate(&variables, budget) {
                Ok(Val::Bool(true)) => {}
                Ok(Val::Bool(false)) => {
                    let made = validation.message_expression.as_ref().and_then(|message| {
                        let made = message.evaluate(&variables, budget).ok()?;
                        let made = made.as_str()?.trim().to_owned();
                        (!made.is_empty() && !made.contains('\n')).then_some(made)
                    });
                    let message = made.unwrap_or_else(|| match validation.message.as_str() {
                        "" => format!("failed expression: {}", validation.source.trim()),
                        message => message.to_owned(),
                    });
                    object(message, reason);
                }
                _ if self.ignores_failures => {}
                Ok(_) => object(
                    format!(
                        "expression '{}' resulted in error: must evaluate to bool",
                        validation.source
                    ),
                    reason,
                ),
                Err(error) => {
                    let why = match &error {
                        Error::Failed(why) => why
                            .strip_prefix("no such key: ")
                            .and_then(|name| failed.get(name))
                            .map(|why| format!("composited variable fails to evaluate: {why}")),
                        Error::Budget => None,
                    };
                    object(
                        format!(
                            "expression '{}' resulted in error: {}",
                            validation.source,
                            why.unwrap_or_else(|| error.to_string())
                        ),
                        reason,
                    );
                }
            }
        }
    }
}

fn denied(
    attributes: &Attributes<'_>,
    policy: &Policy,
    binding: &Binding,
    objection: &Objection,
) -> Box<Status> {
    let resource = &attributes.target.resource;
    let message = format!(
        "ValidatingAdmissionPolicy '{}' with binding '{}' denied request: {}",
        policy.name, binding.name, objection.message
    );
    let mut status =
        Status::forbidden(&resource.group, &resource.plural, attributes.name, &message);
    status.reason = objection.reason;
    status.causes.push(Cause {
        reason: String::new(),
        message,
        field: String::new(),
    });
    Box::new(status)
}
