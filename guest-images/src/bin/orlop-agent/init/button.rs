//! The power button: the host presses it when it wants the guest to end, and the kernel tells by an input device.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The size of `struct input_event` on x86-64: two times, then type, code and value.
const EVENT: usize = 24;
/// EV_KEY, KEY_POWER, and the value of a key that goes down (linux/input-event-codes.h).
const KEY_EVENT: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: i32 = 1;

/// Watches for the button, and has the agent take it as a request to end. Returns when there is no button to watch.
pub fn watch() {
    let mut devices: Vec<File> = std::fs::read_dir("/dev/input")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"event"))
        .filter_map(|entry| File::open(entry.path()).ok())
        .collect();
    while !devices.is_empty() {
        let mut polled: Vec<_> = devices
            .iter()
            .map(|device| PollFd::new(device.as_fd(), PollFlags::POLLIN))
            .collect();
        if poll(&mut polled, PollTimeout::NONE).is_err() {
            continue;
        }
        let ready: Vec<bool> = polled
            .iter()
            .map(|device| device.revents().is_some_and(|events| !events.is_empty()))
            .collect();
        let mut ready = ready.into_iter();
        devices.retain_mut(|device| {
            if !ready.next().unwrap_or(false) {
                return true;
            }
            let mut event = [0; EVENT];
            // A device that fails is not watched any more.
            if device.read_exact(&mut event).is_err() {
                return false;
            }
            if is_power_press(&event) {
                log::info!("the power button was pressed");
                let _ = kill(Pid::this(), Signal::SIGTERM);
            }
            true
        });
    }
}

fn is_power_press(event: &[u8; EVENT]) -> bool {
    let [.., t0, t1, c0, c1, v0, v1, v2, v3] = *event;
    u16::from_ne_bytes([t0, t1]) == KEY_EVENT
        && u16::from_ne_bytes([c0, c1]) == KEY_POWER
        && i32::from_ne_bytes([v0, v1, v2, v3]) == PRESSED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> [u8; EVENT] {
        let mut event = [0xa5; EVENT];
        event[16..18].copy_from_slice(&kind.to_ne_bytes());
        event[18..20].copy_from_slice(&code.to_ne_bytes());
        event[20..].copy_from_slice(&value.to_ne_bytes());
        event
    }

    #[test]
    fn only_the_press_of_the_power_button_counts() {
        assert!(is_power_press(&event(1, 116, 1)));
        for other in [
            event(1, 116, 0),
            event(1, 30, 1),
            event(0, 0, 0),
            event(4, 116, 1),
        ] {
            assert!(!is_power_press(&other));
        }
    }
}
