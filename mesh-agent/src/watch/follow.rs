//! One watch, followed through closes, errors, stale news and both forms of 410.

use std::fmt::Debug;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use futures::StreamExt;
use kube::ResourceExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use serde::de::DeserializeOwned;

use crate::cache::{Cache, Outcome, Told};
use crate::metrics::Metrics;

/// A watch that asked this often in a row for a version that is not there (HTTP 410, or 504) is begun anew with a list: kube's
/// watcher relists only on the 410 that comes inside a stream.
const GONE_LIMIT: u32 = 3;

/// Before a list that kube's backoff does not know of.
const RELIST: Duration = Duration::from_millis(500);

/// Why a watch is followed no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nobody listens.
    Deaf,
    /// The server knows no such resource (HTTP 404).
    Absent,
}

/// Pauses between tries, from half a second to a quarter of a minute, each shortened by chance by up to a half so that a
/// cluster's agents do not come all at once. Whatever is received begins it anew: kube's own would go on from where it was
/// two minutes ago, and an agent behind a server that comes and goes would be up to half a minute late each time.
#[derive(Clone, Copy, Debug)]
struct Patience {
    next: Duration,
}

impl Patience {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(15);
}

impl Default for Patience {
    fn default() -> Self {
        Self { next: Self::FIRST }
    }
}

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let half = self.next / 2;
        self.next = (self.next * 2).min(Self::LONGEST);
        // The keys of the standard library's hash maps are as random as this has to be.
        let chance = std::hash::RandomState::new().build_hasher().finish() % 1000;
        Some(half + half * u32::try_from(chance).unwrap_or(0) / 1000)
    }
}

impl kube::runtime::utils::Backoff for Patience {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

/// What an interruption says of our place in the stream of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// The watch can go on from there.
    None,
    /// It is in a past that the server has forgotten, or in a future from which it was set back (or, for a moment, that a
    /// server which lags behind another has not seen).
    Gone,
    /// An event could not be read.
    Unread,
    /// There is no such resource.
    Absent,
}

impl Doubt {
    /// kube's watcher itself begins anew only on a 410 inside the stream: it would skip an event that it cannot read, and
    /// ask for a version of the future until the server has counted up to it, missing all that happened meanwhile.
    fn of(error: &watcher::Error) -> Self {
        match error {
            watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404 => Self::Absent,
            watcher::Error::WatchStartFailed(kube::Error::Api(status)) => match status.code {
                404 => Self::Absent,
                410 => Self::Gone,
                504 if status.message.contains("Too large resource version") => Self::Gone,
                _ => Self::None,
            },
            watcher::Error::WatchFailed(kube::Error::SerdeError(_)) => Self::Unread,
            watcher::Error::WatchStartFailed(_)
            | watcher::Error::WatchFailed(_)
            | watcher::Error::InitialListFailed(_)
            | watcher::Error::WatchError(_)
            | watcher::Error::NoResourceVersion => Self::None,
        }
    }
}

/// What an administrator has to do about an interruption, where it does not pass by itself.
fn remedy(error: &watcher::Error) -> &'static str {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status,
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => return "",
    };
    match status.code {
        401 => {
            ": API server refuses our credentials; what was known stays in force, but nothing is followed. Renew the token in the kubeconfig (or the service account) and restart mesh-agent"
        }
        403 => {
            ": API server does not allow it; what was known stays in force, but this resource is not followed. Bind mesh-agent to its role (get, list and watch of nodes, pods, namespaces, services, endpointslices, networkpolicies, clusternetworkpolicies, clusterpeers and servicecidrs)"
        }
        _ => "",
    }
}

