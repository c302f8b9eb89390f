//! What a guest prints on its console, read: which step ended how, and what the verifier said.

use std::time::Duration;

/// Begins every line of the guest's that is meant for this program.
const MARK: &str = "hawser-vm: ";

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Its command succeeded.
    Passed,
    /// Its command failed with this code; 124 is that of timeout(1).
    Failed(i32),
    /// The machine stopped meanwhile.
    Cut,
}

/// A step that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) name: String,
    pub(super) end: End,
    /// By the guest's clock.
    pub(super) time: Duration,
    /// What it printed.
    pub(super) output: String,
}

/// Reads the console line by line.
#[derive(Debug, Default)]
pub(super) struct Console {
    /// Release of the running kernel, once it has said so.
    pub(super) release: Option<String>,
    done: Vec<Done>,
    /// Of the step that runs: its name and what it has printed. Before the first one nothing is named.
    running: Option<(String, String)>,
    /// What was printed between steps: the boot, or the kernel's last words.
    pub(super) between: String,
}

impl Console {
    /// One more line. The step that it ends, if it does.
    pub(super) fn read(&mut self, line: &str) -> Option<&Done> {
        // A program may have left a line unfinished before the mark.
        let (before, said) = match line.split_once(MARK) {
            Some((before, said)) => (before, Some(said)),
            None => (line, None),
        };
        if said.is_none() || !before.is_empty() {
            let text = self.running.as_mut().map_or(&mut self.between, |(_, output)| output);
            text.push_str(before);
            text.push('\n');
        }
        let (verb, rest) = said?.split_once(' ')?;
        match verb {
            "kernel" => self.release = Some(rest.to_owned()),
            "begin" => {
                self.cut();
                self.running = Some((rest.to_owned(), String::new()));
            }
            "end" => {
                // The name may have spaces.
                let mut words = rest.rsplitn(3, ' ');
                let (seconds, code) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
                let (name, output) = self.running.take_if(|(name, _)| Some(&**name) == words.next())?;
                let end = if code == 0 { End::Passed } else { End::Failed(code) };
                self.done.push(Done { name, end, time: Duration::from_secs(seconds), output });
                return self.done.last();
            }
            _ => {}
        }
        None
    }

    /// The step that still runs has no end.
    fn cut(&mut self) {
        if let Some((name, output)) = self.running.take() {
            self.done.push(Done { name, end: End::Cut, time: Duration::ZERO, output });
        }
    }

    /// The machine has stopped: all steps that were begun.
    pub(super) fn finish(&mut self) -> &[Done] {
        self.cut();
        &self.done
    }
}

/// `from_pod: 12345 instructions verified, Some(6789) bytes`: names and numbers of all such lines.
pub(super) fn verified(output: &str) -> Vec<(String, u64)> {
    let count = |line: &str| {
        let (program, rest) = line.split_once(": ")?;
        let (count, _) = rest.split_once(" instructions verified")?;
        // The harness may have begun the line.
        Some((program.rsplit(' ').next()?.to_owned(), count.parse().ok()?))
    };
    output.lines().filter_map(count).collect()
}

/// What tests say of themselves or of their kernel, in lines `note: …` of their own or behind the harness's `test NAME ... `.
pub(super) fn remarks(output: &str) -> impl Iterator<Item = &str> {
    output.lines().filter_map(|line| {
        let (before, note) = line.split_once("note: ")?;
        let is_one = (before.is_empty() || before.ends_with(" ... ")) && !note.starts_with("run with ");
        is_one.then_some(note)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn console(text: &str) -> Console {
        let mut console = Console::default();
        for line in text.lines() {
            console.read(line);
        }
        console
    }

    #[test]
    fn steps_are_read_with_what_they_printed() {
        let mut console = console(
            "SeaBIOS\nhawser-vm: kernel 6.1.0-56-amd64\nhawser-vm: begin datapath test loader\none\ntwo\n\
             halfhawser-vm: end datapath test loader 0 17\nhawser-vm: begin demo\nhawser-vm: end demo 124 300\n",
        );
        assert_eq!(console.release.as_deref(), Some("6.1.0-56-amd64"));
        let [loader, demo] = console.finish() else { panic!("two steps") };
        assert_eq!((loader.name.as_str(), loader.end), ("datapath test loader", End::Passed));
        assert_eq!((loader.output.as_str(), loader.time.as_secs()), ("one\ntwo\nhalf\n", 17));
        assert_eq!((demo.end, demo.time.as_secs()), (End::Failed(124), 300));
        assert_eq!(console.between, "SeaBIOS\n");
    }

    #[test]
    fn a_step_in_which_the_machine_stops_has_no_end() {
        let text = "hawser-vm: begin demo\nKernel panic - not syncing\n";
        let mut panicked = console(text);
        assert_eq!(panicked.finish()[0].end, End::Cut);
        assert!(panicked.finish()[0].output.contains("panic"));
        // An end of another step is nobody's.
        let mut confused = console(&format!("{text}hawser-vm: end other 0 1\n"));
        assert_eq!(confused.finish()[0].end, End::Cut);
    }

    #[test]
    fn counts_of_the_verifier_are_read() {
        let text = "running 1 test\ntest pins::x ... from_pod: 41234 instructions verified, Some(9000) bytes\n\
            guard_in: 17 instructions verified, None bytes\nok\n";
        assert_eq!(verified(text), [("from_pod".to_owned(), 41234), ("guard_in".to_owned(), 17)]);
    }

    #[test]
    fn remarks_are_told_from_the_rest() {
        let text = "x\nnote: this kernel has no tcx\nnote: run with `RUST_BACKTRACE=1`\nsee the note: x\n\
            test restart::killed ... note: node-1: 0 programs by tcx, 11 by clsact\n";
        let wanted = ["this kernel has no tcx", "node-1: 0 programs by tcx, 11 by clsact"];
        assert_eq!(remarks(text).collect::<Vec<_>>(), wanted);
    }

    proptest! {
        #[test]
        fn whatever_a_console_says_no_step_passes_without_its_end(lines in prop::collection::vec(
            prop_oneof![
                any::<String>(),
                "(hawser-vm: )?(begin|end|kernel)? ?[ab]? ?[0-9]{0,3} ?[0-9]{0,3}",
            ],
            0..40,
        )) {
            let mut console = Console::default();
            let mut ended = 0;
            for line in lines.iter().flat_map(|line| line.lines()) {
                ended += usize::from(console.read(line).is_some());
            }
            let done = console.finish();
            let with_end = done.iter().filter(|done| done.end != End::Cut).count();
            prop_assert_eq!(with_end, ended);
        }
    }
}
