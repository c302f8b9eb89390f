//! What a running laboratory has made outside its own process, on disk, so that it can be removed even after
//! the process was killed.
//!
//! ```text
//! <root>/<name>/owner     pid start-time boot-id token
//! <root>/<name>/journal   process PID START | pin PATH | device NETNS-INODE NAME     one per line, appended
//! ```

use crate::error::{Context, LabError};
use crate::namespace::{runtime, unpin};
use crate::netlink::Netlink;
use crate::procfs::{self, ProcessId};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex};

/// Every process a laboratory starts, and their descendants, carry this environment variable with the run's
/// token; it finds those that were not recorded before a crash.
const MARK: &str = "HAWSER_LAB_RUN";

/// `f_type` of a mounted namespace, `NSFS_MAGIC` in linux/magic.h.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// The state directory of a running laboratory. Clones share it; the last one dropped cleans up.
#[derive(Debug, Clone)]
pub struct LabDir {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    token: String,
    journal: Mutex<Option<File>>,
}

/// What was removed of one crashed laboratory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reaped {
    /// Its state directory.
    pub dir: PathBuf,
    /// Processes killed.
    pub processes: usize,
    /// Pins of network namespaces unmounted.
    pub pins: usize,
    /// Devices deleted.
    pub devices: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Process(ProcessId),
    Pin(PathBuf),
    Device { netns: u64, name: String },
}

impl LabDir {
    /// Where laboratories keep their state unless told otherwise.
    pub const DEFAULT_ROOT: &'static str = "/run/hawser-lab";

    /// Makes `<root>/<name>`, after removing what a crashed laboratory of the same name left. The directory
    /// and all files in it are removed at the end.
    pub fn create(root: impl AsRef<Path>, name: &str) -> Result<Self, LabError> {
        let dir = root.as_ref().join(name);
        if dir.exists() {
            clean(&dir, false)?;
        }
        let me = own_id()?;
        let token = format!("{}-{}-{}", me.pid, me.start, crate::wait::unique_name("t"));
        // Made aside and moved into place whole: a directory without an owner is never a laboratory.
        let draft = root.as_ref().join(format!(".{token}"));
        fs::create_dir_all(&draft).context("create", draft.display())?;
        let journal = File::options().create(true).append(true).open(draft.join("journal"));
        let file = journal.context("create the journal in", draft.display())?;
        // Last and whole as well: who reaps meanwhile finds no owner or all of it.
        let owner = format!("{} {} {} {token}\n", me.pid, me.start, boot_id()?);
        let written = fs::write(draft.join("owner.new"), owner);
        let written = written.and_then(|()| fs::rename(draft.join("owner.new"), draft.join("owner")));
        written.context("write the owner in", draft.display())?;
        if let Err(e) = fs::rename(&draft, &dir) {
            // Somebody was faster. The draft holds nothing.
            let _ = fs::remove_dir_all(&draft);
            return Err(e).context("take", dir.display());
        }
        Ok(Self { inner: Arc::new(Inner { dir, token, journal: Mutex::new(Some(file)) }) })
    }

