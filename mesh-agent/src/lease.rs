//! The Lease `hawser-status` in `hawser-system`: of all agents one writes Events and status of objects that are nobody's node's.
//!
//! ```text
//!           nobody's, or unchanged for DURATION          renewed by us
//!  Follower ───────────────────────────────────► Leader ───────────────┐
//!     ▲                                            │ ▲                  │
//!     └──── another's name, or not renewed ────────┘ └──────────────────┘
//! ```
//!
//! Another's lease has run out when *we* have seen it unchanged for its whole duration: clocks of nodes need not agree. Every
//! write carries the version that was read, so of two that want it at once one is refused.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use mesh_core::name::NodeName;
use mesh_core::numbers::{LEASE_STATUS, NAMESPACE};
use tokio::sync::watch;

/// How long a lease lasts without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// How often the leader renews it, and those that stand next to it look.
const RENEW: Duration = Duration::from_secs(5);
/// How often all others look: five thousand that looked as often would be a load of their own.
const DISTANT: Duration = Duration::from_secs(300);
/// How many stand next to the leader.
const CANDIDATES: usize = 5;
/// For one request.
const DEADLINE: Duration = Duration::from_secs(4);

/// What a Lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    holder: Option<String>,
    version: String,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// There is none: make it ours.
    Create,
    /// It is ours, or nobody's any more: write it, in the version that was read.
    Write,
    /// It is another's.
    Wait,
}

/// The machine of one agent. Time is an argument.
#[derive(Debug)]
struct Election {
    me: String,
    seen: Option<(Seen, Instant)>,
    /// When what makes us the leader was last written.
    written: Option<Instant>,
}

impl Election {
    fn new(me: String) -> Self {
        Self { me, seen: None, written: None }
    }

    /// What to do about what was read.
    fn step(&mut self, found: Option<Seen>, now: Instant) -> Step {
        let Some(found) = found else {
            self.seen = None;
            return Step::Create;
        };
        let since = match &self.seen {
            Some((before, since)) if *before == found => *since,
            Some(_) | None => now,
        };
        let holder = found.holder.clone().filter(|name| !name.is_empty());
        self.seen = Some((found, since));
        match holder {
            None => Step::Write,
            Some(name) if name == self.me => Step::Write,
            Some(_) if now.duration_since(since) >= DURATION => Step::Write,
            Some(_) => Step::Wait,
        }
    }

    /// We have written it; `begun` was before the request.
    fn wrote(&mut self, begun: Instant) {
        self.written = Some(begun);
    }

    /// Somebody else has it.
    fn lost(&mut self) {
        self.written = None;
    }

    /// Until when we lead, if nothing else happens: a little less than others wait.
    fn leads_until(&self) -> Option<Instant> {
        self.written.map(|at| at + DURATION - RENEW)
    }
}

/// How often an agent looks that is at this place of all Nodes' names.
fn patience(place: usize) -> Duration {
    if place < CANDIDATES { RENEW } else { DISTANT }
}

/// Runs for ever; says whether this agent leads.
pub async fn run(
    client: Client,
    node: NodeName,
    nodes: watch::Receiver<crate::watch::Nodes>,
    leads: watch::Sender<bool>,
) {
    let api: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let mut election = Election::new(node.to_string());
    let mut trouble = String::new();
    loop {
        let begun = Instant::now();
        let turn = turn(&api, &mut election, begun);
        match tokio::time::timeout(DEADLINE, turn).await {
            Ok(Ok(())) => trouble.clear(),
            Ok(Err(error)) => say(&mut trouble, error.to_string()),
            Err(_) => say(&mut trouble, format!("no answer in {} s", DEADLINE.as_secs())),
        }
        let until = election.leads_until().filter(|until| Instant::now() < *until);
        let changed =
            leads.send_if_modified(|leads| std::mem::replace(leads, until.is_some()) != until.is_some());
        if changed {
            tracing::info!(
                lease = LEASE_STATUS,
                leads = until.is_some(),
                "Who writes Events and status of cluster-wide objects has changed"
            );
        }
        let place = nodes.borrow().nodes.range(..&node).count();
        let pause = if until.is_some() { RENEW } else { patience(place) };
        tokio::time::sleep(pause).await;
    }
}

