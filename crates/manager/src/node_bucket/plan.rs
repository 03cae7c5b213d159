//! Which node is in which bucket. Pure.
//!
//! Nodes stay where they are. As few buckets as possible are written: nodes without a place go first to buckets that are written
//! anyway, then to the one of the others that they fill best, then to new ones.

use std::collections::BTreeSet;

/// A bucket as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    pub(super) name: String,
    pub(super) nodes: Vec<String>,
    /// Whether all else of it is as it should be.
    pub(super) sound: bool,
}

/// A bucket as it is to be written; without a name: a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) name: Option<String>,
    pub(super) nodes: Vec<String>,
}

/// What is to be done, in this order: a node that changes its bucket is for a moment in both, never in none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) writes: Vec<Write>,
    pub(super) delete: Vec<String>,
}

struct Place {
    name: Option<String>,
    nodes: Vec<String>,
    written: bool,
    gains: bool,
}

impl Place {
    fn free(&self, most: usize) -> usize {
        most.saturating_sub(self.nodes.len())
    }

    /// Takes the first of `homeless` for which there is room.
    fn fill(&mut self, homeless: &mut Vec<String>, most: usize) {
        let count = self.free(most).min(homeless.len());
        if count > 0 {
            self.nodes.extend(homeless.drain(..count));
            self.written = true;
            self.gains = true;
        }
    }
}

