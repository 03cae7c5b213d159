//! Who may do what.
//!
//! For now: everyone who has shown who they are may do everything; nobody else may do more than ask for health, version
//! and discovery. Roles and the node authorizer take the place of [`decide`] and nothing else has to change.

use crate::authn::{MASTERS, User};
use yurt_wire::{Reason, RequestInfo, Status, Verb};

/// What somebody wants to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, ...; for paths the HTTP method in lower case.
    pub verb: String,
    /// API group.
    pub group: String,
    /// Resource, `""` for a path.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// Namespace, `""` for all or none.
    pub namespace: String,
    /// Object name.
    pub name: String,
    /// Path of a request that is not about a resource.
    pub path: String,
}

/// The verb as authorisation and Status messages name it.
pub fn verb_name(verb: Verb) -> &'static str {
    match verb {
        Verb::Other => "other",
        verb => verb.as_str(),
    }
}

impl Attributes {
    /// What a request wants.
    pub fn of(info: &RequestInfo, method: &http::Method) -> Self {
        if !info.is_resource {
            return Self {
                verb: method.as_str().to_ascii_lowercase(),
                path: info.path.clone(),
                ..Self::default()
            };
        }
        Self {
            verb: verb_name(info.verb).into(),
            group: info.group.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            path: String::new(),
        }
    }
}

/// The answer, with the reason for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may be done.
    pub allowed: bool,
    /// Why.
    pub reason: String,
}

/// Paths anyone may ask for (the `system:public-info-viewer` and discovery roles of Kubernetes).
fn is_public(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    [
        "/healthz",
        "/livez",
        "/readyz",
        "/version",
        "/api",
        "/apis",
        "/openapi",
        "/.well-known",
    ]
    .iter()
    .any(|public| {
        path.strip_prefix(public)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// What acting as `user` asks for.
pub fn impersonation(user: &User) -> Attributes {
    Attributes {
        verb: "impersonate".into(),
        resource: "users".into(),
        name: user.name.clone(),
        ..Attributes::default()
    }
}

/// Whether `user` may do it.
pub fn decide(user: &User, attributes: &Attributes) -> Decision {
    let (allowed, reason) = if user.in_group(MASTERS) {
        (true, "")
    } else if attributes.verb == "impersonate" {
        // Nobody may lend himself more than he has; until there are roles, nobody else may lend anything.
        (false, "")
    } else if !user.is_anonymous() {
        (true, "every authenticated user is allowed")
    } else if attributes.resource.is_empty()
        && attributes.verb == "get"
        && is_public(&attributes.path)
    {
        (true, "public information")
    } else {
        (false, "")
    };
    Decision {
        allowed,
        reason: reason.into(),
    }
}

/// The 403 that kube-apiserver sends.
pub fn forbidden(user: &User, what: &Attributes) -> Box<Status> {
    if what.resource.is_empty() {
        let message = format!(
            "forbidden: User \"{user}\" cannot {} path \"{}\"",
            what.verb, what.path
        );
        return Box::new(Status::new(Reason::Forbidden, message));
    }
    let resource = if what.subresource.is_empty() {
        what.resource.clone()
    } else {
        format!("{}/{}", what.resource, what.subresource)
    };
    let scope = if what.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", what.namespace)
    };
    let qualified = if what.group.is_empty() {
        what.resource.clone()
    } else {
        format!("{}.{}", what.resource, what.group)
    };
    let subject = if what.name.is_empty() {
        qualified
    } else {
        format!("{qualified} \"{}\"", what.name)
    };
    let mut status = Status::new(
        Reason::Forbidden,
        format!(
            "{subject} is forbidden: User \"{user}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}",
            what.verb, what.group
        ),
    );
    status.name.clone_from(&what.name);
    status.group.clone_from(&what.group);
    status.kind.clone_from(&what.resource);
    Box::new(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list_pods() -> Attributes {
        Attributes {
            verb: "list".into(),
            resource: "pods".into(),
            namespace: "default".into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn nobody_sees_health_but_no_objects() {
        let path = |path: &str| Attributes {
            verb: "get".into(),
            path: path.into(),
            ..Attributes::default()
        };
        let nobody = User::anonymous();
        for public in [
            "/healthz",
            "/livez/ping",
            "/version",
            "/version/",
            "/apis/apps/v1",
        ] {
            assert!(decide(&nobody, &path(public)).allowed, "{public}");
        }
        for private in ["/metrics", "/", "/apisecret", "/healthzz"] {
            assert!(!decide(&nobody, &path(private)).allowed, "{private}");
        }
        assert!(!decide(&nobody, &list_pods()).allowed);
        assert!(decide(&User::new("a", &[]), &list_pods()).allowed);
    }

    #[test]
    fn the_refusal_reads_as_that_of_kubernetes() {
        assert_eq!(
            forbidden(&User::anonymous(), &list_pods()).message,
            "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
        );
    }
}
