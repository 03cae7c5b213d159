//! The node's interfaces by rtnetlink(7).

use super::{
    Links, LinksError,
    plan::{ALIAS, Address, LABEL, LOOPBACK, Link, Seen, Step, host_prefix},
};
use crate::config::DummyInterface;
use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::{
    Handle, LinkDummy, LinkUnspec, MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
        link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    },
    sys::SocketAddr,
};
use std::{io, time::Duration};

/// For one answer of the kernel.
const PATIENCE: Duration = Duration::from_secs(2);
/// Addresses that are looked at.
const MOST_ADDRESSES: usize = 4096;
/// Before the connection to the kernel is made anew.
const PAUSE: Duration = Duration::from_secs(1);

// Numbers of errno(3), alike on all architectures of Linux that Rust runs on but MIPS and SPARC.
const EPERM: i32 = 1;
const EACCES: i32 = 13;
const ENODEV: i32 = 19;
const EEXIST: i32 = 17;
const EADDRNOTAVAIL: i32 = 99;
const EOPNOTSUPP: i32 = 95;

type Events =
    futures_channel::mpsc::UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// A connection to the kernel.
pub(super) struct Netlink {
    wanted: DummyInterface,
    handle: Handle,
    events: Events,
}

impl Netlink {
    pub(super) fn open(wanted: DummyInterface) -> io::Result<Self> {
        let (handle, events) = connect()?;
        Ok(Self {
            wanted,
            handle,
            events,
        })
    }

    async fn link(&self, name: &str) -> Result<Option<Link>, LinksError> {
        let mut links = Box::pin(self.handle.link().get().match_name(name).execute());
        match links.try_next().await {
            Ok(link) => Ok(link.as_ref().and_then(read_link)),
            Err(error) if number(&error) == ENODEV => Ok(None),
            Err(error) => Err(refused("look at the interfaces", &error)),
        }
    }

    async fn link_at(&self, index: u32) -> Result<Option<Link>, LinksError> {
        let mut links = Box::pin(self.handle.link().get().match_index(index).execute());
        match links.try_next().await {
            Ok(link) => Ok(link.as_ref().and_then(read_link)),
            Err(error) if number(&error) == ENODEV => Ok(None),
            Err(error) => Err(refused("look at the interfaces", &error)),
        }
    }

    async fn see(&self) -> Result<Seen, LinksError> {
        let mut links = Vec::new();
        links.extend(self.link(&self.wanted.name).await?);
        let own = links.first().map(|link| link.index);
        let mut addresses = Vec::new();
        let mut all = Box::pin(self.handle.address().get().execute().take(MOST_ADDRESSES));
        while let Some(message) = all
            .try_next()
            .await
            .map_err(|error| refused("look at the addresses", &error))?
        {
            let read = read_address(&message);
            addresses
                .extend(read.filter(|a| a.address == self.wanted.address || Some(a.link) == own));
        }
        for address in &addresses {
            if !links.iter().any(|link| link.index == address.link) {
                links.extend(self.link_at(address.link).await?);
            }
        }
        Ok(Seen { links, addresses })
    }

    async fn step(&self, step: &Step) -> Result<(), LinksError> {
        let name = &self.wanted.name;
        let links = self.handle.link();
        let address = self.wanted.address;
        let (what, done) = match step {
            Step::Create => {
                let made = links.add(LinkDummy::new(name).build()).execute().await;
                if let Err(error) = made
                    && number(&error) != EEXIST
                {
                    return Err(match number(&error) {
                        EOPNOTSUPP => LinksError::NoDummies,
                        _ => refused("make a dummy interface", &error),
                    });
                }
                let marked = LinkUnspec::new_with_name(name)
                    .up()
                    .append_extra_attribute(LinkAttribute::IfAlias(ALIAS.into()));
                let done = links.set(marked.build()).execute().await;
                ("set the dummy interface up", done)
            }
            Step::Up { link } => {
                let up = LinkUnspec::new_with_index(*link).up().build();
                ("set an interface up", links.set(up).execute().await)
            }
            Step::Add { link } => {
                let prefix = host_prefix(address);
                let mut add = self.handle.address().add(*link, address, prefix);
                let message = add.message_mut();
                // Nobody else can have it: no need to ask the neighbours first.
                message.header.flags |= AddressHeaderFlags::Nodad;
                if *link == LOOPBACK {
                    message.header.scope = AddressScope::Host;
                    if address.is_ipv4() {
                        let label = AddressAttribute::Label(LABEL.into());
                        message.attributes.push(label);
                    }
                }
                ("put an address on an interface", add.execute().await)
            }
            Step::Remove(gone) => {
                let done = self.handle.address().del(message_of(gone));
                ("take an address away", done.execute().await)
            }
            Step::Delete { link } => {
                let done = links.del(*link).execute().await;
                ("take the dummy interface away", done)
            }
        };
        match done {
            Ok(()) => Ok(()),
            // Done already, by somebody else or a moment ago.
            Err(error) => match (number(&error), step) {
                (EEXIST, Step::Add { .. })
                | (EADDRNOTAVAIL | ENODEV, Step::Remove(_))
                | (ENODEV, Step::Delete { .. }) => Ok(()),
                _ => Err(refused(what, &error)),
            },
        }
    }
}

