//! The data path in the kernel: loaded, its maps found again, ready to be attached.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};

use crate::attach::AttachMode;
use crate::bpffs::PinDirectory;
use crate::error::{Error, Result};
use crate::grace::Grace;
use crate::maps::{Capacities, Maps, check_pins, definitions};
use crate::program::Program;
use crate::sys;

/// The object that build.rs made of `bpf/hawser.bpf.c`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/hawser.bpf.o"));

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where maps and links are pinned; on a BPF file system, or where one can be mounted. Each node has its own, also
    /// where nodes are network namespaces of one machine.
    pub pin_dir: PathBuf,
    /// Sizes of maps.
    pub capacities: Capacities,
    /// How programs get onto links; none: tcx where the kernel has it, else clsact.
    pub attach: Option<AttachMode>,
    /// Another object than the one built in, for tests.
    pub object: Option<Vec<u8>>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            pin_dir: PathBuf::from("/sys/fs/bpf/hawser"),
            capacities: Capacities::default(),
            attach: None,
            object: None,
        }
    }
}

/// A program in the kernel.
#[derive(Debug)]
struct Loaded {
    program: Program,
    fd: OwnedFd,
    id: u32,
}

/// The data path in the kernel.
///
/// All methods are system calls that do not wait, but for [`Datapath::wait_for_packets`]. Dropping it takes nothing out of the
/// kernel: maps and links are pinned.
#[derive(Debug)]
pub struct Datapath {
    maps: Maps,
    programs: Vec<Loaded>,
    ebpf: Ebpf,
    pub(crate) mode: AttachMode,
    directory: PinDirectory,
    pub(crate) grace: Grace,
    /// Entries of `endpoints` are read, changed and written.
    pub(crate) endpoints: Mutex<()>,
}

impl Datapath {
    /// Loads the programs, with the maps that are pinned, or new ones. Attaches nothing and changes no entry.
    ///
    /// # Errors
    /// No BPF file system, another process has the directory, a pinned map is of another definition, or the kernel
    /// takes a map or a program not.
    pub fn open(options: &LoadOptions) -> Result<Self> {
        let directory = PinDirectory::open(&options.pin_dir)?;
        check_pins(&directory.maps(), &options.capacities)?;
        let mut ebpf = load_object(options, &directory)?;
        let maps = Maps::open(&directory.maps(), &options.capacities)?;
        let programs = Program::ALL.map(|program| load_program(&mut ebpf, program));
        let programs = programs.into_iter().collect::<Result<Vec<_>>>()?;
        let mode = options
            .attach
            .unwrap_or_else(|| if sys::tcx_is_known() { AttachMode::Tcx } else { AttachMode::Clsact });
        let opened = Self {
            maps,
            programs,
            ebpf,
            mode,
            directory,
            grace: Grace::default(),
            endpoints: Mutex::new(()),
        };
        opened.first_epoch()?;
        Ok(opened)
    }

    /// Packets take epoch 0 for "never judged", so there is none.
    fn first_epoch(&self) -> Result<()> {
        let mut state = self.maps.state.get(0)?;
        if state.epoch == 0 {
            state.epoch = 1;
            self.maps.state.set(0, &state)?;
        }
        Ok(())
    }

    /// All maps, for tests and tools.
    pub const fn maps(&self) -> &Maps {
        &self.maps
    }

    /// A program as aya has it, for test runs and what the kernel says of it.
    ///
    /// # Errors
    /// The object has no classifier of this name; [`Datapath::open`] would have said so.
    pub fn program(&self, program: Program) -> Result<&SchedClassifier> {
        let found = self.ebpf.program(program.name()).ok_or_else(|| missing(program))?;
        found.try_into().map_err(|source| Error::Program { program: program.name(), source })
    }

    fn loaded(&self, program: Program) -> &Loaded {
        self.programs
            .iter()
            .find(|loaded| loaded.program == program)
            .expect("invariant: open() loads all programs")
    }

    pub(crate) fn program_fd(&self, program: Program) -> BorrowedFd<'_> {
        self.loaded(program).fd.as_fd()
    }

    pub(crate) fn program_id(&self, program: Program) -> u32 {
        self.loaded(program).id
    }

    pub(crate) fn links_directory(&self) -> PathBuf {
        self.directory.links()
    }

    /// Deletes the maps and links of other layouts than this one's. To be called when this one's programs are on all links.
    /// Returns the directories that were there.
    pub fn remove_other_layouts(&self) -> Result<Vec<PathBuf>> {
        self.directory.remove_others()
    }

    /// Takes everything out of the kernel, for uninstallation and tests. Pods have no policy and no services then, and
    /// uplinks no guard.
    pub fn uninstall(self) -> Result<()> {
        for attachment in self.attachments()? {
            self.detach(attachment.ifindex)?;
        }
        let Self { directory, .. } = self;
        directory.remove()
    }
}

fn missing(program: Program) -> Error {
    Error::Object(format!("there is no program {program} in it"))
}

fn load_object(options: &LoadOptions, directory: &PinDirectory) -> Result<Ebpf> {
    let maps = directory.maps();
    let definitions = definitions(&options.capacities);
    let pins: Vec<(&'static str, u32, PathBuf)> =
        definitions.iter().map(|map| (map.name, map.entries, maps.join(map.name))).collect();
    let mut loader = EbpfLoader::new();
    for (name, entries, path) in &pins {
        loader.map_max_entries(name, *entries).map_pin_path(name, Path::new(path));
    }
    Ok(loader.load(options.object.as_deref().unwrap_or(OBJECT))?)
}

fn load_program(ebpf: &mut Ebpf, program: Program) -> Result<Loaded> {
    let failed = |source| Error::Program { program: program.name(), source };
    let found = ebpf.program_mut(program.name()).ok_or_else(|| missing(program))?;
    let classifier: &mut SchedClassifier = found.try_into().map_err(failed)?;
    classifier.load().map_err(failed)?;
    let fd = classifier
        .fd()
        .map_err(failed)?
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| failed(error.into()))?;
    let id = sys::program_id(fd.as_fd()).map_err(|error| failed(error.into()))?;
    Ok(Loaded { program, fd, id })
}
