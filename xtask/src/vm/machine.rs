//! A kernel in qemu, software emulation: booted with a plan, its console read to the end.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Step;
use super::console::{Console, Done, End};
use super::kernel::{Kernel, make_initrd};
use crate::run::{Progress, minutes, show};

/// Memory of the guest: two nodes with the maps' usual sizes, and what is written over the host's files.
const MEBIBYTES: &str = "3072";
/// After this even a busy machine has booted one.
const BOOT: Duration = Duration::from_secs(180);

/// What came of one kernel.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) release: String,
    /// From power on to the first step.
    pub(super) boot: Option<Duration>,
    /// Until it was off.
    pub(super) time: Duration,
    /// All steps of the plan that were begun.
    pub(super) done: Vec<Done>,
    /// What was printed outside of steps.
    pub(super) between: String,
    /// Where all of the console is kept.
    pub(super) log: PathBuf,
}

impl Ran {
    /// A step that was begun.
    pub(super) fn step(&self, name: &str) -> Option<&Done> {
        self.done.iter().find(|done| done.name == name)
    }

    /// What a step printed; nothing, if it was not begun.
    pub(super) fn output(&self, name: &str) -> &str {
        self.step(name).map_or("", |done| &done.output)
    }
}

/// As a shell reads it as one word.
pub(super) fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

fn command(kernel: &Kernel) -> Command {
    // It shall not outlive this program, however that ends.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-machine", "q35"])
        // Two guests share the machine's processors; with more than one of its own each is slower.
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", MEBIBYTES])
        .args(["-nodefaults", "-no-user-config", "-nographic", "-serial", "stdio", "-no-reboot"])
        .args(["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"])
        .arg("-kernel")
        .arg(kernel.image())
        .arg("-initrd")
        .arg(kernel.initrd())
        .args(["-append", "console=ttyS0 quiet panic=-1 oops=panic mitigations=off"]);
    command
}

/// Boots a kernel, runs the plan, and waits until the machine is off.
///
/// # Errors
/// The machine cannot be started. What goes wrong inside is in the report.
pub(super) fn boot(kernel: &Kernel, scripts: &Path, plan: &[Step], progress: Progress) -> Result<Ran> {
    make_initrd(kernel, scripts, &text_of(plan)?)?;
    let path = kernel.folder.join("console");
    let mut log = fs::File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut command = command(kernel);
    let shown = show(&command);
    let begin = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut machine = Machine(child.with_context(|| format!("cannot run {shown}"))?);
    let output = machine.0.stdout.take().context("qemu has no standard output")?;
    let lines = lines(output);
    // Each step has a limit of its own in the guest; this is for a guest that does not keep them.
    let whole = BOOT + plan.iter().map(|step| step.limit + Duration::from_secs(10)).sum::<Duration>();
    let (mut console, mut booted) = (Console::default(), None);
    let series = kernel.series;
    loop {
        let limit = if booted.is_some() { whole } else { BOOT };
        match lines.recv_timeout(limit.saturating_sub(begin.elapsed())) {
            Ok(line) => {
                writeln!(log, "[{:7.2}] {line}", begin.elapsed().as_secs_f64())
                    .context("cannot write the console's log")?;
                if let Some(done) = console.read(&line) {
                    let end = match done.end {
                        End::Passed => "passed".to_owned(),
                        End::Failed(code) => format!("FAILED ({code})"),
                        End::Cut => "FAILED".to_owned(),
                    };
                    progress.say(format_args!("  {series}: {}: {end}, {}", done.name, minutes(done.time)));
                }
                if console.release.is_some() && booted.is_none() {
                    booted = Some(begin.elapsed());
                    progress.say(format_args!("  {series}: up"));
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                progress.say(format_args!("  {series}: not done after {}: ended", minutes(limit)));
                break;
            }
        }
    }
    drop(machine);
    Ok(Ran {
        release: console.release.clone().unwrap_or_else(|| kernel.release.clone()),
        boot: booted,
        time: begin.elapsed(),
        done: console.finish().to_vec(),
        between: console.between,
        log: path,
    })
}

/// A line for each step: name, limit in seconds, command.
fn text_of(plan: &[Step]) -> Result<String> {
    let mut text = String::new();
    for Step { name, limit, command } in plan {
        if [name, command].iter().any(|word| word.contains(['\t', '\n'])) {
            bail!("step {name:?}: a tab or a new line in {command:?}");
        }
        writeln!(text, "{name}\t{}\t{command}", limit.as_secs())
            .expect("invariant: a String takes everything");
    }
    Ok(text)
}

/// Ends it when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads lines in a thread of its own, which ends with the stream or with the receiver.
fn lines(stream: impl Read + Send + 'static) -> std::sync::mpsc::Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(std::result::Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_to_a_shell() {
        for path in ["/a/b", "/with space", "/it's"] {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("printf %s {}", quoted(Path::new(path)))]);
            assert_eq!(crate::run::output(&mut shell).unwrap(), path);
        }
    }
}