    /// The state directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.dir
    }

    /// The environment variable and value that mark this laboratory's processes. Processes started without
    /// [`crate::Namespace::spawn`] should carry it too.
    #[must_use]
    pub fn mark(&self) -> (&'static str, &str) {
        (MARK, &self.inner.token)
    }

    /// Records a process to be killed. One that has ended is not recorded.
    pub fn record_process(&self, pid: i32) -> Result<(), LabError> {
        ProcessId::of(pid).map_or(Ok(()), |id| self.append(&Entry::Process(id)))
    }

    /// Starts and records a process. No cleanup begins meanwhile: it either finds the process or has refused it.
    pub(crate) fn start_process(
        &self,
        start: impl FnOnce() -> Result<Child, LabError>,
    ) -> Result<Child, LabError> {
        let mut journal = self.inner.journal.lock().expect("no panic under this lock");
        let Some(file) = journal.as_mut() else {
            let ended = std::io::Error::other("the laboratory has ended");
            return Err(ended).context("start a process in", self.path().display());
        };
        let mut child = start()?;
        let Some(id) = ProcessId::of(child.id().cast_signed()) else { return Ok(child) };
        if let Err(error) = file.write_all(Entry::Process(id).to_line().as_bytes()) {
            crate::process::end(&mut child);
            return Err(error).context("append to the journal in", self.path().display());
        }
        Ok(child)
    }

    /// Records the pin of a network namespace to be unmounted. Call it before making the pin.
    pub fn record_pin(&self, path: &Path) -> Result<(), LabError> {
        self.append(&Entry::Pin(path.to_owned()))
    }

    /// Records a device in the calling thread's network namespace to be deleted. Call it before making it.
    pub fn record_device(&self, name: &str) -> Result<(), LabError> {
        let netns = procfs::netns_inode("/proc/thread-self/ns/net")?;
        self.append(&Entry::Device { netns, name: name.to_owned() })
    }

    fn append(&self, entry: &Entry) -> Result<(), LabError> {
        let mut journal = self.inner.journal.lock().expect("no panic under this lock");
        // After a cleanup nothing may be added: the process is about to exit.
        let Some(file) = journal.as_mut() else { return Ok(()) };
        file.write_all(entry.to_line().as_bytes()).context("append to the journal in", self.path().display())
    }

    /// Cleans up and ends the process with status 128 + signal on SIGINT, SIGTERM or SIGHUP.
    ///
    /// Without this the default action of the signals leaves the removal to the next [`reap`].
    pub fn clean_on_signal(&self) -> Result<(), LabError> {
        use tokio::signal::unix::{SignalKind, signal};
        let inner = Arc::downgrade(&self.inner);
        let (tx, rx) = std::sync::mpsc::sync_channel(1);
        let watch = move || {
            let ready = runtime("signals").and_then(|rt| {
                let _enter = rt.enter();
                let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
                let streams =
                    kinds.map(|k| signal(k).context("watch signal", k.as_raw_value()).map(|s| (k, s)));
                let streams = streams.into_iter().collect::<Result<Vec<_>, _>>()?;
                drop(_enter);
                Ok((rt, streams))
            });
            let (rt, mut streams) = match ready {
                Ok(ready) => {
                    let _ = tx.send(Ok(()));
                    ready
                }
                Err(e) => {
                    let _ = tx.send(Err(e));
                    return;
                }
            };
            let waits = streams.iter_mut().map(|(k, s)| Box::pin(async { s.recv().await.map(|()| *k) }));
            let (kind, ..) = rt.block_on(futures::future::select_all(waits));
            if let Some(inner) = inner.upgrade()
                && let Err(error) = inner.clean()
            {
                tracing::error!(%error, "laboratory is not fully cleaned up");
            }
            let code = kind.map_or(1, |k| 128 + k.as_raw_value());
            #[allow(clippy::exit, reason = "a signal ends the process; unwinding from here is not possible")]
            std::process::exit(code);
        };
        std::thread::Builder::new()
            .name("lab-signals".into())
            .spawn(watch)
            .context("start thread", "signals")?;
        rx.recv().expect("invariant: the thread sends before it ends")
    }

    /// Cleans up now, reporting every failure; dropping the last clone does the same and logs.
    pub fn close(self) -> Result<(), LabError> {
        self.inner.clean()
    }
}

impl Inner {
    /// Holds the journal until the end, so that whoever would start something or leave waits.
    fn clean(&self) -> Result<(), LabError> {
        let mut journal = self.journal.lock().expect("no panic under this lock");
        if journal.take().is_none() {
            return Ok(());
        }
        clean(&self.dir, true).map(drop)
    }
}

impl Drop for LabDir {
    fn drop(&mut self) {
        // A signal's cleanup may be under way: the process shall not end before it.
        drop(self.inner.journal.lock());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.clean() {
            tracing::warn!(dir = %self.dir.display(), %error, "laboratory is not fully cleaned up");
        }
    }
}

/// Removes everything that crashed laboratories under `root` left. Running ones are not touched.
pub fn reap(root: impl AsRef<Path>) -> Result<Vec<Reaped>, LabError> {
    let root = root.as_ref();
    let entries = match fs::read_dir(root) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context("list", root.display())?,
    };
    let (mut reaped, mut failures) = (Vec::new(), Vec::new());
    for entry in entries {
        let path = entry.context("list", root.display())?.path();
        match clean(&path, false) {
            Ok(r) => reaped.push(r),
            // Running, or not a laboratory at all.
            Err(LabError::LabBusy { .. } | LabError::NotALab { .. }) => {}
            // Somebody else reaped it meanwhile.
            Err(_) if !path.exists() => {}
            Err(e) => failures.push(e),
        }
    }
    if failures.is_empty() { Ok(reaped) } else { Err(LabError::Cleanup(failures)) }
}

