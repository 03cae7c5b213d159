//! `yurt-app-daemon-controller`: the same workload in every pool that a selector matches.
//!
//! OpenYurt dropped the kind in 1.7; here it lives on as a YurtAppSet with a selector ([`yurt_api::translation::set_of`]), by the
//! same [`Engine`]. What is its own: the labels of its selector on its workloads, and pods that tolerate the taints of their pool.

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch, pod,
    yurtappset::{
        EVENT_RULE, Engine, REVISION_RULE, Subject, WORKLOAD_RULE, watch_overriders, watch_pools,
        watch_revisions, watch_workloads,
    },
};
use jiff::Timestamp;
use std::sync::Arc;
use yurt_api::translation;
use yurt_controller::{collections::YURT_APP_DAEMONS, fields, policy::Rule};

pub(crate) const ENTRY: Entry = Entry::of::<YurtAppDaemons>(
    "yurtappdaemon",
    &[
        WORKLOAD_RULE,
        REVISION_RULE,
        EVENT_RULE,
        Rule::new("apps.openyurt.io", &["yurtappdaemons/status"], &["patch"]),
        Rule::new(
            "apps.openyurt.io",
            &["yurtappdaemons/finalizers"],
            &["update"],
        ),
    ],
);

/// `yurt-app-daemon-controller`.
#[derive(Debug)]
pub(crate) struct YurtAppDaemons(Engine);

impl Default for YurtAppDaemons {
    fn default() -> Self {
        Self(Engine::new("yurt-manager/yurtappdaemon"))
    }
}

impl Controller for YurtAppDaemons {
    const NAME: &'static str = "yurt-app-daemon-controller";
    const WORKERS: usize = 3;

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let mut watches = vec![
            Watch::own(YURT_APP_DAEMONS),
            watch_pools(context, YURT_APP_DAEMONS),
            watch_overriders("YurtAppDaemon"),
            watch_revisions("YurtAppDaemon"),
        ];
        watches.extend(watch_workloads("YurtAppDaemon", None));
        watches
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let object = context.objects(&YURT_APP_DAEMONS).get(key);
        let Some(object) = object.filter(|object| !pod::is_deleting(object)) else {
            return Ok(Next::Done);
        };
        let selected = fields::labels(&object["spec"]["selector"]["matchLabels"]);
        let daemon = Some(selected);
        let subject = Subject::new(YURT_APP_DAEMONS, object, Self::NAME, daemon, |spec| {
            serde_json::from_value(spec.clone()).map(|spec| translation::set_of(&spec))
        });
        let (report, outcome) = self.0.look(&subject, context).await;
        let status = report.daemon_status(&subject.object, Timestamp::now());
        subject.tell(context, &status).await?;
        outcome
    }
}
