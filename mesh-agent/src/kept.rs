//! A value in a file of the state directory, so that it outlives the agent.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The file and what is in it.
#[derive(Debug)]
pub struct Kept<T> {
    path: PathBuf,
    what: &'static str,
    pub(crate) value: T,
    unsaved: bool,
}

impl<T: Default + Clone + Serialize + DeserializeOwned + Send + 'static> Kept<T> {
    /// Reads the file. Without a good one the agent begins anew, as on its first day, and says so; `what` names the content.
    pub(crate) fn load(path: PathBuf, what: &'static str) -> Self {
        let read = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
            Err(error) => Err(error),
        };
        let value = read.unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), err = %error, "Could not read {what}; beginning anew");
            T::default()
        });
        Self { path, what, value, unsaved: false }
    }

    /// The value was changed.
    pub(crate) const fn touch(&mut self, changed: bool) {
        self.unsaved |= changed;
    }

    /// Writes the file if there is news. False: that failed, and is tried again with the next turn.
    pub(crate) async fn save(&mut self) -> bool {
        if !self.unsaved {
            return true;
        }
        let (path, value) = (self.path.clone(), self.value.clone());
        let written = tokio::task::spawn_blocking(move || write(&path, &value)).await;
        match written.map_err(io::Error::other).and_then(|result| result) {
            Ok(()) => self.unsaved = false,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), err = %error, "Could not write {}", self.what);
            }
        }
        !self.unsaved
    }
}

/// In place of the file, whole, and on the disk when it returns.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(path: &Path) -> Kept<Vec<u32>> {
        Kept::load(path.to_owned(), "numbers")
    }

    #[tokio::test]
    async fn what_was_saved_is_read_and_a_file_that_is_torn_or_not_there_is_a_new_beginning() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("numbers.json");
        let mut kept = load(&path);
        assert_eq!(kept.value, Vec::<u32>::new());
        kept.value.push(5);
        assert!(kept.save().await && !path.exists(), "nobody said that it has changed");
        kept.touch(true);
        assert!(kept.save().await);
        assert_eq!(load(&path).value, [5]);
        fs::write(&path, "[5, ").expect("writes");
        assert_eq!(load(&path).value, Vec::<u32>::new());
    }

    #[tokio::test]
    async fn what_cannot_be_written_stays_to_be_written() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("away").join("numbers.json");
        let mut kept = load(&path);
        kept.touch(true);
        assert!(!kept.save().await);
        fs::create_dir(path.parent().expect("a folder")).expect("makes it");
        assert!(kept.save().await);
        assert_eq!(fs::read(&path).expect("reads"), b"[]");
    }
}
