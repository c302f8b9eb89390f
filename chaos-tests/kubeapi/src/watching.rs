//! A watch: one task that reads the store's events behind a cursor and writes lines.
//!
//! The task holds no queue but a few lines. A client that does not read falls behind the ring of the store
//! and is closed with 410.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::auth::{Attributes, User};
use crate::error::ApiError;
use crate::faults::{Fault, Faults};
use crate::selectors::Selector;
use crate::store::{Cursor, Event, EventKind, Next, Store, Stored};
use crate::view::View;

/// Lines between the task and the connection.
pub(crate) const QUEUE: usize = 64;
/// Events taken from the store at a time, so that the lock is never held long.
const BATCH: usize = 256;

/// What one watch shows to whom.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) store: Store,
    pub(crate) faults: Faults,
    pub(crate) user: User,
    pub(crate) what: Attributes,
    pub(crate) view: View,
    pub(crate) namespace: String,
    pub(crate) selector: Selector,
    /// Objects that are sent as ADDED first.
    pub(crate) initial: Vec<Arc<Stored>>,
    /// A bookmark marks the end of `initial`.
    pub(crate) mark_end: bool,
    pub(crate) bookmarks: Option<Duration>,
    pub(crate) deadline: Instant,
    pub(crate) shutdown: CancellationToken,
    /// Events that go out again before new ones.
    pub(crate) replay: Vec<Arc<Event>>,
}

/// The stream has ended, or must.
struct Ended;

type Lines = mpsc::Sender<Result<Bytes, io::Error>>;

impl Watch {
    /// Runs until the client goes, the time is over, or the server stops.
    pub(crate) async fn run(self, mut cursor: Cursor, lines: Lines) {
        let _ = self.stream(&mut cursor, &lines).await;
    }

    async fn stream(&self, cursor: &mut Cursor, lines: &Lines) -> Result<(), Ended> {
        for stored in &self.initial {
            self.send_event(lines, self.view.frame(EventKind::Added, stored)).await?;
        }
        if self.mark_end {
            self.bookmark(lines, cursor.rv, true).await?;
        }
        for event in &self.replay {
            if let Some(frame) = self.translate(event) {
                self.send_event(lines, frame).await?;
            }
        }
        let mut changes = self.faults.changes();
        let period = self.bookmarks.unwrap_or(Duration::from_secs(3600));
        let mut ticks = interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut due, mut over) = (false, false);
        loop {
            changes.borrow_and_update();
            if self.faults.stands(&self.what, &self.user, |f| matches!(f, Fault::Freeze)) {
                tokio::select! {
                    _ = changes.changed() => continue,
                    () = lines.closed() => return Err(Ended),
                    () = self.shutdown.cancelled() => return Err(Ended),
                }
            }
            if self.strikes(|f| matches!(f, Fault::GoneStream)) {
                return self.gone(lines, "injected fault: too old resource version").await;
            }
            let events = match self.store.next(cursor, BATCH) {
                Next::Events(events) => events,
                Next::TooOld => return self.gone(lines, "the watcher is too slow").await,
                Next::Closed => return Err(Ended),
            };
            for event in &events {
                if let Some(frame) = self.translate(event) {
                    self.send_event(lines, frame).await?;
                }
            }
            if !events.is_empty() {
                continue;
            }
            // Everything up to the present is sent, so a bookmark may say so. The real server sends a last one before
            // it closes too.
            if std::mem::take(&mut due) || over {
                self.periodic(lines, cursor.rv).await?;
            }
            if over {
                return Ok(());
            }
            tokio::select! {
                rung = cursor.bell.changed() => if rung.is_err() { return Err(Ended) },
                _ = changes.changed() => {}
                _ = ticks.tick() => due = true,
                () = sleep_until(self.deadline) => over = true,
                () = lines.closed() => return Err(Ended),
                () = self.shutdown.cancelled() => return Err(Ended),
            }
        }
    }

    fn strikes(&self, is: impl Fn(&Fault) -> bool) -> bool {
        self.faults.take(&self.what, &self.user, |f| is(f).then_some(())).is_some()
    }

    fn sees(&self, object: &Stored) -> bool {
        (self.namespace.is_empty() || object.value["metadata"]["namespace"] == self.namespace.as_str())
            && (self.selector.is_empty() || self.selector.matches(&object.value))
    }

    /// The line for this watch. An object that begins or ceases to match comes or goes.
    fn translate(&self, event: &Event) -> Option<Bytes> {
        let before = event.old.as_ref().is_some_and(|old| self.sees(old));
        let after = event.kind != EventKind::Deleted && self.sees(&event.object);
        let kind = match (before, after) {
            (false, false) => return None,
            (false, true) => EventKind::Added,
            (true, true) => EventKind::Modified,
            (true, false) => EventKind::Deleted,
        };
        if kind == event.kind {
            return Some(self.view.shared_frame(event));
        }
        if kind == EventKind::Deleted {
            // The last state that matched, with the version of the change.
            let mut value = event.old.as_ref()?.value.clone();
            value["metadata"]["resourceVersion"] = json!(event.rv.to_string());
            return Some(self.view.frame(kind, &Stored::new(value, event.rv)));
        }
        Some(self.view.frame(kind, &event.object))
    }

    async fn send(&self, lines: &Lines, line: Result<Bytes, io::Error>) -> Result<(), Ended> {
        tokio::select! {
            sent = lines.send(line) => sent.map_err(|_| Ended),
            () = self.shutdown.cancelled() => Err(Ended),
        }
    }

    /// Sends an event's line, or what faults make of it.
    async fn send_event(&self, lines: &Lines, line: Bytes) -> Result<(), Ended> {
        let struck = self.faults.take_counted(&self.what, &self.user);
        let half = line.slice(..line.len() / 2);
        match struck {
            Some(Cut::Drop) => {
                self.send(lines, Ok(half)).await?;
                self.send(lines, Err(io::ErrorKind::ConnectionReset.into())).await?;
                Err(Ended)
            }
            Some(Cut::Truncate) => {
                self.send(lines, Ok(half)).await?;
                self.send(lines, Ok(Bytes::from_static(b"\n"))).await
            }
            None => self.send(lines, Ok(line)).await,
        }
    }

    async fn periodic(&self, lines: &Lines, rv: u64) -> Result<(), Ended> {
        let off = self.faults.stands(&self.what, &self.user, |f| matches!(f, Fault::NoBookmarks));
        if self.bookmarks.is_none() || off {
            return Ok(());
        }
        self.bookmark(lines, rv, false).await
    }

    async fn bookmark(&self, lines: &Lines, rv: u64, end: bool) -> Result<(), Ended> {
        self.send(lines, Ok(self.view.bookmark(rv, end))).await
    }

    /// An ERROR event, and the end.
    async fn gone(&self, lines: &Lines, message: &str) -> Result<(), Ended> {
        let status: Value = ApiError::Expired { message: message.to_owned() }.status();
        let line = crate::store::frame("ERROR", status.to_string().as_bytes());
        self.send(lines, Ok(line)).await
    }
}

/// What a fault does to one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    Drop,
    Truncate,
}