/// Makes this process the parent of orphaned descendants, so that a daemon whose parent died is still ours
/// to reap. It concerns the whole process: for a laboratory's `main`, not for tests.
pub fn become_subreaper() -> Result<(), LabError> {
    let me = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(me))
        .context("become subreaper of the descendants of", "this process")
}

/// Removes what the laboratory at `dir` recorded, then `dir`. The directory stays when something failed, so
/// that the next attempt knows what is left.
fn clean(dir: &Path, ours: bool) -> Result<Reaped, LabError> {
    let mut done = Reaped { dir: dir.to_owned(), processes: 0, pins: 0, devices: 0 };
    let mut failures = Vec::new();
    let owner = Owner::read(dir)?;
    if !ours && owner.id.is_alive() && owner.boot == boot_id()? {
        return Err(LabError::LabBusy { dir: dir.to_owned(), pid: owner.id.pid });
    }
    // Nothing outlives a boot, and process numbers of an earlier one mean nothing.
    let entries = if owner.boot == boot_id()? { read_journal(dir)? } else { Vec::new() };
    let recorded: Vec<ProcessId> =
        entries.iter().filter_map(|e| if let Entry::Process(id) = e { Some(*id) } else { None }).collect();
    let mark = format!("{MARK}={}", owner.token);
    let doomed = |pid| {
        recorded.iter().any(|r| r.pid == pid && ProcessId::of(pid) == Some(*r))
            || procfs::has_environment(pid, &mark)
    };
    match procfs::kill_all(&format!("laboratory {}", dir.display()), doomed) {
        Ok(n) => done.processes = n,
        Err(e) => failures.push(e),
    }
    for entry in entries {
        match entry {
            Entry::Process(_) => {}
            Entry::Pin(path) => match remove_pin(&path) {
                Ok(removed) => done.pins += usize::from(removed),
                Err(e) => failures.push(e),
            },
            Entry::Device { netns, name } => match remove_device(netns, name) {
                Ok(removed) => done.devices += usize::from(removed),
                Err(e) => failures.push(e),
            },
        }
    }
    if failures.is_empty() {
        fs::remove_dir_all(dir).context("remove", dir.display())?;
        return Ok(done);
    }
    Err(LabError::Cleanup(failures))
}

/// Unmounts what is a pin and removes its empty file; `false` when there is neither.
fn remove_pin(path: &Path) -> Result<bool, LabError> {
    match rustix::fs::statfs(path) {
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(e).context("inspect", path.display()),
        Ok(fs) if fs.f_type == NSFS_MAGIC => unpin(path).map(|()| true),
        // Made, but the crash came before the mount.
        Ok(_) if fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == 0) => {
            fs::remove_file(path).context("remove", path.display()).map(|()| false)
        }
        Ok(_) => Ok(false),
    }
}

fn remove_device(netns: u64, name: String) -> Result<bool, LabError> {
    // On a thread of its own: the caller may be inside an async runtime.
    let work = move || {
        if procfs::netns_inode("/proc/thread-self/ns/net")? != netns {
            return Ok(false);
        }
        runtime("cleanup")?.block_on(async {
            let netlink = Netlink::connect()?;
            match netlink.link_index(&name).await {
                Err(LabError::NoDevice { .. }) => Ok(false),
                Err(e) => Err(e),
                Ok(_) => netlink.link_del(&name).await.map(|()| true),
            }
        })
    };
    std::thread::spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

struct Owner {
    id: ProcessId,
    boot: String,
    token: String,
}

impl Owner {
    fn read(dir: &Path) -> Result<Self, LabError> {
        let path = dir.join("owner");
        let text = match fs::read_to_string(&path) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(LabError::NotALab { dir: dir.to_owned() });
            }
            other => other.context("read", path.display())?,
        };
        let parsed = (|| {
            let mut words = text.split_ascii_whitespace();
            let id = ProcessId { pid: words.next()?.parse().ok()?, start: words.next()?.parse().ok()? };
            Some(Self { id, boot: words.next()?.to_owned(), token: words.next()?.to_owned() })
        })();
        parsed.ok_or(LabError::BadState { path, line: text })
    }
}

