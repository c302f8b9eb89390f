//! Flow events: read from the data path's ring, given names, kept for a while, and told to readers on a unix socket.
//!
//! ```text
//!  ring ─► poll thread: names ─► Board: the last [`RECENT`] ─► queue of each reader ─► JSON lines
//!                      └─► unknown addresses ─► look-up
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use proto::flows::{Body, Filter, Flow, Line, Lost};
use tokio::sync::broadcast;

pub mod convert;
pub mod poll;
pub mod server;

/// Flows that are kept for who asks later: about 4 MiB.
const RECENT: usize = 8192;
/// Flows that may wait for one reader; about a second of a busy node.
const QUEUE: usize = 4096;

/// What a reader is told.
#[derive(Clone, Debug)]
pub enum News {
    /// A flow.
    Flow(Arc<Flow>),
    /// Events that the ring had no room for.
    Lost(Lost),
}

impl News {
    /// As a line, if the reader wants it.
    fn line(&self, filter: &Filter) -> Option<Line> {
        match self {
            Self::Flow(flow) => {
                filter.matches(flow).then(|| Line::new(Body::Flow(Box::new((**flow).clone()))))
            }
            Self::Lost(lost) => Some(Line::new(Body::Lost(lost.clone()))),
        }
    }
}

/// Recent flows, and who follows.
#[derive(Debug)]
pub struct Board {
    recent: Mutex<VecDeque<News>>,
    tell: broadcast::Sender<News>,
}

impl Default for Board {
    fn default() -> Self {
        Self { recent: Mutex::new(VecDeque::with_capacity(RECENT)), tell: broadcast::channel(QUEUE).0 }
    }
}

impl Board {
    /// Puts up what happened, in its order.
    pub fn post(&self, all: impl IntoIterator<Item = News>) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        for news in all {
            if recent.len() >= RECENT {
                recent.pop_front();
            }
            recent.push_back(news.clone());
            // Nobody follows: fine.
            drop(self.tell.send(news));
        }
    }

    /// The last `count` flows that match, oldest first, and all that comes after them.
    fn read(&self, filter: &Filter, count: u32) -> (Vec<Line>, broadcast::Receiver<News>) {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let flows = recent.iter().rev().filter(|news| matches!(news, News::Flow(_)));
        let mut lines: Vec<Line> = flows.filter_map(|news| news.line(filter)).take(count).collect();
        lines.reverse();
        (lines, self.tell.subscribe())
    }
}