/// Puts every one of `members` into exactly one bucket of at most `most` (at least 1) nodes.
pub(super) fn plan(buckets: Vec<Bucket>, members: &BTreeSet<String>, most: usize) -> Plan {
    let most = most.max(1);
    let (mut placed, mut homeless) = (BTreeSet::new(), Vec::new());
    let mut places: Vec<Place> = buckets
        .into_iter()
        .map(
            |Bucket {
                 name,
                 mut nodes,
                 sound,
             }| {
                let before = nodes.len();
                nodes.retain(|node| members.contains(node) && placed.insert(node.clone()));
                if nodes.len() > most {
                    homeless.extend(nodes.split_off(most));
                }
                Place {
                    name: Some(name),
                    written: !sound || nodes.len() != before,
                    nodes,
                    gains: false,
                }
            },
        )
        .collect();
    homeless.extend(members.difference(&placed).cloned());
    // Those that are written anyway and stay, the fullest first.
    places.sort_by_key(|place| std::cmp::Reverse(place.nodes.len()));
    for place in places
        .iter_mut()
        .filter(|place| place.written && !place.nodes.is_empty())
    {
        place.fill(&mut homeless, most);
    }
    while !homeless.is_empty() {
        let fits = |place: &&mut Place| {
            !place.written && !place.nodes.is_empty() && place.free(most) >= homeless.len()
        };
        let best = places
            .iter_mut()
            .filter(fits)
            .min_by_key(|place| place.free(most));
        // Rather than to delete one bucket and make another.
        let best = match best {
            Some(best) => Some(best),
            None => places.iter_mut().find(|place| place.nodes.is_empty()),
        };
        if let Some(best) = best {
            best.fill(&mut homeless, most);
            continue;
        }
        let mut new = Place {
            name: None,
            nodes: Vec::new(),
            written: true,
            gains: true,
        };
        new.fill(&mut homeless, most);
        places.push(new);
    }
    let mut plan = Plan::default();
    places.sort_by_key(|place| !place.gains);
    for mut place in places {
        match place.name {
            Some(name) if place.nodes.is_empty() => plan.delete.push(name),
            name if place.written => {
                place.nodes.sort_unstable();
                plan.writes.push(Write {
                    name,
                    nodes: place.nodes,
                });
            }
            _ => {}
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(names: &str) -> BTreeSet<String> {
        names.chars().map(String::from).collect()
    }

    fn bucket(name: &str, nodes: &str) -> Bucket {
        Bucket {
            name: name.into(),
            nodes: nodes.chars().map(String::from).collect(),
            sound: true,
        }
    }

    /// The plan in short: `name:nodes`, and `-name` for what is deleted.
    fn planned(buckets: &[Bucket], members: &str, most: usize) -> Vec<String> {
        let plan = plan(buckets.to_vec(), &set(members), most);
        let writes = plan.writes.iter().map(|write| {
            format!(
                "{}:{}",
                write.name.as_deref().unwrap_or_default(),
                write.nodes.concat()
            )
        });
        writes
            .chain(plan.delete.iter().map(|name| format!("-{name}")))
            .collect()
    }

    #[test]
    fn nodes_go_where_the_fewest_buckets_are_written() {
        let buckets = [bucket("x", "abcd"), bucket("y", "efg"), bucket("z", "hi")];
        assert_eq!(planned(&buckets, "abcdefghi", 5), [""; 0]);
        assert_eq!(
            planned(&buckets, "abcdefghij", 5),
            ["x:abcdj"],
            "the one that it fills best"
        );
        assert_eq!(planned(&buckets, "abcdefghijkl", 5), ["z:hijkl"]);
        assert_eq!(
            planned(&buckets, "abcdefghijklm", 5),
            [":jklm"],
            "one new rather than two that are there"
        );
        assert_eq!(
            planned(&buckets, "abcdefgij", 5),
            ["z:ij"],
            "written anyway"
        );
        assert_eq!(planned(&buckets, "abcdefg", 5), ["-z"]);
        assert_eq!(
            planned(&buckets, "abcdefgklm", 5),
            ["z:klm"],
            "rather than to delete it and make another"
        );
        assert_eq!(planned(&[], "abc", 2), [":ab", ":c"]);
    }

    #[test]
    fn what_is_too_large_or_twice_is_put_right() {
        assert_eq!(
            planned(&[bucket("x", "abcdef")], "abcdef", 4),
            [":ef", "x:abcd"],
            "a lower limit"
        );
        let twice = [bucket("x", "abc"), bucket("y", "cd")];
        assert_eq!(planned(&twice, "abcd", 3), ["y:d"]);
        let unsound = Bucket {
            sound: false,
            ..bucket("x", "ab")
        };
        assert_eq!(planned(&[unsound], "ab", 3), ["x:ab"]);
        assert_eq!(planned(&[bucket("x", "")], "", 3), ["-x"]);
    }

    fn apply(buckets: &mut Vec<Bucket>, plan: Plan) {
        buckets.retain(|bucket| !plan.delete.contains(&bucket.name));
        for write in plan.writes {
            match buckets
                .iter_mut()
                .find(|bucket| Some(&bucket.name) == write.name.as_ref())
            {
                Some(bucket) => bucket.nodes = write.nodes,
                None => {
                    let name = format!("b{}", fastrand::u64(..));
                    buckets.push(Bucket {
                        name,
                        nodes: write.nodes,
                        sound: true,
                    });
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_node_is_in_exactly_one_bucket_and_few_are_written(
            steps in prop::collection::vec((prop::collection::btree_set(0..40u8, 0..40), 1..9usize), 1..12),
        ) {
            let mut buckets: Vec<Bucket> = Vec::new();
            let mut limit = usize::MAX;
            for (members, most) in steps {
                let members: BTreeSet<String> = members.iter().map(|n| format!("n{n:02}")).collect();
                let before: BTreeSet<String> = buckets.iter().flat_map(|b| b.nodes.clone()).collect();
                let holding: usize = buckets.iter().filter(|b| b.nodes.iter().any(|n| !members.contains(n))).count();
                let plan = plan(buckets.clone(), &members, most);
                if most >= limit {
                    let joined = members.difference(&before).count();
                    let touched = plan.writes.len() + plan.delete.len();
                    prop_assert!(touched <= holding + joined.div_ceil(most) + 1, "{touched} for {holding} and {joined}");
                    let moved = plan.writes.iter().flat_map(|w| w.nodes.iter().map(move |n| (n, &w.name)))
                        .filter(|(n, name)| buckets.iter().any(|b| b.nodes.contains(n) && Some(&b.name) != name.as_ref())).count();
                    prop_assert_eq!(moved, 0, "nodes stay where they are");
                }
                limit = most;
                apply(&mut buckets, plan);
                let all: Vec<&String> = buckets.iter().flat_map(|b| &b.nodes).collect();
                prop_assert_eq!(all.len(), members.len());
                prop_assert_eq!(all.into_iter().cloned().collect::<BTreeSet<_>>(), members.clone());
                prop_assert!(buckets.iter().all(|b| (1..=most).contains(&b.nodes.len())));
                prop_assert_eq!(super::plan(buckets.clone(), &members, most), Plan::default());
            }
        }
    }
}