/// Once for each new reason: while nobody holds the lease, wrong objects are told nowhere but in logs.
fn say(trouble: &mut String, reason: String) {
    if *trouble != reason {
        tracing::warn!(
            lease = LEASE_STATUS,
            namespace = NAMESPACE,
            err = reason,
            "Could not look after the lease; Events and status of cluster-wide objects may be missing"
        );
        *trouble = reason;
    }
}

async fn turn(api: &Api<Lease>, election: &mut Election, begun: Instant) -> kube::Result<()> {
    let found = api.get_opt(LEASE_STATUS).await?;
    let seen = found.as_ref().map(|lease| Seen {
        holder: lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    });
    let step = election.step(seen, begun);
    let result = match step {
        Step::Wait => {
            election.lost();
            return Ok(());
        }
        Step::Create => api.create(&PostParams::default(), &lease(&election.me, None)).await,
        Step::Write => api.replace(LEASE_STATUS, &PostParams::default(), &lease(&election.me, found)).await,
    };
    match result {
        Ok(_) => {
            election.wrote(begun);
            Ok(())
        }
        // Another was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            election.lost();
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The Lease as we write it: what was there, with our name and the present time.
fn lease(me: &str, found: Option<Lease>) -> Lease {
    let now = || Some(MicroTime(jiff::Timestamp::now()));
    let before = found.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let ours = before.holder_identity.as_deref() == Some(me);
    let metadata = found.map_or_else(
        || ObjectMeta {
            name: Some(LEASE_STATUS.into()),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        |lease| lease.metadata,
    );
    let spec = LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: if ours { before.acquire_time } else { now() },
        renew_time: now(),
        lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!ours)),
        ..before
    };
    Lease { metadata, spec: Some(spec) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(holder: &str, version: u32) -> Option<Seen> {
        Some(Seen { holder: Some(holder.into()), version: version.to_string() })
    }

    #[test]
    fn anothers_lease_is_taken_only_when_it_stood_still_for_its_whole_duration() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut election = Election::new("me".into());
        for (found, seconds, step) in [
            (seen("other", 1), 0, Step::Wait),
            (seen("other", 1), 14, Step::Wait),
            (seen("other", 2), 15, Step::Wait),
            (seen("other", 2), 29, Step::Wait),
            (seen("other", 2), 30, Step::Write),
            (seen("me", 3), 31, Step::Write),
            (seen("", 4), 32, Step::Write),
            (None, 33, Step::Create),
            (seen("other", 5), 34, Step::Wait),
        ] {
            assert_eq!(election.step(found.clone(), at(seconds)), step, "{found:?} at {seconds}");
        }
    }

    #[test]
    fn who_cannot_renew_stops_leading_before_another_may_begin() {
        let start = Instant::now();
        let mut election = Election::new("me".into());
        assert_eq!(election.leads_until(), None);
        election.wrote(start);
        assert!(election.leads_until().unwrap() < start + DURATION);
        election.lost();
        assert_eq!(election.leads_until(), None);
    }

    #[test]
    fn a_lease_of_ours_keeps_when_we_got_it() {
        let first = lease("me", None);
        let again = lease("me", Some(first.clone()));
        let taken = lease("you", Some(again.clone()));
        let spec = |lease: &Lease| lease.spec.clone().unwrap();
        assert_eq!(spec(&first).acquire_time, spec(&again).acquire_time);
        assert_eq!((spec(&again).lease_transitions, spec(&taken).lease_transitions), (Some(1), Some(2)));
        assert!(patience(0) < patience(CANDIDATES));
    }
}
