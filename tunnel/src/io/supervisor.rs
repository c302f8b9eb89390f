//! Keeps one device running: waits for a name that is taken, starts again what failed.

use std::time::{Duration, Instant};

use super::Stop;
use super::device::{Device, Options, StartError};
use super::tun::TunError;

/// Between two attempts while the name is taken. Short, since a successor waits for its predecessor to exit.
const RETRY: Duration = Duration::from_millis(200);
/// Between two attempts after any other obstacle: an attempt may create the interface and take it back.
const RETRY_SLOWLY: Duration = Duration::from_secs(2);
/// Between two log lines about the same obstacle.
const REMIND: Duration = Duration::from_secs(10);

/// Runs a device until `stop` is raised. A device that fails is started again, without key and peers: whoever
/// configured it finds it empty and configures it again.
pub fn run(options: &Options, stop: &Stop) {
    let interface = options.name.as_str();
    let mut reported: Option<(String, Instant)> = None;
    while !stop.is_raised() {
        let mut pause = RETRY;
        match Device::start(options) {
            Ok(device) => {
                reported = None;
                tracing::info!(interface, mtu = options.mtu, dir = %options.uapi_dir.display(), "device is up for configuration");
                if let Some(cause) = device.wait(stop) {
                    tracing::error!(
                        interface,
                        cause,
                        "device failed, starting it afresh without configuration"
                    );
                }
                drop(device);
                tracing::info!(interface, "device is gone");
            }
            Err(e) => {
                if !matches!(e, StartError::Tun(TunError::Taken { .. })) {
                    pause = RETRY_SLOWLY;
                }
                let text = e.to_string();
                let due = reported.as_ref().is_none_or(|(last, at)| *last != text || at.elapsed() > REMIND);
                if due {
                    tracing::warn!(interface, error = text, "device cannot start yet, trying again");
                    reported = Some((text, Instant::now()));
                }
            }
        }
        if stop.wait(pause) {
            break;
        }
    }
}
