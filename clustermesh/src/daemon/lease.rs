//! The Lease `hawser-clustermesh` in `hawser-system`: of all replicas its holder serves.
//!
//! ```text
//!           nobody's, or unchanged for DURATION           renewed, or the API server is away
//!  Waiting ────────────────────────────────────► Leading ──────────────────────────────────┐
//!     ▲                                            │  ▲                                     │
//!     └──────────────── another's name ────────────┘  └─────────────────────────────────────┘
//! ```
//!
//! Who leads goes on while the API server is away, with what it knows: else an outage of one cluster's API server took its
//! endpoints out of the services of all others. It cannot know whether another replica leads meanwhile: once it could not renew
//! the Lease for as long as that lasts it is *cut off*, is not ready and says so to its followers, who ask around
//! ([`crate::follow`]). The other one's incarnation is greater, so that whoever has heard it is not served by the earlier one.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use mesh_core::numbers::NAMESPACE;
use tokio::sync::watch;

/// Name of the Lease.
pub const LEASE: &str = "hawser-clustermesh";
/// Annotation of the Lease: the greatest incarnation so far.
pub const INCARNATION: &str = "hawser.dev/incarnation";
/// How long a lease lasts without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// How often it is renewed or looked at.
const RENEW: Duration = Duration::from_secs(3);
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
    Create,
    Write,
    Wait,
}

/// The machine of one replica. Time is an argument.
#[derive(Debug)]
struct Election {
    me: String,
    seen: Option<(Seen, Instant)>,
    incarnation: Option<u64>,
    /// When the request began by which the Lease was written last.
    renewed: Option<Instant>,
}

/// How a replica stands with the Lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Term {
    /// In which incarnation it leads.
    pub incarnation: Option<u64>,
    /// It leads, and another may: it could not renew the Lease for as long as that lasts.
    pub cut_off: bool,
}

impl Election {
    const fn new(me: String) -> Self {
        Self { me, seen: None, incarnation: None, renewed: None }
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
            Some(name) if name != self.me && now.duration_since(since) < DURATION => {
                self.incarnation = None;
                Step::Wait
            }
            Some(_) | None => Step::Write,
        }
    }

    /// The Lease was written by a request that began then.
    fn wrote(&mut self, incarnation: u64, begun: Instant) {
        (self.incarnation, self.renewed) = (Some(incarnation), Some(begun));
    }

    /// How it stands.
    fn term(&self, now: Instant) -> Term {
        let held = self.renewed.is_some_and(|renewed| now.duration_since(renewed) < DURATION);
        Term { incarnation: self.incarnation, cut_off: self.incarnation.is_some() && !held }
    }

    /// The incarnation to write: the present one, or one greater than any before. `clock` in seconds since 1970, for the
    /// case that a Lease was deleted, and with it what it remembered.
    fn incarnation(&self, found: Option<&Lease>, clock: u64) -> u64 {
        let annotations = found.and_then(|lease| lease.metadata.annotations.as_ref());
        let remembered = annotations.and_then(|all| all.get(INCARNATION)?.parse::<u64>().ok()).unwrap_or(0);
        match self.incarnation {
            Some(present) if present >= remembered => present,
            Some(_) | None => clock.max(remembered.saturating_add(1)),
        }
    }
}

