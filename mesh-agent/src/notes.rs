//! Deletions that the plugin wrote down because nobody answered it (design D9).

use std::path::{Path, PathBuf};

use proto::cni::{Detach, PENDING_DELETES};

use crate::cni::Attacher;

/// Executes and removes every note. What cannot be read is put aside by name, so that it is reported once.
pub async fn execute(attacher: &Attacher) {
    for (path, detach) in read(Path::new(PENDING_DELETES)) {
        let Some(detach) = detach else {
            let aside = path.with_extension("unreadable");
            tracing::warn!(note = %path.display(), "A note of a deletion cannot be read; put aside. Its pod's link and addresses go when its namespace does");
            drop(std::fs::rename(&path, aside));
            continue;
        };
        match attacher.del_noted(&detach.id, &path).await {
            Ok(true) => {
                let container = detach.id.container_id;
                tracing::info!(container, "Executed a deletion that the plugin wrote down");
            }
            Ok(false) => {}
            Err(failure) => {
                tracing::warn!(note = %path.display(), err = %failure, "Could not execute a note")
            }
        }
    }
}

fn read(directory: &Path) -> Vec<(PathBuf, Option<Detach>)> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    // A leading dot marks a note that was not finished.
    let whole = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("hw") && name.ends_with(".json")
    };
    let notes = paths.filter(whole);
    // What cannot be read now may be readable in ten seconds; only what is no note is put aside.
    let parse = |path: PathBuf| {
        let bytes = std::fs::read(&path).ok()?;
        let note = serde_json::from_slice(&bytes).ok();
        Some((path, note))
    };
    notes.filter_map(parse).collect()
}
