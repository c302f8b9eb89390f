//! What is served, shared by who tells it and who serves it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_core::clusters::{Change, ClusterName};
use mesh_core::ipam::Millis;
use proto::clustermesh::{At, FollowResponse};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Standing;
use super::feed::{Clusters, Feed, Reach};
use crate::Told;
use crate::follow::QUEUE;
use crate::session::{Scope, Session};

/// How long changes are gathered before followers are told: changes that come together are one message, and are late by no
/// more than a frame of a film.
pub const LINGER: Duration = Duration::from_millis(20);
/// How often the own cluster says that it is there: a third of the shortest lease is more.
pub const BOOKMARK: Duration = Duration::from_secs(3);

/// All that is served. Clones share it.
#[derive(Clone, Debug)]
pub struct Hub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clusters: Mutex<Clusters>,
    changed: watch::Sender<u64>,
    begun: Instant,
}

impl Hub {
    /// The own cluster alone, of which nothing is known yet.
    pub fn new(own: ClusterName) -> Self {
        Self(Arc::new(Inner {
            clusters: Mutex::new(Clusters::new(own, Millis(0))),
            changed: watch::Sender::new(0),
            begun: Instant::now(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Clusters> {
        self.0.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Millis {
        Millis(u64::try_from(self.0.begun.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn news(&self, news: bool) -> bool {
        if news {
            self.0.changed.send_modify(|number| *number += 1);
        }
        news
    }

    /// See [`Clusters::join`].
    pub fn join(&self, peers: &[ClusterName]) {
        self.lock().join(peers, self.now());
        self.news(true);
    }

    /// See [`Clusters::changed`].
    pub fn changed(&self, cluster: &ClusterName, at: At, changes: Vec<Change>) -> bool {
        let news = self.lock().changed(cluster, at, changes);
        self.news(news)
    }

    /// See [`Clusters::heard`].
    pub fn heard(&self, cluster: &ClusterName) -> bool {
        let news = self.lock().heard(cluster);
        self.news(news)
    }

    /// See [`Clusters::advance`].
    pub fn advance(&self, changes: Vec<Change>) -> bool {
        let news = self.lock().advance(changes);
        self.news(news)
    }

    /// Reads what is known.
    pub fn read<T>(&self, read: impl FnOnce(&Clusters) -> T) -> T {
        read(&self.lock())
    }

    /// What a follower is told next.
    pub fn next(&self, feed: &mut Feed) -> Option<FollowResponse> {
        feed.next(&self.lock(), self.now())
    }

    /// Wakes who waits for news.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// The next message for a follower, as soon as there is one.
    pub async fn await_next(&self, feed: &mut Feed, changes: &mut watch::Receiver<u64>) -> FollowResponse {
        loop {
            changes.mark_unchanged();
            if let Some(message) = self.next(feed) {
                return message;
            }
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                    tokio::time::sleep(LINGER).await;
                }
                // What is said once time has passed.
                () = tokio::time::sleep(BOOKMARK) => {}
            }
        }
    }

    /// Says for ever that the own cluster is there, and whether its leader is cut off.
    pub async fn beat(self, standing: watch::Receiver<Standing>) {
        let own = self.lock().own().clone();
        let mut ticks = tokio::time::interval(BOOKMARK);
        loop {
            ticks.tick().await;
            self.lock().stand(standing.borrow().cut_off);
            self.heard(&own);
        }
    }

    /// Accepted facts of all joined clusters: first all that is known, then what changes. Who takes them up too slowly is
    /// told the latest state of what changed meanwhile, so that no more than [`QUEUE`] of them wait. Ends when the
    /// receiver is dropped.
    pub fn subscribe(&self) -> mpsc::Receiver<Told> {
        let (tell, told) = mpsc::channel(QUEUE);
        let hub = self.clone();
        tokio::spawn(async move {
            let mut session = Session::new(Scope::All);
            let mut feed = Feed::new(Reach::Others, session.begin());
            let mut changes = hub.changes();
            loop {
                let message = tokio::select! {
                    message = hub.await_next(&mut feed, &mut changes) => message,
                    () = tell.closed() => return,
                };
                // The same machines as over a wire: what a feed says makes sense to a session.
                let Ok(outcome) = session.hear(message) else {
                    tracing::error!("What is served does not make sense; begun anew");
                    feed = Feed::new(Reach::Others, session.begin());
                    continue;
                };
                for told in outcome.told {
                    if tell.send(told).await.is_err() {
                        return;
                    }
                }
            }
        });
        told
    }
}
