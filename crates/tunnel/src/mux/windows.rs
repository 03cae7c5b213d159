//! How much each proxied connection may have under way: as much as a long fat link needs while there are few, and so that all of them
//! together stay within a bound when there are many. So no reader that stalls takes anything from the others, and none needs to be cut.

/// What a link of 100 ms needs for 80 MiB/s.
pub(crate) const MOST: u32 = 8 << 20;
/// Enough for a terminal; at 50 ms still 600 KiB/s.
pub(crate) const LEAST: u32 = 32 << 10;

/// The window of each of `count` connections: a power of two, so that it seldom changes. What was granted before stays granted, hence
/// the bound is passed for a round trip when many are opened at once.
pub(crate) fn window(count: usize, memory: usize) -> u32 {
    let share = memory / count.max(1).next_power_of_two();
    u32::try_from(share).unwrap_or(MOST).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn all_together_stay_within_the_bound(count in 1usize..100_000, memory in 1usize << 20..1 << 30) {
            let each = window(count, memory);
            prop_assert!((LEAST..=MOST).contains(&each));
            prop_assert!(each == LEAST || each as usize * count <= memory);
        }

        #[test]
        fn it_changes_only_where_the_driver_looks(count in 2usize..100_000) {
            let memory = 64 << 20;
            if window(count, memory) != window(count - 1, memory) {
                prop_assert!((count - 1).is_power_of_two());
            }
        }
    }
}
