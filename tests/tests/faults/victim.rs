//! What is killed of a pod.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_testbed::containerd::cri::Cri;

use super::common::processes;
use super::life::LIMIT;

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Vmm,
    Shim,
    Virtiofsd,
    /// The guest's kernel, and the agent with it: nobody in a guest can kill its process 1, so the kernel panics.
    Guest,
    Containerd,
}

impl Victim {
    fn program(self) -> &'static str {
        match self {
            Victim::Vmm | Victim::Guest => "orlop",
            Victim::Shim => "containerd-shim-orlop-v2",
            Victim::Virtiofsd => "virtiofsd",
            Victim::Containerd => "containerd",
        }
    }

    /// Kills it `after` so long from when it is there.
    pub fn strike(self, after: Duration) {
        let end = Instant::now() + LIMIT;
        while processes(self.program()).is_empty() {
            assert!(Instant::now() < end, "there is no {}", self.program());
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(after);
        for id in processes(self.program()) {
            // It may have ended by itself meanwhile.
            let _ = kill(Pid::from_raw(id.cast_signed()), Signal::SIGKILL);
        }
    }
}

/// Has a guest's kernel panic, by a privileged container in it whose memory is limited.
pub fn panic(cri: &Cri, container: &str) {
    // 2: though only a control group is out of memory.
    let script = "echo 2 >/proc/sys/vm/panic_on_oom && tail /dev/zero";
    match cri.exec(container, &["sh", "-c", script]) {
        // As of a command that was killed.
        Ok(done) => assert_eq!(done.exit_code, 137, "{done:?}"),
        Err(error) => println!("  who ran a command: {}", error.message()),
    }
}
