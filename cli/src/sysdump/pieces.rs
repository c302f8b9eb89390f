//! Pieces of an archive: what brings each, and how all are gathered until somebody stops it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use futures::StreamExt as _;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::archive::Archive;
use super::redact::Redactor;
use super::{FORMAT, Index};
use crate::agents::AT_ONCE;
use crate::api::ApiError;
use crate::output::Verdict;
use crate::signals::Interrupts;

/// What a file of the archive is made from.
#[derive(Debug)]
pub(super) enum Content {
    /// Text, which may be JSON.
    Text(String),
    /// Objects of the API.
    Objects(Vec<Value>),
}

/// Objects as they are written; why they cannot be.
pub(super) fn values<T: Serialize>(objects: Vec<T>) -> Result<Content, String> {
    let values = objects.iter().map(serde_json::to_value).collect::<serde_json::Result<_>>();
    values.map(Content::Objects).map_err(|why| why.to_string())
}

type Work<'a> = Pin<Box<dyn Future<Output = Result<Content, String>> + 'a>>;

/// A file of the archive, and what brings it.
pub(super) struct Piece<'a> {
    path: String,
    work: Work<'a>,
}

impl<'a> Piece<'a> {
    pub(super) fn new(path: String, work: impl Future<Output = Result<Content, String>> + 'a) -> Self {
        Self { path, work: Box::pin(work) }
    }

    /// All objects of a kind.
    pub(super) fn objects<T: Serialize>(
        name: &str,
        listed: impl Future<Output = Result<Vec<T>, ApiError>> + 'a,
    ) -> Self {
        let work = async move { listed.await.map_err(|why| why.to_string()).and_then(values) };
        Self::new(format!("objects/{name}.json"), work)
    }
}

/// Why no more is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum End {
    /// All was.
    Complete,
    /// Time was up.
    Deadline,
    /// Somebody wanted no more.
    Interrupted,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "it was complete",
            Self::Deadline => "time was up (--deadline)",
            Self::Interrupted => "it was interrupted",
        })
    }
}

/// When no more is asked for.
#[derive(Clone, Debug)]
pub(super) struct Stop {
    begun: Instant,
    limit: Duration,
    interrupted: watch::Receiver<bool>,
}

impl Stop {
    /// After this time, or when somebody interrupts it, which ends the program no more.
    ///
    /// # Errors
    /// Signals cannot be waited for.
    pub(super) fn after(limit: Duration) -> io::Result<Self> {
        let mut interrupts = Interrupts::new()?;
        let (tell, interrupted) = watch::channel(false);
        tokio::spawn(async move {
            interrupts.next().await;
            tell.send_replace(true);
        });
        Ok(Self { begun: Instant::now(), limit, interrupted })
    }

    /// Resolves when it is time to stop.
    pub(super) fn now(&self) -> impl Future<Output = End> + use<> {
        self.at(self.limit)
    }

    /// The same, after half of the time.
    pub(super) fn half(&self) -> impl Future<Output = ()> + use<> {
        let end = self.at(self.limit / 2);
        async move {
            end.await;
        }
    }

    fn at(&self, limit: Duration) -> impl Future<Output = End> + use<> {
        let (until, mut interrupted) = (self.begun + limit, self.interrupted.clone());
        async move {
            tokio::select! {
                () = tokio::time::sleep_until(until) => End::Deadline,
                Ok(_) = interrupted.wait_for(|stop| *stop) => End::Interrupted,
            }
        }
    }

    /// What work brings, or why it was not waited for.
    pub(super) async fn within<T>(&self, work: impl Future<Output = T>) -> Result<T, End> {
        tokio::select! {
            done = work => Ok(done),
            end = self.now() => Err(end),
        }
    }
}

/// An archive and what is known of it.
pub(super) struct Dump {
    archive: Archive,
    /// What takes secrets out.
    pub(super) redactor: Redactor,
    files: BTreeMap<String, usize>,
    missing: BTreeMap<String, String>,
}

impl Dump {
    pub(super) fn new(archive: Archive, redactor: Redactor) -> Self {
        Self { archive, redactor, files: BTreeMap::new(), missing: BTreeMap::new() }
    }

    /// Takes in a file, cleaned, or why there is none.
    ///
    /// # Errors
    /// The archive cannot be written.
    pub(super) fn take(&mut self, path: String, content: Result<Content, String>) -> io::Result<()> {
        let clean = match content {
            Err(why) => {
                self.missing.insert(path, self.redactor.text(&why));
                return Ok(());
            }
            Ok(Content::Objects(mut values)) => {
                values.iter_mut().for_each(|value| self.redactor.object(value));
                serde_json::to_vec_pretty(&values)?
            }
            // What is JSON stays JSON.
            Ok(Content::Text(text)) => match serde_json::from_str::<Value>(&text) {
                Ok(mut value) => {
                    self.redactor.value(&mut value);
                    value.to_string().into_bytes()
                }
                Err(_) => self.redactor.text(&text).into_bytes(),
            },
        };
        self.archive.append(&path, &clean)?;
        self.files.insert(path, clean.len());
        Ok(())
    }

