//! Watches of the own API server: one for each kind, followed through closes, errors, stale news and both forms of 410.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::api::DynamicObject;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher as begin};
use kube::{Api, Client, ResourceExt as _};
use mesh_core::cache::{Cache, Outcome, Told};
use mesh_core::policy::model::ObjectName;
use tokio::sync::mpsc;

use super::kind::Kind;
use super::metrics::Metrics;
use super::seen::{Seen, name_of};

/// Before a kind that is not installed is asked for again: services begin so much later than its definition is there.
const ABSENT: Duration = Duration::from_secs(5);
/// Before a list that the watcher's own patience does not know of.
const RELIST: Duration = Duration::from_millis(500);
/// A watch that asked so often in a row for a version that is not there begins anew with a list.
const GONE_LIMIT: u32 = 3;
/// Longest pause between two questions for one object.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What a watch has to say.
#[derive(Clone, Debug)]
pub(super) enum News {
    /// An object is so now; none: it is not there.
    Object(Kind, ObjectName, Option<Arc<Seen>>),
    /// All of a kind have been told.
    Complete(Kind),
}

struct Follower {
    kind: Kind,
    client: Client,
    news: mpsc::Sender<News>,
    metrics: Metrics,
    cache: Cache<ObjectName, Arc<Seen>>,
}

/// Watches all objects of a kind until nobody listens.
pub(super) async fn follow(kind: Kind, client: Client, news: mpsc::Sender<News>, metrics: Metrics) {
    let mut follower = Follower { kind, client, news, metrics, cache: Cache::default() };
    while follower.watch().await.is_ok() {}
}

/// Nobody listens.
struct Deaf;

fn versioned(kind: Kind, object: &DynamicObject) -> Option<(ObjectName, u64, Option<Arc<Seen>>)> {
    // A version that is not a number counts as newest: then the last word is believed.
    let version = object.resource_version().and_then(|version| version.parse().ok()).unwrap_or(u64::MAX);
    Some((name_of(&object.metadata)?, version, Seen::read(kind, object).map(Arc::new)))
}

/// What an administrator has to do about an interruption, where it does not pass by itself.
fn remedy(error: &watcher::Error) -> &'static str {
    match status_of(error) {
        Some(401) => {
            ": API server refuses our credentials; what was known stays in force, but nothing is followed. Renew the token in the kubeconfig (or the service account) and restart clustermesh"
        }
        Some(403) => {
            ": API server does not allow it; what was known stays in force, but this resource is not followed. Bind clustermesh to its role"
        }
        Some(404) => {
            ": the kind is not installed; no service is exported or imported until it is. Apply the definitions in deploy/crds"
        }
        Some(_) | None => "",
    }
}

fn status_of(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => None,
    }
}

/// Is the version from which the watch would go on not there?
fn is_gone(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            status.code == 410 || status.code == 504 && status.message.contains("Too large resource version")
        }
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchError(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => false,
    }
}

