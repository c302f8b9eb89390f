//! Faults that a test switches on and off while the server runs, and counters of what it was asked.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use crate::auth::{Attributes, User, Verb};
use crate::store::Snapshot;
use crate::util::lock;
use crate::watching::Cut;

/// Which requests a fault meets. What is `None` matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Verb.
    pub verb: Option<Verb>,
    /// `pods`, or with subresource `pods/status`.
    pub resource: Option<String>,
    /// Namespace of the request.
    pub namespace: Option<String>,
    /// Name of the object.
    pub name: Option<String>,
    /// Name of the user.
    pub user: Option<String>,
    /// Beginning of the path, for what is no resource.
    pub path_prefix: Option<String>,
}

impl Filter {
    /// Every request.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests of `verb` on `resource` (plural, or `plural/subresource`).
    #[must_use]
    pub fn on(verb: Verb, resource: &str) -> Self {
        Self { verb: Some(verb), resource: Some(resource.to_owned()), ..Self::default() }
    }

    /// All requests on `resource`.
    #[must_use]
    pub fn resource(resource: &str) -> Self {
        Self { resource: Some(resource.to_owned()), ..Self::default() }
    }

    /// The same, of one user only.
    #[must_use]
    pub fn of_user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    fn matches(&self, what: &Attributes, user: &User) -> bool {
        let is = |wanted: &Option<String>, given: &str| wanted.as_ref().is_none_or(|w| w == given);
        self.verb.is_none_or(|v| v == what.verb)
            && self.resource.as_ref().is_none_or(|r| *r == what.full_resource())
            && is(&self.namespace, &what.namespace)
            && is(&self.name, &what.name)
            && is(&self.user, &user.name)
            && self.path_prefix.as_ref().is_none_or(|p| what.path.starts_with(p.as_str()))
    }
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The answer comes later by this much.
    Latency(Duration),
    /// The request is answered with this status and not done. 503, 429 and 504 with `Retry-After` are what kube's
    /// client retries.
    Status {
        /// HTTP status code, such as 403, 429, 500 or 503.
        code: u16,
        /// `Retry-After`, in whole seconds.
        retry_after: Option<Duration>,
    },
    /// The connection ends without an answer; the request is not done.
    Reset,
    /// The connection ends without an answer, but the write is done: the client cannot know.
    ResetAfterWrite,
    /// A watch is cut in the middle of the event that follows after this many.
    DropMidEvent {
        /// Events that are sent whole before.
        after: usize,
    },
    /// One line of a watch is cut in half, and the watch goes on.
    TruncateLine {
        /// Events that are sent whole before.
        after: usize,
    },
    /// A watch begins with this many old events again, with their old versions.
    Replay {
        /// How many events.
        events: usize,
    },
    /// The request to watch is answered with HTTP 410.
    GoneHttp,
    /// A watch gets an ERROR event with code 410; a running one too.
    GoneStream,
    /// Get and list show this past state, with its old version.
    Stale(Snapshot),
    /// A watch stays open and silent, beyond its time limit. A removal lets it go on. Any other request is never answered.
    Freeze,
    /// A watch sends no bookmarks, but for the end of initial events.
    NoBookmarks,
    /// A continue token is answered with 410.
    ExpireContinue,
}

/// Names an injected fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultId(u64);

#[derive(Debug)]
struct Rule {
    filter: Filter,
    fault: Fault,
    /// `None`: until it is removed.
    left: Option<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    rules: BTreeMap<FaultId, Rule>,
    hits: BTreeMap<FaultId, u64>,
    counters: BTreeMap<(Verb, String), u64>,
    served: BTreeMap<(Verb, String), Arc<Meter>>,
    refusals: Vec<(String, String)>,
    refuse: bool,
}

/// Who is refused again and again is known by then.
const MAX_REFUSALS: usize = 1000;

/// What went out in bodies, while watches still run.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    bytes: AtomicU64,
    frames: AtomicU64,
}

impl Meter {
    /// One more piece of a body: a line of a watch, all of another answer.
    pub(crate) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.frames.fetch_add(1, Ordering::Relaxed);
    }
}

/// What was served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Served {
    /// Bytes of bodies, as JSON and without TLS.
    pub bytes: u64,
    /// Lines of watches (events and bookmarks); of other requests, answers.
    pub frames: u64,
}

/// Handle on the faults of one server; clones share them.
#[derive(Clone)]
pub struct Faults {
    inner: Arc<Mutex<Inner>>,
    changed: watch::Sender<u64>,
    /// Moves when all connections must end.
    cut: watch::Sender<u64>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        lock(&self.inner).fmt(f)
    }
}

impl Default for Faults {
    fn default() -> Self {
        Self { inner: Arc::default(), changed: watch::Sender::new(0), cut: watch::Sender::new(0) }
    }
}

impl Faults {
    /// Switches a fault on until it is removed.
    pub fn inject(&self, filter: Filter, fault: Fault) -> FaultId {
        self.add(filter, fault, None)
    }

    /// Switches a fault on for the next `times` requests (or watches) that it meets.
    pub fn inject_times(&self, times: u64, filter: Filter, fault: Fault) -> FaultId {
        self.add(filter, fault, Some(times))
    }

    fn add(&self, filter: Filter, fault: Fault, left: Option<u64>) -> FaultId {
        let mut inner = lock(&self.inner);
        let id = FaultId(inner.next);
        inner.next += 1;
        inner.rules.insert(id, Rule { filter, fault, left });
        drop(inner);
        self.changed.send_modify(|n| *n += 1);
        id
    }

