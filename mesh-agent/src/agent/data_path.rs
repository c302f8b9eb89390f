//! The data path's share of a turn.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh_core::plan::Desired;

use super::Agent;
use crate::host_ports::TABLE;
use crate::plane::PlaneState;

impl Agent {
    /// hostPorts' share of a turn: the table is what the attachments say, whatever others did to it.
    pub(super) async fn host_ports(&mut self, turn: &mut crate::guard::Turn) {
        match self.attacher.host_ports.ensure().await {
            Ok(found) => {
                if !found.repaired.is_empty() {
                    let what: Vec<String> = found.repaired.iter().map(ToString::to_string).collect();
                    let differences = what.join("; ");
                    tracing::warn!(table = TABLE, differences, "Repaired the nf_tables table");
                    self.metrics.firewall_repaired();
                }
                for (name, counter) in found.counters {
                    let before = self.memory.host_ports.insert(name.clone(), counter.packets).unwrap_or(0);
                    self.metrics.firewall(&name, counter.packets.saturating_sub(before));
                }
            }
            Err(error) => {
                tracing::error!(err = %error, "Could not set the table of hostPorts");
                turn.findings.push(("host-ports-refused".to_owned(), error.to_string()));
            }
        }
    }

    /// The data path's share of closing and what it finds. Where it is missing, the firewall closes alone, and no pod is
    /// connected.
    pub(super) async fn data_path(&mut self, desired: &Desired, synced: bool, turn: &mut crate::guard::Turn) {
        let findings = self.findings.borrow_and_update().trouble.clone();
        turn.findings.extend(findings);
        let plane = match &*self.plane.borrow_and_update() {
            PlaneState::Off => return,
            PlaneState::Failed(why) => {
                turn.obstacles.push(why.clone());
                turn.no_data_path = Some(why.clone());
                return;
            }
            PlaneState::Open(plane) => plane.clone(),
        };
        let input = crate::guard::nft_input(&self.config, desired);
        let own: BTreeSet<IpAddr> = desired.mesh.union(&desired.own_node_ips).copied().collect();
        let worker = plane.clone();
        let work = move || -> Result<_, crate::plane::PlaneError> {
            let findings = worker.guard(&input, synced)?;
            worker.own_addresses(&own, synced)?;
            Ok(findings)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(findings)) => turn.findings.extend(findings),
            Ok(Err(error)) => {
                turn.closed = false;
                turn.findings.push(("data-path-guard".to_owned(), error.to_string()));
            }
            Err(error) => turn.findings.push(("data-path-guard".to_owned(), error.to_string())),
        }
        match crate::plane::look(&plane, &self.kernel, &self.register).await {
            Ok(findings) => turn.findings.extend(findings),
            Err(error) => turn.findings.push(("data-path-links".to_owned(), error.to_string())),
        }
    }
}
