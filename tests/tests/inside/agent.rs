//! A guest with the agent in it, and a client of the agent: what a shim would be, without containerd.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use orlop_proto::agent::CONTROL_PORT;
use orlop_proto::agent::v1::agent_client::AgentClient;
use orlop_proto::agent::v1::{
    CreateRequest, DeleteRequest, ExecRequest, InfoRequest, SignalRequest, StartRequest,
    StateRequest, StateResponse, Stdio, Stream, WaitRequest,
};
use orlop_proto::{connect, streams};
use orlop_testbed::cache::Cache;
use orlop_testbed::children;
use orlop_testbed::containerd::ctr::Running;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::guest::{COMMAND_LINE, LIMIT, orlop};

/// The serial number of the disk with the containers' root.
const DISK: &str = "root";
/// What a process writes is wanted.
pub const OUTPUT: Stdio = Stdio {
    stdin: false,
    stdout: true,
    stderr: true,
};

/// A running guest.
pub struct AgentVm {
    directory: TempDir,
    runtime: Runtime,
    client: AgentClient<Channel>,
    running: Running,
}

impl AgentVm {
    /// Boots one whose containers have all of busybox for their root, and waits until the agent answers.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let place = |name| directory.path().join(name).display().to_string();
        make_disk(directory.path().join("root"), place("disk"));
        let cache = Cache::open().unwrap();
        let mut command = orlop();
        command.args(["run", "--name", "agent", "--memory", "512M"]);
        command.arg("--kernel").arg(cache.guest_vmlinux());
        command.arg("--initramfs").arg(cache.guest_initramfs());
        command.args(["--cmdline", COMMAND_LINE, "--console"]);
        command.arg(format!("file={}", place("console")));
        command.args(["--api-socket", &place("control"), "--vsock"]);
        command.arg(format!("socket={}", place("vsock")));
        command.arg("--disk");
        command.arg(format!("path={},readonly,serial={DISK}", place("disk")));
        let running = Running::start(command, &[]).unwrap();
        let runtime = Runtime::new().unwrap();
        let end = Instant::now() + LIMIT;
        let socket = directory.path().join("vsock");
        let client = loop {
            let answer = runtime.block_on(async {
                let channel = connect::vsock(&socket, CONTROL_PORT).await.ok()?;
                let mut client = AgentClient::new(channel);
                client.info(InfoRequest {}).await.ok()?;
                Some(client)
            });
            if let Some(client) = answer {
                break client;
            }
            let console = fs::read_to_string(place("console")).unwrap_or_default();
            assert_eq!(children::ended(), 0, "the VM has ended: {console}");
            assert!(Instant::now() < end, "no agent: {console}");
            std::thread::sleep(std::time::Duration::from_millis(200));
        };
        Self {
            directory,
            runtime,
            client,
            running,
        }
    }

    /// The VM's control socket.
    pub fn control(&self) -> PathBuf {
        self.directory.path().join("control")
    }

    /// Makes a call to the agent.
    pub fn call<T>(
        &self,
        call: impl AsyncFnOnce(AgentClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let answer = self.runtime.block_on(call(self.client.clone()));
        answer.map(Response::into_inner)
    }

    pub fn create(&self, name: &str, spec: &Value) -> Result<u32, Status> {
        let request = CreateRequest {
            container: name.into(),
            bundle: String::new(),
            spec: serde_json::to_vec(spec).unwrap(),
            stdio: Some(OUTPUT),
            root_disk: DISK.into(),
            disks: Vec::new(),
            pci_devices: Vec::new(),
            volumes: Vec::new(),
        };
        let made = self.call(async |mut agent| agent.create(request).await)?;
        Ok(made.pid)
    }

    pub fn exec(
        &self,
        name: &str,
        exec: &str,
        process: &Value,
        stdio: Stdio,
    ) -> Result<(), Status> {
        let request = ExecRequest {
            container: name.into(),
            exec: exec.into(),
            process: serde_json::to_vec(process).unwrap(),
            stdio: Some(stdio),
        };
        self.call(async |mut agent| agent.exec(request).await)
            .map(drop)
    }

    pub fn start_process(&self, name: &str, exec: &str) -> Result<u32, Status> {
        let request = StartRequest {
            container: name.into(),
            exec: exec.into(),
        };
        let started = self.call(async |mut agent| agent.start(request).await)?;
        Ok(started.pid)
    }

    pub fn state(&self, name: &str) -> Result<StateResponse, Status> {
        let request = StateRequest {
            container: name.into(),
            exec: String::new(),
        };
        self.call(async |mut agent| agent.state(request).await)
    }

    pub fn signal(&self, name: &str, exec: &str, signal: i32) -> Result<(), Status> {
        let request = SignalRequest {
            container: name.into(),
            exec: exec.into(),
            signal: signal.unsigned_abs(),
            all: false,
        };
        self.call(async |mut agent| agent.signal(request).await)
            .map(drop)
    }

    /// Waits for a process's end: its exit status, and when it was by the guest's clock, in nanoseconds.
    pub fn exit(&self, name: &str, exec: &str) -> Result<(u32, i64), Status> {
        let request = WaitRequest {
            container: name.into(),
            exec: exec.into(),
        };
        let exit = self.call(async |mut agent| agent.wait(request).await)?;
        Ok((exit.exit_status, exit.exited_at_ns))
    }

    pub fn wait(&self, name: &str, exec: &str) -> Result<u32, Status> {
        Ok(self.exit(name, exec)?.0)
    }

    pub fn delete(&self, name: &str, exec: &str) -> Result<(), Status> {
        let request = DeleteRequest {
            container: name.into(),
            exec: exec.into(),
        };
        self.call(async |mut agent| agent.delete(request).await)
            .map(drop)
    }

    /// Starts a process that is made; its output, errors among it, and its exit status.
    pub fn finish(&self, name: &str, exec: &str) -> Result<(String, u32), Status> {
        let socket = self.directory.path().join("vsock");
        let both = self.runtime.block_on(async {
            let out = streams::open(&socket, name, exec, Stream::Stdout).await?;
            let err = streams::open(&socket, name, exec, Stream::Stderr).await?;
            Ok::<_, std::io::Error>((out, err))
        });
        let (mut out, mut err) = both.map_err(|error| Status::internal(error.to_string()))?;
        self.start_process(name, exec)?;
        let text = self.runtime.block_on(async {
            let (mut text, mut errors) = (Vec::new(), Vec::new());
            let _ = tokio::join!(out.read_to_end(&mut text), err.read_to_end(&mut errors));
            text.extend(errors);
            String::from_utf8_lossy(&text).into_owned()
        });
        Ok((text, self.wait(name, exec)?))
    }

    /// A stream of a process that is made.
    pub fn stream(&self, name: &str, exec: &str, stream: Stream) -> UnixStream {
        let socket = self.directory.path().join("vsock");
        let open = streams::open(&socket, name, exec, stream);
        self.runtime.block_on(open).unwrap()
    }

    /// Reads so many bytes of a stream.
    pub fn read(&self, mut stream: UnixStream, count: usize) -> (Vec<u8>, UnixStream) {
        let mut bytes = vec![0; count];
        let read = self.runtime.block_on(stream.read_exact(&mut bytes));
        read.unwrap();
        (bytes, stream)
    }

    /// Runs a container to its end, and removes it.
    pub fn run(&self, name: &str, spec: &Value) -> Result<(String, u32), Status> {
        self.create(name, spec)?;
        let result = self.finish(name, "");
        if result.is_err() {
            let _ = self.signal(name, "", libc::SIGKILL);
            let _ = self.wait(name, "");
        }
        self.delete(name, "")?;
        result
    }

    /// Ends the guest.
    pub fn stop(self) {
        use orlop_proto::agent::v1::ShutdownRequest;
        // The guest may be gone before it has answered.
        let _ = self.call(async |mut agent| agent.shutdown(ShutdownRequest {}).await);
        let done = self.running.wait(LIMIT).unwrap();
        assert_eq!(done.status, 0, "{}", done.error());
    }
}

impl AgentVm {
    /// Waits for the end of a guest that has crashed: what is on its console, and the VMM's exit status.
    pub fn crashed(self) -> (String, u8) {
        let done = self.running.wait(LIMIT).unwrap();
        let console = fs::read_to_string(self.directory.path().join("console"));
        (console.unwrap_or_default(), done.status)
    }
}

fn make_disk(root: PathBuf, disk: String) {
    let bin = root.join("bin");
    fs::create_dir_all(&bin).unwrap();
    for directory in ["dev", "proc", "sys", "tmp"] {
        fs::create_dir(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    let list = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(list.stdout).unwrap().lines() {
        if applet != "busybox" {
            symlink("busybox", bin.join(applet)).unwrap();
        }
    }
    let made = Command::new("mkfs.erofs")
        .arg(disk)
        .arg(root)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// A spec as it is written for a container of the usual kind.
pub fn spec(arguments: &[&str]) -> Value {
    let capabilities = ["CAP_CHOWN", "CAP_KILL"];
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {
            "args": arguments,
            "cwd": "/",
            "env": ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": true,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"]},
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/kcore", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        }
    })
}
