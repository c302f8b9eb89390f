//! Finds Intel's Multi-Buffer Crypto library for IPsec, compiles what calls it, and links it (`cfg(ipsec_mb)`).

#[cfg(feature = "ipsec-mb")]
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(ipsec_mb)");
    println!("cargo::rerun-if-changed=native/ipsec_mb.c");
    println!("cargo::rerun-if-env-changed=IPSEC_MB_DIR");
    #[cfg(feature = "ipsec-mb")]
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|architecture| architecture == "x86_64") {
        link();
    }
}

/// Links the static library: the program is to run where it is not installed.
#[cfg(feature = "ipsec-mb")]
fn link() {
    let Some(Library { archive, headers }) = Library::find() else {
        // Seen again once something was installed there.
        println!("cargo::rerun-if-changed=/usr/include");
        println!(
            "cargo::warning=libIPSec_MB.a is not here, so this mesh-tunnel is a third slower where there is AVX-512: \
             apt-get install libipsec-mb-dev, or say where its include/ and lib/ are by IPSEC_MB_DIR"
        );
        return;
    };
    let mut shim = cc::Build::new();
    shim.file("native/ipsec_mb.c").warnings_into_errors(true).includes(headers).compile("hawser_ipsec_mb");
    println!("cargo::rerun-if-changed={}", archive.display());
    println!("cargo::rustc-link-lib=static:+verbatim=libIPSec_MB.a");
    let folder = archive.parent().unwrap_or(Path::new("."));
    println!("cargo::rustc-link-search=native={}", folder.display());
    println!("cargo::rustc-cfg=ipsec_mb");
}

#[cfg(feature = "ipsec-mb")]
struct Library {
    archive: PathBuf,
    /// Where its header is, if the compiler does not look there by itself.
    headers: Option<PathBuf>,
}

#[cfg(feature = "ipsec-mb")]
impl Library {
    /// In the folder that the environment names, or where the compiler looks.
    fn find() -> Option<Self> {
        const ARCHIVE: &str = "libIPSec_MB.a";
        if let Some(folder) = std::env::var_os("IPSEC_MB_DIR") {
            let folder = PathBuf::from(folder);
            let archive = folder.join("lib").join(ARCHIVE);
            return archive.is_file().then(|| Self { archive, headers: Some(folder.join("include")) });
        }
        let mut compiler = cc::Build::new().try_get_compiler().ok()?.to_command();
        let said = compiler.arg(format!("--print-file-name={ARCHIVE}")).output().ok()?;
        // The name alone where it is nowhere.
        let archive = PathBuf::from(String::from_utf8(said.stdout).ok()?.trim());
        (archive.is_absolute() && archive.is_file()).then_some(Self { archive, headers: None })
    }
}
