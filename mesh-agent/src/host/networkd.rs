//! Whether systemd-networkd leaves routes and rules of others alone (`networkd.conf(5)`).

use std::collections::BTreeMap;
use std::path::Path;

/// What systemd-networkd does with what it did not make itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Networkd {
    /// `ManageForeignRoutes=`; when true it removes routes of others whenever it (re)starts or a link changes.
    pub manages_foreign_routes: bool,
    /// `ManageForeignRoutingPolicyRules=`, the same for rules.
    pub manages_foreign_rules: bool,
}

/// Directories of configuration, the first wins (`systemd.unit(5)`, also for `networkd.conf`).
const DIRECTORIES: [&str; 4] = ["etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd"];

/// Where a drop-in of ours would go, late in the order so that it wins.
pub(crate) const DROP_IN: &str = "/etc/systemd/networkd.conf.d/90-hawser.conf";
/// What it would say.
pub(crate) const DROP_IN_TEXT: &str =
    "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n";

/// The settings in force below `root`; `None` when systemd-networkd does not run.
pub(crate) fn observe(root: &Path) -> Option<Networkd> {
    root.join("run/systemd/netif").is_dir().then(|| settings(&texts(root)))
}

/// The texts that apply, in the order in which they do: the first main file there is, then every drop-in by name, of
/// those with the same name the one of the first directory.
fn texts(root: &Path) -> Vec<String> {
    let main =
        DIRECTORIES.iter().find_map(|dir| std::fs::read_to_string(root.join(dir).join("networkd.conf")).ok());
    let mut drop_ins = BTreeMap::new();
    for directory in DIRECTORIES {
        let Ok(entries) = std::fs::read_dir(root.join(directory).join("networkd.conf.d")) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.as_encoded_bytes().ends_with(b".conf") {
                drop_ins.entry(name).or_insert_with(|| entry.path());
            }
        }
    }
    // A link to /dev/null masks a name of a later directory: its text is empty.
    main.into_iter()
        .chain(drop_ins.into_values().filter_map(|path| std::fs::read_to_string(path).ok()))
        .collect()
}

/// The last word of each setting; the default is yes.
fn settings(texts: &[String]) -> Networkd {
    let mut found = Networkd { manages_foreign_routes: true, manages_foreign_rules: true };
    for text in texts {
        let mut section = String::new();
        for line in text.replace("\\\n", " ").lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = name.to_owned();
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let setting = match (section.as_str(), key.trim()) {
                ("Network", "ManageForeignRoutes") => &mut found.manages_foreign_routes,
                ("Network", "ManageForeignRoutingPolicyRules") => &mut found.manages_foreign_rules,
                _ => continue,
            };
            // What systemd cannot parse it passes over.
            *setting = boolean(value.trim()).unwrap_or(*setting);
        }
    }
    found
}

/// `parse_boolean` of systemd.
fn boolean(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "yes" | "y" | "true" | "t" | "on" => Some(true),
        "0" | "no" | "n" | "false" | "f" | "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files as `path: text`; expectation as (routes, rules).
    fn check(files: &[(&str, &str)], expect: Option<(bool, bool)>) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            match text.strip_prefix("-> ") {
                Some(target) => std::os::unix::fs::symlink(target, path).unwrap(),
                None => std::fs::write(path, text).unwrap(),
            }
        }
        let found =
            observe(root.path()).map(|found| (found.manages_foreign_routes, found.manages_foreign_rules));
        assert_eq!(found, expect, "{files:?}");
    }

    const RUNS: (&str, &str) = ("run/systemd/netif/state", "");
    const OFF: &str = "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=off\n";

    #[test]
    fn drop_ins_override_the_main_file_by_name_and_the_first_directory_wins() {
        check(&[("etc/systemd/networkd.conf", OFF)], None);
        check(&[RUNS], Some((true, true)));
        check(&[RUNS, ("etc/systemd/networkd.conf", OFF)], Some((false, false)));
        check(
            &[RUNS, ("etc/systemd/networkd.conf", ""), ("usr/lib/systemd/networkd.conf", OFF)],
            Some((true, true)),
        );
        check(
            &[RUNS, ("usr/lib/systemd/networkd.conf.d/90-hawser.conf", DROP_IN_TEXT)],
            Some((false, false)),
        );
        let on = "[Network]\n ManageForeignRoutes = yes\n";
        check(
            &[
                RUNS,
                ("etc/systemd/networkd.conf.d/10.conf", on),
                ("usr/lib/systemd/networkd.conf.d/90.conf", OFF),
            ],
            Some((false, false)),
        );
        check(
            &[
                RUNS,
                ("etc/systemd/networkd.conf.d/99.conf", on),
                ("usr/lib/systemd/networkd.conf.d/90.conf", OFF),
            ],
            Some((true, false)),
        );
        check(
            &[
                RUNS,
                ("etc/systemd/networkd.conf.d/90.conf", "-> /dev/null"),
                ("usr/lib/systemd/networkd.conf.d/90.conf", OFF),
            ],
            Some((true, true)),
        );
        check(&[RUNS, ("etc/systemd/networkd.conf.d/90.conf.bak", OFF)], Some((true, true)));
    }

    #[test]
    fn only_the_right_section_and_parsable_values_count() {
        check(
            &[RUNS, ("etc/systemd/networkd.conf", "[DHCPv4]\nManageForeignRoutes=no\n")],
            Some((true, true)),
        );
        check(
            &[RUNS, ("etc/systemd/networkd.conf", "[Network]\n#ManageForeignRoutes=no\n")],
            Some((true, true)),
        );
        check(
            &[RUNS, ("etc/systemd/networkd.conf", "[Network]\nManageForeignRoutes=maybe\n")],
            Some((true, true)),
        );
        check(
            &[RUNS, ("etc/systemd/networkd.conf", "[Network]\nManageForeignRoutes=\\\nN\n")],
            Some((false, true)),
        );
    }
}
