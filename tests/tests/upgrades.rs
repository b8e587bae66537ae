//! A node whose containerd is replaced by a newer one while pods run: 1.6, the last 1.x, 2.x. They speak three versions of the shims' protocol,
//! and a pod's shim is the one that the oldest has started.

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::{Stage, output, processes, stage};
use orlop_testbed::containerd::cri::{Container, Cri, Pod};
use orlop_testbed::containerd::{Network, Node, Version};

/// A command that says a line each second until it is told to end.
const COUNTS: &[&str] = &[
    "sh",
    "-c",
    "trap 'exit 7' TERM; i=0; while :; do echo line $((i+=1)); sleep 1; done",
];
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn pods_run_on_while_containerd_is_upgraded() {
    if stage().is_none() {
        return;
    }
    let directory = tempfile::tempdir_in("/run").unwrap();
    let releases =
        [Version::Debian, Version::Last1, Version::Two].map(|version| version.get().unwrap());
    let [first, later @ ..] = releases;
    let (node, mut daemon) = Node::start_with(directory.path(), first, Network::Own).unwrap();
    let stage = Stage::on(node);
    // One connection for all: it is made anew when containerd has been.
    let cri = stage.cri();
    let mut pods = vec![Running::begin(&cri, "oldest")];
    for (release, name) in later.into_iter().zip(["old", "new"]) {
        let before = (processes("orlop"), processes("containerd-shim-orlop-v2"));
        daemon.restart(&stage.node.with(release).unwrap()).unwrap();
        for pod in &pods {
            pod.goes_on(&cri);
        }
        let after = (processes("orlop"), processes("containerd-shim-orlop-v2"));
        assert_eq!(after, before, "the same VMs with the same shims");
        pods.push(Running::begin(&cri, name));
    }
    for pod in pods {
        pod.end(&cri);
    }
    // The last one has a socket that the first one had not.
    drop(daemon);
    stage.leaves_nothing();
}

/// A pod with a container that counts.
struct Running {
    pod: Pod,
    container: String,
    boot_id: String,
}

impl Running {
    fn begin(cri: &Cri, name: &str) -> Self {
        let pod = cri.run_pod(name).unwrap();
        let container = cri.run(&pod, &Container::busybox("main", COUNTS)).unwrap();
        let boot_id = boot_id(cri, &container);
        Running {
            pod,
            container,
            boot_id,
        }
    }

    /// It is the same guest, known and used as before: commands, logs, further containers.
    fn goes_on(&self, cri: &Cri) {
        assert!(cri.is_pod_ready(&self.pod).unwrap());
        assert_eq!(boot_id(cri, &self.container), self.boot_id);
        let said = || cri.log(&self.pod, "main").unwrap().lines().count();
        let before = said();
        let end = Instant::now() + LIMIT;
        while said() < before + 2 {
            assert!(Instant::now() < end, "its log has ended");
            thread::sleep(Duration::from_millis(200));
        }
        let other = Container::busybox("other", &["sh", "-c", "exit 3"]);
        let other = cri.run(&self.pod, &other).unwrap();
        assert_eq!(cri.wait(&other, LIMIT).unwrap().exit_code, 3);
        cri.remove(&other).unwrap();
    }

    /// Its end is told as it was.
    fn end(self, cri: &Cri) {
        cri.stop(&self.container, 30).unwrap();
        assert_eq!(cri.wait(&self.container, LIMIT).unwrap().exit_code, 7);
        cri.remove_pod(&self.pod).unwrap();
    }
}

fn boot_id(cri: &Cri, container: &str) -> String {
    output(cri, container, "cat /proc/sys/kernel/random/boot_id")
}
