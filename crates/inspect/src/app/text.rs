//! How an app is shown.

use super::{App, InPool, Kind};
use crate::{
    View,
    pools::unseen,
    table::{plain, table},
};

impl View for App {
    fn text(&self) -> String {
        let strategy = self
            .strategy
            .as_deref()
            .map(|strategy| format!(", strategy {strategy}"));
        let mut out = format!(
            "{} {}/{}{}\n",
            self.kind.name(),
            plain(&self.namespace),
            plain(&self.name),
            plain(&strategy.unwrap_or_default())
        );
        if !self.observed {
            out += "The manager has not seen the newest spec yet.\n";
        }
        out.push('\n');
        let revision = |row: &InPool| {
            let short = row
                .revision
                .strip_prefix(&self.name)
                .map(|rest| rest.trim_start_matches('-'));
            short.unwrap_or(&row.revision).to_owned()
        };
        if self.pools.is_empty() {
            out += match self.kind {
                Kind::YurtAppSet | Kind::YurtAppDaemon => {
                    "It selects no pool: see spec.pools and spec.nodepoolSelector.\n"
                }
                Kind::YurtStaticSet | Kind::DaemonSet => "It has no pods.\n",
            };
        } else if self.strategy.is_none() {
            let head = [
                "POOL", "WORKLOAD", "DESIRED", "READY", "UPDATED", "REVISION", "PHASE", "IMAGES",
            ];
            out += &table(
                head,
                self.pools.iter().map(|row| {
                    [
                        row.pool.clone(),
                        row.workload.clone(),
                        row.desired.to_string(),
                        row.ready.to_string(),
                        row.updated.to_string(),
                        revision(row),
                        format!("{:?}", row.phase),
                        row.images.join(","),
                    ]
                }),
            );
        } else {
            let head = ["POOL", "NODES", "READY", "UPDATED", "PHASE", "IMAGES"];
            out += &table(
                head,
                self.pools.iter().map(|row| {
                    [
                        row.pool.clone(),
                        row.desired.to_string(),
                        row.ready.to_string(),
                        row.updated.to_string(),
                        format!("{:?}", row.phase),
                        row.images.join(" "),
                    ]
                }),
            );
        }
        let troubled = self.pools.iter().filter(|row| !row.problem.is_empty());
        let lines: Vec<String> = troubled
            .map(|row| format!("{}: {}\n", plain(&row.pool), plain(&row.problem)))
            .collect();
        if !lines.is_empty() {
            out.push('\n');
            out += &lines.concat();
        }
        let told = self
            .conditions
            .iter()
            .filter(|c| c.status != "True" || c.kind.ends_with("Failure"));
        for condition in told {
            let text = [
                &condition.kind,
                &condition.status,
                &condition.reason,
                &condition.message,
            ]
            .map(|part| plain(part));
            out += &format!("\n{}={} {}: {}", text[0], text[1], text[2], text[3]);
        }
        if !out.ends_with('\n') {
            out.push('\n');
        }
        out + &unseen(&self.unseen)
    }
}
