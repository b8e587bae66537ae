//! Keeps the guest's clock with the host's.
//!
//! The two run on one counter, also while the VM is paused, but apart: what the host's administrator or its NTP does to the host's clock
//! does not reach the guest's, nor does the guest hear of it. KVM tells a guest that asks what the host's clock says at one moment of the
//! counter (KVM_HC_CLOCK_PAIRING), which Linux makes a clock of, `/dev/ptpN`. That is looked at now and then. Where the host does not
//! tell, because its own clock is not on that counter, there is no such clock, and the guest's runs on as it was set at boot.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;

/// How the clock is called that KVM gives.
const NAME: &str = "KVM virtual PTP";

/// The time between looks. Each wakes a guest that may be idle.
const PAUSE: Duration = Duration::from_secs(10);

/// From this on the clock is set; less is made up for little by little (the kernel does 0.5 ms in a second).
const STEP_NS: i64 = 5_000_000;
/// Less is as good as none.
const NOTHING_NS: i64 = 100_000;

/// A look that takes longer says too little: the processor was elsewhere in the middle of it.
const LOOK_NS: i64 = 2_000_000;
/// How often it is looked again then.
const LOOKS: usize = 5;

const SECOND_NS: i64 = 1_000_000_000;

/// Follows the host's clock for as long as the guest lives; returns where there is no such clock.
pub fn follow() {
    let clock = match find(Path::new("/sys/class/ptp")).map(File::open) {
        Some(Ok(clock)) => clock,
        Some(Err(error)) => {
            log::warn!("the host's clock cannot be opened: {error}");
            return;
        }
        None => {
            log::info!("the host does not tell its time");
            return;
        }
    };
    loop {
        if let Err(error) = offset(&clock).and_then(adjust) {
            log::warn!("the clock is not the host's any more: {error}");
            return;
        }
        thread::sleep(PAUSE);
    }
}

/// The device of the host's clock.
fn find(class: &Path) -> Option<PathBuf> {
    let mut clocks = fs::read_dir(class).ok()?.flatten();
    let is_the_hosts = |directory: &Path| {
        let name = fs::read_to_string(directory.join("clock_name"));
        name.is_ok_and(|name| name.trim_end() == NAME)
    };
    let found = clocks.find(|clock| is_the_hosts(&clock.path()))?;
    Some(Path::new("/dev").join(found.file_name()))
}

/// By how much the host's clock is ahead of ours, in nanoseconds: by the best of some looks.
fn offset(clock: &File) -> io::Result<i64> {
    // FD_TO_CLOCKID (Documentation/driver-api/ptp.rst).
    let id = (!clock.as_raw_fd() << 3) | 3;
    let mut best = None;
    for _ in 0..LOOKS {
        let before = now(libc::CLOCK_REALTIME)?;
        let host = now(id)?;
        let took = now(libc::CLOCK_REALTIME)?.saturating_sub(before);
        let ahead = host.saturating_sub(before.saturating_add(took / 2));
        if best.is_none_or(|(least, _)| took < least) {
            best = Some((took, ahead));
        }
        if took < LOOK_NS {
            break;
        }
    }
    Ok(best.map_or(0, |(_, ahead)| ahead))
}

fn now(clock: libc::clockid_t) -> io::Result<i64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one timespec, which lives through the call.
    Errno::result(unsafe { libc::clock_gettime(clock, &raw mut time) })?;
    Ok(time
        .tv_sec
        .saturating_mul(SECOND_NS)
        .saturating_add(time.tv_nsec))
}

/// Makes up for `ahead`.
fn adjust(ahead: i64) -> io::Result<()> {
    let Some(mut change) = change(ahead) else {
        return Ok(());
    };
    // SAFETY: the kernel reads and writes one timex, which lives through the call.
    Errno::result(unsafe { libc::adjtimex(&raw mut change) })?;
    if change.modes == libc::ADJ_SETOFFSET | libc::ADJ_NANO {
        log::info!("the clock is set, by {} ms", ahead / 1_000_000);
    }
    Ok(())
}

/// What adjtimex(2) is to do.
fn change(ahead: i64) -> Option<libc::timex> {
    if ahead.unsigned_abs() < NOTHING_NS.unsigned_abs() {
        return None;
    }
    // SAFETY: a timex is numbers only, for which zero is a value.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    if ahead.unsigned_abs() < STEP_NS.unsigned_abs() {
        change.modes = libc::ADJ_OFFSET_SINGLESHOT;
        // In microseconds.
        change.offset = ahead / 1000;
    } else {
        change.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
        change.time.tv_sec = ahead.div_euclid(SECOND_NS);
        // Nanoseconds, by ADJ_NANO, and never less than none.
        change.time.tv_usec = ahead.rem_euclid(SECOND_NS);
    }
    Some(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_clock_is_found_by_its_name() {
        let class = tempfile::tempdir().unwrap();
        assert_eq!(find(class.path()), None);
        for (clock, name) in [("ptp0", "a card's\n"), ("ptp1", "KVM virtual PTP\n")] {
            fs::create_dir(class.path().join(clock)).unwrap();
            fs::write(class.path().join(clock).join("clock_name"), name).unwrap();
        }
        assert_eq!(find(class.path()).unwrap(), Path::new("/dev/ptp1"));
        assert_eq!(find(Path::new("/nowhere")), None);
    }

    #[test]
    fn a_clock_is_set_when_it_is_far_off_and_led_when_it_is_not() {
        assert!(change(0).is_none() && change(-99_999).is_none());
        let led = change(-2_000_000).unwrap();
        assert_eq!(
            (led.modes, led.offset),
            (libc::ADJ_OFFSET_SINGLESHOT, -2000)
        );
        for (ahead, seconds, nanoseconds) in [
            (3_600_500_000_000, 3600, 500_000_000),
            (-3_600_500_000_000, -3601, 500_000_000),
            (-5_000_000, -1, 995_000_000),
            (i64::MIN, -9_223_372_037, 145_224_192),
        ] {
            let set = change(ahead).unwrap();
            assert_eq!(set.modes, libc::ADJ_SETOFFSET | libc::ADJ_NANO);
            assert_eq!((set.time.tv_sec, set.time.tv_usec), (seconds, nanoseconds));
        }
    }
}
