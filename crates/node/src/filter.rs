//! `yurt hub filter`: what components of a node see otherwise than the cloud has it, and why; and users' rules, before they are put to use.

mod told;

use crate::{Outcome, Output, hub::Hub, hub::HubError, say};
use clap::{Args, Subcommand};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};
use yurt_hub::{
    explain::{self, Explanation, Overview, Question, QuestionError, Supposed},
    metrics::Metrics,
    rules::{self, Complaint, Entry, InForce, Origin, Reading},
};

/// The admin endpoint of a hub.
const ENDPOINT: &str = "/v1/filters";
/// Where a node's hub is, when it is asked and nobody says where.
const HUB: &str = "http://127.0.0.1:10267";
/// Largest file.
const MOST_BYTES: u64 = 16 << 20;

/// Filters of this node.
#[derive(Debug, Args)]
pub struct FilterArgs {
    #[command(subcommand)]
    command: FilterCommand,
}

#[derive(Debug, Subcommand)]
enum FilterCommand {
    /// What a component would be shown of an object: each filter and rule, what it does and why. Without --hub no hub need run.
    Explain(Box<ExplainArgs>),
    /// Whether a file with rules makes sense. Exits with 0 when it does, with 1 and the places when not.
    Check(CheckArgs),
    /// Which filters and rules are in force in the hub of this node, and what is wrong with its rules.
    List(ListArgs),
}

#[derive(Debug, Args)]
struct ExplainArgs {
    /// Who reads: what its User-Agent has before the first slash.
    #[arg(long, default_value = "kube-proxy")]
    component: String,
    /// How: get, list or watch.
    #[arg(long, default_value = "list", value_parser = ["get", "list", "watch"])]
    verb: String,
    /// What is read (services, endpointslices.discovery.k8s.io); guessed from the object's kind when not given.
    #[arg(long)]
    resource: Option<String>,
    /// File with the objects as the cloud has them, in YAML or JSON; - for stdin. Services among them say their topology.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    filename: PathBuf,
    /// How to tell.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Ask the hub that runs on this node what it would do.
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = HUB)]
    hub: Option<String>,
    #[command(flatten)]
    supposed: SupposedArgs,
}

