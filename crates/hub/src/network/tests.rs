use super::*;
use plan::{Address, LOOPBACK, Link, host_prefix};
use proptest::prelude::*;
use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
};
use tokio::sync::Notify;

/// A node whose interfaces are values.
#[derive(Clone, Debug)]
struct World {
    seen: Seen,
    dummies: bool,
    denied: bool,
    next: u32,
    acts: usize,
}

impl World {
    fn new(dummies: bool) -> Self {
        let lo = Link {
            index: LOOPBACK,
            name: "lo".into(),
            dummy: false,
            up: true,
            ours: false,
        };
        Self {
            seen: Seen {
                links: vec![lo],
                addresses: Vec::new(),
            },
            dummies,
            denied: false,
            next: 2,
            acts: 0,
        }
    }

    fn link(&mut self, name: &str, dummy: bool, ours: bool) -> u32 {
        let index = self.next;
        self.next += 1;
        self.seen.links.push(Link {
            index,
            name: name.into(),
            dummy,
            up: false,
            ours,
        });
        index
    }

    fn address(&mut self, link: u32, address: &str, prefix: u8, ours: bool) {
        self.seen.addresses.push(Address {
            link,
            address: address.parse().unwrap(),
            prefix,
            ours,
        });
    }

    fn act(&mut self, step: &Step, wanted: &DummyInterface) -> Result<(), LinksError> {
        self.acts += 1;
        if self.denied {
            return Err(LinksError::Denied("no".into()));
        }
        match step {
            Step::Create if !self.dummies => return Err(LinksError::NoDummies),
            Step::Create => {
                let index = self.link(&wanted.name, true, true);
                self.act(&Step::Up { link: index }, wanted)?;
            }
            Step::Up { link } => {
                let links = self.seen.links.iter_mut();
                links.filter(|l| l.index == *link).for_each(|l| l.up = true);
            }
            Step::Add { link } => self.seen.addresses.push(Address {
                link: *link,
                address: wanted.address,
                prefix: host_prefix(wanted.address),
                ours: *link == LOOPBACK && wanted.address.is_ipv4(),
            }),
            Step::Remove(gone) => self.seen.addresses.retain(|a| a != gone),
            Step::Delete { link } => {
                self.seen.links.retain(|l| l.index != *link);
                self.seen.addresses.retain(|a| a.link != *link);
            }
        }
        Ok(())
    }
}

#[derive(Clone)]
struct Fake {
    world: Arc<Mutex<World>>,
    wanted: DummyInterface,
    change: Arc<Notify>,
}

impl Links for Fake {
    async fn look(&mut self) -> Result<Seen, LinksError> {
        Ok(self.world.lock().unwrap().seen.clone())
    }
    async fn act(&mut self, step: &Step) -> Result<(), LinksError> {
        self.world.lock().unwrap().act(step, &self.wanted)
    }
    async fn changed(&mut self) {
        self.change.notified().await;
    }
}

fn wanted(address: &str) -> DummyInterface {
    DummyInterface {
        name: "hub-dummy0".into(),
        address: address.parse().unwrap(),
    }
}

async fn start(world: World, address: &str) -> (Fake, Network) {
    let wanted = wanted(address);
    let fake = Fake {
        world: Arc::new(Mutex::new(world)),
        wanted: wanted.clone(),
        change: Arc::default(),
    };
    let network = Network::start_on(fake.clone(), wanted).await;
    (fake, network)
}

fn on(name: &str) -> Presence {
    Presence::On(name.into())
}

#[tokio::test(start_paused = true)]
async fn made_kept_and_taken_away() {
    let before = World::new(true);
    let (fake, network) = start(before.clone(), "169.254.2.1").await;
    assert_eq!(*network.presence().borrow(), on("hub-dummy0"));
    // Lost: heard of at once.
    let acts = {
        let mut world = fake.world.lock().unwrap();
        world.seen = before.seen.clone();
        world.acts
    };
    fake.change.notify_one();
    tokio::time::sleep(SETTLE * 2).await;
    assert!(fake.world.lock().unwrap().acts > acts);
    assert_eq!(fake.world.lock().unwrap().seen.addresses.len(), 1);
    // Lost, and nobody says so.
    fake.world.lock().unwrap().seen.addresses.clear();
    tokio::time::sleep(LOOK * 2).await;
    assert_eq!(fake.world.lock().unwrap().seen.addresses.len(), 1);
    let acts = fake.world.lock().unwrap().acts;
    tokio::time::sleep(LOOK * 3).await;
    assert_eq!(fake.world.lock().unwrap().acts, acts, "all is well");
    network.end().await;
    assert_eq!(fake.world.lock().unwrap().seen, before.seen);
}

