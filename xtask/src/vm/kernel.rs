//! Debian's kernels: found in the machine's own package sources, fetched, unpacked, and given a first file system.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::Series;
use super::machine::quoted;
use crate::run::{Progress, as_root, find_program, output, run};

/// What the guest's first process needs before it sees this machine's files.
const MODULES: [&str; 4] = ["9p", "9pnet_virtio", "virtio_pci", "overlay"];
/// Folders of the first file system.
const FOLDERS: [&str; 8] = ["bin", "modules", "host", "proc", "sys", "dev", "upper", "new"];

/// A kernel that can be booted.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) series: Series,
    /// As `uname -r` will say.
    pub(super) release: String,
    /// Everything of it, and of its guest.
    pub(super) folder: PathBuf,
}

impl Kernel {
    /// The package, unpacked.
    fn root(&self) -> PathBuf {
        self.folder.join("package")
    }

    pub(super) fn image(&self) -> PathBuf {
        self.root().join("boot").join(format!("vmlinuz-{}", self.release))
    }

    pub(super) fn modules(&self) -> PathBuf {
        self.root().join("lib/modules")
    }

    pub(super) fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }
}

/// Numbers of a package's name, for comparison: `linux-image-6.12.117+deb12-amd64` is 6, 12, 117, 12.
fn numbers(package: &str) -> Vec<u64> {
    let parts = package.trim_end_matches("-amd64").split(|c: char| !c.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

/// The newest kernel of a series among names of packages: signed, for all machines, without debug symbols.
fn newest<'a>(names: impl Iterator<Item = &'a str>, series: Series) -> Option<&'a str> {
    let prefix = format!("linux-image-{}.", series.version());
    let plain = |name: &&str| {
        let middle = name.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix("-amd64"));
        middle.is_some_and(|middle| {
            let is_word = |word: &str| word.starts_with("deb") || word.bytes().all(|b| b.is_ascii_digit());
            middle.split(['.', '-', '+', '~']).all(|word| !word.is_empty() && is_word(word))
        })
    };
    names.filter(plain).max_by_key(|name| numbers(name))
}

fn find(series: Series) -> Result<Option<String>> {
    let pattern = format!("^linux-image-{}", series.version().replace('.', r"\."));
    let found =
        output(Command::new("apt-cache").args(["pkgnames", &format!("linux-image-{}", series.version())]))
            .with_context(|| format!("cannot look for {pattern}"))?;
    Ok(newest(found.lines(), series).map(str::to_owned))
}

/// Fetches the newest kernel of a series, unless it is here already. `update`: the lists of packages may be fetched, once.
///
/// # Errors
/// No package source has it, or it cannot be fetched or unpacked.
pub(super) fn fetch(series: Series, folder: &Path, update: &mut bool, progress: Progress) -> Result<Kernel> {
    let mut found = find(series)?;
    if found.is_none() && std::mem::take(update) {
        update_lists(progress);
        found = find(series)?;
    }
    let Some(package) = found else {
        bail!(
            "no package source of this machine has Linux {0} for amd64 (linux-image-{0}…): add the suites bookworm and \
             bookworm-security of Debian to its sources",
            series.version()
        );
    };
    let release = package.trim_start_matches("linux-image-").to_owned();
    let kernel = Kernel { series, release, folder: folder.join(series.version()) };
    // Complete, or not there: another release's is in the way, and so is half a one.
    let stamp = kernel.folder.join("complete");
    if fs::read_to_string(&stamp).is_ok_and(|text| text == package) {
        progress.say(format_args!("{package} is here already"));
    } else {
        progress.say(format_args!("fetching {package}"));
        if kernel.folder.exists() {
            fs::remove_dir_all(&kernel.folder)
                .with_context(|| format!("cannot remove {}", kernel.folder.display()))?;
        }
        let place = kernel.root();
        fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
        let archive = download(&package, &kernel.folder, update, progress)?;
        run(Command::new("dpkg").arg("-x").arg(&archive).arg(&place))?;
        fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
        run(tool("depmod")?.arg("-b").arg(&place).arg(&kernel.release))?;
        fs::write(&stamp, &package).with_context(|| format!("cannot write {}", stamp.display()))?;
    }
    Ok(kernel)
}

fn update_lists(progress: Progress) {
    progress.say("apt-get update");
    let updated = as_root("apt-get").and_then(|mut apt| run(apt.args(["update", "-qq"])));
    if let Err(error) = updated {
        progress.say(format_args!("{error:#}; going on with the lists that are here"));
    }
}

