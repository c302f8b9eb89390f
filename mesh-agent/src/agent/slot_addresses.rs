//! The mesh address on the slots. The kernel checks sources loosely (`rp_filter` 2) on devices with an IPv4 address alone: on
//! others what comes has to have its way back by the same device, and is dropped otherwise. By the slots come also answers
//! from the address of a node that lies on the uplink (a pod there was spoken to by a hostPort), and packets of a pair that
//! is just changing slots.

use mesh_core::plan::Desired;
use mesh_core::slot::Slot;

use super::{Agent, TurnError};
use crate::kernel::KernelState;

impl Agent {
    /// Puts it where it is missing; with a complete picture takes away what was one before.
    pub(super) async fn slot_addresses(
        &self,
        desired: &Desired,
        state: &KernelState,
        synced: bool,
    ) -> Result<(), TurnError> {
        for slot in Slot::ALL {
            let Some(link) = state.links.get(slot.device()) else { continue };
            let wanted = || desired.mesh.iter().filter(|address| address.is_ipv4());
            let on_slot = state.addresses.iter().filter(|(index, _)| *index == link.index);
            let present: Vec<_> =
                on_slot.map(|(_, net)| net.addr()).filter(std::net::IpAddr::is_ipv4).collect();
            for address in wanted().filter(|address| !present.contains(address)) {
                self.kernel.put_address(slot.device(), *address).await?;
            }
            let guarded = &desired.guarded;
            let ours = |address: &&std::net::IpAddr| guarded.iter().any(|net| net.contains(*address));
            for address in present.iter().filter(ours).filter(|address| !desired.mesh.contains(address)) {
                if synced {
                    self.kernel.remove_address(slot.device(), *address).await?;
                }
            }
        }
        Ok(())
    }
}
