//! How an app is named on the command line.

use serde::Serialize;
use std::str::FromStr;

/// What an app may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Kind {
    YurtAppSet,
    YurtAppDaemon,
    YurtStaticSet,
    DaemonSet,
}

/// In the order in which a name is looked up.
pub(crate) const KINDS: [Kind; 4] = [
    Kind::YurtAppSet,
    Kind::YurtAppDaemon,
    Kind::YurtStaticSet,
    Kind::DaemonSet,
];

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::YurtAppSet => "YurtAppSet",
            Self::YurtAppDaemon => "YurtAppDaemon",
            Self::YurtStaticSet => "YurtStaticSet",
            Self::DaemonSet => "DaemonSet",
        }
    }

    fn short_name(self) -> &'static str {
        match self {
            Self::YurtAppSet => "yas",
            Self::YurtAppDaemon => "yad",
            Self::YurtStaticSet => "yss",
            Self::DaemonSet => "ds",
        }
    }
}

/// `NAME`, or `KIND/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) kind: Option<Kind>,
    pub(crate) name: String,
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = match text.split_once('/') {
            None => (None, text),
            Some((kind, name)) => {
                let wanted = kind.to_ascii_lowercase();
                let is = |of: &Kind| {
                    let full = of.name().to_ascii_lowercase();
                    wanted == full || wanted == format!("{full}s") || wanted == of.short_name()
                };
                let known = KINDS.into_iter().find(is);
                let known = known
                    .ok_or_else(|| format!("{kind:?} is no kind of app: yas, yad, yss or ds"))?;
                (Some(known), name)
            }
        };
        if name.is_empty() || name.contains('/') {
            return Err(format!("{text:?} is no name"));
        }
        Ok(Self {
            kind,
            name: name.to_owned(),
        })
    }
}
