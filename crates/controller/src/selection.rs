//! Which controllers run (`--controllers`).

use std::fmt;

/// A controller's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// As it is called.
    pub name: &'static str,
    /// Another name for it, or empty.
    pub alias: &'static str,
}

/// A list as kube-controller-manager's `--controllers` takes it: `*` for all, `name` for one, `-name` for not that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    all: bool,
    named: Vec<&'static str>,
    without: Vec<&'static str>,
}

/// A name that no controller has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no controller `{name}`; there are: {}", known.join(", "))]
pub struct UnknownController {
    /// The name.
    pub name: String,
    /// Those there are.
    pub known: Vec<&'static str>,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            all: true,
            ..Self::none()
        }
    }
}

impl Selection {
    /// No controller at all.
    pub fn none() -> Self {
        Self {
            all: false,
            named: Vec::new(),
            without: Vec::new(),
        }
    }

    /// Reads a list of the controllers that there are.
    pub fn parse(
        text: &str,
        known: impl IntoIterator<Item = Names>,
    ) -> Result<Self, UnknownController> {
        let known: Vec<Names> = known.into_iter().collect();
        let find = |name: &str| {
            let mut known = known.iter();
            known.find(|k| k.name == name || (!k.alias.is_empty() && k.alias == name))
        };
        let mut selection = Self::none();
        for item in text.split(',').map(str::trim).filter(|i| !i.is_empty()) {
            let (name, list) = match item.strip_prefix('-') {
                _ if item == "*" => {
                    selection.all = true;
                    continue;
                }
                // `-*`: nothing, as one would guess.
                Some("*") => continue,
                Some(name) => (name, &mut selection.without),
                None => (item, &mut selection.named),
            };
            let found = find(name).ok_or_else(|| UnknownController {
                name: name.into(),
                known: known.iter().map(|known| known.name).collect(),
            })?;
            list.push(found.name);
        }
        Ok(selection)
    }

    /// Whether a controller is asked for by its name, not only as one of all.
    pub fn names(&self, name: &str) -> bool {
        self.named.contains(&name)
    }

    /// Whether a controller is to run. What is left out by name stays out, whatever else is said.
    pub fn includes(&self, name: &str) -> bool {
        !self.without.contains(&name) && (self.all || self.named.contains(&name))
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut items: Vec<String> = Vec::new();
        if self.all {
            items.push("*".into());
        }
        items.extend(self.named.iter().map(|&name| name.into()));
        items.extend(self.without.iter().map(|name| format!("-{name}")));
        if items.is_empty() {
            items.push("-*".into());
        }
        f.write_str(&items.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [Names; 2] = [
        Names {
            name: "nodepool-controller",
            alias: "nodepool",
        },
        Names {
            name: "other-controller",
            alias: "",
        },
    ];

    #[test]
    fn lists_are_read_as_kubernetes_reads_them() {
        let parse = |text: &str| Selection::parse(text, KNOWN);
        let all = parse("-nodepool, *").unwrap();
        assert!(all.includes("other-controller") && !all.includes("nodepool-controller"));
        assert_eq!(parse(&all.to_string()), Ok(all), "either order");
        let one = parse("nodepool").unwrap();
        assert!(one.names("nodepool-controller") && !one.names("other-controller"));
        assert!(one.includes("nodepool-controller") && !one.includes("other-controller"));
        assert_eq!(parse("-*"), Ok(Selection::none()));
        assert_eq!(parse(""), Ok(Selection::none()));
        let unknown = parse("*,nope").unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "no controller `nope`; there are: nodepool-controller, other-controller"
        );
    }
}
