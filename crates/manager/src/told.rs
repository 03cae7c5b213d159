//! What was told already: an event that nobody acted upon is not told again at every look.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// The most that is remembered; then everything may be told once more.
const MOST: usize = 10_000;

/// What was told last, by whom it is about.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<HashMap<String, String>>);

impl Told {
    /// Whether `what` differs from what was told last about `about`; nothing to tell is remembered as such.
    pub(crate) fn is_news(&self, about: &str, what: &str) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if what.is_empty() {
            told.remove(about);
            return false;
        }
        if told.get(about).is_some_and(|known| known == what) {
            return false;
        }
        if told.len() >= MOST {
            told.clear();
        }
        told.insert(about.to_owned(), what.to_owned());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_told_once() {
        let told = Told::default();
        assert!(told.is_news("a", "x") && !told.is_news("a", "x"));
        assert!(told.is_news("b", "x") && told.is_news("a", "y"));
        assert!(!told.is_news("a", "") && told.is_news("a", "y"));
        for other in 0..MOST {
            told.is_news(&other.to_string(), "z");
        }
        assert!(told.0.lock().unwrap().len() <= MOST);
    }
}
