//! What ADD, DEL and CHECK have to do with hostPorts and rates.

use std::collections::BTreeMap;

use proto::cni::{Bandwidth, Failure};

use super::attach::{Attacher, io_failure};
use crate::attachments::Attachment;
use crate::host::{Host, Sysctl};
use crate::host_ports::{Published, published};
use crate::shaping::{self, Shape};

impl Attacher {
    /// Serves a pod's hostPorts.
    pub(super) async fn publish_ports(&self, veth: &str, attachment: &Attachment) -> Result<(), Failure> {
        let ports = published(attachment);
        if ports.is_empty() {
            return Ok(());
        }
        self.host_ports.ensure().await.map_err(|error| io_failure(&error))?;
        if ports.iter().any(Published::on_loopback) {
            // Only now: the table keeps the pod itself from the node's loopback.
            let sysctl = Sysctl::new(format!("net/ipv4/conf/{veth}/route_localnet"), "1");
            Host::default().set(&[sysctl]).map_err(|error| io_failure(&error))?;
        }
        self.host_ports.forget_unserved(ports).await;
        Ok(())
    }

    /// Takes a pod's hostPorts out of the table, before its addresses can be anybody else's.
    pub(super) async fn withdraw_ports(&self, veth: &str) -> Result<(), Failure> {
        let taken = {
            let mut table = self.table();
            let attachment = table.attachments.get_mut(veth);
            attachment
                .map(|attachment| (std::mem::take(&mut attachment.port_mappings), attachment.ips.clone()))
        };
        let Some((mappings, ips)) = taken.filter(|(mappings, _)| !mappings.is_empty()) else { return Ok(()) };
        if let Err(error) = self.host_ports.ensure().await {
            if let Some(attachment) = self.table().attachments.get_mut(veth) {
                attachment.port_mappings = mappings;
            }
            return Err(io_failure(&error));
        }
        // Of others nothing is remembered that a packet does not say anew.
        if mappings.iter().any(|mapping| mapping.protocol == "udp") {
            self.host_ports.forget_served(ips.into_iter().collect()).await;
        }
        Ok(())
    }

    /// What of a pod's hostPorts is not served.
    pub(super) async fn check_ports(&self, attachment: &Attachment) -> Result<Option<String>, Failure> {
        let ports = published(attachment);
        if ports.is_empty() {
            return Ok(None);
        }
        self.host_ports.check(ports).await.map_err(|error| io_failure(&error))
    }

    /// What of a pod's rates is not in force.
    pub(super) async fn check_rates(
        &self,
        veth: &str,
        attachment: &Attachment,
    ) -> Result<Option<String>, Failure> {
        if attachment.bandwidth.is_none() {
            return Ok(None);
        }
        // One that is gone is found by who checks the link.
        let Ok(link) = self.kernel.link(veth).await else { return Ok(None) };
        let shape = Shape::of(attachment.bandwidth.as_ref(), link.mtu);
        shaping::check(&self.kernel, veth, link.index, &shape).await.map_err(|error| io_failure(&error))
    }

    /// Puts right the rates of pods that are connected, and removes what is left of those that are not.
    pub(super) async fn keep_rates(&self) -> Result<(), Failure> {
        let wanted: BTreeMap<String, Bandwidth> = {
            let table = self.table();
            let rated = table.attachments.iter().filter_map(|(veth, a)| Some((veth.clone(), a.bandwidth?)));
            rated.collect()
        };
        let busy = |veth: &str| self.table().busy.contains(veth);
        let idle = shaping::keep(&self.kernel, &wanted, busy).await.map_err(|error| io_failure(&error))?;
        for veth in idle {
            self.remove_unused_shaper(&veth).await;
        }
        Ok(())
    }

    /// Removes the device behind a link that seemed to be nobody's, if it is. What fails is left for the next time.
    async fn remove_unused_shaper(&self, veth: &str) {
        // Looked at again under the lock: an ADD with a rate may have passed since.
        let Some(_busy) = self.busy(veth) else { return };
        let attachment = self.table().attachments.get(veth).cloned();
        let device = shaping::shaper(veth);
        let is_there = match self.kernel.find_link(veth).await {
            Ok(link) => link.is_some(),
            Err(error) => {
                tracing::warn!(device, err = %error, "Could not see whether a pod sends through a device; it stays");
                return;
            }
        };
        if !shaping::is_unused(attachment.as_ref(), is_there) {
            return;
        }
        match self.kernel.remove_link(&device).await {
            Ok(_) => tracing::info!(device, "Removed a device that no pod sends through"),
            Err(error) => tracing::warn!(device, err = %error, "Could not remove a device"),
        }
    }
}
