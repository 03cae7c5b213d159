//! Webhooks and admission policies.

use super::names::is_dns1123_subdomain;
use super::{given, join, list, metadata, one_of, text};
use crate::causes::{invalid, required};
use crate::registry::admission::{conditions, policies};
use base64::Engine;
use serde_json::Value;
use yurt_wire::status::Cause;

pub(super) fn policy(spec: &Value, causes: &mut Vec<Cause>) {
    let constraints = &spec["matchConstraints"];
    if !constraints.is_object() {
        causes.push(required("spec.matchConstraints", ""));
    } else if list(constraints, "resourceRules").is_empty() {
        causes.push(required("spec.matchConstraints.resourceRules", ""));
    }
    for selector in ["namespaceSelector", "objectSelector"] {
        let at = format!("spec.matchConstraints.{selector}");
        metadata::selector(&at, &constraints[selector], causes);
    }
    let failure_policies = ["Fail", "Ignore"];
    one_of(
        spec,
        "failurePolicy",
        "spec",
        &failure_policies,
        false,
        causes,
    );
    let names = policies::NAMES;
    conditions::check(
        "spec.matchConditions",
        &spec["matchConditions"],
        names,
        causes,
    );
    let mut known = std::collections::BTreeSet::new();
    for (i, variable) in list(spec, "variables").iter().enumerate() {
        let at = format!("spec.variables[{i}]");
        let name = text(variable, "name");
        let fits = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if name.is_empty() {
            causes.push(required(&join(&at, "name"), "name is not specified"));
        } else if !fits {
            causes.push(invalid(
                &join(&at, "name"),
                &variable["name"],
                "name is not a valid CEL identifier",
            ));
        } else if !known.insert(name) {
            causes.push(crate::causes::duplicate(
                &join(&at, "name"),
                &variable["name"],
            ));
        }
        let at = join(&at, "expression");
        conditions::check_expression(&at, &variable["expression"], names, "", causes);
    }
    let (validations, annotations) = (list(spec, "validations"), list(spec, "auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        causes.push(required(
            "spec.validations",
            "validations or auditAnnotations must be present",
        ));
    }
    for (i, validation) in validations.iter().enumerate() {
        let at = format!("spec.validations[{i}]");
        conditions::check_expression(
            &join(&at, "expression"),
            &validation["expression"],
            names,
            "bool",
            causes,
        );
        if !text(validation, "messageExpression").is_empty() {
            conditions::check_expression(
                &join(&at, "messageExpression"),
                &validation["messageExpression"],
                names,
                "string",
                causes,
            );
        }
        let reasons = [
            "Forbidden",
            "Invalid",
            "RequestEntityTooLarge",
            "Unauthorized",
        ];
        one_of(validation, "reason", &at, &reasons, false, causes);
    }
    let kind = &spec["paramKind"];
    if kind.is_object() {
        for field in ["apiVersion", "kind"] {
            if text(kind, field).is_empty() {
                causes.push(required(&format!("spec.paramKind.{field}"), ""));
            }
        }
    }
}

pub(super) fn policy_binding(spec: &Value, causes: &mut Vec<Cause>) {
    if text(spec, "policyName").is_empty() {
        causes.push(required("spec.policyName", ""));
    }
    let actions = list(spec, "validationActions");
    if actions.is_empty() {
        causes.push(required("spec.validationActions", ""));
    }
    let known = ["Audit", "Deny", "Warn"];
    for (i, action) in actions.iter().enumerate() {
        let at = format!("spec.validationActions[{i}]");
        if !action
            .as_str()
            .is_some_and(|action| known.contains(&action))
        {
            causes.push(crate::causes::not_supported(&at, action, &known));
        } else if actions[..i].contains(action) {
            causes.push(crate::causes::duplicate(&at, action));
        }
    }
    let acts = |what: &str| actions.iter().any(|action| action == what);
    if acts("Deny") && acts("Warn") {
        causes.push(invalid(
            "spec.validationActions",
            &spec["validationActions"],
            "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)",
        ));
    }
    let param = &spec["paramRef"];
    if param.is_object() {
        let named = !text(param, "name").is_empty();
        let selected = param["selector"].is_object();
        if named == selected {
            causes.push(if named {
                invalid(
                    "spec.paramRef.name",
                    &param["name"],
                    "name and selector are mutually exclusive",
                )
            } else {
                required("spec.paramRef", "one of name or selector must be specified")
            });
        }
        let at = "spec.paramRef";
        one_of(
            param,
            "parameterNotFoundAction",
            at,
            &["Allow", "Deny"],
            true,
            causes,
        );
    }
    for selector in ["namespaceSelector", "objectSelector"] {
        let at = format!("spec.matchResources.{selector}");
        metadata::selector(&at, &spec["matchResources"][selector], causes);
    }
}

