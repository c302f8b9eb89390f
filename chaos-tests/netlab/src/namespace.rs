//! Network namespaces, each with a private mount namespace, owned by a thread of this process.

use crate::error::{Context, LabError};
use crate::labdir::LabDir;
use crate::netlink::{Netlink, sysctl};
use crate::process::{self, ExecOutput, Output, Process};
use crate::procfs;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, mount, mount_bind_recursive, mount_change, unmount};
use std::ffi::CString;
use std::fs::{self, File};
use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace and, unless it is [network only](Namespace::net_only), a private mount namespace.
///
/// An owner thread keeps it alive and starts every other thread inside, so that any number of closures,
/// runtimes and processes can be active at once. Dropping it kills every process that lives in the network
/// namespace (also grandchildren that left their process group), unmounts its pins on the host and ends the
/// owner thread; the kernel then frees namespaces and devices. Threads started with [`Namespace::thread`]
/// must be ended by their starter.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    jobs: Option<mpsc::Sender<Job>>,
    owner: Option<JoinHandle<()>>,
    tid: i32,
    netns: File,
    inode: u64,
    owned: bool,
    host_pins: Mutex<Vec<PathBuf>>,
    lab: Option<LabDir>,
}

#[derive(Debug, Clone)]
enum Mount {
    Tmpfs { inside: PathBuf, options: String },
    Bind { host: PathBuf, inside: PathBuf },
}

/// Collects what a [`Namespace`] is made of.
#[derive(Debug)]
#[must_use = "a builder does nothing until build() is called"]
pub struct NamespaceBuilder {
    name: String,
    mounts: Vec<Mount>,
    net_only: bool,
    lab: Option<LabDir>,
}

impl NamespaceBuilder {
    /// Covers `inside` with an empty tmpfs. Where the directory does not exist, it is made in this
    /// namespace alone.
    pub fn tmpfs(mut self, inside: impl Into<PathBuf>) -> Self {
        self.mounts.push(Mount::Tmpfs { inside: inside.into(), options: "mode=0755".into() });
        self
    }

    /// Covers `inside` with a tmpfs of at most `bytes` bytes and `inodes` files, to test full disks.
    pub fn tmpfs_limited(mut self, inside: impl Into<PathBuf>, bytes: u64, inodes: u64) -> Self {
        let options = format!("mode=0755,size={bytes},nr_inodes={inodes}");
        self.mounts.push(Mount::Tmpfs { inside: inside.into(), options });
        self
    }

    /// Shows the host's `host` (directory or file) at `inside`, so that state survives this namespace.
    ///
    /// Mounts are made in the order of the calls: a bind under a tmpfs comes after it.
    pub fn bind(mut self, host: impl Into<PathBuf>, inside: impl Into<PathBuf>) -> Self {
        self.mounts.push(Mount::Bind { host: host.into(), inside: inside.into() });
        self
    }

    /// Records processes and pins in `lab`, so that they are removed even when this process is killed.
    pub fn lab(mut self, lab: &LabDir) -> Self {
        self.lab = Some(lab.clone());
        self
    }

    /// Makes the namespaces and brings `lo` up. IPv6 duplicate address detection is off inside, so that
    /// addresses are usable at once.
    pub fn build(self) -> Result<Namespace, LabError> {
        self.build_with(|job| thread::Builder::new().spawn(job))
    }

    /// As [`NamespaceBuilder::build`], but starting from the mount namespace of `node`: a pod that sees the
    /// files of its node.
    pub fn build_within(self, node: &Namespace) -> Result<Namespace, LabError> {
        self.build_with(|job| node.start(String::from("owner"), job))
    }

    fn build_with(
        self,
        start: impl FnOnce(Job) -> std::io::Result<JoinHandle<()>>,
    ) -> Result<Namespace, LabError> {
        let Self { name, mounts, net_only, lab } = self;
        let label = name.clone();
        let enter = move || {
            let outside = procfs::netns_inode("/proc/thread-self/ns/net")?;
            let flags = CloneFlags::CLONE_NEWNET
                | if net_only { CloneFlags::empty() } else { CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS };
            unshare(flags).context("unshare namespaces of", &label)?;
            let inode = procfs::netns_inode("/proc/thread-self/ns/net")?;
            if inode == outside || inode == procfs::netns_inode("/proc/self/ns/net")? {
                return Err(LabError::NotIsolated { namespace: label, inode });
            }
            if !net_only {
                private_mounts(&mounts)?;
            }
            sysctl::set("net.ipv6.conf.default.accept_dad", "0")?;
            runtime(&label)?.block_on(async { Netlink::connect()?.link_up("lo").await })
        };
        Namespace::open(name, lab, true, enter, start)
    }
}