/// What is supposed of the node; not when its hub is asked.
#[derive(Debug, Args)]
struct SupposedArgs {
    /// File with rules; may be given several times, later ones in place of earlier ones of the same name.
    #[arg(long, value_name = "FILE", conflicts_with = "hub")]
    rules: Vec<PathBuf>,
    /// Filters not to be applied, separated by commas; * for all.
    #[arg(long, value_delimiter = ',', conflicts_with = "hub")]
    disabled_resource_filters: Vec<String>,
    /// Name of the node.
    #[arg(long, default_value = "node", conflicts_with = "hub")]
    node: String,
    /// Its labels: NAME=VALUE, separated by commas.
    #[arg(long, value_delimiter = ',', value_parser = label, conflicts_with = "hub")]
    node_labels: Vec<(String, String)>,
    /// Its pool.
    #[arg(long, default_value = "", conflicts_with = "hub")]
    pool: String,
    /// The nodes of the pool, separated by commas; the node alone when not given.
    #[arg(long, value_delimiter = ',', requires = "pool", conflicts_with = "hub")]
    pool_nodes: Vec<String>,
    /// The address at which pods reach the hub.
    #[arg(long, conflicts_with = "hub")]
    hub_host: Option<IpAddr>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE is expected")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The file; - for stdin.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How to tell.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// The admin address of the node's hub.
    #[arg(long, value_name = "URL", default_value = HUB)]
    hub: String,
    /// How to tell.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
enum FilterError {
    /// A file.
    #[error("{0} cannot be read: {1}")]
    File(String, std::io::Error),
    /// What is asked makes no sense.
    #[error(transparent)]
    Question(#[from] QuestionError),
    /// The hub.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The answer cannot be written.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

/// Runs a command. What goes wrong is told on stderr.
pub(crate) async fn run(args: FilterArgs) -> Outcome {
    let ended = match args.command {
        FilterCommand::Explain(args) => explain(*args).await,
        FilterCommand::Check(args) => check(&args),
        FilterCommand::List(args) => list(&args).await,
    };
    ended.unwrap_or_else(|error| {
        eprintln!("yurt hub filter: {error}");
        Outcome::Unknown
    })
}

fn text_of(path: &Path) -> Result<String, FilterError> {
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin()
            .lock()
            .take(MOST_BYTES)
            .read_to_string(&mut text)
    } else {
        let file = std::fs::File::open(path);
        file.and_then(|file| file.take(MOST_BYTES).read_to_string(&mut text))
    };
    read.map_err(|error| FilterError::File(name_of(path), error))?;
    Ok(text)
}

fn name_of(path: &Path) -> String {
    match path.as_os_str() == "-" {
        true => "stdin".to_owned(),
        false => path.display().to_string(),
    }
}

async fn explain(args: ExplainArgs) -> Result<Outcome, FilterError> {
    let question = Question {
        component: args.component,
        verb: args.verb,
        resource: args.resource,
        objects: explain::objects(&text_of(&args.filename)?)?,
    };
    let (explanations, sound) = match &args.hub {
        Some(url) => {
            let body = serde_json::to_string(&question)?;
            let told: Vec<Explanation> = Hub::at(url)?.post_for(ENDPOINT, body).await?;
            (told, true)
        }
        None => suppose(&args.supposed, &question)?,
    };
    match args.output {
        Output::Json => say(&(serde_json::to_string_pretty(&explanations)? + "\n")),
        Output::Text => say(&told::explanations(&explanations)),
    }
    Ok(Outcome::of(sound))
}

/// What a hub with these settings would do; and whether all of its rules make sense.
fn suppose(
    args: &SupposedArgs,
    question: &Question,
) -> Result<(Vec<Explanation>, bool), FilterError> {
    let mut sound = true;
    let mut in_force: Vec<Arc<InForce>> = Vec::new();
    let mut origins = BTreeMap::new();
    for path in &args.rules {
        let (entries, complaints) = parts(rules::read(&text_of(path)?));
        for complaint in complaints {
            sound = false;
            eprintln!("{}", told::complaint(&name_of(path), &complaint));
        }
        for entry in entries {
            let Entry::Rule(rule) = entry else { continue };
            let name = rule.name().to_owned();
            in_force.retain(|known| known.rule().name() != name);
            in_force.push(InForce::new(*rule, Metrics::default()));
            origins.insert(name, Origin::File);
        }
    }
    let mut nodes: BTreeSet<Box<str>> = args.pool_nodes.iter().map(|n| n.as_str().into()).collect();
    if nodes.is_empty() {
        nodes.insert(args.node.as_str().into());
    }
    let supposed = Supposed {
        node: args.node.clone(),
        node_labels: args.node_labels.iter().cloned().collect(),
        pool: args.pool.clone(),
        pool_nodes: (!args.pool.is_empty()).then_some(nodes),
        hub_host: args.hub_host,
        disabled: args.disabled_resource_filters.clone(),
    };
    let force = supposed.force(&in_force, &question.objects);
    Ok((explain::explain(&force, &origins, question)?, sound))
}

fn parts(read: Result<Reading, Complaint>) -> (Vec<Entry>, Vec<Complaint>) {
    match read {
        Ok(reading) => (reading.entries, reading.complaints),
        Err(complaint) => (Vec::new(), vec![complaint]),
    }
}

/// What `-o json` tells of a file with rules.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked {
    rules: Vec<String>,
    warnings: Vec<Warning>,
    complaints: Vec<Complaint>,
}

#[derive(Debug, serde::Serialize)]
struct Warning {
    rule: String,
    why: String,
}

impl Checked {
    fn of(read: Result<Reading, Complaint>) -> Self {
        let (entries, complaints) = parts(read);
        let sound = entries.iter().filter_map(|entry| match entry {
            Entry::Rule(rule) => Some(rule),
            Entry::Broken(_) => None,
        });
        let warning = |rule: &str, why: &String| Warning {
            rule: rule.to_owned(),
            why: why.clone(),
        };
        Self {
            rules: sound.clone().map(|rule| rule.name().to_owned()).collect(),
            warnings: sound
                .flat_map(|rule| rule.warnings().iter().map(|why| warning(rule.name(), why)))
                .collect(),
            complaints,
        }
    }
}

fn check(args: &CheckArgs) -> Result<Outcome, FilterError> {
    let checked = Checked::of(rules::read(&text_of(&args.file)?));
    match args.output {
        Output::Json => say(&(serde_json::to_string_pretty(&checked)? + "\n")),
        Output::Text => say(&told::checked(&name_of(&args.file), &checked)),
    }
    Ok(Outcome::of(checked.complaints.is_empty()))
}

async fn list(args: &ListArgs) -> Result<Outcome, FilterError> {
    let (overview, body) = Hub::at(&args.hub)?.get::<Overview>(ENDPOINT).await?;
    match args.output {
        Output::Json => say(&body),
        Output::Text => say(&told::overview(&overview)),
    }
    Ok(Outcome::of(overview.complaints.is_empty()))
}

#[cfg(test)]
mod tests;
