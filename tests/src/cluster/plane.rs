//! The control plane: etcd, API server, controllers, scheduler, as processes of this machine.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::keys::Keys;
use super::kubectl::Kubectl;
use super::network::{API_PORT, CONTROL_PLANE, SERVICES};
use super::process::Process;
use super::{Files, Programs};

/// How long the API server may take on a busy machine.
const READY_LIMIT: Duration = Duration::from_secs(180);

/// The processes; they end with this value.
#[derive(Debug)]
pub(super) struct ControlPlane {
    // The order is that of the ends.
    _clients: [Process; 2],
    _server: Process,
    _store: Process,
}

impl ControlPlane {
    /// Starts them, and waits until the API server is ready.
    pub(super) fn start(programs: &Programs, files: &Files, kubectl: &Kubectl) -> Result<Self> {
        let keys = Keys::of(files);
        let store = Process::start("etcd", etcd(programs, files), files)?;
        let mut server = Process::start("kube-apiserver", server(programs, &keys), files)?;
        server.wait_until(READY_LIMIT, || kubectl.server_is_ready().then_some(()))?;
        let controllers = controllers(programs, files, &keys);
        let clients = [
            Process::start("kube-controller-manager", controllers, files)?,
            Process::start("kube-scheduler", scheduler(programs, files), files)?,
        ];
        Ok(Self {
            _clients: clients,
            _server: server,
            _store: store,
        })
    }
}

fn etcd(programs: &Programs, files: &Files) -> Command {
    // The program has the name of its module's directory.
    let mut command = Command::new(programs.kubernetes.join("server"));
    command
        .arg("--data-dir")
        .arg(files.root().join("etcd"))
        .args(["--name", "testbed", "--unsafe-no-fsync"])
        .args(["--listen-client-urls", "http://127.0.0.1:2379"])
        .args(["--advertise-client-urls", "http://127.0.0.1:2379"])
        .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
        .args(["--initial-advertise-peer-urls", "http://127.0.0.1:2380"])
        .args(["--initial-cluster", "testbed=http://127.0.0.1:2380"])
        // A machine that is busy with an emulated node is late now and then.
        .args(["--heartbeat-interval", "500", "--election-timeout", "5000"]);
    command
}

fn server(programs: &Programs, keys: &Keys) -> Command {
    let mut command = Command::new(programs.kubernetes.join("kube-apiserver"));
    command
        .arg("--etcd-servers=http://127.0.0.1:2379")
        .arg(format!("--advertise-address={CONTROL_PLANE}"))
        .arg(format!("--secure-port={API_PORT}"))
        .arg(format!("--service-cluster-ip-range={SERVICES}"))
        .args(["--authorization-mode=Node,RBAC", "--allow-privileged=true"])
        .arg("--kubelet-preferred-address-types=InternalIP")
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        // Other APIs are servers outside of the cluster.
        .arg("--enable-aggregator-routing=true")
        .arg("--requestheader-username-headers=X-Remote-User")
        .arg("--requestheader-group-headers=X-Remote-Group")
        .arg("--requestheader-extra-headers-prefix=X-Remote-Extra-")
        // An emulated node takes its time to answer.
        .args(["--request-timeout=10m", "--profiling=false"]);
    file(&mut command, "tls-cert-file", &keys.file("server.crt"));
    file(
        &mut command,
        "tls-private-key-file",
        &keys.file("server.key"),
    );
    file(
        &mut command,
        "requestheader-client-ca-file",
        &keys.file("ca.crt"),
    );
    file(
        &mut command,
        "proxy-client-cert-file",
        &keys.file("aggregator.crt"),
    );
    file(
        &mut command,
        "proxy-client-key-file",
        &keys.file("aggregator.key"),
    );
    file(&mut command, "token-auth-file", &keys.file("tokens"));
    file(
        &mut command,
        "service-account-key-file",
        &keys.file("accounts.pub"),
    );
    file(
        &mut command,
        "service-account-signing-key-file",
        &keys.file("accounts.key"),
    );
    command
}

fn controllers(programs: &Programs, files: &Files, keys: &Keys) -> Command {
    let mut command = Command::new(programs.kubernetes.join("kube-controller-manager"));
    command
        .args(["--leader-elect=false", "--use-service-account-credentials"])
        .args(["--bind-address=127.0.0.1", "--profiling=false"])
        // A node that is emulated and busy is not gone.
        .arg("--node-monitor-grace-period=5m");
    file(
        &mut command,
        "kubeconfig",
        &files.kubeconfig("controller-manager"),
    );
    file(
        &mut command,
        "service-account-private-key-file",
        &keys.file("accounts.key"),
    );
    file(&mut command, "root-ca-file", &keys.file("ca.crt"));
    file(
        &mut command,
        "cluster-signing-cert-file",
        &keys.file("ca.crt"),
    );
    file(
        &mut command,
        "cluster-signing-key-file",
        &keys.file("ca.key"),
    );
    command
}

fn scheduler(programs: &Programs, files: &Files) -> Command {
    let mut command = Command::new(programs.kubernetes.join("kube-scheduler"));
    command.args([
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        "--profiling=false",
    ]);
    file(&mut command, "kubeconfig", &files.kubeconfig("scheduler"));
    command
}

fn file(command: &mut Command, flag: &str, path: &Path) {
    command.arg(format!("--{flag}")).arg(path);
}
