use super::*;

use clap::error::ErrorKind;

/// Command lines of `hawser` in a page: whole lines of its code blocks, and quotes in its text, which may leave out what follows.
fn commands(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    for (number, part) in text.split("```").enumerate() {
        let lines: Vec<&str> = if number % 2 == 1 {
            part.lines().collect()
        } else {
            part.split('`').skip(1).step_by(2).collect()
        };
        all.extend(lines.into_iter().filter_map(|line| {
            let line = line.split(" #").next().unwrap_or(line).trim();
            let line = line.strip_prefix("kubectl ").unwrap_or(line);
            line.starts_with("hawser ").then(|| line.to_owned())
        }));
    }
    all
}

#[test]
fn every_command_of_the_documentation_is_one() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut pages = vec!["README.md".into(), "deploy/README.md".into(), "deploy/kind/README.md".into()];
    for entry in std::fs::read_dir(root.join("deploy/docs")).unwrap() {
        pages.push(std::path::Path::new("deploy/docs").join(entry.unwrap().file_name()));
    }
    let mut count = 0;
    for page in pages {
        let text = std::fs::read_to_string(root.join(&page)).unwrap();
        for command in commands(&text) {
            let words = command.split_whitespace().map(|word| word.trim_matches('"'));
            count += 1;
            let Err(error) = Arguments::command().try_get_matches_from(words) else { continue };
            let unfinished = matches!(
                error.kind(),
                ErrorKind::MissingRequiredArgument
                    | ErrorKind::MissingSubcommand
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                    | ErrorKind::DisplayHelp
            );
            assert!(unfinished, "{}: {command}\n{error}", page.display());
        }
    }
    assert!(count > 30, "{count} commands were found");
}
