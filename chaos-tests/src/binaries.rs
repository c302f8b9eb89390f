//! Where the programs under test are: beside the running program, as cargo puts them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `mesh-agent`.
    pub agent: PathBuf,
    /// `mesh-tunnel`.
    pub tunnel: PathBuf,
    /// `hawser-cni`, static where `cargo xtask build-cni` has made it.
    pub cni: PathBuf,
    directory: PathBuf,
}

impl Binaries {
    /// Finds them in `HAWSER_BIN_DIR`, else beside the running program or its tests.
    ///
    /// # Errors
    /// Names the one that is missing and how to build it.
    pub fn find() -> Result<Self> {
        let directory = match std::env::var_os("HAWSER_BIN_DIR") {
            Some(directory) => PathBuf::from(directory),
            None => beside()?,
        };
        let find = |name: &str| find_in(&directory, name);
        let fixed = directory.parent().map(|target| target.join("static/hawser-cni"));
        let cni = match fixed.filter(|path| path.is_file()) {
            Some(path) => path,
            None => find("hawser-cni")?,
        };
        Ok(Self { agent: find("mesh-agent")?, tunnel: find("mesh-tunnel")?, cni, directory })
    }

    /// `hawser`, which few labs use.
    ///
    /// # Errors
    /// It is missing; how to build it.
    pub fn hawser(&self) -> Result<PathBuf> {
        find_in(&self.directory, "hawser")
    }
}

impl Binaries {
    /// `clustermesh`, which only joined labs use.
    ///
    /// # Errors
    /// It is missing; how to build it.
    pub fn clustermesh(&self) -> Result<PathBuf> {
        find_in(&self.directory, "clustermesh")
    }
}

fn find_in(directory: &Path, name: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    if path.is_file() {
        return Ok(path);
    }
    bail!("{} is missing; build it with: cargo build --workspace --bins", path.display())
}

fn beside() -> Result<PathBuf> {
    let own = std::env::current_exe().context("where is this program?")?;
    let directory = own.parent().unwrap_or(Path::new("."));
    let tests = directory.ends_with("deps");
    Ok(if tests { directory.parent().unwrap_or(directory) } else { directory }.to_owned())
}
