//! With the feature `ipsec-mb`: compiles what calls that library, and links it.

fn main() {
    println!("cargo::rerun-if-changed=native/ipsec_mb.c");
    #[cfg(feature = "ipsec-mb")]
    {
        cc::Build::new().file("native/ipsec_mb.c").warnings_into_errors(true).compile("hawser_ipsec_mb");
        // The static one: the program is to run where the library is not installed.
        println!("cargo::rustc-link-lib=static:+verbatim=libIPSec_MB.a");
        let search =
            std::env::var("IPSEC_MB_LIB_DIR").unwrap_or_else(|_| "/usr/lib/x86_64-linux-gnu".to_owned());
        println!("cargo::rerun-if-env-changed=IPSEC_MB_LIB_DIR");
        println!("cargo::rustc-link-search=native={search}");
    }
}
