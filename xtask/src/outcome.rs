//! What the test harness of Rust prints, counted.

/// Tests counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// The sum of all `test result:` lines in an output, and how many there were: a test program that was killed
/// prints none.
pub(crate) fn count(output: &str) -> (Count, usize) {
    let mut sum = Count::default();
    let mut lines = 0;
    for result in output.lines().filter_map(result) {
        sum += result;
        lines += 1;
    }
    (sum, lines)
}

/// `test result: ok. 41 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.43s`
fn result(line: &str) -> Option<Count> {
    let (_, numbers) = line.trim_start().strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| {
        numbers.split("; ").find_map(|part| part.strip_suffix(word)?.strip_suffix(' ')?.parse().ok())
    };
    Some(Count { passed: number("passed")?, failed: number("failed")?, ignored: number("ignored")? })
}

/// The name of the test that an output line reports, if it does: `test a::b ... ok`.
pub(crate) fn finished_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.rsplit_once(" ... ").map(|(name, _)| name)
}

/// The names of the tests that an output reports as ignored.
pub(crate) fn ignored_tests(output: &str) -> impl Iterator<Item = &str> {
    output.lines().filter(|line| line.contains(" ... ignored")).filter_map(finished_test)
}

/// What tests say of themselves that they were not run, and why: `[not run] a::b: helm is not in PATH`. Lines of several threads
/// may stand in one.
pub(crate) fn not_run(output: &str) -> impl Iterator<Item = &str> {
    output.lines().filter_map(|line| line.split_once(xtask::NOT_RUN).map(|(_, text)| text.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OUTPUT: &str = "running 3 tests\ntest a ... ok\ntest b::c ... ignored, slow\ntest d ... FAILED\n\n\
        test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
        test result: ok. 40 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 1.50s\n";

    #[test]
    fn results_are_summed() {
        assert_eq!(count(OUTPUT), (Count { passed: 41, failed: 1, ignored: 1 }, 2));
        assert_eq!(count("Segmentation fault\n"), (Count::default(), 0));
        assert_eq!(count("test result: nonsense. x passed; 1 failed; 0 ignored\n"), (Count::default(), 0));
    }

    #[test]
    fn tests_are_named() {
        assert_eq!(finished_test("test a::b ... ok"), Some("a::b"));
        assert_eq!(finished_test("running 3 tests"), None);
        assert_eq!(ignored_tests(OUTPUT).collect::<Vec<_>>(), ["b::c"]);
    }

    #[test]
    fn tests_that_were_not_run_say_so() {
        let output = "test a ... [not run] b::c: no helm\ntest d ... ok\n[not run] e: no root\n";
        assert_eq!(not_run(output).collect::<Vec<_>>(), ["b::c: no helm", "e: no root"]);
        assert_eq!(not_run(OUTPUT).count(), 0);
    }

    proptest! {
        #[test]
        fn what_the_harness_writes_is_read(passed in 0..1_000_000_u64, failed in 0..1000_u64, ignored in 0..1000_u64) {
            let verdict = if failed == 0 { "ok" } else { "FAILED" };
            let line = format!("test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; \
                0 measured; 0 filtered out; finished in 0.00s\n");
            prop_assert_eq!(count(&line), (Count { passed, failed, ignored }, 1));
        }

        #[test]
        fn any_output_does_no_harm(output in any::<String>()) {
            count(&output);
            ignored_tests(&output).for_each(drop);
        }
    }
}
