//! Which keys peers have replaced ([`Retired`]), kept in a file so that it outlives the agent.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use mesh_core::key::PublicKey;
use mesh_core::name::NodeName;
use mesh_core::problem::Problem;
use mesh_core::psk::PskId;
use mesh_core::retired::Retired;
use mesh_core::slot::Slot;
use mesh_core::view::ClusterView;

use super::Psks;

/// Name of the file in the state directory.
const FILE: &str = "retired.json";

/// The file and what is in it.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    retired: Retired,
    unsaved: bool,
}

impl Ledger {
    /// Reads the file. Without a good one the agent begins anew: it then takes what the API says, as on its first day.
    pub fn load(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let read = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Retired::default()),
            Err(error) => Err(error),
        };
        let retired = read.unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), err = %error, "Could not read which keys peers have replaced; taking what the API says");
            Retired::default()
        });
        Self { path, retired, unsaved: false }
    }

    /// Refuses announcements that go back. What they were instead stands in the view.
    pub(super) fn review(&mut self, view: &mut ClusterView, psks: &Psks) -> Vec<Problem> {
        let agreed = |node: &NodeName, slot| psks.agreed(node, slot);
        let (problems, news) = self.retired.review(&view.local.name, &mut view.nodes, agreed, view.synced);
        self.unsaved |= news;
        problems
    }

    /// Takes note of keys that are at work with a pre-shared key that both sides have seen.
    pub(super) fn note(&mut self, at_work: impl Iterator<Item = (NodeName, Slot, PublicKey, PskId)>) {
        for (node, slot, key, psk) in at_work {
            self.unsaved |= self.retired.at_work(&node, slot, key, psk);
        }
    }

    /// Writes the file if there is news. What fails is tried again with the next turn.
    pub(super) async fn save(&mut self) {
        if !self.unsaved {
            return;
        }
        let (path, retired) = (self.path.clone(), self.retired.clone());
        match tokio::task::spawn_blocking(move || write(&path, &retired)).await {
            Ok(Ok(())) => self.unsaved = false,
            Ok(Err(error)) => {
                tracing::warn!(path = %self.path.display(), err = %error, "Could not write which keys peers have replaced");
            }
            Err(error) => tracing::warn!(err = %error, "Could not write which keys peers have replaced"),
        }
    }
}

/// In place of the file, whole. Not synced: what is lost in a crash of the machine is learned again.
fn write(path: &Path, retired: &Retired) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_extension("tmp");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(retired)?)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_torn_or_not_there_is_a_new_beginning() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(Ledger::load(dir.path()).retired, Retired::default());
        write(&dir.path().join(FILE), &Retired::default()).expect("writes");
        assert_eq!(Ledger::load(dir.path()).retired, Retired::default());
        fs::write(dir.path().join(FILE), "{\"a\": {\"created\": 5").expect("writes");
        assert_eq!(Ledger::load(dir.path()).retired, Retired::default());
    }
}
