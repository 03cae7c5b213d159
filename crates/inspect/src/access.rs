//! The way to the cluster, as kubectl finds it: `--kubeconfig`, `$KUBECONFIG` (several files, of which the first that names something
//! counts), `~/.kube/config`; a context of it; credentials of plugins.

use serde_json::{Value, json};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use yurt_controller::{
    kube::Kube,
    kubeconfig::{Access, KubeconfigError},
};
use yurt_pki::PkiError;

/// What kubeconfig files name.
const LISTS: [&str; 3] = ["clusters", "contexts", "users"];
/// Fields that are paths, relative to the file that they stand in.
const PATHS: [(&str, &str, &str); 4] = [
    ("clusters", "cluster", "certificate-authority"),
    ("users", "user", "client-certificate"),
    ("users", "user", "client-key"),
    ("users", "user", "tokenFile"),
];

/// Which cluster, and as whom: kubectl's flags.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Connection {
    /// The kubeconfig file.
    #[arg(long, value_name = "FILE", global = true)]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig.
    #[arg(long, value_name = "NAME", global = true)]
    context: Option<String>,
    /// The namespace of apps and pods.
    #[arg(short, long, value_name = "NAME", global = true)]
    namespace: Option<String>,
    /// How long one request may take, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, global = true,
          value_parser = clap::value_parser!(u64).range(1..=600))]
    request_timeout: u64,
}

/// Why the cluster cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// There is nothing that says where it is.
    #[error("no kubeconfig: give --kubeconfig, set $KUBECONFIG, or write ~/.kube/config")]
    None,
    /// What says so cannot be used.
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// Its certificates cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A credential plugin fails.
    #[error("credential plugin {command:?}: {why}")]
    Plugin {
        /// The program.
        command: String,
        /// What went wrong.
        why: String,
    },
}

/// A cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) kube: Kube,
    /// Of apps and pods.
    pub(crate) namespace: String,
}

impl Connection {
    /// Reads the kubeconfig; nothing is asked of the cluster yet.
    pub(crate) fn open(&self) -> Result<Cluster, AccessError> {
        let files = match &self.kubeconfig {
            Some(file) => vec![file.clone()],
            None => found(env::var_os("KUBECONFIG"), env::var_os("HOME")),
        };
        let first = files.first().ok_or(AccessError::None)?;
        let mut config = merged(&files)?;
        if let Some(context) = &self.context {
            config["current-context"] = json!(context);
        }
        let context = current(&config);
        let namespace = self
            .namespace
            .as_deref()
            .or(context["namespace"].as_str())
            .unwrap_or("default")
            .to_owned();
        let user = context["user"].clone();
        with_plugin(&mut config, &user)?;
        let access = Access::of(&config, first)?;
        let tls = access
            .ca
            .as_deref()
            .map(|ca| yurt_pki::client_config(ca, access.certificate.as_ref(), &["h2", "http/1.1"]))
            .transpose()?;
        let timeout = Duration::from_secs(self.request_timeout);
        let kube = Kube::new(&access.authority, tls, access.token.as_deref(), timeout);
        Ok(Cluster {
            kube: kube.with_user_agent(concat!("kubectl-yurt/", env!("CARGO_PKG_VERSION"))),
            namespace,
        })
    }
}

/// The files that there are: those of the list, else the one at home.
fn found(list: Option<std::ffi::OsString>, home: Option<std::ffi::OsString>) -> Vec<PathBuf> {
    let listed: Vec<PathBuf> = list
        .iter()
        .flat_map(env::split_paths)
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    let files = match listed.is_empty() {
        false => listed,
        true => home
            .map(|home| Path::new(&home).join(".kube/config"))
            .into_iter()
            .collect(),
    };
    // As kubectl: one that is not there says nothing.
    files.into_iter().filter(|file| file.exists()).collect()
}

/// One configuration of several files: what the first of them says counts.
fn merged(files: &[PathBuf]) -> Result<Value, KubeconfigError> {
    let mut all = json!({});
    for file in files {
        let text = fs::read_to_string(file).map_err(|source| KubeconfigError::Read {
            path: file.clone(),
            source,
        })?;
        let mut one: Value =
            serde_saphyr::from_str(&text).map_err(|error| KubeconfigError::Unusable {
                path: file.clone(),
                why: error.to_string(),
            })?;
        for (list, inner, field) in PATHS {
            let entries = one.get_mut(list).and_then(Value::as_array_mut);
            for entry in entries.into_iter().flatten() {
                if let Some(path) = entry.pointer_mut(&format!("/{inner}/{field}"))
                    && let Some(relative) = path.as_str().filter(|path| !path.is_empty())
                {
                    *path = json!(file.with_file_name(relative));
                }
            }
        }
        for list in LISTS {
            let more = one[list].as_array().cloned().unwrap_or_default();
            let known = all[list].as_array().cloned().unwrap_or_default();
            let new = more
                .into_iter()
                .filter(|entry| known.iter().all(|other| other["name"] != entry["name"]));
            all[list] = known.iter().cloned().chain(new).collect();
        }
        if all["current-context"]
            .as_str()
            .unwrap_or_default()
            .is_empty()
        {
            all["current-context"] = one["current-context"].clone();
        }
    }
    Ok(all)
}