impl Namespace {
    /// Starts the description of a namespace. The name is for logs and errors only.
    pub fn builder(name: impl Into<String>) -> NamespaceBuilder {
        NamespaceBuilder { name: name.into(), mounts: Vec::new(), net_only: false, lab: None }
    }

    /// Starts the description of a lighter namespace without mounts of its own, for pods and switches.
    pub fn net_only(name: impl Into<String>) -> NamespaceBuilder {
        NamespaceBuilder { net_only: true, ..Self::builder(name) }
    }

    /// Enters the network namespace pinned at `path` in the mount namespace of `node`, for instance one a
    /// container runtime made. Dropping the result does not kill what lives there.
    pub fn join(node: &Namespace, path: impl Into<PathBuf>) -> Result<Namespace, LabError> {
        let path = path.into();
        let name = format!("{}:{}", node.name, path.display());
        let enter = move || {
            let target = File::open(&path).context("open network namespace", path.display())?;
            setns(target, CloneFlags::CLONE_NEWNET).context("enter network namespace", path.display())
        };
        Self::open(name, None, false, enter, |job| node.start(String::from("owner"), job))
    }

    fn open(
        name: String,
        lab: Option<LabDir>,
        owned: bool,
        enter: impl FnOnce() -> Result<(), LabError> + Send + 'static,
        start: impl FnOnce(Job) -> std::io::Result<JoinHandle<()>>,
    ) -> Result<Namespace, LabError> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (report, ready) = mpsc::sync_channel(1);
        let body = move || {
            let facts = enter().and_then(|()| {
                let netns =
                    File::open("/proc/thread-self/ns/net").context("open", "/proc/thread-self/ns/net")?;
                Ok((rustix::thread::gettid().as_raw_nonzero().get(), netns))
            });
            let ok = facts.is_ok();
            // The receiver waits below; it cannot be gone.
            let _ = report.send(facts);
            if ok {
                inbox.into_iter().for_each(|job| job());
            }
        };
        let owner = start(Box::new(body)).context("start the owner thread of namespace", &name)?;
        let (tid, netns) = match ready.recv() {
            Ok(facts) => facts?,
            Err(_) => std::panic::resume_unwind(owner.join().expect_err("the owner thread ended early")),
        };
        let inode = procfs::netns_inode(format!("/proc/self/task/{tid}/ns/net"))?;
        let host_pins = Mutex::default();
        Ok(Self { name, jobs: Some(jobs), owner: Some(owner), tid, netns, inode, owned, host_pins, lab })
    }

    /// The name given to the builder.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Inode of the network namespace: its identity while it exists.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// A descriptor of the network namespace, as `setns` and netlink take it.
    #[must_use]
    pub fn netns_fd(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// A path of the network namespace that other processes can open while this value lives.
    #[must_use]
    pub fn netns_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/task/{}/ns/net", std::process::id(), self.tid))
    }

    /// A path of the mount namespace that other processes can open while this value lives.
    #[must_use]
    pub fn mntns_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/task/{}/ns/mnt", std::process::id(), self.tid))
    }

    /// A path under which the files of this namespace can be read from outside while this value lives.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/task/{}/root", std::process::id(), self.tid))
    }

    fn start<R: Send + 'static>(
        &self,
        label: String,
        f: impl FnOnce() -> R + Send + 'static,
    ) -> std::io::Result<JoinHandle<R>> {
        let (tx, rx) = mpsc::sync_channel(1);
        let job = Box::new(move || {
            // The receiver waits below; it cannot be gone.
            let _ = tx.send(thread::Builder::new().name(label).spawn(f));
        });
        let jobs = self.jobs.as_ref().expect("invariant: jobs is taken in drop only");
        jobs.send(job).expect("invariant: the owner thread lives as long as the namespace");
        rx.recv().expect("invariant: the owner thread runs every job")
    }

    /// Starts a thread inside the namespace. It keeps the namespace alive until it ends.
    ///
    /// # Panics
    /// When the system refuses another thread, as [`std::thread::spawn`] does.
    pub fn thread<R: Send + 'static>(&self, f: impl FnOnce() -> R + Send + 'static) -> JoinHandle<R> {
        self.start(self.name.chars().take(15).collect(), f).expect("the system refuses another thread")
    }

    /// Runs a closure inside the namespace and returns its result. A panic inside continues in the caller.
    ///
    /// # Panics
    /// With the closure's panic, or when the system refuses another thread.
    pub fn run<R: Send + 'static>(&self, f: impl FnOnce() -> R + Send + 'static) -> R {
        self.thread(f).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs a future to its end on a current-thread runtime inside the namespace, so that sockets it makes
    /// belong there. The caller's thread waits.
    ///
    /// # Panics
    /// With the future's panic, or when the system refuses a thread or a runtime.
    pub fn block_on<F>(&self, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let name = self.name.clone();
        self.run(move || runtime(&name).expect("the system refuses another runtime").block_on(future))
    }

    /// Sends netlink requests inside the namespace:
    /// `ns.netlink(async |nl| nl.link_up("eth0").await)`.
    pub fn netlink<R, F>(&self, f: F) -> Result<R, LabError>
    where
        R: Send + 'static,
        F: AsyncFnOnce(&Netlink) -> Result<R, LabError> + Send + 'static,
    {
        let name = self.name.clone();
        self.run(move || {
            runtime(&name)?.block_on(async {
                let netlink = Netlink::connect()?;
                f(&netlink).await
            })
        })
    }

    /// Writes a kernel parameter of this network namespace, see [`sysctl::set`].
    pub fn sysctl(&self, key: &str, value: &str) -> Result<(), LabError> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.run(move || sysctl::set(&key, &value))
    }

    /// Starts a process inside, in a process group of its own and without standard input. Its output goes
    /// where `output` says.
    pub fn spawn(&self, command: Command, output: Output) -> Result<Process, LabError> {
        let lab = self.lab.clone();
        // Here and not inside, where a mount may cover the log's directory.
        let output = output.open()?;
        self.run(move || Process::spawn(command, output, lab.as_ref()))
    }

    /// Runs a command inside to its end. At the deadline its process group is killed, and the error shows
    /// the output until then.
    pub fn exec(&self, command: Command, deadline: Duration) -> Result<ExecOutput, LabError> {
        self.exec_with_input(command, Vec::new(), deadline)
    }

    /// As [`Namespace::exec`], with `input` on its standard input.
    pub fn exec_with_input(
        &self,
        command: Command,
        input: Vec<u8>,
        deadline: Duration,
    ) -> Result<ExecOutput, LabError> {
        let lab = self.lab.clone();
        self.run(move || process::exec(command, input, deadline, lab.as_ref()))
    }

    /// Pins this network namespace at `path` inside the mount namespace of `node`, as container runtimes do.
    /// The pin keeps it alive until [`Namespace::unpin`] or until `node` is gone.
    pub fn pin_at(&self, node: &Namespace, path: impl Into<PathBuf>) -> Result<(), LabError> {
        let (source, path) = (self.netns_path(), path.into());
        node.run(move || pin(&source, &path))
    }

    /// Removes a pin from the mount namespace of `node`.
    pub fn unpin(node: &Namespace, path: impl Into<PathBuf>) -> Result<(), LabError> {
        let path = path.into();
        node.run(move || unpin(&path))
    }

    /// Pins this network namespace at `path` in the caller's mount namespace, for `ip netns` and `nsenter`.
    /// The pin is removed with this value.
    pub fn pin_on_host(&self, path: impl Into<PathBuf>) -> Result<(), LabError> {
        let path = path.into();
        if let Some(lab) = &self.lab {
            lab.record_pin(&path)?;
        }
        pin(&self.netns_path(), &path)?;
        self.host_pins.lock().expect("no panic under this lock").push(path);
        Ok(())
    }

    /// The processes that live in this network namespace, threads of this process excepted.
    pub fn processes(&self) -> Result<Vec<i32>, LabError> {
        Ok(procfs::others()?.into_iter().filter(|pid| procfs::lives_in(*pid, self.inode)).collect())
    }

    /// Kills every process inside (SIGKILL), as a power cut does. Returns how many were killed.
    pub fn kill_all(&self) -> Result<usize, LabError> {
        let inode = self.inode;
        procfs::kill_all(&format!("namespace {}", self.name), |pid| procfs::lives_in(pid, inode))
    }

    /// Kills all processes, removes the host's pins and ends the owner thread, reporting every failure.
    /// Dropping does the same and logs failures.
    pub fn close(mut self) -> Result<(), LabError> {
        self.shut()
    }

    fn shut(&mut self) -> Result<(), LabError> {
        let Some(jobs) = self.jobs.take() else { return Ok(()) };
        let mut failures = Vec::new();
        if self.owned {
            failures.extend(self.kill_all().err());
        }
        let pins = std::mem::take(&mut *self.host_pins.lock().expect("no panic under this lock"));
        failures.extend(pins.iter().filter_map(|pin| unpin(pin).err()));
        drop(jobs);
        if let Some(owner) = self.owner.take() {
            // The owner thread runs nothing that can panic but thread starts, whose result is sent.
            let _ = owner.join();
        }
        if failures.is_empty() { Ok(()) } else { Err(LabError::Cleanup(failures)) }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = self.shut() {
            tracing::warn!(namespace = self.name, %error, "namespace is not fully cleaned up");
        }
    }
}