/// What is wrong with where a webhook is; conversion webhooks are found the same way.
pub(crate) fn webhook_client(at: &str, config: &Value, causes: &mut Vec<Cause>) {
    let (url, service) = (given(config, "url"), given(config, "service"));
    if url.is_some() == service.is_some() {
        causes.push(required(at, "exactly one of url or service is required"));
    }
    if let Some(url) = url {
        let form = "; desired format: https://host[/path]";
        let at = join(at, "url");
        let text = url.as_str().unwrap_or_default();
        let why = match text.parse::<http::Uri>() {
            Err(error) => Some(format!("url must be a valid URL: {error}{form}")),
            Ok(parsed) if parsed.scheme_str() != Some("https") => {
                Some(format!("'https' is the only allowed URL scheme{form}"))
            }
            Ok(parsed) if parsed.host().is_none_or(str::is_empty) => {
                Some(format!("host must be specified{form}"))
            }
            Ok(parsed) if parsed.authority().is_some_and(|a| a.as_str().contains('@')) => {
                Some("user information is not permitted in the URL".to_owned())
            }
            Ok(parsed) if parsed.query().is_some() => {
                Some("query parameters are not permitted in the URL".to_owned())
            }
            Ok(_) => None,
        };
        if let Some(why) = why {
            causes.push(invalid(&at, url, &why));
        }
    }
    if let Some(service) = service {
        let at = join(at, "service");
        for (field, why) in [
            ("name", "service name is required"),
            ("namespace", "service namespace is required"),
        ] {
            if text(service, field).is_empty() {
                causes.push(required(&join(&at, field), why));
            }
        }
        let path = text(service, "path");
        if !path.is_empty() && !path.starts_with('/') {
            causes.push(invalid(
                &join(&at, "path"),
                &service["path"],
                "must start with a '/'",
            ));
        }
        let port = service["port"].as_i64().unwrap_or(443);
        if !(1..=65535).contains(&port) {
            causes.push(invalid(
                &join(&at, "port"),
                &service["port"],
                "port is not valid: must be between 1 and 65535, inclusive",
            ));
        }
    }
    if let Some(bundle) = given(config, "caBundle") {
        let pem = base64::engine::general_purpose::STANDARD
            .decode(bundle.as_str().unwrap_or_default())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let empty = pem.as_deref().is_some_and(str::is_empty);
        if !empty && pem.is_none_or(|pem| yurt_pki::certs_from_pem(&pem).is_err()) {
            causes.push(invalid(
                &join(at, "caBundle"),
                &Value::from("<bytes>"),
                "unable to load root certificates: unable to parse bytes as PEM block",
            ));
        }
    }
}

fn admission_rule(at: &str, rule: &Value, causes: &mut Vec<Cause>) {
    let operations = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    for (j, operation) in list(rule, "operations").iter().enumerate() {
        if !operation.as_str().is_some_and(|o| operations.contains(&o)) {
            let at = format!("{at}.operations[{j}]");
            causes.push(crate::causes::not_supported(&at, operation, &operations));
        }
    }
    for (field, others) in [
        ("operations", "operations"),
        ("apiGroups", "API groups"),
        ("apiVersions", "API versions"),
        ("resources", ""),
    ] {
        let items = list(rule, field);
        if items.is_empty() {
            causes.push(required(&join(at, field), ""));
        } else if items.len() > 1 && !others.is_empty() && items.iter().any(|item| item == "*") {
            causes.push(invalid(
                &join(at, field),
                &rule[field],
                &format!("if '*' is present, must not specify other {others}"),
            ));
        }
    }
    one_of(
        rule,
        "scope",
        at,
        &["*", "Cluster", "Namespaced"],
        false,
        causes,
    );
}

pub(super) fn webhooks(object: &Value, causes: &mut Vec<Cause>) {
    for (i, webhook) in list(object, "webhooks").iter().enumerate() {
        let at = format!("webhooks[{i}]");
        let name = text(webhook, "name");
        if name.split('.').count() < 3 || !is_dns1123_subdomain(name) {
            causes.push(invalid(
                &join(&at, "name"),
                &Value::from(name),
                "should be a domain with at least three segments separated by dots",
            ));
        }
        if list(object, "webhooks")[..i]
            .iter()
            .any(|other| text(other, "name") == name)
        {
            causes.push(crate::causes::duplicate(
                &join(&at, "name"),
                &webhook["name"],
            ));
        }
        webhook_client(&join(&at, "clientConfig"), &webhook["clientConfig"], causes);
        for (j, rule) in list(webhook, "rules").iter().enumerate() {
            admission_rule(&format!("{at}.rules[{j}]"), rule, causes);
        }
        let policies = ["Equivalent", "Exact"];
        one_of(webhook, "matchPolicy", &at, &policies, false, causes);
        let policies = ["IfNeeded", "Never"];
        one_of(webhook, "reinvocationPolicy", &at, &policies, false, causes);
        one_of(
            webhook,
            "sideEffects",
            &at,
            &["None", "NoneOnDryRun"],
            true,
            causes,
        );
        one_of(
            webhook,
            "failurePolicy",
            &at,
            &["Fail", "Ignore"],
            true,
            causes,
        );
        let versions = list(webhook, "admissionReviewVersions");
        if versions.is_empty() {
            causes.push(required(
                &join(&at, "admissionReviewVersions"),
                "must specify one of v1, v1beta1",
            ));
        } else if !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
            causes.push(invalid(
                &join(&at, "admissionReviewVersions"),
                &webhook["admissionReviewVersions"],
                "must include at least one of v1, v1beta1",
            ));
        }
        let timeout = webhook["timeoutSeconds"].as_i64().unwrap_or(10);
        if !(1..=30).contains(&timeout) {
            causes.push(invalid(
                &join(&at, "timeoutSeconds"),
                &webhook["timeoutSeconds"],
                "the timeout value must be between 1 and 30 seconds",
            ));
        }
        for selector in ["namespaceSelector", "objectSelector"] {
            metadata::selector(&join(&at, selector), &webhook[selector], causes);
        }
        conditions::check(
            &join(&at, "matchConditions"),
            &webhook["matchConditions"],
            conditions::VARIABLES,
            causes,
        );
    }
}