/// The Lease as we write it.
fn lease(me: &str, incarnation: u64, found: Option<Lease>) -> Lease {
    let now = || Some(MicroTime(jiff::Timestamp::now()));
    let before = found.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let ours = before.holder_identity.as_deref() == Some(me);
    let mut metadata = found.map_or_else(
        || ObjectMeta {
            name: Some(LEASE.into()),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        |lease| lease.metadata,
    );
    metadata.annotations.get_or_insert_default().insert(INCARNATION.to_owned(), incarnation.to_string());
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

/// Runs until `stop`; says how this replica stands. Gives the Lease back at its end.
pub async fn run(client: Client, me: String, terms: watch::Sender<Term>, mut stop: watch::Receiver<bool>) {
    let api: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let mut election = Election::new(me);
    let mut trouble = String::new();
    loop {
        match tokio::time::timeout(DEADLINE, turn(&api, &mut election)).await {
            Ok(Ok(())) => trouble.clear(),
            Ok(Err(error)) => say(&mut trouble, error.to_string()),
            Err(_) => say(&mut trouble, format!("no answer in {} s", DEADLINE.as_secs())),
        }
        let now = election.term(Instant::now());
        let before = terms.send_replace(now);
        if before.incarnation != now.incarnation {
            let (leads, incarnation) = (now.incarnation.is_some(), now.incarnation);
            tracing::info!(lease = LEASE, leads, incarnation, "Who serves has changed");
        } else if before.cut_off != now.cut_off {
            let (cut_off, seconds) = (now.cut_off, DURATION.as_secs());
            tracing::warn!(
                lease = LEASE,
                cut_off,
                "Whether the lease was renewed within its {seconds} s: while it is not, another replica may lead, and this one goes on with what it knows"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(RENEW) => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    terms.send_replace(Term::default());
    if election.incarnation.is_some() {
        drop(tokio::time::timeout(DEADLINE, give_back(&api, &election.me)).await);
    }
}

/// So that another replica need not wait.
async fn give_back(api: &Api<Lease>, me: &str) -> kube::Result<()> {
    let Some(mut found) = api.get_opt(LEASE).await? else { return Ok(()) };
    let Some(spec) = found.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(me)) else {
        return Ok(());
    };
    spec.holder_identity = None;
    api.replace(LEASE, &PostParams::default(), &found).await.map(drop)
}

/// Once for each new reason.
fn say(trouble: &mut String, reason: String) {
    if *trouble != reason {
        tracing::warn!(lease = LEASE, namespace = NAMESPACE, err = reason, "Could not look after the lease");
        *trouble = reason;
    }
}

async fn turn(api: &Api<Lease>, election: &mut Election) -> kube::Result<()> {
    let begun = Instant::now();
    let found = api.get_opt(LEASE).await?;
    let seen = found.as_ref().map(|lease| Seen {
        holder: lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    });
    let step = election.step(seen, Instant::now());
    let clock = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
    let incarnation = election.incarnation(found.as_ref(), clock);
    let params = PostParams::default();
    let result = match step {
        Step::Wait => return Ok(()),
        Step::Create => api.create(&params, &lease(&election.me, incarnation, None)).await,
        Step::Write => api.replace(LEASE, &params, &lease(&election.me, incarnation, found)).await,
    };
    match result {
        Ok(_) => {
            election.wrote(incarnation, begun);
            Ok(())
        }
        // Another was faster; the next turn says who.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
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
        ] {
            assert_eq!(election.step(found.clone(), at(seconds)), step, "{found:?} at {seconds}");
        }
        election.incarnation = Some(7);
        assert_eq!(election.step(seen("other", 5), at(34)), Step::Wait);
        assert_eq!(election.incarnation, None, "another leads");
    }

    #[test]
    fn a_leader_is_cut_off_once_it_could_not_renew_the_lease_for_its_duration() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut election = Election::new("me".into());
        assert_eq!(election.term(at(0)), Term::default(), "who does not lead is not cut off");
        election.wrote(7, at(0));
        let term = |cut_off| Term { incarnation: Some(7), cut_off };
        assert_eq!(
            [0, 14, 15, 60].map(|seconds| election.term(at(seconds))),
            [false, false, true, true].map(term)
        );
        election.wrote(7, at(61));
        assert_eq!(election.term(at(75)), term(false));
        election.step(seen("other", 1), at(80));
        assert_eq!(election.term(at(80)), Term::default());
    }

    #[test]
    fn an_incarnation_is_greater_than_any_before_whatever_the_clock_says() {
        let mut election = Election::new("me".into());
        let remembered = lease("other", 1000, None);
        assert_eq!(election.incarnation(Some(&remembered), 50), 1001);
        assert_eq!(election.incarnation(Some(&remembered), 5000), 5000);
        assert_eq!(election.incarnation(None, 5000), 5000);
        election.incarnation = Some(5000);
        assert_eq!(election.incarnation(Some(&lease("me", 5000, None)), 6000), 5000, "as long as it leads");
        assert_eq!(election.incarnation(Some(&lease("me", 5001, None)), 6000), 6000, "another led meanwhile");
    }

    #[test]
    fn a_lease_of_ours_keeps_when_we_got_it() {
        let first = lease("me", 1, None);
        let again = lease("me", 1, Some(first.clone()));
        let taken = lease("you", 2, Some(again.clone()));
        let spec = |lease: &Lease| lease.spec.clone().unwrap();
        assert_eq!(spec(&first).acquire_time, spec(&again).acquire_time);
        assert_eq!((spec(&again).lease_transitions, spec(&taken).lease_transitions), (Some(1), Some(2)));
    }
}