/// Follows one watch until nobody listens, or until the server knows no such resource. `changed` hears which objects are
/// not as they were (none, when only the list has become complete), and says whether anybody listens.
pub(super) async fn follow<O, K, V, S, F, R>(
    what: &'static str,
    cache: &mut Cache<K, V>,
    stream: impl Fn() -> S,
    read: impl Fn(&O) -> Option<(K, V)>,
    ask: F,
    mut changed: impl FnMut(&Cache<K, V>, &[K]) -> bool,
    metrics: &Metrics,
) -> Ended
where
    O: ResourceExt + DeserializeOwned + Clone + Debug + Send + 'static,
    K: Ord + Clone + Debug,
    V: PartialEq,
    S: futures::Stream<Item = watcher::Result<Event<O>>> + Send,
    F: Fn(K) -> R,
    R: Future<Output = kube::Result<Option<O>>>,
{
    loop {
        let mut gone = 0;
        let mut listed = Vec::new();
        let mut events = std::pin::pin!(stream().backoff(Patience::default()));
        while let Some(event) = events.next().await {
            let told = match event {
                Ok(Event::Init) => {
                    listed.clear();
                    continue;
                }
                Ok(Event::InitApply(object)) => {
                    listed.extend(versioned(&object, &read));
                    continue;
                }
                Ok(Event::InitDone) => Some(Told::Relisted(std::mem::take(&mut listed))),
                Ok(Event::Apply(object)) => versioned(&object, &read).map(|(k, v, o)| Told::Applied(k, v, o)),
                Ok(Event::Delete(object)) => versioned(&object, &read).map(|(k, v, _)| Told::Deleted(k, v)),
                Err(error) => {
                    let doubt = Doubt::of(&error);
                    if doubt == Doubt::Absent {
                        return Ended::Absent;
                    }
                    metrics.watch_error(what);
                    tracing::warn!(watch = what, err = %error, "Watch interrupted{}", remedy(&error));
                    gone = if doubt == Doubt::Gone { gone + 1 } else { 0 };
                    if doubt == Doubt::Unread || gone >= GONE_LIMIT {
                        tracing::warn!(watch = what, "Cannot go on from where the watch was, listing anew");
                        tokio::time::sleep(RELIST).await;
                        break;
                    }
                    continue;
                }
            };
            gone = 0;
            let Some(told) = told else { continue };
            let before = cache.complete();
            let Outcome { changed: mut keys, doubts } = cache.tell(told);
            for key in doubts {
                if settle(what, cache, key.clone(), &read, &ask, metrics).await {
                    keys.push(key);
                }
            }
            if (!keys.is_empty() || before != cache.complete()) && !changed(cache, &keys) {
                return Ended::Deaf;
            }
        }
    }
}

/// Asks again for an object about which the API server contradicts itself, until it answers. True: the answer is news.
async fn settle<O, K, V, F, R>(
    what: &'static str,
    cache: &mut Cache<K, V>,
    key: K,
    read: &impl Fn(&O) -> Option<(K, V)>,
    ask: &F,
    metrics: &Metrics,
) -> bool
where
    O: ResourceExt,
    K: Ord + Clone + Debug,
    V: PartialEq,
    F: Fn(K) -> R,
    R: Future<Output = kube::Result<Option<O>>>,
{
    let mut pause = Duration::from_millis(100);
    loop {
        match crate::publish::within(ask(key.clone())).await {
            Ok(found) => {
                let found = found.as_ref().and_then(|object| versioned(object, read));
                tracing::info!(watch = what, ?key, found = found.is_some(), "Settled a doubtful event");
                return cache.settle(key, found.map(|(_, version, value)| (version, value)));
            }
            Err(error) => {
                metrics.watch_error(what);
                tracing::warn!(watch = what, ?key, err = %error, "Could not read a doubtful object");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(10));
            }
        }
    }
}

