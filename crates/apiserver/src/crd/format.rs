//! String formats that kube-apiserver enforces. Unknown formats are documentation.

use base64::Engine;
use jiff::Timestamp;
use regex::Regex;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

/// A pattern that is known to compile; were it not, it would match nothing.
fn pattern(source: &str) -> Option<Regex> {
    Regex::new(source).ok()
}

static UUID: LazyLock<Option<Regex>> = LazyLock::new(|| {
    pattern("^(?i)[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$")
});
static MAC: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern("^(?i)[0-9a-f]{2}([:-][0-9a-f]{2}){5}([:-][0-9a-f]{2}){0,2}$"));
static DURATION: LazyLock<Option<Regex>> = LazyLock::new(|| {
    pattern(
        r"^[-+]?(\d+(\.\d*)?|\.\d+)\s*(ns|us|µs|ms|s|m|h|d|w|day|days|week|weeks|hour|hours|minute|minutes|second|seconds)(\s*(\d+(\.\d*)?|\.\d+)\s*(ns|us|µs|ms|s|m|h|d|w))*$",
    )
});
static EMAIL: LazyLock<Option<Regex>> = LazyLock::new(|| pattern(r"^[^@\s<>]+@[^@\s<>]+$"));
static HEX_COLOR: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern("^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"));
static OBJECT_ID: LazyLock<Option<Regex>> = LazyLock::new(|| pattern("^[0-9a-fA-F]{24}$"));

fn matches(regex: &Option<Regex>, text: &str) -> bool {
    regex.as_ref().is_some_and(|regex| regex.is_match(text))
}

fn is_hostname(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    !text.is_empty()
        && text.len() <= 255
        && text.split('.').all(|label| {
            let edge = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
            label.len() <= 63
                && edge(label.chars().next())
                && edge(label.chars().last())
                && label
                    .chars()
                    .all(|c| c.is_alphanumeric() || matches!(c, '-' | '_'))
        })
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else {
        return false;
    };
    let Ok(bits) = bits.parse::<u8>() else {
        return false;
    };
    (address.parse::<Ipv4Addr>().is_ok() && bits <= 32)
        || (address.parse::<Ipv6Addr>().is_ok() && bits <= 128)
}

/// An absolute URI or an absolute path, as an HTTP request line may name it.
fn is_uri(text: &str) -> bool {
    if text.starts_with('/') {
        return !text.contains(char::is_whitespace);
    }
    text.split_once(':').is_some_and(|(scheme, rest)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
            && !rest.is_empty()
            && !rest.contains(char::is_whitespace)
    })
}

/// Whether `text` has the format. True for formats that are not enforced.
pub(crate) fn check_format(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => text.parse::<Timestamp>().is_ok(),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "duration" => matches(&DURATION, text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "ip" => text.parse::<std::net::IpAddr>().is_ok(),
        "cidr" => is_cidr(text),
        "mac" => matches(&MAC, text),
        "hostname" => is_hostname(text),
        "uri" => is_uri(text),
        "email" => matches(&EMAIL, text),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => matches(&UUID, text),
        "byte" => base64::engine::general_purpose::STANDARD
            .decode(text)
            .is_ok(),
        "hexcolor" => matches(&HEX_COLOR, text),
        "bsonobjectid" => matches(&OBJECT_ID, text),
        _ => true,
    }
}