    /// Switches a fault off.
    pub fn remove(&self, id: FaultId) {
        lock(&self.inner).rules.remove(&id);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Switches all faults off, refused connections too.
    pub fn clear(&self) {
        let mut inner = lock(&self.inner);
        inner.rules.clear();
        inner.refuse = false;
        drop(inner);
        self.changed.send_modify(|n| *n += 1);
    }

    /// How often a fault has struck.
    #[must_use]
    pub fn hits(&self, id: FaultId) -> u64 {
        lock(&self.inner).hits.get(&id).copied().unwrap_or(0)
    }

    /// New connections are reset, and the open ones end, as if nobody listened.
    pub fn refuse_connections(&self, refuse: bool) {
        lock(&self.inner).refuse = refuse;
        if refuse {
            self.drop_connections();
        }
    }

    /// All open connections end at once; new ones are served.
    pub fn drop_connections(&self) {
        self.cut.send_modify(|n| *n += 1);
    }

    /// How often `resource` (plural, or `plural/subresource`) was asked for with `verb`, faulty or not.
    #[must_use]
    pub fn requests(&self, verb: Verb, resource: &str) -> u64 {
        lock(&self.inner).counters.get(&(verb, resource.to_owned())).copied().unwrap_or(0)
    }

    /// All counters, by verb and `plural[/subresource]` (empty for discovery and health).
    #[must_use]
    pub fn all_requests(&self) -> BTreeMap<(Verb, String), u64> {
        lock(&self.inner).counters.clone()
    }

    /// What was served, by verb and `plural[/subresource]`, running watches included.
    #[must_use]
    pub fn served(&self) -> BTreeMap<(Verb, String), Served> {
        let inner = lock(&self.inner);
        let read = |(what, meter): (&(Verb, String), &Arc<Meter>)| {
            let (bytes, frames) = (meter.bytes.load(Ordering::Relaxed), meter.frames.load(Ordering::Relaxed));
            (what.clone(), Served { bytes, frames })
        };
        inner.served.iter().map(read).collect()
    }

    /// User and message of each request that rights or policies refused, the first ones.
    #[must_use]
    pub fn refusals(&self) -> Vec<(String, String)> {
        lock(&self.inner).refusals.clone()
    }

    /// Sets all counters to zero.
    pub fn reset_counters(&self) {
        let mut inner = lock(&self.inner);
        inner.counters.clear();
        for meter in inner.served.values() {
            meter.bytes.store(0, Ordering::Relaxed);
            meter.frames.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn meter(&self, what: &Attributes) -> Arc<Meter> {
        let key = (what.verb, what.full_resource());
        Arc::clone(lock(&self.inner).served.entry(key).or_default())
    }

    pub(crate) fn note_refusal(&self, user: &User, message: String) {
        let refusals = &mut lock(&self.inner).refusals;
        if refusals.len() < MAX_REFUSALS {
            refusals.push((user.name.clone(), message));
        }
    }

    pub(crate) fn count(&self, what: &Attributes) {
        *lock(&self.inner).counters.entry((what.verb, what.full_resource())).or_default() += 1;
    }

    pub(crate) fn refuses(&self) -> bool {
        lock(&self.inner).refuse
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn cuts(&self) -> watch::Receiver<u64> {
        self.cut.subscribe()
    }

    /// The first fault for this request that `choose` takes; it counts as struck.
    pub(crate) fn take<T>(
        &self,
        what: &Attributes,
        user: &User,
        choose: impl Fn(&Fault) -> Option<T>,
    ) -> Option<T> {
        let mut inner = lock(&self.inner);
        let (id, chosen) = inner
            .rules
            .iter()
            .filter(|(_, rule)| rule.filter.matches(what, user))
            .find_map(|(id, rule)| choose(&rule.fault).map(|chosen| (*id, chosen)))?;
        *inner.hits.entry(id).or_default() += 1;
        if let Some(rule) = inner.rules.get_mut(&id)
            && let Some(left) = &mut rule.left
        {
            *left -= 1;
            if *left == 0 {
                inner.rules.remove(&id);
            }
        }
        Some(chosen)
    }

    /// What a fault does to the event that is about to be sent. Faults that spare some events count them down.
    pub(crate) fn take_counted(&self, what: &Attributes, user: &User) -> Option<Cut> {
        let mut inner = lock(&self.inner);
        let rule = inner.rules.values_mut().find(|rule| {
            matches!(rule.fault, Fault::DropMidEvent { .. } | Fault::TruncateLine { .. })
                && rule.filter.matches(what, user)
        })?;
        if let Fault::DropMidEvent { after } | Fault::TruncateLine { after } = &mut rule.fault
            && *after > 0
        {
            *after -= 1;
            return None;
        }
        drop(inner);
        self.take(what, user, |fault| {
            if matches!(fault, Fault::DropMidEvent { after: 0 }) {
                return Some(Cut::Drop);
            }
            matches!(fault, Fault::TruncateLine { after: 0 }).then_some(Cut::Truncate)
        })
    }

    /// Whether a fault that `is` says stands for this request; does not count.
    pub(crate) fn stands(&self, what: &Attributes, user: &User, is: impl Fn(&Fault) -> bool) -> bool {
        lock(&self.inner).rules.values().any(|rule| is(&rule.fault) && rule.filter.matches(what, user))
    }
}
