//! The thread that empties the ring.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use datapath::{FlowReader, POLL_INTERVAL};
use jiff::Timestamp;
use proto::flows::{Lost, LostSource};
use tokio::sync::mpsc;

use super::convert::{Here, convert, unknown};
use super::{Board, News};
use crate::metrics::Metrics;
use crate::names::Register;

/// Events that are given names in one look. A flood of drops must not take a whole CPU to be described: at one look in
/// [`POLL_INTERVAL`] this is 50,000 a second. The rest counts as lost.
const NAMED: usize = 256;
/// Events that are taken out of the ring in one look.
const TAKEN: usize = 16_384;

/// What the thread works with.
#[derive(Debug)]
pub struct Poll {
    /// Name of the Node.
    pub node: String,
    /// Who has which address.
    pub register: Arc<Register>,
    /// Where flows are put up.
    pub board: Arc<Board>,
    /// Where unknown addresses go.
    pub lookup: mpsc::Sender<IpAddr>,
    /// Counts.
    pub metrics: Metrics,
}

impl Poll {
    /// Runs for ever.
    pub fn run(self, mut reader: FlowReader) {
        let mut events = Vec::new();
        loop {
            std::thread::sleep(POLL_INTERVAL);
            events.clear();
            reader.read(TAKEN, &mut events);
            let ring = match reader.lost() {
                Ok(lost) => lost,
                Err(error) => {
                    tracing::warn!(err = %error, "Could not read how many flow events were lost");
                    0
                }
            };
            if !events.is_empty() || ring > 0 {
                self.look(&events, ring);
            }
        }
    }

    fn look(&self, events: &[datapath::FlowEvent], ring: u64) {
        let asked: BTreeSet<IpAddr> = events.iter().filter_map(unknown).collect();
        let names = self.register.read();
        for address in asked.into_iter().filter(|address| !names.is_known(*address)) {
            // A full queue: the next packet asks again.
            let _full = self.lookup.try_send(address);
        }
        let here = Here { node: self.node.clone(), now: Timestamp::now(), monotonic: datapath::now_ns() };
        let flows: Vec<News> = events
            .iter()
            .take(NAMED)
            .filter_map(|event| convert(event, &names, &here))
            .map(|flow| News::Flow(Arc::new(flow)))
            .collect();
        drop(names);
        let passed_over = events.len().saturating_sub(NAMED);
        let lost = ring + u64::try_from(passed_over).unwrap_or(u64::MAX);
        self.metrics.flow_events(u64::try_from(flows.len()).unwrap_or(u64::MAX), lost);
        let missing = (lost > 0).then(|| {
            News::Lost(Lost {
                time: here.now,
                node_name: here.node.clone(),
                source: LostSource::Ring,
                num_events_lost: lost,
            })
        });
        self.board.post(flows.into_iter().chain(missing));
    }
}