/// The current context, or nothing.
fn current(config: &Value) -> Value {
    let contexts = config["contexts"].as_array().into_iter().flatten();
    let mut named = contexts.filter(|entry| entry["name"] == config["current-context"]);
    named
        .next()
        .map_or(Value::Null, |entry| entry["context"].clone())
}

/// Puts what a credential plugin answers in its place.
fn with_plugin(config: &mut Value, user: &Value) -> Result<(), AccessError> {
    let users = config.get_mut("users").and_then(Value::as_array_mut);
    let mut users = users.into_iter().flatten();
    let Some(user) = users.find(|entry| entry["name"] == *user) else {
        return Ok(());
    };
    let Some(user) = user.get_mut("user").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    let Some(exec) = user.remove("exec").filter(Value::is_object) else {
        return Ok(());
    };
    let status = ask_plugin(&exec)?;
    if let Some(token) = status["token"].as_str() {
        user.insert("token".into(), json!(token));
    }
    for (answered, field) in [
        ("clientCertificateData", "client-certificate-data"),
        ("clientKeyData", "client-key-data"),
    ] {
        if let Some(pem) = status[answered].as_str() {
            use base64::{Engine, engine::general_purpose::STANDARD};
            user.insert(field.into(), json!(STANDARD.encode(pem)));
        }
    }
    Ok(())
}

/// The status of the `ExecCredential` that a plugin prints. It may talk to the user.
fn ask_plugin(exec: &Value) -> Result<Value, AccessError> {
    let name = exec["command"].as_str().unwrap_or_default();
    let failed = |why: String| AccessError::Plugin {
        command: name.to_owned(),
        why,
    };
    let strings = |list: &Value| -> Vec<String> {
        let list = list.as_array().into_iter().flatten();
        list.filter_map(|item| item.as_str().map(str::to_owned))
            .collect()
    };
    let variables = exec["env"].as_array().into_iter().flatten();
    let variables = variables.filter_map(|v| Some((v["name"].as_str()?, v["value"].as_str()?)));
    let request = json!({"apiVersion": exec["apiVersion"], "kind": "ExecCredential", "spec": {"interactive": true}});
    let out = Command::new(name)
        .args(strings(&exec["args"]))
        .envs(variables)
        .env("KUBERNETES_EXEC_INFO", request.to_string())
        .stdin(Stdio::inherit())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !out.status.success() {
        return Err(failed(out.status.to_string()));
    }
    let answer: Value = serde_json::from_slice(&out.stdout)
        .map_err(|error| failed(format!("no ExecCredential: {error}")))?;
    Ok(answer["status"].clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, text).expect("written");
        path
    }

    #[test]
    fn of_several_files_the_first_counts_and_paths_are_relative_to_their_own() {
        let dir = tempfile::tempdir().expect("dir");
        fs::create_dir(dir.path().join("sub")).expect("dir");
        let one = file(
            dir.path(),
            "one",
            "current-context: a\ncontexts: [{name: a, context: {cluster: c, user: u, namespace: shop}}]\n",
        );
        let two = file(
            dir.path(),
            "sub/two",
            "current-context: b\ncontexts: [{name: a, context: {cluster: other}}]\nclusters: [{name: c, cluster: {server: 'https://s', certificate-authority: ca.crt}}]\nusers: [{name: u, user: {token: t}}]\n",
        );
        let config = merged(&[one, two]).expect("config");
        assert_eq!(current(&config)["namespace"], "shop");
        assert_eq!(
            config["clusters"][0]["cluster"]["certificate-authority"],
            json!(dir.path().join("sub/ca.crt"))
        );
        assert_eq!(config["contexts"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn files_that_are_not_there_say_nothing() {
        let dir = tempfile::tempdir().expect("dir");
        let there = file(dir.path(), "there", "{}");
        let list = env::join_paths([dir.path().join("none"), there.clone()]).expect("paths");
        assert_eq!(found(Some(list), None), [there]);
        assert!(found(None, Some(dir.path().as_os_str().to_owned())).is_empty());
    }

    #[test]
    fn a_plugin_gives_the_credentials() {
        let script = r#"echo '{"kind": "ExecCredential", "status": {"token": "'$WHO'"}}'"#;
        let mut config = json!({"users": [{"name": "u", "user": {"exec": {
            "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", script],
            "env": [{"name": "WHO", "value": "me"}]}}}]});
        with_plugin(&mut config, &json!("u")).expect("credentials");
        assert_eq!(config["users"][0]["user"], json!({"token": "me"}));
        let mut config = json!({"users": [{"name": "u", "user": {"exec": {"command": "false"}}}]});
        let error = with_plugin(&mut config, &json!("u")).expect_err("fails");
        assert!(error.to_string().contains("\"false\""), "{error}");
    }
}
