//! The simulated containers of a node: what they print, write and do.

use super::{
    api::Api,
    container::{Container, files::Files, shell, streams::Streams},
    lock,
    logs::{Logs, Output, Printer, Source},
    pod,
};
use serde_json::Value;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

/// By the pod's UID and the container's name.
type Key = (String, String);

/// What there is of the containers of a node's pods.
#[derive(Debug, Default)]
pub(super) struct Containers {
    pub(super) logs: Logs,
    files: Mutex<HashMap<Key, Files>>,
}

impl Containers {
    /// A container of a pod.
    pub(super) fn container(&self, pod: &Arc<Value>, name: &str, api: &Api) -> Container {
        let uid = pod::uid(pod);
        let key = (uid.to_owned(), name.to_owned());
        let files = lock(&self.files).entry(key).or_default().clone();
        Container {
            pod: Arc::clone(pod),
            name: name.to_owned(),
            files,
            api: api.clone(),
            output: self.logs.of(uid, name, false),
        }
    }

    /// Follows a pod's statuses: containers that began begin to do something.
    pub(super) fn observe(&self, pod: &Arc<Value>, api: &Api) {
        self.logs.observe(pod, |name, output| {
            // A run begins with nothing written.
            let key = (pod::uid(pod).to_owned(), name.clone());
            let files = Files::default();
            lock(&self.files).insert(key, files.clone());
            let container = Container {
                pod: Arc::clone(pod),
                name,
                files,
                api: api.clone(),
                output: Some(Arc::clone(&output)),
            };
            main(container, output)
        });
    }

    /// A pod is gone.
    pub(super) fn forget(&self, uid: &str) {
        self.logs.forget(uid);
        lock(&self.files).retain(|(of, _), _| of != uid);
    }
}

/// What a container does: its command when that is one we know, else it says that it is there.
async fn main(container: Container, output: Arc<Output>) {
    let command = container.command();
    match command.first() {
        Some(program) if shell::is_known(program) => {
            let stdout = Printer::new(Arc::clone(&output), Source::Stdout);
            let stderr = Printer::new(output, Source::Stderr);
            let streams = Streams::new(&b""[..], stdout, Some(Box::new(stderr)), None);
            let code = shell::run(Arc::new(container), &command, streams).await;
            tracing::debug!(code, ?command, "a simulated container's command ended");
        }
        _ => {
            let image = container.spec()["image"].as_str().unwrap_or_default();
            let line = format!("simulated container {} ({image})", container.name);
            output.append(Source::Stdout, line.as_bytes());
        }
    }
}