/// A current-thread runtime with I/O and time.
pub(crate) fn runtime(namespace: &str) -> Result<tokio::runtime::Runtime, LabError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("make an async runtime in namespace", namespace)
}

fn private_mounts(mounts: &[Mount]) -> Result<(), LabError> {
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .context("make private the mounts under", "/")?;
    remount_sys()?;
    mounts.iter().try_for_each(|m| match m {
        Mount::Tmpfs { inside, options } => {
            mount_point(inside)?;
            let options = CString::new(options.as_str()).expect("invariant: numbers and letters only");
            mount("hawser-lab", inside, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(&*options))
                .context("mount tmpfs on", inside.display())
        }
        Mount::Bind { host, inside } => {
            let source = fs::metadata(host).context("inspect", host.display())?;
            if source.is_dir() {
                mount_point(inside)?;
            } else {
                touch(inside)?;
            }
            mount_bind_recursive(host, inside)
                .context("bind", format!("{} at {}", host.display(), inside.display()))
        }
    })
}

/// Makes a missing mount point in this mount namespace alone: its nearest parent that exists is covered by an overlay whose
/// upper layer is memory, so that the host gets no directory that nobody would remove.
fn mount_point(inside: &Path) -> Result<(), LabError> {
    if inside.is_dir() {
        return Ok(());
    }
    let parent = inside.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    // Any directory will do: what is mounted there is needed only until the overlay holds it.
    let scratch = Path::new("/tmp");
    mount("hawser-lab", scratch, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)
        .context("mount tmpfs on", scratch.display())?;
    for layer in ["upper", "work"] {
        let layer = scratch.join(layer);
        fs::create_dir(&layer).context("create", layer.display())?;
    }
    let options = format!("lowerdir={},upperdir=/tmp/upper,workdir=/tmp/work", parent.display());
    let options = CString::new(options).expect("invariant: a path without NUL");
    let covered = mount("hawser-lab", parent, "overlay", MountFlags::empty(), Some(&*options))
        .context("mount overlay on", parent.display());
    unmount(scratch, UnmountFlags::DETACH).context("unmount", scratch.display())?;
    covered?;
    fs::create_dir_all(inside).context("create mount point", inside.display())
}

