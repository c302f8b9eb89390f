//! What asks a command to end while it can still put things right: SIGINT, SIGTERM, and SIGHUP, which comes when its terminal goes.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// What comes so soon after the first signal says the same once more.
const SAME: Duration = Duration::from_secs(1);

/// The signals. Once they are waited for, none of them ends the program by itself any more.
#[derive(Debug)]
pub(crate) struct Interrupts {
    int: Signal,
    term: Signal,
    /// None: `nohup` was asked to keep the program from it.
    hup: Option<Signal>,
}

impl Interrupts {
    /// Listens for them from now on.
    ///
    /// # Errors
    /// Signals cannot be waited for.
    pub(crate) fn new() -> io::Result<Self> {
        // Where there is no such file nobody says otherwise.
        let stays = std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangups(&status));
        Ok(Self {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
            hup: if stays { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        let Self { int, term, hup } = self;
        let gone = async {
            match hup {
                Some(hup) => hup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = gone => {}
        }
    }

    /// Waits for somebody who does not even want what is put right to be waited for. When a terminal goes, or a session ends, several
    /// signals come at once (of the kernel, the shell, systemd), and nobody is there to insist.
    pub(crate) async fn again(&mut self) {
        let from = Instant::now();
        while from.elapsed() < SAME {
            let Self { int, term, .. } = self;
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
            }
        }
    }
}

/// Whether a process with this `/proc/PID/status` ignores SIGHUP, the first signal of its mask.
fn ignores_hangups(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal as Kind, getpid, kill_process};

    use super::*;

    #[test]
    fn who_ignores_hangups_is_known_by_the_mask_of_its_process() {
        let status = |mask: &str| format!("Name:\thawser\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\n");
        assert!(ignores_hangups(&status("0000000000000001")));
        assert!(ignores_hangups(&status("0000000000001007")));
        for mask in ["0000000000000000", "0000000000001006", "?"] {
            assert!(!ignores_hangups(&status(mask)), "{mask}");
        }
        assert!(!ignores_hangups(""));
    }

    #[tokio::test]
    async fn a_terminal_that_goes_is_heard_of_once_and_not_at_all_where_nohup_was_asked_to_stay() {
        let mut interrupts = Interrupts::new().unwrap();
        let heard = interrupts.hup.is_some();
        let hang_up = || kill_process(getpid(), Kind::HUP).unwrap();
        let soon = Duration::from_millis(100);
        hang_up();
        let within = if heard { 100 * soon } else { soon };
        assert_eq!(tokio::time::timeout(within, interrupts.next()).await.is_ok(), heard);
        hang_up();
        assert!(tokio::time::timeout(soon, interrupts.again()).await.is_err(), "it does not insist");
    }
}