fn versioned<O: ResourceExt, K, V>(object: &O, read: &impl Fn(&O) -> Option<(K, V)>) -> Option<(K, u64, V)> {
    // A version that is not a number (the API promises none) counts as newest: then the last word is believed.
    let version = object.resource_version().and_then(|v| v.parse().ok()).unwrap_or(u64::MAX);
    read(object).map(|(key, value)| (key, version, value))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::stream::{self, BoxStream};
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn refused(code: u16, message: &str) -> kube::Error {
        let mut status = kube::core::Status::failure(message, "Reason");
        status.code = code;
        kube::Error::Api(Box::new(status))
    }

    #[test]
    fn what_the_watcher_cannot_go_on_from_is_listed_anew() {
        use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
        let unreadable = || kube::Error::SerdeError(serde_json::from_str::<u8>("x").unwrap_err());
        for (error, doubt) in [
            (WatchStartFailed(refused(410, "too old resource version")), Doubt::Gone),
            (WatchStartFailed(refused(504, "Too large resource version: 9, current: 3")), Doubt::Gone),
            (WatchStartFailed(refused(504, "gateway timeout")), Doubt::None),
            (WatchStartFailed(refused(503, "unavailable")), Doubt::None),
            (WatchFailed(unreadable()), Doubt::Unread),
            (InitialListFailed(unreadable()), Doubt::None),
            (
                InitialListFailed(refused(404, "the server could not find the requested resource")),
                Doubt::Absent,
            ),
            (
                WatchStartFailed(refused(404, "the server could not find the requested resource")),
                Doubt::Absent,
            ),
        ] {
            assert_eq!(Doubt::of(&error), doubt, "{error}");
        }
    }

    fn config_map(name: &str, version: &str) -> serde_json::Value {
        json!({"metadata": {"name": name, "namespace": "n", "resourceVersion": version}})
    }

    /// Longest silence of the API below.
    const LIMIT: Duration = Duration::from_millis(500);

    /// What an API of ConfigMaps answers that stands still wherever it can. Of lists the first one is not answered and the second
    /// one not wholly; of watches the first one is not begun, and another one silent for a while before its event.
    async fn answer(watches: bool, before: usize) -> axum::body::Body {
        let (items, metadata) = ([config_map("a", "1")], json!({"resourceVersion": "5"}));
        let list = json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": metadata, "items": items});
        let list = list.to_string();
        let event = format!("{}\n", json!({"type": "ADDED", "object": config_map("b", "6")}));
        let pieces: BoxStream<'static, std::io::Result<String>> = match (watches, before) {
            (_, 0) => std::future::pending().await,
            (false, 1) => stream::iter([Ok(list[..20].to_owned())]).chain(stream::pending()).boxed(),
            (false, _) => stream::iter([Ok(list)]).boxed(),
            (true, _) => {
                let late = async move {
                    tokio::time::sleep(LIMIT * 3).await;
                    Ok(event)
                };
                stream::once(late).chain(stream::pending()).boxed()
            }
        };
        axum::body::Body::from_stream(pieces)
    }

    #[tokio::test]
    async fn what_is_not_answered_is_begun_anew_and_a_watch_that_is_open_may_be_silent() {
        let asked: Arc<[AtomicUsize; 2]> = Arc::default();
        let counted = Arc::clone(&asked);
        let app = axum::Router::new().fallback(move |uri: http::Uri| {
            let watches = uri.query().is_some_and(|query| query.contains("watch=true"));
            let before = counted[usize::from(watches)].fetch_add(1, Ordering::Relaxed);
            answer(watches, before)
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let mut config = kube::Config::new(url);
        config.default_retry = false;
        let api: kube::Api<ConfigMap> =
            kube::Api::all(crate::servers::connect_within(config, LIMIT).unwrap());
        let (mut cache, metrics, mut seen) = (Cache::default(), Metrics::new(), Vec::<String>::new());
        let followed = follow(
            "config-maps",
            &mut cache,
            || watcher::watcher(api.clone(), watcher::Config::default()),
            |map: &ConfigMap| Some((map.metadata.name.clone()?, ())),
            |_: String| std::future::ready(Ok(None)),
            |_, keys| {
                seen.extend_from_slice(keys);
                !seen.iter().any(|name| name == "b")
            },
            &metrics,
        );
        let ended = tokio::time::timeout(Duration::from_secs(60), followed).await.expect("it is followed");
        assert_eq!((ended, seen.join(" ")), (Ended::Deaf, "a b".to_owned()));
        let [lists, watches] = [0, 1].map(|kind: usize| asked[kind].load(Ordering::Relaxed));
        // On a busy machine more may have passed the limit.
        assert!(lists >= 3 && watches >= 2, "{lists} lists, {watches} watches");
    }

    #[test]
    fn pauses_grow_to_a_limit_and_begin_anew_after_a_success() {
        use kube::runtime::utils::Backoff;
        let mut patience = Patience::default();
        for longest in [500, 1000, 2000, 4000, 8000, 15_000, 15_000] {
            let pause = patience.next().unwrap().as_millis();
            assert!((longest / 2..=longest).contains(&pause), "{pause} of {longest}");
        }
        patience.reset();
        assert!(patience.next().unwrap() <= Patience::FIRST);
    }

    #[test]
    fn credentials_and_rights_that_are_refused_are_named_with_their_remedy() {
        let hint = |code| remedy(&watcher::Error::InitialListFailed(refused(code, "no")));
        assert!(hint(401).contains("Renew the token"), "{}", hint(401));
        assert!(hint(403).contains("Bind mesh-agent to its role"), "{}", hint(403));
        assert_eq!(hint(500), "");
    }
}
