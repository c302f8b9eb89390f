//! What was proved of peers' keys ([`Proven`]), kept in a file so that it outlives the agent.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use mesh_core::name::NodeName;
use mesh_core::problem::Problem;
use mesh_core::proven::Proven;
use mesh_core::slot::Slot;
use mesh_core::view::{ClusterView, PairFacts};

/// Name of the file in the state directory.
const FILE: &str = "proven.json";

/// The file and what is in it.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    proven: Proven,
    unsaved: bool,
}

impl Ledger {
    /// Reads the file. Without a good one the agent begins anew: it then takes what the API says, as on its first day.
    pub fn load(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let read = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Proven::default()),
            Err(error) => Err(error),
        };
        let proven = read.unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), err = %error, "Could not read which keys peers had; taking what the API says");
            Proven::default()
        });
        Self { path, proven, unsaved: false }
    }

    /// Refuses announcements that go back. What they were instead stands in the view.
    pub(super) fn review(&mut self, view: &mut ClusterView) -> Vec<Problem> {
        self.proven.review(&view.local.name, &mut view.nodes, view.synced)
    }

    /// Takes note of handshakes.
    pub(super) fn prove(&mut self, pairs: &BTreeMap<NodeName, PairFacts>) {
        for (node, pair) in pairs {
            for slot in Slot::ALL.into_iter().filter(|slot| pair.links[slot.index()].confirmed()) {
                self.unsaved |= self.proven.prove(node, slot);
            }
        }
    }

    /// Writes the file if there is news. What fails is tried again with the next turn.
    pub(super) async fn save(&mut self) {
        if !self.unsaved {
            return;
        }
        let (path, proven) = (self.path.clone(), self.proven.clone());
        match tokio::task::spawn_blocking(move || write(&path, &proven)).await {
            Ok(Ok(())) => self.unsaved = false,
            Ok(Err(error)) => {
                tracing::warn!(path = %self.path.display(), err = %error, "Could not write which keys peers have");
            }
            Err(error) => tracing::warn!(err = %error, "Could not write which keys peers have"),
        }
    }
}

/// In place of the file, whole. Not synced: what is lost in a crash of the machine is learned again.
fn write(path: &Path, proven: &Proven) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_extension("tmp");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(proven)?)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_torn_or_not_there_is_a_new_beginning() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(Ledger::load(dir.path()).proven, Proven::default());
        write(&dir.path().join(FILE), &Proven::default()).expect("writes");
        assert_eq!(Ledger::load(dir.path()).proven, Proven::default());
        fs::write(dir.path().join(FILE), "{\"a\": {\"created\": 5").expect("writes");
        assert_eq!(Ledger::load(dir.path()).proven, Proven::default());
    }
}
