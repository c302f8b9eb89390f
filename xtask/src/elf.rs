//! How a program finds its libraries.

use std::path::Path;

use anyhow::{Context as _, Result};

/// How an ELF file finds its libraries.
#[derive(Debug, PartialEq, Eq)]
pub enum Linkage {
    /// It needs none.
    Static,
    /// With this dynamic linker.
    Dynamic(String),
}

/// The linkage of a file.
///
/// # Errors
/// It cannot be read, or is no 64-bit little-endian ELF file.
pub fn linkage(file: &Path) -> Result<Linkage> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    elf_linkage(&bytes).with_context(|| format!("{} is not a 64-bit little-endian ELF file", file.display()))
}

/// Looks for `PT_INTERP` in a 64-bit little-endian ELF file (System V ABI, chapter 5); `None` if it is no such file.
pub fn elf_linkage(bytes: &[u8]) -> Option<Linkage> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, size: usize| {
        let field = bytes.get(at..at.checked_add(size)?)?;
        Some(field.iter().rev().fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte)))
    };
    let index = |at, size| usize::try_from(number(at, size)?).ok();
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, entry, count) = (index(0x20, 8)?, index(0x36, 2)?, index(0x38, 2)?);
    for header in 0..count {
        let at = table.checked_add(header.checked_mul(entry)?)?;
        if number(at, 4)? == PT_INTERP {
            let (offset, size) = (index(at.checked_add(8)?, 8)?, index(at.checked_add(32)?, 8)?);
            let text = bytes.get(offset..offset.checked_add(size)?)?;
            return Some(Linkage::Dynamic(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned()));
        }
    }
    Some(Linkage::Static)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        match linkage(&std::env::current_exe().unwrap()).unwrap() {
            Linkage::Dynamic(linker) => assert!(linker.contains("/ld-"), "{linker}"),
            Linkage::Static => panic!("tests are dynamic programs"),
        }
        let mut header = vec![0; 64];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        assert_eq!(elf_linkage(&header), Some(Linkage::Static));
        assert_eq!(elf_linkage(b"#!/bin/sh"), None);
        // One program header, behind the end of the file.
        (header[0x20], header[0x38]) = (64, 1);
        assert_eq!(elf_linkage(&header), None);
    }
}
