//! URLs, IP addresses and CIDR blocks.

use super::Outcome;
use crate::{
    eval::no_overload,
    value::{Key, Val},
};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// Absolute URIs and absolute paths.
pub(super) fn uri(text: &str) -> Option<http::Uri> {
    let uri: http::Uri = text.parse().ok()?;
    (text.starts_with('/') || uri.scheme().is_some()).then_some(uri)
}

pub(super) fn url_part<'v>(name: &str, url: &http::Uri) -> Outcome<'v> {
    let host = url.host().unwrap_or_default();
    let port = url.port().map(|port| port.to_string());
    Ok(match name {
        "getScheme" => Val::text(url.scheme_str().unwrap_or_default()),
        "getHost" => match port {
            Some(port) => Val::text(&format!("{host}:{port}")),
            None => Val::text(host),
        },
        "getHostname" => Val::text(host.trim_start_matches('[').trim_end_matches(']')),
        "getPort" => Val::text(&port.unwrap_or_default()),
        "getEscapedPath" => Val::text(url.path()),
        "getQuery" => {
            let mut fields = BTreeMap::<_, Vec<Val<'v>>>::new();
            for (key, value) in yurt_wire::request::query_pairs(url.query().unwrap_or_default()) {
                let key = Key::String(key.into());
                fields.entry(key).or_default().push(Val::text(&value));
            }
            let fields = fields
                .into_iter()
                .map(|(key, values)| (key, Val::List(Arc::new(values))))
                .collect();
            Val::Map(Arc::new(fields))
        }
        _ => return no_overload(),
    })
}

pub(super) fn address<'v>(name: &str, a: IpAddr) -> Val<'v> {
    let link_local = match a {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    let link_local_multicast = match a {
        IpAddr::V4(a) => a.octets()[..3] == [224, 0, 0],
        IpAddr::V6(a) => a.is_multicast() && a.segments()[0] & 0xf == 2,
    };
    match name {
        "family" => Val::Int(if a.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Val::Bool(a.is_unspecified()),
        "isLoopback" => Val::Bool(a.is_loopback()),
        "isLinkLocalUnicast" => Val::Bool(link_local),
        "isLinkLocalMulticast" => Val::Bool(link_local_multicast),
        "isGlobalUnicast" => Val::Bool(
            !(a.is_unspecified() || a.is_loopback() || a.is_multicast() || link_local)
                && a != IpAddr::V4(std::net::Ipv4Addr::BROADCAST),
        ),
        _ => Val::text(&a.to_string()),
    }
}

pub(super) fn cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits: u8 = bits.parse().ok()?;
    (bits <= width(address)).then_some((address, bits))
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with all but the first bits cleared.
fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(a) => {
            let mask = u32::MAX
                .checked_shl(32 - u32::from(bits.min(32)))
                .unwrap_or(0);
            IpAddr::V4((u32::from(a) & mask).into())
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX
                .checked_shl(128 - u32::from(bits.min(128)))
                .unwrap_or(0);
            IpAddr::V6((u128::from(a) & mask).into())
        }
    }
}

pub(super) fn block<'v>(name: &str, a: IpAddr, bits: u8, rest: &[Val<'v>]) -> Outcome<'v> {
    let inner = match rest {
        [Val::String(text)] if name == "containsIP" => text.parse().ok().map(|ip| (ip, width(ip))),
        [Val::String(text)] if name == "containsCIDR" => cidr(text),
        [Val::Ip(ip)] => Some((*ip, width(*ip))),
        [Val::Cidr(ip, bits)] => Some((*ip, *bits)),
        _ => None,
    };
    Ok(match (name, inner) {
        ("containsIP" | "containsCIDR", Some((ip, inner))) => Val::Bool(
            ip.is_ipv4() == a.is_ipv4() && inner >= bits && masked(ip, bits) == masked(a, bits),
        ),
        ("ip", _) => Val::Ip(a),
        ("masked", _) => Val::Cidr(masked(a, bits), bits),
        ("prefixLength", _) => Val::Int(bits.into()),
        _ => return no_overload(),
    })
}