impl Follower {
    fn api(&self, namespace: &str) -> Api<DynamicObject> {
        let resource = self.kind.resource();
        match namespace {
            "" => Api::all_with(self.client.clone(), &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        }
    }

    /// Lists and watches until it has to begin anew.
    async fn watch(&mut self) -> Result<(), Deaf> {
        let stream = begin(self.api(""), watcher::Config::default()).default_backoff();
        let mut events = std::pin::pin!(stream);
        let mut listed = Vec::new();
        let mut gone = 0;
        let mut missed = false;
        while let Some(event) = events.next().await {
            let told = match event {
                Ok(Event::Init) => {
                    listed.clear();
                    continue;
                }
                Ok(Event::InitApply(object)) => {
                    listed.extend(
                        versioned(self.kind, &object).and_then(|(key, at, seen)| Some((key, at, seen?))),
                    );
                    continue;
                }
                Ok(Event::InitDone) => Some(Told::Relisted(std::mem::take(&mut listed))),
                Ok(Event::Apply(object)) => {
                    versioned(self.kind, &object).map(|(key, version, seen)| match seen {
                        Some(seen) => Told::Applied(key, version, seen),
                        // One that is being deleted is gone for us.
                        None => Told::Deleted(key, version),
                    })
                }
                Ok(Event::Delete(object)) => {
                    versioned(self.kind, &object).map(|(key, version, _)| Told::Deleted(key, version))
                }
                Err(error) => {
                    self.metrics.watch_error(self.kind);
                    let absent = status_of(&error) == Some(404);
                    if !(absent && std::mem::replace(&mut missed, true)) {
                        let watch = self.kind.plural();
                        tracing::warn!(watch, err = %error, "Watch interrupted{}", remedy(&error));
                    }
                    gone = if is_gone(&error) { gone + 1 } else { 0 };
                    let unread = matches!(error, watcher::Error::WatchFailed(kube::Error::SerdeError(_)));
                    if absent {
                        self.pause(ABSENT).await?;
                    } else if unread || gone >= GONE_LIMIT {
                        self.pause(RELIST).await?;
                        return Ok(());
                    }
                    continue;
                }
            };
            (gone, missed) = (0, false);
            if let Some(told) = told {
                self.tell(told).await?;
            }
        }
        self.pause(RELIST).await
    }

    async fn pause(&self, pause: Duration) -> Result<(), Deaf> {
        tokio::select! {
            () = self.news.closed() => Err(Deaf),
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }

    async fn tell(&mut self, told: Told<ObjectName, Arc<Seen>>) -> Result<(), Deaf> {
        let before = self.cache.complete();
        let Outcome { changed: mut keys, doubts } = self.cache.tell(told);
        for key in doubts {
            if self.settle(&key).await? {
                keys.push(key);
            }
        }
        for key in keys {
            let seen = self.cache.get(&key).cloned();
            self.news.send(News::Object(self.kind, key, seen)).await.map_err(|_| Deaf)?;
        }
        if before != self.cache.complete() {
            self.news.send(News::Complete(self.kind)).await.map_err(|_| Deaf)?;
        }
        Ok(())
    }

    /// Asks again for an object about which the API server contradicts itself. True: the answer is news.
    async fn settle(&mut self, key: &ObjectName) -> Result<bool, Deaf> {
        let api = self.api(&key.namespace);
        let mut pause = Duration::from_millis(100);
        loop {
            match api.get_opt(&key.name).await {
                Ok(found) => {
                    let found = found.as_ref().and_then(|object| versioned(self.kind, object));
                    let found = found.and_then(|(_, version, seen)| Some((version, seen?)));
                    return Ok(self.cache.settle(key.clone(), found));
                }
                Err(error) => {
                    self.metrics.watch_error(self.kind);
                    tracing::warn!(watch = self.kind.plural(), err = %error, "Could not read a doubtful object");
                    self.pause(pause).await?;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16, message: &str) -> kube::Error {
        let mut status = kube::core::Status::failure(message, "Reason");
        status.code = code;
        kube::Error::Api(Box::new(status))
    }

    #[test]
    fn what_the_watcher_cannot_go_on_from_is_known_and_each_refusal_has_its_remedy() {
        use watcher::Error::{InitialListFailed, WatchStartFailed};
        for (error, gone, word) in [
            (WatchStartFailed(refused(410, "too old resource version")), true, ""),
            (WatchStartFailed(refused(504, "Too large resource version: 9, current: 3")), true, ""),
            (WatchStartFailed(refused(504, "gateway timeout")), false, ""),
            (InitialListFailed(refused(404, "no such resource")), false, "deploy/crds"),
            (InitialListFailed(refused(403, "forbidden")), false, "role"),
            (WatchStartFailed(refused(401, "unauthorized")), false, "Renew the token"),
        ] {
            assert_eq!(is_gone(&error), gone, "{error}");
            assert!(remedy(&error).contains(word), "{error}: {}", remedy(&error));
        }
    }
}
