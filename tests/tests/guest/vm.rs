//! A guest with a control socket, whose console is a file.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use orlop_proto::vmm::v1::{
    AddDiskRequest, AddNetRequest, DescribeRequest, KillRequest, RemoveDeviceRequest,
    WaitOperationRequest,
};
use orlop_testbed::children;
use orlop_testbed::containerd::ctr::{Done, Running};
use tonic::Status;

use super::tap::Tap;
use super::{Guest, LIMIT, control};

/// How long a guest may take over what it does, on a machine that emulates everything and is busy.
const LONG: Duration = Duration::from_secs(300);

/// How often is looked whether it has.
const LOOK: Duration = Duration::from_millis(50);

/// A guest, its VMM, and what it has said.
pub struct Vm {
    pub guest: Guest,
    running: Running,
}

impl Vm {
    /// Starts the VMM of a guest with further arguments.
    pub fn start(guest: Guest, arguments: &[&str]) -> Self {
        let console = format!("file={}", guest.path("console").display());
        let socket = guest.path("control");
        let mut line = vec!["--console", &console, "--api-socket"];
        line.push(socket.to_str().unwrap());
        line.extend(arguments);
        let running = guest.start(&line);
        Vm { guest, running }
    }

    /// The VMM's process.
    pub fn id(&self) -> u32 {
        self.running.id()
    }

    pub fn socket(&self) -> PathBuf {
        self.guest.path("control")
    }

    /// All that the guest has said.
    pub fn said(&self) -> String {
        let console = fs::read(self.guest.path("console")).unwrap_or_default();
        String::from_utf8_lossy(&console).into_owned()
    }

    /// Waits until something holds, while the VM lives; the console tells why it does not.
    pub fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let end = Instant::now() + LONG;
        while !holds() {
            let lives = children::lives(self.id());
            assert!(
                lives || holds(),
                "{what}: the VM has ended: {}",
                self.said()
            );
            assert!(Instant::now() < end, "{what}: {}", self.said());
            std::thread::sleep(LOOK);
        }
    }

    /// Waits for a line of the guest's that begins so, and returns the rest of the last.
    pub fn says(&self, beginning: &str) -> String {
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

    /// Gives the guest the disk image of this name in its directory. Returns its PCI address.
    pub fn add_disk(&self, name: &str) -> Result<String, Status> {
        let path = self.guest.path(name);
        let added = control(&self.socket(), async |mut vm| {
            vm.add_disk(AddDiskRequest {
                path: path.to_str().unwrap().into(),
                readonly: false,
                serial: "hot".into(),
                ..Default::default()
            })
            .await
        });
        Ok(added?.address)
    }

    /// Gives the guest a card on a tap. Returns its PCI address.
    pub fn add_net(&self, tap: &Tap) -> Result<String, Status> {
        let added = control(&self.socket(), async |mut vm| {
            let tap = tap.name.clone();
            vm.add_net(AddNetRequest {
                tap,
                ..Default::default()
            })
            .await
        });
        Ok(added?.address)
    }

    /// Takes a device back, and waits until the guest has let go of it.
    pub fn remove(&self, address: &str) -> Result<(), Status> {
        control(&self.socket(), async |mut vm| {
            let begun = vm
                .remove_device(RemoveDeviceRequest {
                    address: address.into(),
                    timeout_ms: LIMIT.as_millis().try_into().unwrap(),
                })
                .await?;
            let id = begun.into_inner().id;
            vm.wait_operation(WaitOperationRequest { id }).await
        })
        .map(drop)
    }

    /// How many devices it has.
    pub fn devices(&self) -> usize {
        control(&self.socket(), async |mut vm| {
            vm.describe(DescribeRequest {}).await
        })
        .unwrap()
        .devices
        .len()
    }

    /// Ends it from outside.
    pub fn kill(self) -> Done {
        // The answer may be lost with the VM.
        let _ = control(&self.socket(), async |mut vm| vm.kill(KillRequest {}).await);
        self.ends(137)
    }

    /// Waits for the end, which is to be this status.
    pub fn ends(self, status: u8) -> Done {
        let said = self.said();
        let done = self.running.wait(LIMIT).unwrap();
        assert_eq!(done.status, status, "{said}\n{}", done.error());
        done
    }
}
