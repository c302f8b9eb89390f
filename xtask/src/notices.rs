//! Licences that go with what is given away: their texts, with whose they are.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::linked::Crate;

/// Crates whose package has no text, of one of these licences, and who has the right: as their sources say.
const HOLDERS: [(&str, &str, &str); 1] =
    [("defguard_boringtun", BSD_3_CLAUSE, "Copyright (c) 2019 Cloudflare, Inc. All rights reserved.")];

/// <https://spdx.org/licenses/BSD-3-Clause.html>, without its first line.
const BSD_3_CLAUSE: &str = "\
Redistribution and use in source and binary forms, with or without modification, are permitted provided that the following conditions are met:

1. Redistributions of source code must retain the above copyright notice, this list of conditions and the following disclaimer.

2. Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the following disclaimer in the
   documentation and/or other materials provided with the distribution.

3. Neither the name of the copyright holder nor the names of its contributors may be used to endorse or promote products derived from this
   software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS \"AS IS\" AND ANY EXPRESS OR IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO,
THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR
CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO,
PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF
LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF THIS
SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
";

/// How names of files with licences begin.
const NAMES: [&str; 6] = ["license", "licence", "copying", "copyright", "notice", "unlicense"];

/// The texts in a crate's folder, by file name.
fn in_folder(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut found = BTreeMap::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_lowercase();
        if entry.file_type()?.is_file() && NAMES.iter().any(|begin| name.starts_with(begin)) {
            let path = entry.path();
            let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            found.insert(name, String::from_utf8_lossy(&text).trim().to_owned());
        }
    }
    Ok(found.into_values().filter(|text| !text.is_empty()).collect())
}

/// The texts of each crate that is somebody else's. Where its package has none: those of another crate of its repository, the Apache
/// License (ours, `apache`) where it offers that, or the text of [`HOLDERS`].
///
/// # Errors
/// There is none of all these, or a file cannot be read.
pub fn of_crates(crates: &BTreeMap<String, Crate>, apache: &str) -> Result<Vec<(String, Vec<String>)>> {
    let mut found = Vec::new();
    for one in crates.values().filter(|one| one.source.is_some()) {
        let folder = one.manifest_path.parent().context("a manifest without a folder")?;
        found.push((one, in_folder(folder)?));
    }
    let of_repository: BTreeMap<&str, Vec<String>> = found
        .iter()
        .filter(|(_, texts)| !texts.is_empty())
        .filter_map(|(one, texts)| Some((one.repository.as_deref()?, texts.clone())))
        .collect();
    let mut named = Vec::new();
    for (one, texts) in &found {
        let expression = one.expression().unwrap_or_else(|| "no licence named".to_owned());
        let texts = if !texts.is_empty() {
            texts.clone()
        } else if let Some(texts) = one.repository.as_deref().and_then(|of| of_repository.get(of)) {
            texts.clone()
        } else if expression.split(" OR ").any(|word| word == "Apache-2.0") {
            vec![apache.trim().to_owned()]
        } else if let Some((_, text, holder)) = HOLDERS.iter().find(|(name, ..)| *name == one.name) {
            vec![format!("{holder}\n\n{}", text.trim())]
        } else {
            bail!(
                "crate {} {} ({expression}) has no licence text in its package, and nobody here knows it: add who has the right to HOLDERS in xtask/src/notices.rs, as its sources say",
                one.name,
                one.version
            );
        };
        named.push((format!("{} {} ({expression})", one.name, one.version), texts));
    }
    Ok(named)
}

/// One text: each licence once, below the names of all that it is of.
pub fn one_text(crates: &[(String, Vec<String>)]) -> String {
    let mut of_text: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, texts) in crates {
        for text in texts {
            of_text.entry(text).or_default().push(name);
        }
    }
    let mut sorted: Vec<(Vec<&str>, &str)> = of_text.into_iter().map(|(text, names)| (names, text)).collect();
    sorted.sort_unstable();
    let mut out = String::new();
    for (names, text) in sorted {
        let rule = "=".repeat(100);
        writeln!(out, "{rule}\n{}\n{}\n\n{text}\n", names.join("\n"), "-".repeat(100))
            .expect("a text takes all");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn krate(
        folder: &Path,
        name: &str,
        license: &str,
        repository: &str,
        files: &[(&str, &str)],
    ) -> (String, Crate) {
        let folder = folder.join(name);
        std::fs::create_dir(&folder).unwrap();
        for (file, text) in files {
            std::fs::write(folder.join(file), text).unwrap();
        }
        let one = Crate {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: Some(license.to_owned()),
            source: Some("registry".to_owned()),
            manifest_path: folder.join("Cargo.toml"),
            repository: Some(repository.to_owned()),
            ..Crate::default()
        };
        (one.purl(), one)
    }

    #[test]
    fn every_crate_has_its_texts_or_those_of_its_repository_or_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let crates = BTreeMap::from([
            krate(at, "a", "MIT/Apache-2.0", "r", &[("LICENSE-MIT", "Copyright A\n"), ("src.rs", "no")]),
            krate(at, "b", "MIT", "r", &[]),
            krate(at, "c", "MIT OR Apache-2.0", "s", &[("readme", "no")]),
            krate(at, "defguard_boringtun", "BSD-3-Clause", "t", &[]),
            krate(at, "e", "ISC", "u", &[("COPYING", "Copyright A"), ("NOTICE.txt", "Notice")]),
        ]);
        let found = of_crates(&crates, "Apache").unwrap();
        let lines: Vec<String> = found
            .iter()
            .map(|(name, texts)| {
                let firsts: Vec<&str> = texts.iter().filter_map(|text| text.lines().next()).collect();
                format!("{name}: {}", firsts.join(", "))
            })
            .collect();
        assert_eq!(
            lines,
            [
                "a 1.0.0 (MIT OR Apache-2.0): Copyright A",
                "b 1.0.0 (MIT): Copyright A",
                "c 1.0.0 (MIT OR Apache-2.0): Apache",
                "defguard_boringtun 1.0.0 (BSD-3-Clause): Copyright (c) 2019 Cloudflare, Inc. All rights reserved.",
                "e 1.0.0 (ISC): Copyright A, Notice",
            ]
        );
        let text = one_text(&found);
        assert_eq!(text.matches("\nCopyright A\n").count(), 1, "{text}");
        assert!(text.contains("a 1.0.0 (MIT OR Apache-2.0)\nb 1.0.0 (MIT)\ne 1.0.0 (ISC)\n---"), "{text}");

        let unknown = BTreeMap::from([krate(at, "f", "MIT", "v", &[])]);
        let error = of_crates(&unknown, "Apache").unwrap_err().to_string();
        assert!(error.starts_with("crate f 1.0.0 (MIT) has no licence text"), "{error}");
    }
}
