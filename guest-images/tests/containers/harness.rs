//! An agent that serves on unix sockets, in namespaces of its own, with root file systems made of busybox.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as ChildStdio};
use std::time::Duration;

use orlop_proto::agent::v1::agent_client::AgentClient;
use orlop_proto::agent::v1::{
    CreateRequest, DeleteRequest, ExecRequest, StartRequest, Stdio, Stream, StreamHello,
    WaitRequest, WaitResponse,
};
use orlop_proto::connect;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

pub const ALL: Stdio = Stdio {
    stdin: true,
    stdout: true,
    stderr: true,
};
pub const OUTPUT: Stdio = Stdio {
    stdin: false,
    stdout: true,
    stderr: true,
};

/// The programs of busybox that the tests use.
const APPLETS: [&str; 16] = [
    "sh", "cat", "echo", "sleep", "id", "ls", "stty", "wc", "head", "tr", "mount", "kill", "true",
    "grep", "ip", "mkdir",
];

/// A running agent; it ends with this.
pub struct Agent {
    process: Child,
    pub directory: tempfile::TempDir,
    pub client: AgentClient<Channel>,
}

/// Has cgroup v2 where the agent looks for it.
const MOUNT_CGROUP: &str = "if [ $(stat -f -c %T /sys/fs/cgroup) != cgroup2fs ]; then mount -t cgroup2 none /sys/fs/cgroup; fi";

/// Says why a test is skipped, past the test harness, which shows no output of tests that pass.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// Why the tests cannot run here, if they cannot.
fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("containers need root".into());
    }
    if !Path::new("/bin/busybox").exists() {
        return Some("/bin/busybox is missing (apt install busybox-static)".into());
    }
    let mounted = Command::new("unshare")
        .args(["-m", "sh", "-c", MOUNT_CGROUP])
        .output();
    match mounted {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "cgroup2 cannot be mounted: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("unshare cannot be run: {error}")),
    }
}

impl Agent {
    /// Starts one; `None`, with the reason printed, where that is not possible.
    pub async fn start() -> Option<Self> {
        Self::start_after("true").await
    }

