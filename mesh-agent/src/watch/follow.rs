//! One watch, followed through closes, errors, stale news and both forms of 410.

use std::fmt::Debug;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kube::ResourceExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use crate::cache::{Cache, Outcome, Told};
use crate::metrics::Metrics;

mod doubts;

use doubts::{Doubts, Question};

/// A watch that asked this often in a row for a version that is not there (HTTP 410, or 504) is begun anew with a list: kube's
/// watcher relists only on the 410 that comes inside a stream.
const GONE_LIMIT: u32 = 3;

/// Questions about doubts that are under way at once. After an hour without the API there are thousands, one for each object that
/// has gone since, and every agent asks them.
const ASKED_AT_ONCE: usize = 32;

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
/// not as they were (none, when only the list has become complete), and says whether anybody listens. What is in doubt holds up
/// nothing else: it is as it was until `ask` has answered.
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
    let slots = Semaphore::new(ASKED_AT_ONCE);
    let (ask, slots) = (&ask, &slots);
    let answer = |question| answer_to::<O, K, F, R>(question, ask, slots);
    // Both outlive a stream that ends. None is asked yet, but of what type they are has to be known here.
    let mut doubts = Doubts::default();
    let mut asked: FuturesUnordered<_> = std::iter::empty::<Question<K>>().map(answer).collect();
    loop {
        let mut gone = 0;
        let mut listed = Vec::new();
        let mut events = std::pin::pin!(stream().backoff(Patience::default()));
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                Some((question, found)) = asked.next() => {
                    let key = question.key.clone();
                    if !doubts.is_open(&question) {
                        tracing::info!(watch = what, ?key, "Settled a doubtful event by a later one");
                        continue;
                    }
                    let (news, again) = match found {
                        Ok(found) => {
                            let found = found.as_ref().and_then(|object| versioned(object, &read));
                            tracing::info!(watch = what, ?key, found = found.is_some(), "Settled a doubtful event");
                            let found = found.map(|(_, version, value)| (version, value));
                            (cache.settle(key.clone(), found), doubts.settled(question))
                        }
                        Err(error) => {
                            metrics.watch_error(what);
                            tracing::warn!(watch = what, ?key, err = %error, "Could not read a doubtful object");
                            (false, Some(doubts.failed(question)))
                        }
                    };
                    asked.extend(again.map(answer));
                    if news && !changed(cache, &[key]) {
                        return Ended::Deaf;
                    }
                    continue;
                }
            };
            let Some(event) = event else { break };
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
            let of = match &told {
                Told::Applied(key, ..) | Told::Deleted(key, _) => Some(key.clone()),
                Told::Relisted(_) => None,
            };
            let Outcome { changed: keys, doubts: doubted } = cache.tell(told);
            asked.extend(doubts.told(of.as_ref(), doubted).into_iter().map(answer));
            if (!keys.is_empty() || before != cache.complete()) && !changed(cache, &keys) {
                return Ended::Deaf;
            }
        }
    }
}

