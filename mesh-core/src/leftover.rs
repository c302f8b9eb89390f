//! Whose a network device is that another cluster network made: what a node that was changed over to Hawser may still have.
//!
//! Names as those projects' sources and documentation have them. Devices that others share a name with (`tunl0` is the
//! kernel's own, `lxc…` also LXC's, `kube-ipvs0` kube-proxy's) are left out.

/// Beginnings of names, with the project. Where a name ends in a space here, it has to be the whole name.
const DEVICES: [(&str, &str); 13] = [
    ("antrea-", "Antrea"),
    ("cali", "Calico"),
    ("cilium_", "Cilium"),
    ("cni0 ", "the bridge plugin, as Flannel uses it"),
    ("flannel-v6.", "Flannel"),
    ("flannel-wg", "Flannel"),
    ("flannel.", "Flannel"),
    ("kilo0 ", "Kilo"),
    ("kube-bridge ", "kube-router"),
    ("ovn0 ", "Kube-OVN"),
    ("vxlan.calico ", "Calico"),
    ("weave ", "Weave Net"),
    ("wireguard.cali ", "Calico"),
];

/// The project whose device this is; none: nobody's that we know.
pub fn owner(device: &str) -> Option<&'static str> {
    let is = |name: &str| match name.strip_suffix(' ') {
        Some(whole) => device == whole,
        None => device.starts_with(name),
    };
    DEVICES.iter().find(|(name, _)| is(name)).map(|(_, project)| *project)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::{POD_VETH_PREFIX, SHAPER_PREFIX};
    use crate::slot::Slot;

    #[test]
    fn devices_of_others_are_known_and_ours_and_the_kernels_are_not_theirs() {
        let known = [
            ("cali1234", "Calico"),
            ("cilium_vxlan", "Cilium"),
            ("flannel.1", "Flannel"),
            ("weave", "Weave Net"),
        ];
        for (device, project) in known {
            assert_eq!(owner(device), Some(project), "{device}");
        }
        let ours = [
            format!("{POD_VETH_PREFIX}0123456789abc"),
            format!("{SHAPER_PREFIX}0123456789abc"),
            "hawserh".into(),
        ];
        let kernels = ["lo", "eth0", "tunl0", "docker0", "weaver", "cni01", "wg0", "kube-ipvs0"];
        let all = ours.iter().map(String::as_str).chain(Slot::ALL.map(Slot::device)).chain(kernels);
        for device in all {
            assert_eq!(owner(device), None, "{device}");
        }
    }
}
