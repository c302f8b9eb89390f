//! Notes for DELs that the agent could not take: it executes them when it is back.

use std::io;
use std::path::{Path, PathBuf};

use proto::cni::{AttachmentId, Detach};

use crate::files;

/// Path of an attachment's note.
pub fn note_path(dir: &Path, id: &AttachmentId) -> PathBuf {
    dir.join(id.note_name())
}

/// Writes the note; it survives a crash of the machine from the moment that this returns.
///
/// # Errors
/// Of the file system.
pub fn write(dir: &Path, detach: &Detach) -> io::Result<()> {
    files::make_dir(dir, 0o700)?;
    // Housekeeping; the note itself is what counts.
    drop(files::remove_stale(dir, &detach.id.note_name()));
    let content = serde_json::to_vec(detach)?;
    files::replace(dir, &detach.id.note_name(), 0o600, &content)
}

/// True when there is a note for this attachment.
pub fn exists(dir: &Path, id: &AttachmentId) -> bool {
    note_path(dir, id).symlink_metadata().is_ok()
}

/// Removes the note, if there is one.
///
/// # Errors
/// Of the file system.
pub fn remove(dir: &Path, id: &AttachmentId) -> io::Result<()> {
    files::remove(&note_path(dir, id)).map(|_| ())
}
