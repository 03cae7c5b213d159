//! `yurt manifests`: what to apply to a cluster, for kubectl, `deploy` and the charts.

use clap::{Args, ValueEnum};
use std::{
    error::Error,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};
use yurt_manager::deploy::{Chart, Component, Tunnel, Values, yaml};

type AnyError = Box<dyn Error + Send + Sync>;

#[derive(Clone, Debug, Args)]
pub(crate) struct ManifestsArgs {
    /// Only these; may be given more than once, or as a list. When left out: all but the tunnel.
    #[arg(long, value_enum, value_delimiter = ',')]
    component: Vec<Part>,
    /// Where the manager, the tunnel and what is made for hubs is.
    #[arg(long, default_value_t = Values::default().namespace)]
    namespace: String,
    /// The image of the manager.
    #[arg(long, default_value_t = Values::default().image)]
    image: String,
    /// The image of the tunnel's server.
    #[arg(long, default_value_t = Tunnel::default().server_image)]
    tunnel_server_image: String,
    /// The image of the tunnel's agent.
    #[arg(long, default_value_t = Tunnel::default().agent_image)]
    tunnel_agent_image: String,
    /// How many managers, or servers of the tunnel, stand by for each other.
    #[arg(long, default_value_t = 1)]
    replicas: u32,
    /// Which controllers run.
    #[arg(long, default_value_t = Values::default().controllers, allow_hyphen_values = true)]
    controllers: String,
    /// A file for each component, here.
    #[arg(short, long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Write the generated templates of the Helm chart in this directory instead: of the tunnel's where it is the only component,
    /// else of the manager's.
    #[arg(long, value_name = "DIR", conflicts_with = "output_dir")]
    chart: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Crds,
    Manager,
    Hub,
    Tunnel,
}

impl From<Part> for Component {
    fn from(part: Part) -> Self {
        match part {
            Part::Crds => Self::Crds,
            Part::Manager => Self::Manager,
            Part::Hub => Self::Hub,
            Part::Tunnel => Self::Tunnel,
        }
    }
}

fn write(file: &Path, text: &str) -> Result<(), AnyError> {
    let written = file
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(file, text));
    written.map_err(|error| format!("{}: {error}", file.display()).into())
}

/// Prints or writes them. Within a tokio runtime.
pub(crate) fn run(args: &ManifestsArgs) -> Result<(), AnyError> {
    if let Some(chart) = &args.chart {
        let kind = match args.component.as_slice() {
            [Part::Tunnel] => Chart::Tunnel,
            _ => Chart::Manager,
        };
        return kind
            .templates()?
            .iter()
            .try_for_each(|template| write(&chart.join(&template.path), &template.text));
    }
    let values = Values {
        namespace: args.namespace.clone(),
        image: args.image.clone(),
        replicas: args.replicas.into(),
        controllers: args.controllers.clone(),
        tunnel: Tunnel {
            server_image: args.tunnel_server_image.clone(),
            agent_image: args.tunnel_agent_image.clone(),
            replicas: args.replicas.into(),
            ..Tunnel::default()
        },
        ..Values::default()
    };
    let mut out = io::stdout().lock();
    for component in Component::ALL {
        let wanted = match args.component.as_slice() {
            [] => Component::USUAL.contains(&component),
            some => some.iter().any(|part| Component::from(*part) == component),
        };
        if !wanted {
            continue;
        }
        let text = yaml(&component.objects(&values))?;
        match &args.output_dir {
            Some(dir) => write(&dir.join(format!("{}.yaml", component.name())), &text)?,
            None => match out.write_all(text.as_bytes()) {
                // Whoever reads has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            },
        }
    }
    Ok(())
}
