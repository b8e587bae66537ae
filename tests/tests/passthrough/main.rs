//! Devices of the host's that a guest is given: they do DMA through an IOMMU there, and are the host's again afterwards.

mod binding;
mod comings;
#[path = "../common/mod.rs"]
mod common;
mod endings;
#[path = "../guest/mod.rs"]
mod guest;
mod hostile;
mod lives;
mod pci;
mod pods;
mod refusals;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::Stage;
use guest::{Guest, Kernel, LIMIT};
use orlop_testbed::containerd::ctr::Running;
use orlop_testbed::host::devices::{self, DISK};
use orlop_testbed::stories;

/// The kernel for guests with disks: it has their driver built in.
const FOR_DISKS: Kernel = Kernel::Vmlinux;

/// How long a guest of a kernel for all machines may take, on a machine that emulates everything.
const LONG: Duration = Duration::from_secs(240);

/// The stage of a story, whose devices have drivers to have and have none; without devices to give away the story is skipped.
fn stage() -> Option<Stage> {
    if pci::is_there(DISK) {
        // A driver takes what nobody has when it is loaded.
        ["nvme", "e1000e", "snd-hda-intel", "xhci-pci"]
            .iter()
            .for_each(|driver| pci::load(driver));
        devices::ALL
            .iter()
            .for_each(|address| pci::release(address));
    }
    let stage = common::stage()?;
    if !pci::is_there(DISK) {
        stories::skip(
            "this host has no devices to give away; `cargo testbed test passthrough` starts one that has",
        );
        return None;
    }
    Some(stage)
}

/// A guest with devices, whose console is a file.
struct Vm {
    guest: Guest,
    running: Running,
}

impl Vm {
    /// A guest that runs a script.
    fn start(kernel: Kernel, script: &str, arguments: &[&str]) -> Self {
        let drivers: &[&str] = match kernel {
            Kernel::Full => &["nvme", "e1000e"],
            _ => &[],
        };
        let guest = Guest::with_drivers(kernel, script, &[], drivers);
        let console = format!("file={}", guest.path("console").display());
        let socket = guest.path("control");
        let mut line = vec!["--console", &console, "--api-socket"];
        line.push(socket.to_str().unwrap());
        line.extend(arguments);
        let running = guest.start(&line);
        Vm { guest, running }
    }

    fn socket(&self) -> PathBuf {
        self.guest.path("control")
    }

    fn said(&self) -> String {
        let console = fs::read(self.guest.path("console")).unwrap_or_default();
        String::from_utf8_lossy(&console).into_owned()
    }

    /// Waits until something holds, while the guest lives; the console tells why it does not.
    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let end = Instant::now() + LONG;
        while !holds() {
            let runs = common::processes("orlop").contains(&self.running.id());
            assert!(runs || holds(), "{what}: the VM has ended: {}", self.said());
            assert!(Instant::now() < end, "{what}: {}", self.said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits for a line of the guest's that begins so, and returns the rest of the last.
    fn says(&self, beginning: &str) -> String {
        let rest = || {
            let said = self.said();
            // One that is not whole is still being said.
            let (whole, _) = said.rsplit_once('\n')?;
            let mut lines = whole.lines().rev();
            lines.find_map(|line| Some(line.strip_prefix(beginning)?.trim().to_owned()))
        };
        self.until(beginning, || rest().is_some());
        rest().unwrap()
    }

    /// Waits for the end, which is to be this status.
    fn ends(self, status: u8) -> String {
        let said = self.said();
        let done = self.running.wait(LIMIT).unwrap();
        assert_eq!(done.status, status, "{said}\n{}", done.error());
        done.error()
    }
}
