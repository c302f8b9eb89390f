//! Bounds the lines of a log that somebody else can cause. Time is an argument.

use std::time::Duration;

/// Lines of one subject within [`SPAN`]: who looks into it needs some, and counters have them all.
pub const LINES: u32 = 32;
/// Then it may speak again.
pub const SPAN: Duration = Duration::from_secs(60);

/// One subject of a log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet {
    /// Since when lines are counted, and how many there were.
    span: Option<(Duration, u32)>,
    kept_back: u64,
}

impl Quiet {
    /// May a line be written now? If so, this many were kept back before it. `now`: since any fixed moment.
    pub fn ask(&mut self, now: Duration) -> Option<u64> {
        let (begun, lines) =
            self.span.filter(|(begun, _)| now.saturating_sub(*begun) < SPAN).unwrap_or((now, 0));
        if lines >= LINES {
            self.kept_back += 1;
            return None;
        }
        self.span = Some((begun, lines + 1));
        Some(std::mem::take(&mut self.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_a_minute_and_the_next_one_says_how_many_were_not_written() {
        let mut quiet = Quiet::default();
        let mut ask = |millis| quiet.ask(Duration::from_millis(millis));
        for line in 0..u64::from(LINES) {
            assert_eq!(ask(line), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(ask(59_999), None);
        }
        assert_eq!(ask(60_000), Some(1000));
        assert_eq!(ask(60_001), Some(0));
    }
}