    /// Asks for everything, some of it at once, until all is there or it is time to stop; what is not there then is named. `say` is
    /// told now and then how much is left.
    ///
    /// # Errors
    /// The archive cannot be written.
    pub(super) async fn gather(
        &mut self,
        pieces: Vec<Piece<'_>>,
        stop: &Stop,
        say: impl Fn(usize),
    ) -> io::Result<End> {
        let mut open: BTreeSet<String> = pieces.iter().map(|piece| piece.path.clone()).collect();
        let work = pieces.into_iter().map(|Piece { path, work }| async move { (path, work.await) });
        let mut answers = futures::stream::iter(work).buffer_unordered(AT_ONCE);
        let end = stop.now();
        tokio::pin!(end);
        let ended = loop {
            let next = tokio::select! {
                next = answers.next() => next,
                end = &mut end => break end,
            };
            let Some((path, content)) = next else { break End::Complete };
            open.remove(&path);
            self.take(path, content)?;
            if open.len().is_multiple_of(50) {
                say(open.len());
            }
        };
        self.missing.extend(open.into_iter().map(|path| (path, format!("not waited for: {ended}"))));
        Ok(ended)
    }

    /// Ends the archive with its index.
    ///
    /// # Errors
    /// The archive cannot be written.
    pub(super) fn finish(mut self, generated_at: String, ended: End) -> io::Result<Index> {
        let index = Index {
            format: FORMAT,
            generated_at,
            generated_by: format!("hawser {}", env!("CARGO_PKG_VERSION")),
            verdict: if self.missing.is_empty() { Verdict::Holds } else { Verdict::Incomplete },
            ended,
            files: self.files,
            missing: self.missing,
        };
        self.archive.append("index.json", &serde_json::to_vec_pretty(&index)?)?;
        self.archive.finish()?;
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn dump(dir: &std::path::Path) -> Dump {
        Dump::new(Archive::create(&dir.join("d.tar.gz")).unwrap(), Redactor::new(BTreeSet::new()))
    }

    fn stop(limit: Duration) -> (watch::Sender<bool>, Stop) {
        let (tell, interrupted) = watch::channel(false);
        (tell, Stop { begun: Instant::now(), limit, interrupted })
    }

    fn quick(number: usize) -> Piece<'static> {
        Piece::new(format!("quick/{number:03}"), async { Ok(Content::Text("text".to_owned())) })
    }

    fn hangs(name: &str) -> Piece<'static> {
        Piece::new(name.to_owned(), std::future::pending())
    }

    #[tokio::test]
    async fn what_hangs_costs_nobody_else_its_place_and_is_named_when_it_ends() {
        for interrupt in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let mut dump = dump(dir.path());
            // As many dead kubelets as are asked at once, less one: all others go by the last place.
            let pieces = (1..AT_ONCE)
                .map(|number| hangs(&format!("dead/{number:02}")))
                .chain((0..100).map(quick))
                .collect();
            let limit = if interrupt { Duration::from_secs(3600) } else { Duration::from_millis(200) };
            let (tell, stop) = stop(limit);
            let left = AtomicUsize::new(0);
            let ended = dump
                .gather(pieces, &stop, |open| {
                    left.store(open, Ordering::Relaxed);
                    if interrupt && open <= 50 {
                        tell.send_replace(true);
                    }
                })
                .await
                .unwrap();
            let index = dump.finish("2026-11-30T00:00:00Z".to_owned(), ended).unwrap();
            assert_eq!(index.ended, if interrupt { End::Interrupted } else { End::Deadline });
            assert_eq!(index.verdict, Verdict::Incomplete);
            assert_eq!(index.files.len() + index.missing.len(), AT_ONCE - 1 + 100);
            assert!(index.missing["dead/01"].starts_with("not waited for: "), "{:?}", index.missing);
            assert!(interrupt || index.files.len() == 100, "{}", index.files.len());
            assert!(dir.path().join("d.tar.gz").exists());
        }
    }

    #[tokio::test]
    async fn all_that_is_there_and_all_that_is_refused_ends_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let mut dump = dump(dir.path());
        let refused = Piece::new("logs/x".to_owned(), async { Err("no; token=abcdefghijk".to_owned()) });
        let (_tell, stop) = stop(Duration::from_secs(3600));
        let ended = dump.gather(vec![quick(1), refused], &stop, |_| {}).await.unwrap();
        let index = dump.finish(String::new(), ended).unwrap();
        assert_eq!((index.ended, index.files.len()), (End::Complete, 1));
        assert_eq!(index.missing["logs/x"], "no; token=REDACTED");
    }
}
