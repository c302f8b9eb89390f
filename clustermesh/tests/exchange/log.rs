//! What all tests log, one line an event. They run at the same time, so a test asks for what only it can have caused.

use std::io;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
static INSTALLED: Once = Once::new();

fn lines() -> MutexGuard<'static, Vec<String>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Line;

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lines().push(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A moment, after which lines are looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Log(usize);

impl Log {
    pub(crate) fn from_now() -> Self {
        INSTALLED.call_once(|| {
            let log = tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::INFO);
            log.with_writer(|| Line).init();
        });
        Self(lines().len())
    }

    /// Lines with all of these parts.
    pub(crate) fn count(self, parts: &[&str]) -> usize {
        lines()[self.0..].iter().filter(|line| parts.iter().all(|part| line.contains(part))).count()
    }

    pub(crate) fn has(self, parts: &[&str]) -> bool {
        self.count(parts) > 0
    }
}
