//! A webhook over TLS whose answers a test chooses.

use arc_swap::ArcSwap;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Request, Response};
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use yurt_pki::{Ca, Profile};
use yurt_transport::{Body, ServeOptions, collect, full};

/// How a webhook reacts to a review.
pub(crate) enum Reaction {
    /// With JSON.
    Answer(Value),
    /// With bytes and a code.
    Raw(u16, Bytes),
    /// Not at all.
    Silence,
}

type React = dyn Fn(&str, &Value) -> Reaction + Send + Sync;

/// A webhook.
pub(crate) struct Hook {
    pub(crate) address: SocketAddr,
    ca: Ca,
    /// Paths and reviews, in the order they came.
    pub(crate) seen: Arc<Mutex<Vec<(String, Value)>>>,
    shutdown: CancellationToken,
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Hook {
    /// Serves `127.0.0.1` and `hook.default.svc` with a certificate of its own CA.
    pub(crate) async fn start(
        react: impl Fn(&str, &Value) -> Reaction + Send + Sync + 'static,
    ) -> Self {
        let ca = Ca::new("hooks", 1).expect("a CA");
        let profile = Profile {
            common_name: "hook".into(),
            dns: vec!["hook.default.svc".into()],
            ips: vec![Ipv4Addr::LOCALHOST.into()],
            server: true,
            days: 1,
            ..Profile::default()
        };
        let own = ca.issue(&profile).expect("a certificate");
        let tls = yurt_pki::server_config(&own, None, true).expect("a TLS configuration");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        let seen = Arc::<Mutex<Vec<(String, Value)>>>::default();
        let react: Arc<React> = Arc::new(react);
        let log = seen.clone();
        tokio::spawn(yurt_transport::serve(
            listener,
            Some(Arc::new(ArcSwap::from(tls))),
            ServeOptions::default(),
            shutdown.clone(),
            move |request: Request<hyper::body::Incoming>| {
                answer(request, react.clone(), log.clone())
            },
        ));
        Self {
            address,
            ca,
            seen,
            shutdown,
        }
    }

    /// PEM of the CA, as a `caBundle`.
    pub(crate) fn bundle(&self) -> String {
        STANDARD.encode(self.ca.cert_pem())
    }

    /// A `clientConfig` for a path.
    pub(crate) fn client(&self, path: &str) -> Value {
        json!({"url": format!("https://{}{path}", self.address), "caBundle": self.bundle()})
    }

    /// The reviews that came to a path.
    pub(crate) fn reviews(&self, path: &str) -> Vec<Value> {
        let seen = self.seen.lock().expect("no panic");
        seen.iter()
            .filter(|(to, _)| to == path)
            .map(|(_, review)| review.clone())
            .collect()
    }
}

async fn answer(
    request: Request<hyper::body::Incoming>,
    react: Arc<React>,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let body = collect(request.into_body(), 8 << 20).await.expect("a body");
    let review: Value = serde_json::from_slice(&body).expect("a review");
    seen.lock()
        .expect("no panic")
        .push((path.clone(), review.clone()));
    let (code, bytes) = match react(&path, &review) {
        Reaction::Answer(value) => (200, value.to_string().into()),
        Reaction::Raw(code, bytes) => (code, bytes),
        Reaction::Silence => std::future::pending().await,
    };
    Response::builder()
        .status(code)
        .body(full(bytes))
        .expect("a response")
}

/// An answer to an admission review.
pub(crate) fn verdict(review: &Value, response: &Value) -> Reaction {
    let mut response = response.clone();
    response["uid"] = review["request"]["uid"].clone();
    Reaction::Answer(
        json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview",
        "response": response}),
    )
}

/// An answer that allows and patches.
pub(crate) fn patched(review: &Value, operations: &Value) -> Reaction {
    let patch = STANDARD.encode(operations.to_string());
    verdict(
        review,
        &json!({"allowed": true, "patchType": "JSONPatch", "patch": patch}),
    )
}
