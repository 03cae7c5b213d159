//! `yurt apiserver`: the embedded API server alone, a process for whatever brings its own controllers and nodes.

use crate::{cluster::LabError, credentials, directory::Directory};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};
use tokio_util::sync::CancellationToken;
use yurt_apiserver::{ApiServer, Config, Tls};

/// Flags of `yurt apiserver`.
#[derive(Clone, Debug, clap::Args)]
pub struct ApiServerArgs {
    /// Where it keeps everything: objects, its CA (pki/), admin.kubeconfig. Used again by the next start.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "ADDRESS")]
    pub listen: IpAddr,
    /// The port to listen on (0: any free one; admin.kubeconfig tells which).
    #[arg(long, default_value_t = 6443, value_name = "PORT")]
    pub port: u16,
}

/// Serves until `shutdown`. Says `ready` on stdout when `admin.kubeconfig` is written and requests are answered.
pub async fn run(args: ApiServerArgs, shutdown: CancellationToken) -> Result<(), LabError> {
    let directory = Directory::lock(&args.data_dir)?;
    let ca = credentials::certificate_authority(&directory)?;
    // Listening everywhere, it is reached here all the same.
    let reached = match args.listen {
        any if any.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        given => given,
    };
    let addresses = [reached, Ipv4Addr::LOCALHOST.into()];
    let serving = credentials::serving(&ca, "kube-apiserver", &[], &["localhost"], &addresses)?;
    let config = Config {
        data_dir: Some(directory.create("apiserver")?),
        listen: SocketAddr::new(args.listen, args.port),
        tls: Some(Tls {
            serving,
            client_ca: Some(ca.cert_pem()),
        }),
        root_ca: Some(ca.cert_pem()),
        ..Config::default()
    };
    let running = ApiServer::start(config, shutdown).await?;
    let admin = credentials::client(&ca, credentials::ADMIN, &[credentials::MASTERS])?;
    let server = format!(
        "https://{}",
        SocketAddr::new(reached, running.addr().port())
    );
    let kubeconfig = directory.write(
        "admin.kubeconfig",
        &credentials::kubeconfig(&ca, &admin, "yurt-apiserver", &server),
    )?;
    eprintln!("  kubectl --kubeconfig {} get ns", kubeconfig.display());
    println!("ready");
    running.stopped().await.map_err(LabError::Serve)
}