    /// Starts one in a network of its own, which `prepare`, a line of shell, makes.
    pub async fn start_after(prepare: &str) -> Option<Self> {
        if let Some(why) = obstacle() {
            skipped(&why);
            return None;
        }
        let directory = tempfile::Builder::new().prefix("agent").tempdir().unwrap();
        let process = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--cgroup",
                "--net",
            ])
            .args(["sh", "-c"])
            .arg(format!(
                "{MOUNT_CGROUP} && {prepare} && exec \"$0\" serve \"$1\""
            ))
            .arg(env!("CARGO_BIN_EXE_orlop-agent"))
            .arg(directory.path())
            .stdin(ChildStdio::null())
            .spawn()
            .unwrap();
        let socket = directory.path().join("control.sock");
        let channel = loop {
            match connect::unix(&socket).await {
                Ok(channel) => break channel,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        Some(Self {
            process,
            directory,
            client: AgentClient::new(channel),
        })
    }

    pub fn bundle(&self, name: &str) -> PathBuf {
        self.directory.path().join("share").join(name)
    }

    /// Makes a root file system.
    pub fn make_root(&self, name: &str) {
        let bin = self.bundle(name).join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(self.bundle(name).join("rootfs/tmp")).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", bin.join(applet)).unwrap();
        }
    }

    pub async fn create(&mut self, name: &str, spec: &Value, stdio: Stdio) -> Result<u32, Status> {
        let request = CreateRequest {
            container: name.into(),
            bundle: name.into(),
            root_disk: String::new(),
            disks: Vec::new(),
            pci_devices: Vec::new(),
            volumes: Vec::new(),
            spec: serde_json::to_vec(spec).unwrap(),
            stdio: Some(stdio),
        };
        Ok(self.client.create(request).await?.into_inner().pid)
    }

    pub async fn exec(
        &mut self,
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
        self.client.exec(request).await.map(drop)
    }

    pub async fn start_process(&mut self, name: &str, exec: &str) -> Result<u32, Status> {
        let request = StartRequest {
            container: name.into(),
            exec: exec.into(),
        };
        Ok(self.client.start(request).await?.into_inner().pid)
    }

    pub async fn wait(&mut self, name: &str, exec: &str) -> Result<WaitResponse, Status> {
        let request = WaitRequest {
            container: name.into(),
            exec: exec.into(),
        };
        Ok(self.client.wait(request).await?.into_inner())
    }

    pub async fn delete(&mut self, name: &str, exec: &str) -> Result<(), Status> {
        let request = DeleteRequest {
            container: name.into(),
            exec: exec.into(),
        };
        self.client.delete(request).await.map(drop)
    }

    /// A connection to the stream port that has said nothing.
    pub async fn raw_stream(&self) -> UnixStream {
        UnixStream::connect(self.directory.path().join("streams.sock"))
            .await
            .unwrap()
    }

    /// Opens a stream; `None` when it is refused.
    pub async fn stream(&self, name: &str, exec: &str, stream: Stream) -> Option<UnixStream> {
        let mut connection = self.raw_stream().await;
        let hello = StreamHello {
            container: name.into(),
            exec: exec.into(),
            stream: stream.into(),
        }
        .encode_to_vec();
        connection.write_u32(hello.len() as u32).await.unwrap();
        connection.write_all(&hello).await.unwrap();
        match connection.read_u8().await.unwrap() {
            0 => Some(connection),
            _ => None,
        }
    }

    /// Runs a container to its end: its stdout, its stderr, its exit status.
    pub async fn run(&mut self, name: &str, spec: &Value) -> (String, String, u32) {
        self.create(name, spec, OUTPUT).await.unwrap();
        let stdout = self.stream(name, "", Stream::Stdout).await.unwrap();
        let stderr = self.stream(name, "", Stream::Stderr).await.unwrap();
        self.start_process(name, "").await.unwrap();
        let result = (
            read_all(stdout).await,
            read_all(stderr).await,
            self.wait(name, "").await.unwrap().exit_status,
        );
        self.delete(name, "").await.unwrap();
        result
    }

    /// Runs a shell script in a running container: its output and its exit status.
    pub async fn shell(&mut self, name: &str, exec: &str, script: &str) -> (String, u32) {
        self.execute(name, exec, &process(&["sh", "-c", script]))
            .await
    }

    /// Runs a further process in a running container: its output and its exit status.
    pub async fn execute(&mut self, name: &str, exec: &str, process: &Value) -> (String, u32) {
        self.exec(name, exec, process, OUTPUT).await.unwrap();
        let stdout = self.stream(name, exec, Stream::Stdout).await.unwrap();
        let stderr = self.stream(name, exec, Stream::Stderr).await.unwrap();
        self.start_process(name, exec).await.unwrap();
        let output = read_all(stdout).await + &read_all(stderr).await;
        let status = self.wait(name, exec).await.unwrap().exit_status;
        self.delete(name, exec).await.unwrap();
        (output, status)
    }

    /// Checks that a container has left nothing, and that its name is free.
    pub async fn assert_gone(&mut self, name: &str) {
        assert_eq!(
            self.wait(name, "").await.unwrap_err().code(),
            Code::NotFound
        );
        for place in ["state", "bundles"] {
            let path = self.directory.path().join(place).join(name);
            assert!(!path.exists(), "{} is left", path.display());
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub async fn read_all(mut stream: UnixStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An OCI process object.
pub fn process(arguments: &[&str]) -> Value {
    json!({
        "args": arguments,
        "cwd": "/",
        "env": ["PATH=/bin", "GREETING=hello"],
        "user": {"uid": 0, "gid": 0},
        "noNewPrivileges": true,
        "capabilities": capabilities(&["CAP_KILL", "CAP_NET_BIND_SERVICE"]),
    })
}

pub fn capabilities(names: &[&str]) -> Value {
    json!({"bounding": names, "effective": names, "permitted": names})
}

/// A spec as containerd writes it.
pub fn spec(arguments: &[&str]) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "hostname": "boxed",
        "process": process(arguments),
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}, {"type": "network"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
        }
    })
}

/// A running container that does nothing until it is killed.
pub const IDLE: [&str; 2] = ["sleep", "1000"];