impl Links for Netlink {
    async fn look(&mut self) -> Result<Seen, LinksError> {
        match tokio::time::timeout(PATIENCE, self.see()).await {
            Ok(seen) => seen,
            Err(_) => Err(LinksError::Failed("the kernel does not answer".into())),
        }
    }

    async fn act(&mut self, step: &Step) -> Result<(), LinksError> {
        tracing::debug!(?step, "network");
        match tokio::time::timeout(PATIENCE, self.step(step)).await {
            Ok(done) => done,
            Err(_) => Err(LinksError::Failed("the kernel does not answer".into())),
        }
    }

    async fn changed(&mut self) {
        while let Some((message, _)) = self.events.next().await {
            if matters(&message.payload, &self.wanted) {
                return;
            }
        }
        tokio::time::sleep(PAUSE).await;
        match connect() {
            Ok((handle, events)) => {
                (self.handle, self.events) = (handle, events);
            }
            Err(error) => tracing::warn!(%error, "changes of interfaces are not heard of"),
        }
    }
}

fn connect() -> io::Result<(Handle, Events)> {
    let (connection, handle, events) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ])?;
    // Ends when the handle is gone.
    tokio::spawn(connection);
    Ok((handle, events))
}

/// Pods come and go with interfaces of their own: only what concerns ours, or what was missed, is worth a look.
fn matters(payload: &NetlinkPayload<RouteNetlinkMessage>, wanted: &DummyInterface) -> bool {
    use RouteNetlinkMessage::{DelAddress, DelLink, NewLink};
    match payload {
        NetlinkPayload::Overrun(_) => true,
        NetlinkPayload::InnerMessage(DelAddress(message)) => {
            read_address(message).is_some_and(|a| a.address == wanted.address)
        }
        NetlinkPayload::InnerMessage(DelLink(message) | NewLink(message)) => {
            read_link(message).is_some_and(|link| link.name == wanted.name)
        }
        _ => false,
    }
}

fn read_link(message: &LinkMessage) -> Option<Link> {
    let attributes = &message.attributes;
    let name = attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let is_dummy = |info: &LinkInfo| matches!(info, LinkInfo::Kind(InfoKind::Dummy));
    let dummy = attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().any(is_dummy),
        _ => false,
    });
    let ours = attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::IfAlias(alias) if alias == ALIAS));
    Some(Link {
        index: message.header.index,
        name,
        dummy,
        up: message.header.flags.contains(LinkFlags::Up),
        ours,
    })
}

fn read_address(message: &AddressMessage) -> Option<Address> {
    // The local one, where a peer's is given as well.
    let mut found = None;
    let mut ours = false;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => found = Some(*address),
            AddressAttribute::Address(address) => {
                found.get_or_insert(*address);
            }
            AddressAttribute::Label(label) => ours = label == LABEL,
            _ => {}
        }
    }
    Some(Address {
        link: message.header.index,
        address: found?,
        prefix: message.header.prefix_len,
        ours,
    })
}

fn message_of(address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = if address.address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    message.header.prefix_len = address.prefix;
    message.header.index = address.link;
    message.attributes = vec![
        AddressAttribute::Local(address.address),
        AddressAttribute::Address(address.address),
    ];
    message
}

/// The error's number; 0 when the kernel did not say it.
fn number(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.raw_code().abs(),
        _ => 0,
    }
}

fn refused(what: &str, error: &rtnetlink::Error) -> LinksError {
    match number(error) {
        EPERM | EACCES => LinksError::Denied(format!("the kernel does not let it {what}")),
        0 => LinksError::Failed(format!("cannot {what}: {error}")),
        number => {
            let error = io::Error::from_raw_os_error(number);
            LinksError::Failed(format!("cannot {what}: {error}"))
        }
    }
}
