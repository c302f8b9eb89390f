//! Files that appear whole or not at all.

use std::collections::hash_map::RandomState;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Age from which a temporary file is the rest of a crash: writing one takes milliseconds.
const STALE: Duration = Duration::from_secs(600);

/// Syncs a directory, so that a rename inside it lasts.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes a directory with its parents and syncs what was made.
pub(crate) fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_dir(parent, 0o755)?;
    }
    match DirBuilder::new().mode(mode).create(dir) {
        Ok(()) => dir.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_dir),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Prefix of the temporary names for `name`. The directory is that of the target, because containerd ignores a
/// file renamed into its directory from another, and the extension `.tmp` is none that a runtime loads.
fn prefix(name: &str) -> String {
    format!(".{name}.")
}

/// A temporary name that no other process chooses: two containers that share the directory may share a PID.
fn temporary(dir: &Path, name: &str) -> PathBuf {
    let random = RandomState::new().build_hasher().finish();
    dir.join(format!("{}{random:016x}.tmp", prefix(name)))
}

/// Replaces `dir/name` by `content`: temporary file in the same directory, sync, rename, sync of the directory.
pub(crate) fn replace(dir: &Path, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let temporary = temporary(dir, name);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, dir.join(name))
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_dir(dir)
}

/// Makes the symbolic link `dir/name`, unless something of that name is there.
pub(crate) fn link(dir: &Path, name: &str, target: &str) -> io::Result<()> {
    std::os::unix::fs::symlink(target, dir.join(name))?;
    sync_dir(dir)
}

/// Removes a file if it is there; tells whether it was.
pub(crate) fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Temporary files of `dir/name` that are there.
pub(crate) fn temporaries(dir: &Path, name: &str) -> io::Result<Vec<PathBuf>> {
    let prefix = prefix(name);
    let is_ours = |path: &PathBuf| {
        let found = path.file_name().and_then(|found| found.to_str());
        found.is_some_and(|found| found.starts_with(&prefix) && found.ends_with(".tmp"))
    };
    let all =
        fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    Ok(all.into_iter().filter(is_ours).collect())
}

/// Removes temporary files of `dir/name` that a crash has left.
pub(crate) fn remove_stale(dir: &Path, name: &str) -> io::Result<()> {
    for path in temporaries(dir, name)? {
        let modified = path.symlink_metadata().and_then(|found| found.modified()).ok();
        let age = modified.and_then(|modified| SystemTime::now().duration_since(modified).ok());
        if age.is_some_and(|age| age >= STALE) {
            remove(&path)?;
        }
    }
    Ok(())
}
