//! The state directory: a snapshot and a log of what came after it.
//!
//! Each line of both files is one JSON value. A line that a crash cut off ends the log. The log is written to
//! the page cache, which survives the process but not the machine: this is a lab.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::store::Key;

/// Lines after which the log is folded into a snapshot.
const MAX_LOG_LINES: usize = 20_000;

/// One change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) rv: u64,
    pub(crate) resource: String,
    pub(crate) key: Key,
    /// `None`: deleted.
    pub(crate) object: Option<Value>,
}

/// What a state directory holds.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// Version of the snapshot.
    pub(crate) rv: u64,
    pub(crate) objects: Vec<(String, Key, Value)>,
    /// Changes since the snapshot, in order.
    pub(crate) tail: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    rv: u64,
}

/// An open log.
#[derive(Debug)]
pub(crate) struct Log {
    dir: PathBuf,
    file: File,
    lines: usize,
}

fn snapshot_path(dir: &Path) -> PathBuf {
    dir.join("snapshot.jsonl")
}

fn log_path(dir: &Path) -> PathBuf {
    dir.join("log.jsonl")
}

fn open_or_none(path: &Path) -> io::Result<Option<BufReader<File>>> {
    match File::open(path) {
        Ok(file) => Ok(Some(BufReader::new(file))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Reads the directory and opens its log for appending.
///
/// # Errors
/// When it cannot be read, or the snapshot (which is replaced atomically) is damaged.
pub(crate) fn open(dir: &Path) -> io::Result<(Loaded, Log)> {
    std::fs::create_dir_all(dir)?;
    let mut loaded = Loaded::default();
    if let Some(file) = open_or_none(&snapshot_path(dir))? {
        let mut lines = file.lines();
        let header = lines.next().transpose()?.unwrap_or_default();
        loaded.rv = serde_json::from_str::<Header>(&header)?.rv;
        for line in lines {
            loaded.objects.push(serde_json::from_str(&line?)?);
        }
    }
    let mut whole = 0;
    if let Some(mut file) = open_or_none(&log_path(dir))? {
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = file.read_until(b'\n', &mut line)?;
            let Ok(record) = serde_json::from_slice::<Record>(&line) else { break };
            if line.last() != Some(&b'\n') {
                break;
            }
            whole += u64::try_from(read).map_err(io::Error::other)?;
            // After a crash between snapshot and truncation the log repeats what the snapshot has.
            if record.rv > loaded.rv {
                loaded.tail.push(record);
            }
        }
    }
    // Objects may be secrets.
    let file = File::options().create(true).append(true).mode(0o600).open(log_path(dir))?;
    file.set_len(whole)?;
    Ok((loaded, Log { dir: dir.to_owned(), file, lines: 0 }))
}

impl Log {
    pub(crate) fn append(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.lines += 1;
        self.file.write_all(&line)
    }

    pub(crate) fn is_long(&self) -> bool {
        self.lines >= MAX_LOG_LINES
    }

    /// Writes a snapshot and empties the log.
    pub(crate) fn snapshot<'a>(
        &mut self,
        rv: u64,
        objects: impl Iterator<Item = (&'a str, &'a Key, &'a Value)>,
    ) -> io::Result<()> {
        let temporary = self.dir.join("snapshot.tmp");
        let file = File::options().create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
        let mut out = BufWriter::new(file);
        serde_json::to_writer(&mut out, &Header { rv })?;
        out.write_all(b"\n")?;
        for object in objects {
            serde_json::to_writer(&mut out, &object)?;
            out.write_all(b"\n")?;
        }
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        std::fs::rename(&temporary, snapshot_path(&self.dir))?;
        self.file.set_len(0)?;
        self.lines = 0;
        Ok(())
    }
}
