//! One watch of the API server, through closes, errors, and both forms of 410.

use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt as _;
use kube::api::ApiResource;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher as begin};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;

use super::metrics::Metrics;

/// A watch that asked this often in a row for a version that is not there (HTTP 410, or 504) is begun anew with a list: kube's
/// watcher relists only on the 410 that comes inside a stream.
const GONE_LIMIT: u32 = 3;
/// Before a list that kube's backoff does not know of.
const RELIST: Duration = Duration::from_millis(500);
/// How long a resource that the server does not have is believed to be missing.
const ABSENT: Duration = Duration::from_secs(15);

/// What was seen.
#[derive(Debug)]
pub enum Seen<O> {
    /// All that there is.
    All(Vec<O>),
    /// One is there, or is so now.
    Put(O),
    /// One is gone.
    Gone(O),
}

/// What an interruption says of our place in the stream of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// The watch can go on from there.
    None,
    /// In a past that the server has forgotten, or a future from which it was set back.
    Gone,
    /// An event could not be read, and would be skipped.
    Unread,
    /// There is no such resource.
    Absent,
}

fn doubt(error: &watcher::Error) -> Doubt {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404 => Doubt::Absent,
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => match status.code {
            404 => Doubt::Absent,
            410 | 504 => Doubt::Gone,
            _ => Doubt::None,
        },
        watcher::Error::WatchFailed(kube::Error::SerdeError(_)) => Doubt::Unread,
        watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchError(_)
        | watcher::Error::NoResourceVersion => Doubt::None,
    }
}

/// Watches for ever. A resource that is not installed has no objects, if it is `optional` (and said where, and which); else it is
/// waited for.
pub async fn watch<O>(
    what: &'static str,
    api: Api<O>,
    optional: Option<(&Client, &ApiResource)>,
    metrics: &Metrics,
    mut seen: impl FnMut(Seen<O>),
) where
    O: ResourceExt + DeserializeOwned + Clone + Debug + Send + 'static,
{
    loop {
        let (mut gone, mut listed, mut absent) = (0, Vec::new(), false);
        let mut events = std::pin::pin!(begin(api.clone(), watcher::Config::default()).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => listed.push(object),
                Ok(Event::InitDone) => seen(Seen::All(std::mem::take(&mut listed))),
                Ok(Event::Apply(object)) => seen(Seen::Put(object)),
                Ok(Event::Delete(object)) => seen(Seen::Gone(object)),
                Err(error) => {
                    let doubt = doubt(&error);
                    metrics.watch_error(what);
                    tracing::warn!(watch = what, err = %error, "Watch interrupted");
                    gone = if doubt == Doubt::Gone { gone + 1 } else { 0 };
                    absent = doubt == Doubt::Absent;
                    if absent || doubt == Doubt::Unread || gone >= GONE_LIMIT {
                        break;
                    }
                    continue;
                }
            }
            gone = 0;
        }
        // Said by two sides, since it takes all of them away: by the resource itself and by the list of resources.
        if absent
            && let Some((client, resource)) = optional
            && is_served(client, &resource.api_version, &resource.plural).await == Some(false)
        {
            seen(Seen::All(Vec::new()));
        }
        tokio::time::sleep(if absent { ABSENT } else { RELIST }).await;
    }
}

/// Does the server list this resource? None: it does not say.
pub(super) async fn is_served(client: &Client, api_version: &str, plural: &str) -> Option<bool> {
    match client.list_api_group_resources(api_version).await {
        Ok(list) => Some(list.resources.iter().any(|one| one.name == plural)),
        Err(kube::Error::Api(status)) if status.code == 404 => Some(false),
        Err(error) => {
            tracing::warn!(resource = plural, err = %error, "Could not ask whether the kind is installed");
            None
        }
    }
}
