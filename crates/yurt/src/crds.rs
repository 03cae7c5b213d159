//! `yurt crds`: the definitions of the custom resources, for kubectl, charts and `deploy/crds`.

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Args, ValueEnum};
use std::{
    error::Error,
    fs,
    io::{self, Write},
    path::PathBuf,
};
use yurt_api::{
    crd::{self, Conversion, DEFINITIONS, Definition, WebhookClient},
    names::objects,
};

type AnyError = Box<dyn Error + Send + Sync>;

#[derive(Clone, Debug, Args)]
pub(crate) struct CrdsArgs {
    /// Only these: kind, plural or short name; may be given more than once, or as a list.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = known)]
    only: Vec<&'static Definition>,
    /// A file for each, here.
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Where the service of the webhook that converts between versions is.
    #[arg(long, default_value = objects::MANAGER_NAMESPACE, value_name = "NAMESPACE")]
    webhook_namespace: String,
    /// The service of the webhook.
    #[arg(long, default_value = objects::WEBHOOK_SERVICE, value_name = "NAME")]
    webhook_service: String,
    /// PEM of the CA of the webhook's certificate; a manager fills it in when not given.
    #[arg(long, value_name = "FILE")]
    webhook_ca: Option<PathBuf>,
    /// For a cluster without a manager: between versions only the apiVersion changes.
    #[arg(long, conflicts_with_all = ["webhook_namespace", "webhook_service", "webhook_ca"])]
    without_webhook: bool,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    #[default]
    Yaml,
    Json,
}

fn known(name: &str) -> Result<&'static Definition, String> {
    crd::find(name).ok_or_else(|| {
        let plurals: Vec<&str> = DEFINITIONS
            .iter()
            .map(|definition| definition.plural)
            .collect();
        format!("no such custom resource; there are {}", plurals.join(", "))
    })
}

impl CrdsArgs {
    fn conversion(&self) -> Result<Conversion, AnyError> {
        if self.without_webhook {
            return Ok(Conversion::None);
        }
        let bundle = |file: &PathBuf| {
            let pem = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
            Ok::<_, AnyError>(STANDARD.encode(pem))
        };
        Ok(Conversion::Webhook(WebhookClient {
            namespace: self.webhook_namespace.clone(),
            service: self.webhook_service.clone(),
            ca_bundle: self.webhook_ca.as_ref().map(bundle).transpose()?,
        }))
    }
}

/// Prints or writes them.
pub(crate) fn run(args: &CrdsArgs) -> Result<(), AnyError> {
    let conversion = args.conversion()?;
    let wanted = |definition: &&Definition| {
        args.only.is_empty() || args.only.iter().any(|only| only.kind == definition.kind)
    };
    let wanted: Vec<&Definition> = DEFINITIONS.iter().filter(wanted).collect();
    let text = |definition: &Definition| match args.output {
        Format::Yaml => definition.to_yaml(&conversion).map_err(AnyError::from),
        Format::Json => {
            let mut text = serde_json::to_string_pretty(&definition.render(&conversion))?;
            text.push('\n');
            Ok(text)
        }
    };
    if let Some(dir) = &args.output_dir {
        fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let extension = match args.output {
            Format::Yaml => "yaml",
            Format::Json => "json",
        };
        for definition in wanted {
            let file = dir.join(format!("{}.{extension}", definition.name()));
            fs::write(&file, text(definition)?)
                .map_err(|error| format!("{}: {error}", file.display()))?;
        }
        return Ok(());
    }
    let mut out = io::stdout().lock();
    let written = match args.output {
        Format::Yaml => wanted.iter().try_for_each(|definition| {
            let text = text(definition).map_err(io::Error::other)?;
            write!(out, "---\n{text}")
        }),
        Format::Json => {
            let items: Vec<_> = wanted
                .iter()
                .map(|definition| definition.render(&conversion))
                .collect();
            let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
            writeln!(out, "{}", serde_json::to_string_pretty(&list)?)
        }
    };
    match written {
        // `yurt crds | head` has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde_json::Value;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CrdsArgs,
    }

    fn parsed(words: &[&str]) -> Result<CrdsArgs, clap::Error> {
        let line = Line::try_parse_from([&["crds"], words].concat())?;
        Ok(line.args)
    }

    #[test]
    fn files_are_written_of_what_is_asked_for() {
        let dir = std::env::temp_dir().join(format!("yurt-crds-{}", std::process::id()));
        let path = dir.to_str().expect("UTF-8");
        let ca = dir.join("ca.pem");
        fs::create_dir_all(&dir).expect("a directory");
        fs::write(&ca, "CA").expect("a file");
        let asked = [
            "--only",
            "np,YurtStaticSet",
            "-o",
            "json",
            "--output-dir",
            path,
            "--webhook-ca",
        ];
        let args =
            parsed(&[&asked[..], &[ca.to_str().expect("UTF-8")]].concat()).expect("arguments");
        run(&args).expect("files");
        let mut files: Vec<_> = fs::read_dir(&dir)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        files.sort();
        assert_eq!(
            files,
            [
                "ca.pem",
                "nodepools.apps.openyurt.io.json",
                "yurtstaticsets.apps.openyurt.io.json"
            ]
        );
        let text = fs::read(dir.join("nodepools.apps.openyurt.io.json")).expect("a file");
        let crd: Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(
            crd["spec"]["conversion"]["webhook"]["clientConfig"]["caBundle"],
            STANDARD.encode("CA")
        );
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn what_does_not_exist_is_refused_with_what_does() {
        let error = parsed(&["--only", "gateways"])
            .expect_err("no such kind")
            .to_string();
        assert!(
            error.contains("there are nodepools, nodebuckets"),
            "{error}"
        );
        assert!(parsed(&["--without-webhook", "--webhook-namespace", "x"]).is_err());
        let missing = parsed(&["--webhook-ca", "/nonexistent"]).expect("arguments");
        let error = run(&missing).expect_err("no file").to_string();
        assert!(error.starts_with("/nonexistent: "), "{error}");
    }
}
