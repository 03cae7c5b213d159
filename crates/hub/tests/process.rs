//! What is written about the process stays true: the flags in the documentation, the files to deploy it by.

use clap::Args;
use std::path::PathBuf;
use yurt_hub::{
    Config, HubArgs,
    config::{Bootstrap, WorkingMode},
};

fn repository(file: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A row for each flag that has an effect.
fn flags() -> String {
    let command = HubArgs::augment_args(clap::Command::new("hub"));
    let visible = command.get_arguments().filter(|flag| !flag.is_hide_set());
    visible
        .map(|flag| {
            let default: Vec<_> = flag.get_default_values().iter().collect();
            let default = match default[..] {
                [one] if !one.is_empty() => format!("`{}`", one.to_string_lossy()),
                _ => String::new(),
            };
            let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
            let help = help
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .replace('|', "\\|");
            format!(
                "| `--{}` | {default} | {help} |\n",
                flag.get_long().unwrap()
            )
        })
        .collect()
}

#[test]
fn the_documentation_has_all_flags() {
    let text = repository("docs/hub.md");
    let written = text
        .split_once("<!-- flags: made of --help, kept true by a test -->\n")
        .and_then(|(_, rest)| rest.split_once("<!-- end of flags -->"))
        .map(|(table, _)| table)
        .unwrap();
    let table = format!("| flag | default | what |\n|---|---|---|\n{}", flags());
    assert!(
        written == table,
        "docs/hub.md should have these flags:\n{table}"
    );
}

#[test]
fn the_documentation_has_all_admin_endpoints() {
    let text = repository("docs/hub.md");
    for path in yurt_hub::server::admin::paths() {
        assert!(text.contains(&format!("`{path}`")), "{path}");
    }
}

#[test]
fn the_unit_and_its_drop_in_start_a_hub() {
    let drop_in = repository("deploy/yurt-hub.service.d/10-yurt-hub.conf");
    let unit = repository("deploy/yurt-hub.service");
    let value = |name: &str| {
        assert!(unit.contains(&format!("${name}")), "{name}");
        let line = drop_in.lines().find_map(|line| {
            line.strip_prefix(&format!("Environment=\"{name}="))?
                .strip_suffix('"')
        });
        line.unwrap_or_else(|| panic!("{name}")).to_owned()
    };
    let names = [
        "YURTHUB_BOOTSTRAP_ARGS",
        "YURTHUB_CONFIG_ARGS",
        "YURTHUB_EXTRA_ARGS",
    ];
    let all = names.map(value).join(" ");
    let config = Config::parse(all.split_whitespace()).unwrap();
    assert_eq!(config.working_mode, WorkingMode::Edge);
    assert!(matches!(config.bootstrap, Some(Bootstrap::Token { .. })));
    assert_eq!(config.warnings, [""; 0]);

    let unit = repository("deploy/yurt-hub-local.service");
    let command = unit
        .lines()
        .find(|line| line.starts_with("ExecStart="))
        .unwrap();
    let command = command
        .replace("${NODE_NAME}", "n")
        .replace("${TENANT_SERVICE}", "10.0.0.1:443")
        .replace("${HOST_CONTROL_PLANE}", "10.9.9.9:6443");
    let config = Config::parse(command.split_whitespace().skip(2)).unwrap();
    assert_eq!(config.working_mode, WorkingMode::Local);
}

#[test]
fn the_static_pod_starts_a_hub() {
    let manifest = repository("deploy/yurt-hub.yaml");
    let arguments = manifest.lines().filter_map(|line| {
        let argument = line.trim().strip_prefix("- --")?;
        Some(format!("--{}", argument.replace("$(NODE_NAME)", "edge-1")))
    });
    let arguments: Vec<String> = arguments.collect();
    let config = Config::parse(arguments.iter().map(String::as_str)).unwrap();
    let admin = config.admin.unwrap();
    for probe in ["/v1/healthz", "/v1/readyz"] {
        assert!(yurt_hub::server::admin::paths().any(|path| path == probe));
        let shown = format!(
            "host: {}\n          path: {probe}\n          port: {}\n",
            admin.ip(),
            admin.port()
        );
        assert!(manifest.contains(&shown), "{probe}");
    }
    for needed in [
        "hostNetwork: true",
        "hostPID: true",
        "NET_ADMIN",
        "system-node-critical",
    ] {
        assert!(manifest.contains(needed), "{needed}");
    }
    // What the hub writes is on the node.
    for dir in [&config.root_dir, &config.cache_dir] {
        let mounts = manifest
            .lines()
            .filter_map(|line| line.trim().strip_prefix("mountPath: "));
        assert!(
            mounts.into_iter().any(|mount| dir.starts_with(mount)),
            "{}",
            dir.display()
        );
    }
}
