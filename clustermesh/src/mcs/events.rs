//! What is wrong, told where owners look: Events on the ServiceExport, or on the ServiceImport where nothing is exported here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use mesh_core::policy::model::ObjectName;
use tokio::sync::watch;

use super::kind::Kind;
use super::problem::Problem;

/// Longest note of an Event (`events.k8s.io/v1`).
const MAX_NOTE: usize = 1_000;
/// Events of one turn, so that a cluster full of wrong exports is no storm; the rest follows.
const EVENTS_A_TURN: usize = 20;
/// Between two turns.
const REST: Duration = Duration::from_secs(2);
/// For one request.
const DEADLINE: Duration = Duration::from_secs(8);
/// Sentences that are kept to be told: beyond it the log alone has them.
const MAX_SENTENCES: usize = 10_000;

/// An object that somebody looks at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Subject {
    /// `ServiceExport` or `ServiceImport`.
    pub kind: Kind,
    /// Its name.
    pub name: ObjectName,
    /// Its UID: `kubectl describe` looks for it.
    pub uid: String,
}

/// What is wrong now, by object.
pub(super) type Findings = BTreeMap<Subject, BTreeSet<Problem>>;

/// What has been told.
#[derive(Debug, Default)]
struct Book(BTreeSet<(Subject, Problem)>);

impl Book {
    /// What is to be told now. What is no longer wrong is forgotten, so that it is told again should it come back.
    fn due(&mut self, findings: &Findings) -> Vec<(Subject, Problem)> {
        self.0.retain(|(subject, problem)| findings.get(subject).is_some_and(|all| all.contains(problem)));
        let all = findings
            .iter()
            .flat_map(|(subject, set)| set.iter().map(move |problem| (subject.clone(), problem.clone())));
        let room = EVENTS_A_TURN.min(MAX_SENTENCES.saturating_sub(self.0.len()));
        all.filter(|event| !self.0.contains(event)).take(room).collect()
    }
}

/// Tells for as long as somebody finds something.
pub(super) async fn run(client: Client, instance: String, mut findings: watch::Receiver<Arc<Findings>>) {
    let reporter = Reporter { controller: "hawser.dev/clustermesh".into(), instance: Some(instance) };
    let mut book = Book::default();
    loop {
        let now = Arc::clone(&findings.borrow_and_update());
        let due = book.due(&now);
        let all = due.len() < EVENTS_A_TURN;
        for (subject, problem) in due {
            let telling = tell(&client, &reporter, &subject, &problem);
            match tokio::time::timeout(DEADLINE, telling).await {
                Ok(Ok(())) => {}
                // Told once, whether it arrives or not: log and metrics have it.
                Ok(Err(error)) => tracing::debug!(?subject, err = %error, "Could not record an Event"),
                Err(_) => tracing::debug!(?subject, "Recording an Event took too long"),
            }
            book.0.insert((subject, problem));
        }
        tokio::time::sleep(REST).await;
        let ended = tokio::select! {
            changed = findings.changed() => changed.is_err(),
            () = tokio::time::sleep(REST), if !all => false,
        };
        if ended {
            return;
        }
    }
}

async fn tell(
    client: &Client,
    reporter: &Reporter,
    subject: &Subject,
    problem: &Problem,
) -> kube::Result<()> {
    let reference = ObjectReference {
        api_version: Some(subject.kind.api_version()),
        kind: Some(subject.kind.name().to_owned()),
        namespace: Some(subject.name.namespace.clone()),
        name: Some(subject.name.name.clone()),
        uid: Some(subject.uid.clone()),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: EventType::Warning,
        reason: problem.code().to_owned(),
        note: Some(problem.to_string().chars().take(MAX_NOTE).collect()),
        action: "Import".into(),
        secondary: None,
    };
    // One recorder for each sentence: it would fold a second problem of one code into the first one's series.
    Recorder::new(client.clone(), reporter.clone()).publish(&event, &reference).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(slices: usize) -> Findings {
        let name = ObjectName { namespace: "shop".into(), name: "web".into() };
        let subject = Subject { kind: Kind::Import, name: name.clone(), uid: "u".into() };
        let problem = |i| Problem::SliceTaken { name: name.clone(), slice: format!("s{i}") };
        BTreeMap::from([(subject, (0..slices).map(problem).collect())])
    }

    #[test]
    fn what_is_wrong_is_told_once_a_few_at_a_time_and_again_when_it_came_back() {
        let mut book = Book::default();
        let due = book.due(&findings(50));
        assert_eq!(due.len(), EVENTS_A_TURN);
        book.0.extend(due);
        let due = book.due(&findings(22));
        book.0.extend(due);
        assert!(book.due(&findings(22)).is_empty());
        assert!(book.due(&findings(0)).is_empty());
        assert_eq!(book.due(&findings(1)).len(), 1);
    }
}
