//! Questions about tokens and rights: small creates that store nothing. The cloud answers them while it is there, the node from
//! what it heard then while it is not. Pure.

use yurt_wire::{RequestInfo, Verb};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// A token for a service account.
    Token {
        /// Its namespace.
        namespace: String,
        /// Its name.
        account: String,
    },
    /// Whose a token is (TokenReview).
    Review,
    /// What somebody may do (SubjectAccessReview).
    Access,
    /// Who the caller is (SelfSubjectReview).
    Own,
    /// What the caller may do (SelfSubjectAccessReview).
    OwnAccess,
}

impl Question {
    /// The question that a request is.
    pub fn of(info: &RequestInfo) -> Option<Self> {
        if info.verb != Verb::Create || !info.is_resource {
            return None;
        }
        let what = (
            info.group.as_str(),
            info.version.as_str(),
            info.resource.as_str(),
            info.subresource.as_str(),
        );
        Some(match what {
            ("", "v1", "serviceaccounts", "token") if !info.name.is_empty() => Self::Token {
                namespace: info.namespace.clone(),
                account: info.name.clone(),
            },
            ("authentication.k8s.io", "v1", "tokenreviews", "") => Self::Review,
            ("authorization.k8s.io", "v1", "subjectaccessreviews", "") => Self::Access,
            ("authentication.k8s.io", "v1", "selfsubjectreviews", "") => Self::Own,
            ("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "") => Self::OwnAccess,
            _ => return None,
        })
    }

    /// Whether the node remembers the answer.
    pub fn is_remembered(&self) -> bool {
        !matches!(self, Self::Own | Self::OwnAccess)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_question() {
        let of = |method: http::Method, path: &str| {
            Question::of(&RequestInfo::parse(&method, path, None))
        };
        let post = |path: &str| of(http::Method::POST, path);
        assert_eq!(
            post("/api/v1/namespaces/a/serviceaccounts/b/token"),
            Some(Question::Token {
                namespace: "a".into(),
                account: "b".into()
            })
        );
        assert_eq!(
            post("/apis/authentication.k8s.io/v1/tokenreviews"),
            Some(Question::Review)
        );
        assert_eq!(
            post("/apis/authorization.k8s.io/v1/subjectaccessreviews"),
            Some(Question::Access)
        );
        for other in [
            "/api/v1/namespaces/a/serviceaccounts",
            "/api/v1/namespaces/a/pods/b/token",
            "/apis/authentication.k8s.io/v1beta1/tokenreviews",
            "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
        ] {
            assert_eq!(post(other), None, "{other}");
        }
        assert_eq!(
            of(
                http::Method::GET,
                "/apis/authentication.k8s.io/v1/tokenreviews"
            ),
            None
        );
    }
}
