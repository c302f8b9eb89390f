//! Settings of the host as they were before an agent changed them, in a file, so that uninstallation can put them back.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{HostFacts, HostFix, HostWant};

/// Name of the file in the state directory.
pub(crate) const FILE: &str = "settings.json";

/// What was changed, by path below `/proc/sys`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Before(pub BTreeMap<String, Change>);

/// One setting that an agent changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What somebody had set it to: the last value that an agent found and did not like.
    pub before: String,
    /// What agents set it to.
    pub ours: String,
}

impl Before {
    /// Reads the file. None, or one that cannot be read: nothing is known.
    pub fn load(state_dir: &Path) -> Self {
        let text = std::fs::read(state_dir.join(FILE)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Takes note of what `fixes` change. Settings of our own devices go with these. True: there is news.
    fn learn(&mut self, facts: &HostFacts, want: &HostWant, fixes: &[HostFix]) -> bool {
        let mut news = false;
        for fix in fixes {
            let HostFix::Sysctl(sysctl) = fix else { continue };
            let device = sysctl.key.rsplit('/').nth(1).unwrap_or_default();
            let own =
                want.slots.iter().any(|slot| slot == device) || device.starts_with(&want.pod_veth_prefix);
            let Some(found) = facts.sysctls.get(&sysctl.key).filter(|_| !own) else { continue };
            let change = Change { before: found.clone(), ours: sysctl.value.to_owned() };
            news |= self.0.insert(sysctl.key.clone(), change.clone()).as_ref() != Some(&change);
        }
        news
    }
}

/// Writes down what `fixes` are about to change. That it cannot be written keeps nothing from being set: a node that works comes
/// before one that can be left as it was.
pub(crate) fn remember(state_dir: &Path, facts: &HostFacts, want: &HostWant, fixes: &[HostFix]) {
    if !fixes.iter().any(|fix| matches!(fix, HostFix::Sysctl(_))) {
        return;
    }
    let mut before = Before::load(state_dir);
    if !before.learn(facts, want, fixes) {
        return;
    }
    let path = state_dir.join(FILE);
    if let Err(error) = crate::kept::write(&path, &before) {
        tracing::warn!(path = %path.display(), err = %error, "Could not write down which settings of the host were changed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Sysctl;

    #[test]
    fn what_was_set_before_is_kept_and_our_own_devices_are_left_out() {
        let folder = tempfile::tempdir().expect("a directory");
        let key = |name: &str| format!("net/ipv4/conf/{name}/rp_filter");
        let facts = |value: &str| HostFacts {
            proc_sys_writable: true,
            sysctls: ["eth0", "hawser0", "hw0123456789abc"].map(|name| (key(name), value.to_owned())).into(),
            advertised: Default::default(),
            foreign_chains: Ok(Vec::new()),
            legacy_filter_v4: false,
            legacy_filter_v6: false,
            networkd: None,
            conntrack: true,
            links: Vec::new(),
            addresses: Vec::new(),
        };
        let want = HostWant {
            slots: ["hawser0".into(), "hawser1".into()],
            pod_veth_prefix: "hw".into(),
            tunnel_ports: [1, 2],
            ipv4: true,
            ipv6: true,
            ipv6_guarded: true,
            loose: Vec::new(),
        };
        let fixes =
            ["eth0", "hawser0", "hw0123456789abc"].map(|name| HostFix::Sysctl(Sysctl::new(key(name), "2")));
        let change = |before: &str| Change { before: before.into(), ours: "2".into() };
        for value in ["1", "1", "0"] {
            remember(folder.path(), &facts(value), &want, &fixes);
            let wanted = Before([(key("eth0"), change(value))].into());
            assert_eq!(Before::load(folder.path()), wanted);
        }
        remember(folder.path(), &facts("7"), &want, &[]);
        assert_eq!(Before::load(folder.path()).0[&key("eth0")], change("0"), "nothing was changed");
    }
}
