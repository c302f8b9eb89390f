//! What was sent, what arrived and what was answered, each probe under a number of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

/// Number of one probe: in its payload, or an association's tag.
pub(crate) type Token = u32;

#[derive(Debug, Default)]
struct Book {
    last: Token,
    /// Batches that are still being sent.
    sending: usize,
    awaited: BTreeSet<Token>,
    arrived: BTreeSet<Token>,
    answered: BTreeMap<Token, String>,
}

/// Shared by everybody who asks and answers.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    book: Mutex<Book>,
    changed: Condvar,
}

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("no panic under this lock")
    }

    /// Numbers that nobody had before.
    pub(crate) fn tokens(&self, count: usize) -> Vec<Token> {
        let mut book = self.book();
        (0..count)
            .map(|_| {
                book.last += 1;
                book.last
            })
            .collect()
    }

    /// Answers to these are waited for.
    pub(crate) fn await_answers(&self, tokens: impl IntoIterator<Item = Token>, batches: usize) {
        let mut book = self.book();
        book.awaited = tokens.into_iter().collect();
        book.sending = batches;
        // What is older cannot be asked about any more.
        if let Some(first) = book.awaited.first().copied() {
            let old = first.saturating_sub(100_000);
            book.arrived = book.arrived.split_off(&old);
            book.answered = book.answered.split_off(&old);
        }
    }

    /// A batch is on its way.
    pub(crate) fn sent(&self) {
        let mut book = self.book();
        book.sending = book.sending.saturating_sub(1);
        self.changed.notify_all();
    }

    /// It came to whom it was sent to, or to somebody else.
    pub(crate) fn arrived(&self, token: Token) {
        self.book().arrived.insert(token);
    }

    /// It came back, with a name.
    pub(crate) fn answered(&self, token: Token, by: String) {
        let mut book = self.book();
        book.answered.insert(token, by);
        if book.awaited.remove(&token) && book.awaited.is_empty() {
            self.changed.notify_all();
        }
    }

    /// Waits until everything is sent; the moment.
    pub(crate) fn wait_sent(&self) -> Instant {
        let mut book = self.book();
        while book.sending > 0 {
            book = self.changed.wait(book).expect("no panic under this lock");
        }
        Instant::now()
    }

    /// Waits for the awaited answers until `deadline`; those that are missing.
    pub(crate) fn wait_answers(&self, deadline: Instant) -> BTreeSet<Token> {
        let mut book = self.book();
        while !book.awaited.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            book = self.changed.wait_timeout(book, left).expect("no panic under this lock").0;
        }
        book.awaited.clone()
    }

    /// Who has answered, and whether it arrived.
    pub(crate) fn look(&self, token: Token) -> (Option<String>, bool) {
        let book = self.book();
        (book.answered.get(&token).cloned(), book.arrived.contains(&token))
    }
}
