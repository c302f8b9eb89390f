//! Objects about which the API server has contradicted itself, and what has to be asked of them. Nobody is asked here.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Before a question that came to nothing is asked again; the pause doubles each time.
const FIRST: Duration = Duration::from_millis(100);
/// No pause is longer.
const LONGEST: Duration = Duration::from_secs(10);

/// What to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question<K> {
    /// Of which object.
    pub(super) key: K,
    /// To be waited before it is asked.
    pub(super) pause: Duration,
    /// Which doubt it is about: an object may be doubted, beyond doubt, and doubted again.
    number: u64,
}

#[derive(Debug)]
struct Open {
    number: u64,
    /// Doubted once more since its question was asked, of which the answer may know nothing.
    again: bool,
}

/// What is in doubt. There is one question about an object at a time.
#[derive(Debug)]
pub(super) struct Doubts<K> {
    open: BTreeMap<K, Open>,
    next: u64,
}

impl<K> Default for Doubts<K> {
    fn default() -> Self {
        Self { open: BTreeMap::new(), next: 0 }
    }
}

impl<K: Ord + Clone> Doubts<K> {
    /// The watch has told of one object, or (none) of all, which brought the cache to doubt some of them. Returns what to ask.
    pub(super) fn told(&mut self, of: Option<&K>, doubted: Vec<K>) -> Vec<Question<K>> {
        let still: BTreeSet<&K> = doubted.iter().collect();
        match of {
            // It is believed, and so are its successors: an answer that is on its way may be older.
            Some(key) if !still.contains(key) => {
                self.open.remove(key);
            }
            Some(_) => {}
            None => self.open.retain(|key, _| still.contains(key)),
        }
        let mut questions = Vec::new();
        for key in doubted {
            match self.open.entry(key) {
                Entry::Occupied(mut open) => open.get_mut().again = true,
                Entry::Vacant(place) => {
                    let number = self.next;
                    self.next += 1;
                    questions.push(Question { key: place.key().clone(), pause: Duration::ZERO, number });
                    place.insert(Open { number, again: false });
                }
            }
        }
        questions
    }

    /// Does the answer to this question count?
    pub(super) fn is_open(&self, question: &Question<K>) -> bool {
        self.open.get(&question.key).is_some_and(|open| open.number == question.number)
    }

    /// A question that is open was answered. Returns it if it has to be asked once more.
    pub(super) fn settled(&mut self, question: Question<K>) -> Option<Question<K>> {
        let open = self.open.get_mut(&question.key)?;
        if std::mem::take(&mut open.again) {
            return Some(Question { pause: Duration::ZERO, ..question });
        }
        self.open.remove(&question.key);
        None
    }

    /// A question that is open came to nothing. Returns it, to be asked again after a pause.
    pub(super) fn failed(&mut self, question: Question<K>) -> Question<K> {
        if let Some(open) = self.open.get_mut(&question.key) {
            // Whatever was doubted until now is older than what will be asked.
            open.again = false;
        }
        Question { pause: (question.pause * 2).clamp(FIRST, LONGEST), ..question }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_only_while_the_watch_has_not_told_of_its_object() {
        let mut doubts = Doubts::default();
        let asked = doubts.told(None, vec!["a", "b"]);
        assert_eq!(asked.iter().map(|question| question.key).collect::<Vec<_>>(), ["a", "b"]);
        assert!(doubts.told(Some(&"a"), vec![]).is_empty());
        assert_eq!([&asked[0], &asked[1]].map(|question| doubts.is_open(question)), [false, true]);
        let later = doubts.told(Some(&"a"), vec!["a"]);
        assert_eq!([&asked[0], &later[0]].map(|question| doubts.is_open(question)), [false, true]);
        // A list that knows both.
        assert!(doubts.told(None, vec![]).is_empty());
        assert!(!doubts.is_open(&asked[1]) && !doubts.is_open(&later[0]));
    }

    #[test]
    fn what_is_doubted_again_before_the_answer_is_asked_once_more_after_it() {
        let mut doubts = Doubts::default();
        let question = doubts.told(None, vec!["a"]).remove(0);
        for _ in 0..2 {
            assert!(doubts.told(Some(&"a"), vec!["a"]).is_empty(), "one question at a time");
        }
        assert_eq!(doubts.settled(question.clone()), Some(question.clone()));
        assert!(doubts.is_open(&question));
        assert_eq!(doubts.settled(question.clone()), None);
        assert!(!doubts.is_open(&question));
    }

    #[test]
    fn a_question_that_comes_to_nothing_is_asked_again_after_pauses_that_grow_to_a_limit() {
        let mut doubts = Doubts::default();
        let mut question = doubts.told(None, vec!["a"]).remove(0);
        for pause in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
            assert!(doubts.told(Some(&"a"), vec!["a"]).is_empty());
            question = doubts.failed(question);
            assert_eq!(question.pause, Duration::from_millis(pause));
            assert!(doubts.is_open(&question));
        }
        assert_eq!(doubts.settled(question), None, "what was doubted before it was asked is settled by it");
    }
}
