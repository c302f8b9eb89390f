//! Metrics of the DNS server, prefix `hawser_dns_`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::respond::{Code, Transport};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    transport: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// What is counted. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    responses: Family<Labels, Counter>,
    truncated: Counter,
    dropped: Family<Reason, Counter>,
}

/// Why a request or a connection had no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// No request: too short, or an answer itself.
    NotARequest,
    /// A request over TCP was longer than we read.
    TooLong,
    /// All connections were in use.
    Connections,
    /// A connection was open for longer than one may be, in the middle of a message.
    Late,
    /// The answer could not be sent.
    Unsent,
}

impl Dropped {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::NotARequest, Self::TooLong, Self::Connections, Self::Late, Self::Unsent];

    /// For labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotARequest => "not_a_request",
            Self::TooLong => "too_long",
            Self::Connections => "connections",
            Self::Late => "late",
            Self::Unsent => "unsent",
        }
    }
}

impl Metrics {
    /// In a registry; everything is there from the beginning.
    pub fn new(registry: &mut Registry) -> Self {
        let all = Self::default();
        for transport in [Transport::Udp, Transport::Tcp] {
            for code in Code::ALL {
                drop(all.responses.get_or_create(&labels(transport, code)));
            }
        }
        for reason in Dropped::ALL {
            drop(all.dropped.get_or_create(&Reason { reason: reason.name() }));
        }
        registry.register("hawser_dns_responses", "Answers to DNS requests", all.responses.clone());
        let text = "Answers over UDP that did not fit, so that clients ask over TCP";
        registry.register("hawser_dns_truncated", text, all.truncated.clone());
        registry.register("hawser_dns_dropped", "DNS requests without an answer", all.dropped.clone());
        all
    }

    /// An answer was made.
    pub fn answered(&self, transport: Transport, code: Code, truncated: bool) {
        self.responses.get_or_create(&labels(transport, code)).inc();
        if truncated {
            self.truncated.inc();
        }
    }

    /// There was none.
    pub fn dropped(&self, reason: Dropped) {
        self.dropped.get_or_create(&Reason { reason: reason.name() }).inc();
    }

    /// How often something was dropped for a reason.
    pub fn count_of_dropped(&self, reason: Dropped) -> u64 {
        self.dropped.get_or_create(&Reason { reason: reason.name() }).get()
    }
}

const fn labels(transport: Transport, code: Code) -> Labels {
    Labels { transport: transport.name(), code: code.name() }
}
