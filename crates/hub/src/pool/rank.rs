//! Who leads: decided by every node for itself, from the ranked list of candidates and from what it sees of them. There is no vote:
//! nodes that see the same decide the same, and two leaders for a moment cost bandwidth only. Pure.

use super::{
    membership::Membership,
    role::{PeerNode, Role},
};
use crate::settings::Settings;
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Candidates that are looked at; there are to be few.
pub const MOST_CANDIDATES: usize = 16;
/// Where hubs serve their pool unless told otherwise (`--multiplexer-port`).
pub const PORT: u16 = 10269;
/// How long a better leader must have been the better one before it takes over from one that does its work.
pub const STEADY: Duration = Duration::from_secs(5);

/// What a node sees of a candidate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sight {
    /// It was not asked yet, or is being asked.
    #[default]
    Unknown,
    /// It does not answer, or is not believed.
    Silent,
    /// It answers.
    Answers {
        /// Whether it has a link to the cloud.
        link: bool,
        /// The newest revision of what the pool shares that it knows.
        revision: u64,
    },
}

impl Sight {
    /// Whether it answers and has a link.
    pub fn links(self) -> bool {
        matches!(self, Self::Answers { link: true, .. })
    }

    /// Whether it answers.
    pub fn answers(self) -> bool {
        matches!(self, Self::Answers { .. })
    }
}

/// The candidates by rank: the leaders that the cloud named, in its order, then those that an administrator added. Without a config
/// map, those of the NodePool's status. Empty where nobody is to lead.
pub fn candidates(settings: &Settings, members: &Membership, port: u16) -> Vec<PeerNode> {
    let mapped = !settings.leaders.is_empty() || !settings.candidates.is_empty();
    let (elects, leaders) = if mapped {
        (settings.leader_election, &settings.leaders)
    } else {
        (
            settings.leader_election || members.leader_election,
            &members.leaders,
        )
    };
    if settings.pool.is_empty() || !elects {
        return Vec::new();
    }
    let mut ranked: Vec<PeerNode> = Vec::new();
    for (node, address) in leaders.iter().chain(&settings.candidates) {
        if ranked.len() < MOST_CANDIDATES && !ranked.iter().any(|known| *known.node == **node) {
            ranked.push(PeerNode {
                node: node.as_str().into(),
                address: SocketAddr::new(*address, port),
            });
        }
    }
    ranked
}

/// The one to lead: the first that has a link; where none has, the one with the newest data, then the first.
pub fn best(sights: &[Sight]) -> Option<usize> {
    if let Some(first) = sights.iter().position(|sight| sight.links()) {
        return Some(first);
    }
    let mut best: Option<(usize, u64)> = None;
    for (rank, sight) in sights.iter().enumerate() {
        if let Sight::Answers { revision, .. } = sight
            && best.is_none_or(|(_, newest)| *revision > newest)
        {
            best = Some((rank, *revision));
        }
    }
    best.map(|(rank, _)| rank)
}

/// How many of the candidates, from the first, a node keeps in touch with: those above the one it goes by, and one to fall back
/// on. Where that one has no link, all: the others may have one, or newer data.
pub fn reach(sights: &[Sight], chosen: Option<usize>) -> usize {
    match chosen {
        Some(rank) if sights.get(rank).is_some_and(|sight| sight.links()) => {
            (rank + 2).min(sights.len())
        }
        _ => sights.len(),
    }
}

/// What a node decides by.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The node itself.
    pub me: &'a str,
    /// Whether it has a link to the cloud.
    pub link: bool,
    /// By rank.
    pub candidates: &'a [PeerNode],
    /// What it sees of each; of itself as well, when it is one.
    pub sights: &'a [Sight],
}

/// One node's decisions, one after the other: who leads is not changed without need.
#[derive(Clone, Debug, Default)]
pub struct Election {
    current: Option<Box<str>>,
    /// Who would be the better leader, and since when.
    rival: Option<(Box<str>, Instant)>,
}

impl Election {
    /// Decides on the present view.
    pub fn decide(&mut self, now: Instant, view: &View<'_>) -> Role {
        let chosen = self.choose(now, view);
        self.current = chosen
            .and_then(|rank| view.candidates.get(rank))
            .map(|leader| leader.node.clone());
        let Some((rank, leader)) = chosen.and_then(|rank| Some((rank, view.candidates.get(rank)?)))
        else {
            return Role::Alone;
        };
        if *leader.node == *view.me {
            return Role::Leader;
        }
        let linked = view.sights.get(rank).is_some_and(|sight| sight.links());
        // What the cloud says now is better than what a leader knew once.
        if view.link && !linked {
            return Role::Alone;
        }
        Role::Follower(leader.clone())
    }

    /// Who leads by the last decision.
    pub fn current(&self) -> Option<&str> {
        self.current.as_deref()
    }

    /// When the next decision may differ although nothing is seen to change.
    pub fn due(&self) -> Option<Instant> {
        self.rival.as_ref().map(|(_, since)| *since + STEADY)
    }

