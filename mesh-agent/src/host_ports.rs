//! hostPorts of this node's pods, for what comes from outside and for what the node itself says; what pods say is the data
//! path's (design D8). Destinations are translated by a table of nf_tables of our own, beside kube-proxy's; replies find their
//! way back by the stack. The table is what the attachments say, and nothing else.

mod claim;
mod ruleset;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_core::numbers::POD_VETH_PREFIX;

pub use claim::{Taken, claim};
pub use ruleset::{Published, TABLE, counter, ruleset};

use crate::attachments;
use crate::facts::pod::HostPort;
use crate::nft::conntrack::{self, Flow};
use crate::nft::model::Table;
use crate::nft::{Counter, Difference, Nft, NftError, diff, lacks};

/// `IPPROTO_UDP`.
const UDP: u8 = 17;

/// The table and what it is made from.
#[derive(Clone, Debug)]
pub struct HostPorts {
    attachments: Arc<Mutex<attachments::Table>>,
    work: Arc<Mutex<Work>>,
}

#[derive(Debug)]
struct Work {
    nft: Nft,
    /// What is in force; none: not known yet.
    ensured: Option<Option<Table>>,
}

/// What a look at the table found.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// What somebody else had changed.
    pub repaired: Vec<Difference>,
    /// Sums by name ([`counter`]).
    pub counters: BTreeMap<String, Counter>,
}

/// Why the table is not right.
#[derive(Debug, thiserror::Error)]
pub enum HostPortsError {
    /// nf_tables refused.
    #[error("nf_tables table inet {TABLE}: {0}")]
    Nft(#[from] NftError),
    /// The thread that was to do it ended.
    #[error("hostPorts could not be served: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

impl HostPorts {
    /// Of these attachments. Nothing is touched yet.
    pub fn new(attachments: Arc<Mutex<attachments::Table>>) -> Self {
        Self { attachments, work: Arc::new(Mutex::new(Work { nft: Nft::of(TABLE), ensured: None })) }
    }

    /// Makes the table say what the attachments say now.
    ///
    /// # Errors
    /// nf_tables refused; all is as before.
    pub async fn ensure(&self) -> Result<Turn, HostPortsError> {
        let (attachments, work) = (Arc::clone(&self.attachments), Arc::clone(&self.work));
        let ensured = tokio::task::spawn_blocking(move || {
            // First this lock: whoever comes later sees what is attached later.
            work.lock().unwrap_or_else(PoisonError::into_inner).ensure(&attachments)
        });
        Ok(ensured.await??)
    }

    /// Is what one pod wants in the table? A sentence if not.
    ///
    /// # Errors
    /// nf_tables did not say.
    pub async fn check(&self, published: Vec<Published>) -> Result<Option<String>, HostPortsError> {
        let work = Arc::clone(&self.work);
        let look = tokio::task::spawn_blocking(move || -> Result<Option<String>, NftError> {
            let Some(wanted) = ruleset(&published, POD_VETH_PREFIX) else { return Ok(None) };
            let observed = work.lock().unwrap_or_else(PoisonError::into_inner).nft.observe()?;
            let missing: Vec<String> = lacks(&wanted, &observed)?.iter().map(ToString::to_string).collect();
            let sentence = || format!("hostPorts are not served: inet {TABLE}: {}", missing.join("; "));
            Ok((!missing.is_empty()).then(sentence))
        });
        Ok(look.await??)
    }

    /// A pod has its hostPorts now: what is said to them over UDP and went elsewhere for want of it goes to the pod.
    pub async fn forget_unserved(&self, mut published: Vec<Published>) {
        published.retain(|port| port.protocol() == UDP);
        // To look costs as much as there are flows on the node.
        if published.is_empty() {
            return;
        }
        forget(move |flow| published.iter().any(|port| went_past(port, flow))).await;
    }

    /// A pod's hostPorts lead nowhere any more: what was said to them over UDP asks anew.
    pub async fn forget_served(&self, ips: BTreeSet<IpAddr>) {
        forget(move |flow| {
            flow.original.protocol == UDP && flow.is_translated() && ips.contains(&flow.reply.source.ip())
        })
        .await;
    }
}

/// An entry without translation, of datagrams to this port, outlives any pause that its sender makes.
fn went_past(port: &Published, flow: &Flow) -> bool {
    let at = flow.original.destination;
    let only = port.port.host_ip.filter(|ip| !ip.is_unspecified());
    port.protocol() == UDP
        && flow.original.protocol == UDP
        && at.port() == port.port.host_port
        && only.is_none_or(|only| only == at.ip())
        && !flow.is_translated()
}

async fn forget(which: impl Fn(&Flow) -> bool + Send + 'static) {
    let forgotten = tokio::task::spawn_blocking(move || conntrack::forget(which)).await;
    match forgotten {
        Ok(Ok(count)) => tracing::debug!(count, "Forgot flows of hostPorts"),
        // They end by themselves, within minutes of silence.
        Ok(Err(error)) => tracing::warn!(err = %error, "Could not forget flows of hostPorts"),
        Err(error) => tracing::warn!(err = %error, "Could not forget flows of hostPorts"),
    }
}

impl Work {
    fn ensure(&mut self, attachments: &Mutex<attachments::Table>) -> Result<Turn, NftError> {
        let published: Vec<Published> = {
            let attachments = attachments.lock().unwrap_or_else(PoisonError::into_inner);
            // Of two for one port the first counts: a pod's new sandbox and not its former one.
            attachments.newest_first().into_iter().flat_map(|(_, attachment)| published(attachment)).collect()
        };
        let wanted = ruleset(&published, POD_VETH_PREFIX);
        let same = self.ensured.as_ref() == Some(&wanted);
        let Some(table) = wanted.as_ref() else {
            if !same {
                self.nft.remove()?;
                self.ensured = Some(None);
            }
            return Ok(Turn::default());
        };
        // Not known until it is done.
        self.ensured = None;
        let differences = diff(table, &self.nft.observe()?)?;
        if !differences.is_empty() {
            self.nft.apply(table)?;
        }
        self.ensured = Some(wanted);
        let repaired = if same { differences } else { Vec::new() };
        Ok(Turn { repaired, counters: self.nft.totals() })
    }
}

/// What an attachment's pod has published.
pub fn published(attachment: &attachments::Attachment) -> Vec<Published> {
    let ports = attachment.port_mappings.iter().filter_map(HostPort::mapped);
    ports.map(|port| Published { port, ips: attachment.ips.clone() }).collect()
}
