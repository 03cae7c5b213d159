//! An API server to try things on: `cargo run -p yurt-apiserver --example apiserver -- DIR [ADDRESS]`
//! keeps its objects in `DIR/data` and writes `DIR/admin.kubeconfig`.

use std::{error::Error, net::SocketAddr, path::PathBuf};
use tokio_util::sync::CancellationToken;
use yurt_apiserver::{ApiServer, Config, Tls};
use yurt_pki::{Ca, Profile};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    yurt_telemetry::init_logging("info", false);
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("usage: apiserver DIR [ADDRESS]")?);
    let listen: SocketAddr = arguments
        .next()
        .as_deref()
        .unwrap_or("127.0.0.1:0")
        .parse()?;
    std::fs::create_dir_all(&dir)?;
    let ca = Ca::new("kubernetes", 365)?;
    let serving = ca.issue(&Profile {
        common_name: "kube-apiserver".into(),
        dns: vec!["localhost".into()],
        ips: vec![listen.ip()],
        server: true,
        days: 365,
        ..Profile::default()
    })?;
    let admin = ca.issue(&Profile {
        common_name: "kubernetes-admin".into(),
        organizations: vec!["system:masters".into()],
        client: true,
        days: 365,
        ..Profile::default()
    })?;
    let config = Config {
        data_dir: Some(dir.join("data")),
        listen,
        tls: Some(Tls {
            serving,
            client_ca: Some(ca.cert_pem()),
        }),
        root_ca: Some(ca.cert_pem()),
        ..Config::default()
    };
    let shutdown = CancellationToken::new();
    let running = ApiServer::start(config, shutdown.clone()).await?;
    let encode = |text: &str| {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(text)
    };
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts:\n- name: a\n  context: {{cluster: a, user: a}}\nclusters:\n- name: a\n  cluster: {{server: \"https://{}\", certificate-authority-data: {}}}\nusers:\n- name: a\n  user: {{client-certificate-data: {}, client-key-data: {}}}\n",
        running.addr(),
        encode(&ca.cert_pem()),
        encode(&admin.cert),
        encode(&admin.key),
    );
    std::fs::write(dir.join("admin.kubeconfig"), kubeconfig)?;
    tokio::signal::ctrl_c().await?;
    shutdown.cancel();
    running.stopped().await?;
    Ok(())
}
