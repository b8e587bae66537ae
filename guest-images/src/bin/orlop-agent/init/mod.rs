//! The first process of the guest: from the kernel's hand-over to a guest that is ready, and to its end.
//!
//! The kernel starts it in the initramfs, or from an image. It loads the modules, moves to a root of its own ([`root`]: containers need a root that
//! can be pivoted away from, and an initramfs cannot), mounts what programs expect ([`mounts`]), and serves.
//!
//! Whatever goes wrong in here is said on the console, and the guest powers off: a first process that exits is a kernel panic,
//! and one that hangs is a guest that nobody hears of again.

mod button;
mod clock;
mod modules;
mod mounts;
mod network;
mod power;
mod processors;
mod root;

use std::process::ExitCode;

use anyhow::Context as _;
use log::LevelFilter;
use nix::sys::resource::{Resource, setrlimit};
use nix::time::{ClockId, clock_gettime};
use orlop_proto::agent::v1::Phase;

use crate::{console, serve};

/// The name that the guest has.
const HOSTNAME: &str = "orlop";

/// Open files per process: for the agent, and for containers whose spec does not say. It is what containers usually have, and the
/// most that the kernel allows (fs.nr_open).
const OPEN_FILES: u64 = 1 << 20;

/// Runs the guest. Returns only when even powering off has failed.
pub fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        console::say(&format!("fatal: {panic}").replace('\n', " "));
        power::off();
    }));
    if let Err(error) = run() {
        console::say(&format!("fatal: {error:#}"));
    }
    mounts::flush();
    power::off();
    ExitCode::FAILURE
}

fn run() -> anyhow::Result<()> {
    let mut phases = vec![phase("init")];
    mounts::early()?;
    console::log_to_kernel(log_level());
    let later = modules::load()?;
    phases.push(phase("modules"));
    root::move_to_own()?;
    mounts::late()?;
    network::loopback_up().context("cannot bring up the loopback interface")?;
    nix::unistd::sethostname(HOSTNAME).context("cannot set the host name")?;
    power::keep_to_ourselves();
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
        .context("cannot raise the limit of open files")?;
    phases.push(phase("mounts"));
    serve::in_guest(phases, move || {
        later.load();
        std::thread::spawn(clock::follow);
        std::thread::spawn(processors::follow);
        button::watch();
    })
}

/// A phase that ends now.
pub fn phase(name: &str) -> Phase {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        let nanoseconds = time.tv_sec() * 1_000_000_000 + time.tv_nsec();
        u64::try_from(nanoseconds).unwrap_or(0)
    });
    log::debug!("phase {name} ends");
    Phase {
        name: name.to_owned(),
        boottime_ns: now,
    }
}

/// `orlop.log=debug` on the kernel's command line asks for more than warnings.
fn log_level() -> LevelFilter {
    std::fs::read_to_string("/proc/cmdline")
        .unwrap_or_default()
        .split_whitespace()
        .find_map(|word| word.strip_prefix("orlop.log=")?.parse().ok())
        .unwrap_or(LevelFilter::Warn)
}
