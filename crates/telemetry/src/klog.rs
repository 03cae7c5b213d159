//! klog's flags, which existing manifests pass to every component of Kubernetes.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

/// klog's flags, as they may be written, and whether they need no value. Kept so that existing manifests go on working; `--log`, and
/// `--v` where it says nothing, say what is logged.
const LOGGING_FLAGS: &[(&str, &str, bool)] = &[
    ("add-dir-header", "add_dir_header", true),
    ("alsologtostderr", "alsologtostderr", true),
    ("log-backtrace-at", "log_backtrace_at", false),
    ("log-dir", "log_dir", false),
    ("log-file", "log_file", false),
    ("log-file-max-size", "log_file_max_size", false),
    ("log-flush-frequency", "log_flush_frequency", false),
    (
        "log-json-info-buffer-size",
        "log_json_info_buffer_size",
        false,
    ),
    ("log-json-split-stream", "log_json_split_stream", true),
    ("logging-format", "logging_format", false),
    ("logtostderr", "logtostderr", true),
    ("one-output", "one_output", true),
    ("skip-headers", "skip_headers", true),
    ("skip-log-headers", "skip_log_headers", true),
    ("stderrthreshold", "stderrthreshold", false),
    ("v", "v", false),
    ("vmodule", "vmodule", false),
];

/// klog's flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggingArgs {
    /// The names of those that were given and have no effect.
    pub in_vain: Vec<&'static str>,
    /// `--v`, where it is a number.
    pub verbosity: Option<u8>,
}

impl LoggingArgs {
    /// The level that stands for klog's verbosity; `None`: nothing is said.
    pub fn level(&self) -> Option<&'static str> {
        self.verbosity.map(|verbosity| match verbosity {
            0..=4 => "info",
            5..=7 => "debug",
            _ => "trace",
        })
    }
}

impl Args for LoggingArgs {
    fn augment_args(command: Command) -> Command {
        command.args(LOGGING_FLAGS.iter().map(|(flag, alias, switch)| {
            let arg = Arg::new(*flag).long(*flag).hide(true);
            let arg = match *flag {
                "v" => arg.short('v'),
                flag if flag != *alias => arg.alias(*alias),
                _ => arg,
            };
            if *switch {
                arg.num_args(0..=1).default_missing_value("true")
            } else {
                arg
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for LoggingArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = LOGGING_FLAGS.iter().map(|(flag, ..)| *flag);
        let given = given.filter(|flag| *flag != "v" && matches.contains_id(flag));
        let verbosity = matches.get_one::<String>("v");
        Ok(Self {
            in_vain: given.collect(),
            verbosity: verbosity.and_then(|text| text.parse().ok()),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
