//! An API server that reviews tokens, and does nothing else.

use serde_json::{Value, json};
use std::{net::SocketAddr, path::Path};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

pub(crate) const ACCOUNT: (&str, &str) = ("kube-system", "konnectivity-agent");
pub(crate) const AUDIENCE: &str = "system:konnectivity-server";
pub(crate) const TOKEN: &str = "the-token-of-the-agent";

/// Takes [`TOKEN`] for the agent's, of a pod on the node edge-1; writes a kubeconfig.
pub(crate) async fn judge(kubeconfig: &Path) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let text = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    });
    std::fs::write(kubeconfig, text.to_string()).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // The caller is gone.
                let _ = serve(stream).await;
            });
        }
    });
}

async fn serve(stream: TcpStream) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut line, mut length) = (String::new(), 0);
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let reviews = line.starts_with("POST /apis/authentication.k8s.io/v1/tokenreviews");
        loop {
            let mut header = String::new();
            stream.read_line(&mut header).await?;
            let Some((name, value)) = header.split_once(':') else {
                break;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let (status, answer) = match reviews {
            true => ("201 Created", review(&body)),
            false => ("404 Not Found", json!({"kind": "Status", "code": 404})),
        };
        let answer = answer.to_string();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        stream.write_all((head + &answer).as_bytes()).await?;
    }
}

fn review(body: &[u8]) -> Value {
    let mut review: Value = serde_json::from_slice(body).unwrap();
    let spec = review["spec"].clone();
    review["status"] = if spec["token"] == TOKEN && spec["audiences"] == json!([AUDIENCE]) {
        let (namespace, name) = ACCOUNT;
        json!({
            "authenticated": true,
            "audiences": [AUDIENCE],
            "user": {
                "username": format!("system:serviceaccount:{namespace}:{name}"),
                "extra": {"authentication.kubernetes.io/node-name": ["edge-1"]},
            },
        })
    } else {
        json!({"authenticated": false, "error": "no token of anybody"})
    };
    review
}