/// A sysfs shows the network namespace of the thread that mounted it; control groups are carried over from
/// the old one, and the BPF file system is a new one, so that nodes do not see each other's pinned maps.
fn remount_sys() -> Result<(), LabError> {
    let cgroups = "/sys/fs/cgroup";
    let cwd = rustix::fs::CWD;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let old = rustix::mount::open_tree(cwd, cgroups, flags).context("copy the mounts under", cgroups)?;
    // EINVAL: there is no /sys mounted, for instance in a container.
    let _ = unmount("/sys", UnmountFlags::DETACH);
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("sysfs", "/sys", "sysfs", plain, None).context("mount sysfs on", "/sys")?;
    rustix::mount::move_mount(old, "", cwd, cgroups, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .context("move the control groups to", cgroups)?;
    if Path::new("/sys/fs/bpf").is_dir() {
        mount("bpf", "/sys/fs/bpf", "bpf", plain, None).context("mount bpf on", "/sys/fs/bpf")?;
    }
    Ok(())
}

fn touch(path: &Path) -> Result<(), LabError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).context("create directory", parent.display())?;
    }
    File::options().create(true).append(true).open(path).map(drop).context("create", path.display())
}

fn pin(source: &Path, path: &Path) -> Result<(), LabError> {
    touch(path)?;
    rustix::mount::mount_bind(source, path).context("pin a network namespace at", path.display())
}

/// Unmounts a pin and removes its file; a file that is no pin is left alone and reported.
pub(crate) fn unpin(path: &Path) -> Result<(), LabError> {
    unmount(path, UnmountFlags::DETACH).context("unmount", path.display())?;
    fs::remove_file(path).context("remove", path.display())
}