/// Asks for an object about which the API server contradicts itself, when it is its turn. What waits for that is small.
async fn answer_to<O, K, F, R>(
    question: Question<K>,
    ask: &F,
    slots: &Semaphore,
) -> (Question<K>, kube::Result<Option<O>>)
where
    K: Clone,
    F: Fn(K) -> R,
    R: Future<Output = kube::Result<Option<O>>>,
{
    // Not in a slot: those that fail again and again hold up no others.
    tokio::time::sleep(question.pause).await;
    let _slot = slots.acquire().await;
    let answer = Box::pin(crate::publish::within(ask(question.key.clone()))).await;
    (question, answer)
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

    fn map(name: &str, version: u64) -> ConfigMap {
        serde_json::from_value(config_map(name, &version.to_string())).unwrap()
    }

    fn list(maps: &[(&str, u64)]) -> Vec<Event<ConfigMap>> {
        let maps = maps.iter().map(|(name, version)| Event::InitApply(map(name, *version)));
        std::iter::once(Event::Init).chain(maps).chain([Event::InitDone]).collect()
    }

    /// A watch that tells this, then calls `told`, and is silent.
    fn watch(
        events: Vec<Event<ConfigMap>>,
        told: impl FnOnce() + Send + 'static,
    ) -> BoxStream<'static, watcher::Result<Event<ConfigMap>>> {
        let silent = stream::once(async move {
            told();
            std::future::pending().await
        });
        stream::iter(events.into_iter().map(Ok)).chain(silent).boxed()
    }

    fn name_and_version(map: &ConfigMap) -> Option<(String, String)> {
        Some((map.metadata.name.clone()?, map.metadata.resource_version.clone()?))
    }

    #[tokio::test]
    async fn what_is_beyond_doubt_is_told_before_an_answer_and_doubts_are_asked_of_many_at_once() {
        let names: Vec<String> = (0..100).map(|number| format!("old-{number:02}")).collect();
        let old: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        let [under_way, most, answers] = [0, 0, 0].map(AtomicUsize::new);
        let ask = |_: String| {
            let (under_way, most, answers) = (&under_way, &most, &answers);
            async move {
                most.fetch_max(under_way.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
                under_way.fetch_sub(1, Ordering::Relaxed);
                answers.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
        };
        let (mut cache, metrics, mut told) = (Cache::default(), Metrics::new(), Vec::new());
        let followed = follow(
            "config-maps",
            &mut cache,
            || watch([list(&old), list(&[("new", 2)])].concat(), || {}),
            name_and_version,
            ask,
            |cache: &Cache<String, String>, keys: &[String]| {
                told.push((keys.to_vec(), answers.load(Ordering::Relaxed)));
                cache.iter().count() > 1
            },
            &metrics,
        );
        let ended = tokio::time::timeout(Duration::from_secs(60), followed).await.expect("it is followed");
        assert_eq!(ended, Ended::Deaf);
        assert_eq!(told[..2], [(names, 0), (vec!["new".to_owned()], 0)]);
        assert_eq!(told.len(), 102, "{told:?}");
        let most = most.load(Ordering::Relaxed);
        assert!((2..=ASKED_AT_ONCE).contains(&most), "{most} questions at once");
    }

    #[tokio::test]
    async fn an_object_that_changes_while_its_doubt_is_asked_about_does_not_go_back_in_time() {
        let mut events = [list(&[("a", 1), ("b", 1), ("c", 3)]), list(&[])].concat();
        // Of two the watch is believed; the third is doubted once more.
        events.extend([Event::Apply(map("a", 5)), Event::Delete(map("b", 5)), Event::Apply(map("c", 2))]);
        let all_told = Arc::new(Semaphore::new(0));
        let asked_of_c = AtomicUsize::new(0);
        let ask = |name: String| {
            let (all_told, asked_of_c) = (Arc::clone(&all_told), &asked_of_c);
            async move {
                let found = match name.as_str() {
                    "a" => None,
                    "b" => Some(map("b", 1)),
                    _ => Some(map("c", 1 + u64::from(asked_of_c.fetch_add(1, Ordering::Relaxed) > 0))),
                };
                let _permit = all_told.acquire().await;
                Ok(found)
            }
        };
        let (mut cache, metrics, mut told) = (Cache::default(), Metrics::new(), Vec::new());
        let followed = follow(
            "config-maps",
            &mut cache,
            || {
                let all_told = Arc::clone(&all_told);
                watch(events.clone(), move || all_told.add_permits(1))
            },
            name_and_version,
            ask,
            |cache: &Cache<String, String>, keys: &[String]| {
                told.extend(keys.iter().map(|key| format!("{key}:{:?}", cache.get(key))));
                cache.get(&"c".to_owned()).is_none_or(|version| version != "2")
            },
            &metrics,
        );
        let ended = tokio::time::timeout(Duration::from_secs(60), followed).await.expect("it is followed");
        assert_eq!(ended, Ended::Deaf);
        let wanted = [
            "a:Some(\"1\")",
            "b:Some(\"1\")",
            "c:Some(\"3\")",
            "a:Some(\"5\")",
            "b:None",
            "c:Some(\"1\")",
            "c:Some(\"2\")",
        ];
        assert_eq!(told, wanted);
        assert_eq!(asked_of_c.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn doubts_that_are_not_answered_hold_up_no_other() {
        let names: Vec<String> = (0..ASKED_AT_ONCE + 8).map(|number| format!("broken-{number:02}")).collect();
        let mut all: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        all.push(("gone", 1));
        let (mut cache, metrics) = (Cache::default(), Metrics::new());
        let followed = follow(
            "config-maps",
            &mut cache,
            || watch([list(&all), list(&[])].concat(), || {}),
            name_and_version,
            |name: String| {
                let answer = if name == "gone" { Ok(None) } else { Err(refused(500, "broken")) };
                std::future::ready(answer)
            },
            |cache: &Cache<String, String>, _: &[String]| cache.get(&"gone".to_owned()).is_some(),
            &metrics,
        );
        let ended = tokio::time::timeout(Duration::from_secs(60), followed).await.expect("it is followed");
        assert_eq!(ended, Ended::Deaf);
        assert_eq!(cache.iter().count(), names.len(), "the others are as they were");
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
