//! Creating and deleting pods for a workload, with the events that tell of it.

use crate::kube::KubeError;
use crate::{Context, collections::PODS};
use serde_json::{Value, json};
use std::sync::Arc;

/// Writes the pods of one workload.
#[derive(Clone, Copy)]
pub struct PodControl<'c> {
    /// The way to the server.
    pub context: &'c Context,
    /// Who writes, as events name it.
    pub component: &'static str,
    /// The workload.
    pub owner: &'c Value,
}

impl PodControl<'_> {
    fn event(&self, kind: &str, reason: &str, message: &str) {
        self.context
            .event(self.component, self.owner, kind, reason, message);
    }

    /// Creates a pod.
    pub async fn create(&self, pod: Value) -> Result<Arc<Value>, KubeError> {
        match self.context.create(&PODS, pod).await {
            Ok(pod) => {
                let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                self.event(
                    "Normal",
                    "SuccessfulCreate",
                    &format!("Created pod: {name}"),
                );
                Ok(pod)
            }
            Err(error) => {
                if !is_going(&error) {
                    let message = format!("Error creating: {}", error.message());
                    self.event("Warning", "FailedCreate", &message);
                }
                Err(error)
            }
        }
    }

    /// Deletes a pod; one that is gone already is no failure.
    pub async fn delete(&self, pod: &Value) -> Result<(), KubeError> {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        match self.context.delete_with(&PODS, pod, &json!({})).await {
            Ok(()) => {
                self.event(
                    "Normal",
                    "SuccessfulDelete",
                    &format!("Deleted pod: {name}"),
                );
                Ok(())
            }
            Err(error) => {
                let message = format!("Error deleting: {}", error.message());
                self.event("Warning", "FailedDelete", &message);
                Err(error)
            }
        }
    }
}

/// Whether a creation failed because the namespace goes: nothing that trying again would change.
pub fn is_going(error: &KubeError) -> bool {
    error.code() == Some(403) && error.message().contains("because it is being terminated")
}