/// Fetches a package into a folder; once more with fresh lists, since those that are here may name one that is gone.
fn download(package: &str, folder: &Path, update: &mut bool, progress: Progress) -> Result<PathBuf> {
    let fetch = || {
        let mut apt = Command::new("apt-get");
        // Root's download goes into a folder that apt's own user may not enter.
        apt.args(["-qq", "-o", "APT::Sandbox::User=root", "download", package]).current_dir(folder);
        run(&mut apt)
    };
    if let Err(error) = fetch() {
        if !std::mem::take(update) {
            return Err(error);
        }
        progress.say(format_args!("{error:#}; with fresh lists perhaps"));
        update_lists(progress);
        fetch()?;
    }
    let archives = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    archives
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download {package} left nothing in {}", folder.display()))
}

/// A program that may be in root's PATH alone.
fn tool(name: &str) -> Result<Command> {
    Ok(Command::new(
        find_program(name).with_context(|| format!("{name} is not installed: cargo xtask deps"))?,
    ))
}

/// Makes a kernel's first file system: busybox, modules in the order in which they are loaded, the scripts, and the plan.
///
/// # Errors
/// A program is missing, or a file cannot be written.
pub(super) fn make_initrd(kernel: &Kernel, scripts: &Path, plan: &str) -> Result<()> {
    let place = kernel.folder.join("first");
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
    }
    for folder in FOLDERS {
        let folder = place.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let copy = |from: &Path, to: PathBuf| {
        fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
    };
    let busybox = find_program("busybox").context("busybox is not installed: cargo xtask deps")?;
    copy(&busybox, place.join("bin/busybox"))?;
    for script in ["init", "guest"] {
        copy(&scripts.join(script), place.join(script))?;
    }
    fs::set_permissions(place.join("init"), fs::Permissions::from_mode(0o755))
        .context("cannot make init executable")?;
    let settings = format!("MODULES={}\n", quoted(&kernel.modules()));
    for (file, text) in [("plan", plan), ("settings", &settings)] {
        fs::write(place.join(file), text)
            .with_context(|| format!("cannot write {file} in {}", place.display()))?;
    }
    let mut modules: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        let mut modprobe = tool("modprobe")?;
        modprobe.arg("-d").arg(kernel.root()).args(["-S", &kernel.release, "--show-depends", module]);
        let wanted = output(&mut modprobe)?;
        // What is built in has a line of another kind.
        for file in wanted.lines().filter_map(|line| line.strip_prefix("insmod ")).map(str::trim) {
            if !modules.iter().any(|module| module == Path::new(file)) {
                modules.push(file.into());
            }
        }
    }
    for (number, module) in (10..).zip(&modules) {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        let file = place.join("modules").join(format!("{number}-{name}"));
        copy(module, file.clone())?;
        if name.ends_with(".xz") {
            run(Command::new("xz").arg("-d").arg(&file))?;
        }
    }
    pack(&place, &kernel.initrd())
}

/// An archive as the kernel wants it.
fn pack(folder: &Path, archive: &Path) -> Result<()> {
    let names = output(Command::new("find").arg(".").current_dir(folder))?;
    let file = fs::File::create(archive).with_context(|| format!("cannot make {}", archive.display()))?;
    let mut cpio = Command::new("cpio")
        .args(["--quiet", "--create", "--format=newc", "--owner=0:0"])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(file)
        .spawn()
        .context("cannot run cpio: cargo xtask deps installs it")?;
    let mut input = cpio.stdin.take().context("cpio has no standard input")?;
    input.write_all(names.as_bytes()).context("cpio reads no names")?;
    drop(input);
    let status = cpio.wait().context("cannot wait for cpio")?;
    if !status.success() {
        bail!("cpio of {}: {status}", folder.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_series_is_found_and_nothing_beside_it() {
        let names = [
            "linux-image-6.1.0-9-amd64",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.1.0-56-amd64-dbg",
            "linux-image-6.1.0-57-amd64-unsigned",
            "linux-image-6.1.0-58-cloud-amd64",
            "linux-image-6.1.0-59-rt-amd64",
            "linux-image-6.1.0-60-arm64",
            "linux-image-6.12-amd64",
            "linux-image-6.12.99+deb12-amd64",
            "linux-image-6.12.117+deb12-amd64",
            "linux-image-6.12.118+deb12-rt-amd64",
        ];
        let newest = |series| newest(names.into_iter(), series);
        assert_eq!(newest(Series::Linux6_1), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(newest(Series::Linux6_12), Some("linux-image-6.12.117+deb12-amd64"));
        assert_eq!(super::newest(["linux-image-amd64"].into_iter(), Series::Linux6_1), None);
    }
}
