//! `hawser completion`, and the name by which this program is called.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;

use clap::{Args, Command};
use clap_complete::{Shell, generate};

/// For which shell.
#[derive(Args, Debug)]
#[command(
    after_help = "bash: source <(hawser completion bash)\nzsh: hawser completion zsh > \"${fpath[1]}/_hawser\"\nfish: hawser completion fish > ~/.config/fish/completions/hawser.fish"
)]
pub struct CompletionArgs {
    /// The shell.
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

/// Writes the completions of `command`.
///
/// # Errors
/// `out` does not take them.
pub fn write(args: &CompletionArgs, command: &mut Command, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let shell = match args.shell.as_str() {
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        _ => Shell::Bash,
    };
    let mut script = Vec::new();
    generate(shell, command, "hawser", &mut script);
    out.write_all(&script)
}

/// Was the program called by kubectl, as its plugin?
pub fn is_plugin(called: &OsStr) -> bool {
    // kubectl takes either for the plugin `hawser`.
    Path::new(called).file_stem().is_some_and(|name| name == "kubectl-hawser" || name == "kubectl_hawser")
}