#[tokio::test(start_paused = true)]
async fn the_loopback_interface_where_there_are_no_dummies() {
    for address in ["169.254.2.1", "fd00::2:1"] {
        let before = World::new(false);
        let (fake, network) = start(before.clone(), address).await;
        assert_eq!(*network.presence().borrow(), on("lo"));
        assert_eq!(fake.world.lock().unwrap().seen.links, before.seen.links);
        network.end().await;
        assert_eq!(fake.world.lock().unwrap().seen, before.seen);
    }
}

#[tokio::test(start_paused = true)]
async fn what_others_made_is_used_and_left() {
    let mut world = World::new(true);
    let link = world.link("hub-dummy0", true, false);
    world.address(link, "169.254.2.1", 32, false);
    world.seen.links[1].up = true;
    let before = world.seen.clone();
    let (fake, network) = start(world, "169.254.2.1").await;
    assert_eq!(*network.presence().borrow(), on("hub-dummy0"));
    network.end().await;
    let world = fake.world.lock().unwrap();
    assert_eq!((&world.seen, world.acts), (&before, 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_hub_left_is_put_right_and_taken_away() {
    let mut world = World::new(true);
    let link = world.link("hub-dummy0", true, true);
    world.address(link, "169.254.2.9", 24, false);
    world.address(LOOPBACK, "169.254.2.1", 32, true);
    let (fake, network) = start(world, "169.254.2.1").await;
    {
        let seen = &fake.world.lock().unwrap().seen;
        let [address] = &seen.addresses[..] else {
            panic!("{seen:?}")
        };
        assert_eq!((address.link, address.prefix), (link, 32));
        assert!(seen.links[1].up);
    }
    network.end().await;
    assert_eq!(fake.world.lock().unwrap().seen, World::new(true).seen);
}

#[tokio::test(start_paused = true)]
async fn without_rights_an_address_that_is_there_will_do() {
    let mut world = World::new(true);
    world.denied = true;
    let (fake, network) = start(world.clone(), "169.254.2.1").await;
    assert!(matches!(
        &*network.presence().borrow(),
        Presence::Absent { denied: true, .. }
    ));
    // systemd makes it later.
    {
        let mut world = fake.world.lock().unwrap();
        let link = world.link("pods0", false, false);
        world.address(link, "169.254.2.1", 32, false);
    }
    tokio::time::sleep(RETRY * 2).await;
    assert_eq!(*network.presence().borrow(), on("pods0"));
    network.end().await;
    assert_eq!(fake.world.lock().unwrap().seen.addresses.len(), 1);
}

fn address() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("169.254.2.1".to_owned()),
        Just("169.254.2.2".to_owned()),
        Just("10.1.2.3".to_owned()),
        Just("fe80::1".to_owned()),
        Just("fd00::2:1".to_owned()),
    ]
}

proptest! {
    /// Whatever is there: after a few rounds pods reach the address, and nothing of others is gone.
    #[test]
    fn any_node_ends_with_the_address(
        dummies: bool,
        own in proptest::option::of((any::<bool>(), any::<bool>(), any::<bool>())),
        others in proptest::collection::vec((address(), any::<bool>()), 0..4),
        on_own in proptest::collection::vec((address(), prop_oneof![Just(32u8), Just(24u8)]), 0..3),
        wanted_address in prop_oneof![Just("169.254.2.1"), Just("fd00::2:1")],
    ) {
        let wanted = wanted(wanted_address);
        let mut world = World::new(dummies);
        let eth = world.link("eth0", false, false);
        for (address, on_lo) in &others {
            world.address(if *on_lo { LOOPBACK } else { eth }, address, 32, false);
        }
        if let Some((dummy, ours, up)) = own {
            let link = world.link("hub-dummy0", dummy, ours);
            world.seen.links.last_mut().unwrap().up = up;
            for (address, prefix) in &on_own {
                let address: IpAddr = address.parse().unwrap();
                let prefix = if address.is_ipv4() { *prefix } else { 128 };
                world.address(link, &address.to_string(), prefix, false);
            }
        }
        let before = world.seen.clone();
        let mut possible = true;
        let mut rounds = 0;
        loop {
            let steps = plan::plan(&wanted, &world.seen, possible);
            if steps.is_empty() {
                break;
            }
            rounds += 1;
            prop_assert!(rounds < ROUNDS, "{:?}", world.seen);
            for step in steps {
                if world.act(&step, &wanted) == Err(LinksError::NoDummies) {
                    possible = false;
                    break;
                }
            }
        }
        prop_assert!(plan::place(&wanted, &world.seen).is_some());
        for address in before.addresses.iter().filter(|a| a.link == eth || a.link == LOOPBACK) {
            prop_assert!(world.seen.addresses.contains(address));
        }
        for step in plan::removal(&wanted, &world.seen, rounds > 0) {
            world.act(&step, &wanted).unwrap();
        }
        for address in before.addresses.iter().filter(|a| a.link == eth) {
            prop_assert!(world.seen.addresses.contains(address));
        }
        for link in before.links.iter().filter(|l| !l.ours) {
            prop_assert!(world.seen.links.iter().any(|l| l.index == link.index));
        }
    }
}
