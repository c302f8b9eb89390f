//! One call by a container runtime: environment and stdin in, stdout and exit status out.

use std::io::{self, Read, Write};

use proto::cni::code;
use serde_json::{Value, json};

use crate::config::{MAX_STDIN, version_of};
use crate::environment::Environment;
use crate::error::Error;
use crate::plan::plan;
use crate::run::run;
use crate::version::SpecVersion;

/// Reads stdin to its end, at most [`MAX_STDIN`] bytes.
fn read_stdin(stdin: impl Read, bytes: &mut Vec<u8>) -> Result<(), Error> {
    stdin.take(MAX_STDIN + 1).read_to_end(bytes).map_err(Error::Stdin)?;
    let is_too_long = u64::try_from(bytes.len()).map_or(true, |length| length > MAX_STDIN);
    if is_too_long { Err(Error::StdinTooLong { limit: MAX_STDIN }) } else { Ok(()) }
}

/// An error as the specification prints it.
fn printed(error: &Error, version: SpecVersion) -> Value {
    let failure = error.failure();
    json!({
        "cniVersion": version.as_str(),
        "code": failure.code,
        "msg": failure.msg,
        "details": failure.details,
    })
}

/// Serves one call. Returns whether it succeeded; the answer, error or not, is on `stdout`.
pub fn call(
    environment: &Environment,
    stdin: impl Read,
    stdout: &mut impl Write,
    stderr: &mut impl Write,
) -> bool {
    let mut bytes = Vec::new();
    // A call without a verb is refused before stdin is read: at a terminal nothing would ever come.
    let outcome = environment
        .command()
        .and_then(|_| read_stdin(stdin, &mut bytes))
        .and_then(|()| plan(environment, &bytes))
        .and_then(|plan| run(plan, stderr));
    let version = || version_of(&bytes).unwrap_or(SpecVersion::LATEST);
    let (succeeded, answer) = match outcome {
        Ok(answer) => (true, answer),
        Err(error) => {
            let _ = writeln!(stderr, "hawser-cni: {error} (code {}): {}", error.code(), error.details());
            (false, Some(printed(&error, version())))
        }
    };
    let written = answer.map_or(Ok(()), |answer| print(&answer, stdout));
    if let Err(error) = &written {
        let _ =
            writeln!(stderr, "hawser-cni: cannot write the answer to stdout (code {}): {error}", code::IO);
    }
    succeeded && written.is_ok()
}

fn print(answer: &Value, stdout: &mut impl Write) -> io::Result<()> {
    let mut text = answer.to_string();
    text.push('\n');
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
