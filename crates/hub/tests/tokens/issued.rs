//! Tokens that pods get: the cloud's while they are good, the node's own without the cloud.

use super::*;

#[tokio::test]
async fn what_the_cloud_issued_is_given_again_while_it_is_good() {
    let node = Node::new();
    let body = json!({"spec": {"audiences": [], "expirationSeconds": 3607,
        "boundObjectRef": {"kind": "Pod", "name": "p", "uid": "pu"}}});
    let wish = Wish::parse("default", "web", &body).expect("a wish");
    // As kube-apiserver does: the kubelet is told an hour, the token is good for a year.
    let token = P256.token(
        "ES256",
        "k",
        &with(|c| c["exp"] = (NOW + 365 * 86_400).into()),
    );
    let expires = jiff::Timestamp::from_second(NOW + 3607)
        .expect("a time")
        .to_string();
    let answer = json!({"spec": {"audiences": [ISSUER], "expirationSeconds": 3607},
        "status": {"token": token, "expirationTimestamp": expires}});
    assert!(node.tokens.issued(&wish, NOW).is_none());
    // Not an account's of another name.
    let other = Wish::parse("default", "other", &body).expect("a wish");
    assert!(node.tokens.learn_issued(&other, &answer, NOW).is_none());
    node.tokens.learn_issued(&wish, &answer, NOW).expect("kept");

    let node = node.restart().await;
    assert_eq!(
        node.via(&token),
        Some(Via::Issue),
        "without any key of the issuer"
    );
    let later = NOW + 30 * 86_400;
    let again = node.tokens.issued(&wish, later).expect("still good");
    let told = again.to_json(&wish, later)["status"]["expirationTimestamp"].clone();
    let until: jiff::Timestamp = told.as_str().expect("a time").parse().expect("a time");
    assert_eq!(until.as_second(), later + 3607);
    assert!(
        node.tokens
            .issued(&wish, NOW + 365 * 86_400 - 299)
            .is_none(),
        "about to end"
    );
    assert!(node.tokens.issued(&other, NOW).is_none());
    node.tokens.deny(&token, NOW);
    assert!(
        node.tokens.issued(&wish, NOW).is_none(),
        "the cloud refused it"
    );
    let node = node.restart().await;
    assert!(node.tokens.issued(&wish, NOW).is_none());
    assert!(node.via(&token).is_none());
}

#[tokio::test]
async fn what_the_node_signs_is_good_here_for_an_hour_at_most() {
    let node = Node::new();
    let wish = |audiences: &[&str], seconds: i64| {
        let body = json!({"spec": {"audiences": audiences, "expirationSeconds": seconds}});
        Wish::parse("default", "web", &body).expect("a wish")
    };
    let bound = Bound {
        namespace: "default".into(),
        serviceaccount: Reference {
            name: "web".into(),
            uid: String::new(),
        },
        pod: Some(Reference {
            name: "p".into(),
            uid: "pu".into(),
        }),
        node: None,
    };
    let sign = |node: &Node, wish: &Wish| {
        let (token, claims) = node.tokens.sign(wish, bound.clone(), NOW).expect("a token");
        (token, claims.exp - NOW)
    };
    // Before the node knows what the API server calls itself.
    let (token, life) = sign(&node, &wish(&[], 86_400));
    assert_eq!((node.via(&token), life), (Some(Via::Node), 3600));
    assert_eq!(sign(&node, &wish(&[], 600)).1, 600);
    assert!(node.tokens.is_own(&token) && !node.tokens.wants_review(&token, NOW));
    let (vault, _) = sign(&node, &wish(&["vault"], 600));
    assert_eq!(
        node.tokens.verify(&vault, NOW),
        Verdict::Unknown(Refusal::Audience)
    );
    let node = node.restart().await;
    assert_eq!(node.via(&token), Some(Via::Node));
    let late = node.tokens.verify(&token, NOW + 3600 + LEEWAY);
    assert_eq!(late, Verdict::Refused(Refusal::Expired));
    // Issued ahead of time: the clock was wrong then.
    let early = node.tokens.verify(&token, NOW - LEEWAY - 1);
    assert_eq!(early, Verdict::Refused(Refusal::NotYet));

    // For whom it is meant, it is: the kubelet asks for others.
    let review = |token: &str, audiences: &[&str]| {
        let answer = node
            .tokens
            .review(&json!({"token": token, "audiences": audiences}), NOW);
        answer["authenticated"] == true
    };
    assert!(review(&token, &[]) && !review(&vault, &[]));
    assert!(review(&vault, &["vault", "x"]) && !review(&token, &["vault"]));

    // Another node's are nobody's here.
    let elsewhere = Node::new();
    let there = Tokens::open(
        &elsewhere.cache,
        "edge-2",
        Some(signer::key_path(elsewhere.dir.path())),
        Metrics::default(),
    );
    let (foreign, _) = there.sign(&wish(&[], 600), bound, NOW).expect("a token");
    assert_eq!(
        node.tokens.verify(&foreign, NOW),
        Verdict::Unknown(Refusal::Issuer)
    );
}