    fn choose(&mut self, now: Instant, view: &View<'_>) -> Option<usize> {
        let sight = |rank: usize| view.sights.get(rank).copied().unwrap_or_default();
        let best = best(view.sights);
        let current = self.current.as_ref().and_then(|name| {
            let mut nodes = view.candidates.iter();
            nodes.position(|candidate| candidate.node == *name)
        });
        let Some(current) = current else {
            self.rival = None;
            // Just after the start one that ranks higher may be about to answer; where no one has a link, any may know more.
            let linked = best.is_some_and(|rank| sight(rank).links());
            let before = best.filter(|_| linked).unwrap_or(view.sights.len());
            let waiting = view.sights.iter().take(before);
            return best.filter(|_| !waiting.into_iter().any(|s| *s == Sight::Unknown));
        };
        let anybody_linked = view.sights.iter().any(|sight| sight.links());
        let serves = sight(current).links() || sight(current).answers() && !anybody_linked;
        let rival = best.filter(|best| serves && *best != current);
        let Some((rank, rival)) = rival.and_then(|rank| Some((rank, view.candidates.get(rank)?)))
        else {
            self.rival = None;
            return best;
        };
        let since = match &self.rival {
            Some((name, since)) if *name == rival.node => *since,
            _ => {
                self.rival = Some((rival.node.clone(), now));
                now
            }
        };
        if now.saturating_duration_since(since) < STEADY {
            return Some(current);
        }
        self.rival = None;
        Some(rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nodes(count: usize) -> Vec<PeerNode> {
        (0..count)
            .map(|index| PeerNode {
                node: format!("n{index}").into(),
                address: ([10, 0, 0, index as u8], 10269).into(),
            })
            .collect()
    }

    fn seen(link: bool, revision: u64) -> Sight {
        Sight::Answers { link, revision }
    }

    const UP: Sight = Sight::Answers {
        link: true,
        revision: 1,
    };
    const CUT: Sight = Sight::Answers {
        link: false,
        revision: 1,
    };

    /// A node outside of the candidates, with its decisions.
    struct Looker {
        election: Election,
        nodes: Vec<PeerNode>,
        start: Instant,
    }

    impl Looker {
        fn new(count: usize) -> Self {
            Self {
                election: Election::default(),
                nodes: nodes(count),
                start: Instant::now(),
            }
        }

        fn sees(&mut self, second: u64, sights: &[Sight]) -> Option<String> {
            let view = View {
                me: "other",
                link: false,
                candidates: &self.nodes,
                sights,
            };
            let now = self.start + Duration::from_secs(second);
            let role = self.election.decide(now, &view);
            role.leader().map(|leader| leader.node.to_string())
        }
    }

    #[test]
    fn settings_and_the_pool_name_candidates_in_order() {
        let at = |last: u8| std::net::IpAddr::from([10, 0, 0, last]);
        let named = |names: &[(&str, u8)]| -> Vec<(String, std::net::IpAddr)> {
            let pairs = names
                .iter()
                .map(|(name, last)| ((*name).to_owned(), at(*last)));
            pairs.collect()
        };
        let mut settings = Settings {
            pool: "a".into(),
            leaders: named(&[("b", 2), ("a", 1)]),
            candidates: named(&[("a", 9), ("c", 3)]),
            leader_election: true,
            ..Settings::default()
        };
        let members = Membership {
            leaders: named(&[("z", 26)]),
            leader_election: true,
            ..Membership::default()
        };
        let ranked = |settings: &Settings| -> Vec<String> {
            let ranked = candidates(settings, &members, 10269);
            ranked.iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            ranked(&settings),
            [
                "b (10.0.0.2:10269)",
                "a (10.0.0.1:10269)",
                "c (10.0.0.3:10269)"
            ]
        );
        settings.leader_election = false;
        assert_eq!(ranked(&settings), [""; 0]);
        (settings.leaders, settings.candidates) = Default::default();
        assert_eq!(ranked(&settings), ["z (10.0.0.26:10269)"]);
        settings.pool.clear();
        assert_eq!(ranked(&settings), [""; 0]);
    }

    #[test]
    fn a_lost_leader_is_replaced_at_once_and_a_returning_one_waits() {
        let mut looker = Looker::new(3);
        assert_eq!(looker.sees(0, &[Sight::Unknown, UP, UP]), None);
        assert_eq!(looker.sees(0, &[UP, UP, UP]).unwrap(), "n0");
        assert_eq!(looker.sees(1, &[Sight::Silent, UP, UP]).unwrap(), "n1");
        assert_eq!(looker.sees(2, &[UP, UP, UP]).unwrap(), "n1");
        assert_eq!(looker.sees(6, &[UP, UP, UP]).unwrap(), "n1");
        assert_eq!(looker.sees(7, &[UP, UP, UP]).unwrap(), "n0");
        // Its link alone is lost; and comes and goes.
        assert_eq!(looker.sees(8, &[CUT, UP, UP]).unwrap(), "n1");
        assert_eq!(looker.sees(9, &[UP, UP, UP]).unwrap(), "n1");
        assert_eq!(looker.sees(13, &[CUT, UP, UP]).unwrap(), "n1");
        assert_eq!(looker.sees(14, &[UP, UP, UP]).unwrap(), "n1");
        assert_eq!(looker.sees(18, &[UP, UP, UP]).unwrap(), "n1");
        assert_eq!(looker.sees(19, &[UP, UP, UP]).unwrap(), "n0");
        assert_eq!(looker.sees(20, &[Sight::Silent; 3]), None);
    }

    #[test]
    fn a_pool_that_is_cut_as_a_whole_goes_by_the_newest_data() {
        let mut looker = Looker::new(3);
        let all = [seen(true, 7), seen(true, 9), seen(true, 9)];
        assert_eq!(looker.sees(0, &all).unwrap(), "n0");
        let all = [seen(false, 7), seen(false, 9), seen(false, 9)];
        assert_eq!(looker.sees(1, &all).unwrap(), "n0");
        assert_eq!(looker.sees(6, &all).unwrap(), "n1");
        // Who starts now sees it the same way.
        assert_eq!(Looker::new(3).sees(6, &all).unwrap(), "n1");
        assert_eq!(Looker::new(3).sees(6, &[CUT, CUT, Sight::Unknown]), None);
    }

    #[test]
    fn who_has_a_link_does_not_ask_a_leader_without() {
        let nodes = nodes(2);
        let decide = |me: &str, link, sights: &[Sight]| {
            let view = View {
                me,
                link,
                candidates: &nodes,
                sights,
            };
            Election::default().decide(Instant::now(), &view)
        };
        assert_eq!(decide("x", true, &[CUT, CUT]), Role::Alone);
        assert_eq!(
            decide("x", true, &[UP, CUT]),
            Role::Follower(nodes[0].clone())
        );
        assert_eq!(
            decide("x", false, &[CUT, CUT]),
            Role::Follower(nodes[0].clone())
        );
        assert_eq!(decide("n0", false, &[CUT, CUT]), Role::Leader);
        assert_eq!(decide("n1", true, &[CUT, UP]), Role::Leader);
        assert_eq!(decide("n1", true, &[Sight::Silent; 2]), Role::Alone);
    }

    fn sight() -> impl Strategy<Value = Sight> {
        prop_oneof![
            1 => Just(Sight::Unknown),
            2 => Just(Sight::Silent),
            5 => (any::<bool>(), 0u64..3).prop_map(|(link, revision)| seen(link, revision)),
        ]
    }

    proptest! {
        /// Nodes that see the same, one after the other, go by the same leader, of whom there is one; it answers, and it has a link
        /// if any has.
        #[test]
        fn the_same_view_has_one_leader(
            views in proptest::collection::vec((0u64..8, proptest::collection::vec(sight(), 4)), 1..30),
        ) {
            let nodes = nodes(4);
            let start = Instant::now();
            let names = ["n0", "n1", "n2", "n3", "other"];
            let mut elections = [(); 5].map(|()| Election::default());
            let mut second = 0;
            for (pause, sights) in views {
                second += pause;
                let now = start + Duration::from_secs(second);
                let mut leaders = Vec::new();
                for (election, me) in elections.iter_mut().zip(names) {
                    let view = View { me, link: false, candidates: &nodes, sights: &sights };
                    if election.decide(now, &view) == Role::Leader {
                        leaders.push(me);
                    }
                }
                let current = elections[0].current().map(str::to_owned);
                prop_assert!(elections.iter().all(|e| e.current() == current.as_deref()));
                prop_assert_eq!(leaders.first().copied(), current.as_deref());
                prop_assert!(leaders.len() <= 1);
                if let Some(current) = &current {
                    let rank = nodes.iter().position(|n| *n.node == **current).unwrap();
                    prop_assert!(sights[rank].answers());
                    prop_assert!(sights[rank].links() || !sights.iter().any(|s| s.links()));
                }
            }
        }

        /// Whatever was before, a view that stays leads to its best candidate, and stays there.
        #[test]
        fn there_is_progress(
            before in proptest::collection::vec(proptest::collection::vec(sight(), 4), 0..6),
            last in proptest::collection::vec(sight(), 4),
        ) {
            let mut looker = Looker::new(4);
            for sights in &before {
                looker.sees(1, sights);
            }
            let known: Vec<Sight> = last
                .iter()
                .map(|s| if *s == Sight::Unknown { Sight::Silent } else { *s })
                .collect();
            let wanted = best(&known).map(|rank| format!("n{rank}"));
            looker.sees(10, &known);
            let steady = 10 + STEADY.as_secs();
            prop_assert_eq!(looker.sees(steady, &known), wanted.clone());
            prop_assert_eq!(looker.sees(steady + 100, &known), wanted);
            prop_assert_eq!(looker.election.due(), None);
        }

        /// Nobody is kept in touch with for nothing, and whoever is gone by is.
        #[test]
        fn few_are_kept_in_touch_with(sights in proptest::collection::vec(sight(), 0..MOST_CANDIDATES)) {
            let chosen = best(&sights);
            let count = reach(&sights, chosen);
            prop_assert!(count <= sights.len());
            prop_assert!(chosen.is_none_or(|rank| rank < count));
            if chosen == Some(0) && sights[0].links() {
                prop_assert!(count <= 2);
            }
        }
    }
}