impl Entry {
    fn to_line(&self) -> String {
        match self {
            Self::Process(id) => format!("process {} {}\n", id.pid, id.start),
            Self::Pin(path) => format!("pin {}\n", path.display()),
            Self::Device { netns, name } => format!("device {netns} {name}\n"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let (kind, rest) = line.split_once(' ')?;
        match kind {
            "process" => {
                let (pid, start) = rest.split_once(' ')?;
                Some(Self::Process(ProcessId { pid: pid.parse().ok()?, start: start.parse().ok()? }))
            }
            "pin" => Some(Self::Pin(rest.into())),
            "device" => {
                let (netns, name) = rest.split_once(' ')?;
                Some(Self::Device { netns: netns.parse().ok()?, name: name.to_owned() })
            }
            _ => None,
        }
    }
}

fn read_journal(dir: &Path) -> Result<Vec<Entry>, LabError> {
    let path = dir.join("journal");
    let text = fs::read_to_string(&path).context("read", path.display())?;
    // A last line without its end was being written at the crash; what it announces was not made yet, but
    // for a process, which the mark finds.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| {
            Entry::parse(line).ok_or_else(|| LabError::BadState { path: path.clone(), line: line.to_owned() })
        })
        .collect()
}

fn own_id() -> Result<ProcessId, LabError> {
    let pid = std::process::id().cast_signed();
    ProcessId::of(pid)
        .ok_or_else(|| LabError::BadState { path: "/proc/self/stat".into(), line: String::new() })
}

fn boot_id() -> Result<String, LabError> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).context("read", path)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Entry, LabDir, reap};
    use crate::LabError;
    use crate::procfs::ProcessId;
    use std::fs;

    #[test]
    fn every_journal_entry_reads_back() {
        for entry in [
            Entry::Process(ProcessId { pid: 7, start: 99 }),
            Entry::Pin("/run/netns/with space".into()),
            Entry::Device { netns: 4_026_531_840, name: "br0".into() },
        ] {
            assert_eq!(Entry::parse(entry.to_line().trim_end()), Some(entry));
        }
        assert_eq!(Entry::parse("process x y"), None);
        assert_eq!(Entry::parse("unknown 1"), None);
    }

    #[test]
    fn a_running_laboratory_is_neither_taken_over_nor_reaped() {
        let root = tempfile::tempdir().unwrap();
        let lab = LabDir::create(root.path(), "one").unwrap();
        let error = LabDir::create(root.path(), "one").unwrap_err();
        assert!(matches!(error, LabError::LabBusy { .. }), "{error}");
        assert_eq!(reap(root.path()).unwrap(), []);
        let dir = lab.path().to_owned();
        lab.close().unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn who_reaps_while_others_begin_finds_nothing_half_made() {
        let root = tempfile::tempdir().unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        let reaped = std::thread::scope(|threads| {
            let reaper = threads.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_eq!(reap(root.path()).unwrap(), [], "nothing has crashed");
                }
            });
            for number in 0..500 {
                drop(LabDir::create(root.path(), &number.to_string()).unwrap());
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            reaper.join()
        });
        reaped.unwrap();
    }

    #[test]
    fn a_foreign_process_with_a_recorded_number_but_another_start_time_survives() {
        let root = tempfile::tempdir().unwrap();
        let mut bystander = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let dir = root.path().join("old");
        fs::create_dir(&dir).unwrap();
        let boot = super::boot_id().unwrap();
        // Start time 1 belongs to a process of the boot's first moment: neither owner nor entry is alive.
        fs::write(dir.join("owner"), format!("{} 1 {boot} token\n", bystander.id())).unwrap();
        fs::write(dir.join("journal"), format!("process {} 1\n", bystander.id())).unwrap();
        let reaped = reap(root.path()).unwrap();
        assert_eq!((reaped.len(), reaped[0].processes), (1, 0));
        assert_eq!(bystander.try_wait().unwrap(), None, "the bystander was killed");
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }

    #[test]
    fn what_is_not_a_laboratory_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("photos")).unwrap();
        fs::write(root.path().join("letter"), "dear").unwrap();
        assert_eq!(reap(root.path()).unwrap(), []);
        assert!(root.path().join("photos").exists() && root.path().join("letter").exists());
        let error = LabDir::create(root.path(), "photos").unwrap_err();
        assert!(matches!(error, LabError::NotALab { .. }), "{error}");
    }

    #[test]
    fn state_that_is_not_understood_is_reported_and_kept() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("odd");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("owner"), "what\n").unwrap();
        assert!(reap(root.path()).unwrap_err().to_string().contains("not understood"));
        assert!(dir.exists());
    }
}
