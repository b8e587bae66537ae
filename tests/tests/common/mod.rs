//! What all stories share: the node that the testbed started, and a check that nothing is left on it.

#![allow(dead_code, reason = "each story program uses a part of this")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use orlop_testbed::containerd::cri::Cri;
use orlop_testbed::containerd::ctr::Done;
use orlop_testbed::containerd::{Node, OrlopConfig, RUNTIME};
use orlop_testbed::leaks::{Holdings, Thing, left_since};
use orlop_testbed::{image, stories};

static NAMES: AtomicU32 = AtomicU32::new(0);

/// A node, and what it held before the story.
pub struct Stage {
    pub node: Node,
    before: Holdings,
}

/// The node of the stories; without one the story is skipped.
pub fn stage() -> Option<Stage> {
    let Some(node) = Node::attach() else {
        stories::skip("there is no containerd with Orlop here; `cargo testbed test` starts one");
        return None;
    };
    Some(Stage::on(node))
}

impl Stage {
    /// A story on this node.
    pub fn on(node: Node) -> Self {
        let before = Holdings::now(&places(&node));
        Stage { node, before }
    }

    /// containerd's CRI.
    pub fn cri(&self) -> Cri {
        Cri::connect(&self.node).unwrap()
    }

    /// Runs `command` in a container of `image` with Orlop, to its end, removed afterwards.
    pub fn run_image(&self, image: &str, command: &[&str]) -> Done {
        let name = unique("run");
        let mut line = vec!["run", "--rm", "--runtime", RUNTIME, image, &name];
        line.extend(command);
        self.node.ctr("default", &line).unwrap()
    }

    /// Runs a shell script in a container of the busybox image.
    pub fn run(&self, script: &str) -> Done {
        self.run_image(image::BUSYBOX, &["sh", "-c", script])
    }

    /// True while containerd knows a container of this name.
    pub fn has_container(&self, name: &str) -> bool {
        let list = self
            .node
            .ctr("default", &["containers", "ls", "-q"])
            .unwrap();
        list.output().lines().any(|line| line == name)
    }

    /// Ends the story: nothing of it may be left.
    pub fn leaves_nothing(self) {
        self.leaves_nothing_but(|_| false);
    }

    /// Ends the story: nothing of it may be left but what `may_stay`.
    pub fn leaves_nothing_but(self, may_stay: impl Fn(&Thing) -> bool) {
        let left = left_since(&self.before, &places(&self.node), may_stay);
        let left: Vec<_> = left.iter().map(ToString::to_string).collect();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

fn places(node: &Node) -> Vec<PathBuf> {
    let directory = node.directory();
    vec![
        node.orlop_state(),
        directory.join("state/io.containerd.runtime.v2.task"),
        directory.join("root/io.containerd.runtime.v2.task"),
        directory.join("state/io.containerd.grpc.v1.cri"),
        directory.join("root/io.containerd.grpc.v1.cri"),
        // The shims' sockets. Not the FIFOs beside them: they are ctr's, and ctr keeps those of a task whose shim was killed, with
        // every runtime.
        PathBuf::from("/run/containerd/s"),
        PathBuf::from("/run/tmp"),
    ]
}

/// What a shell script prints in a container, where it ends well.
pub fn output(cri: &Cri, container: &str, script: &str) -> String {
    let done = cri.exec(container, &["sh", "-c", script]);
    let done = done.unwrap_or_else(|error| panic!("{script}: {error}"));
    let error = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.exit_code, 0, "{script}: {error}");
    String::from_utf8(done.stdout).unwrap()
}

/// A name that no other container of this run has.
pub fn unique(what: &str) -> String {
    let number = NAMES.fetch_add(1, Ordering::Relaxed);
    format!("{what}-{}-{number}", std::process::id())
}

/// The kernel release of this machine, the one that the guests must not show.
pub fn host_kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    release.trim().to_owned()
}

/// The ids of the processes here whose program has this name.
pub fn processes(program: &str) -> Vec<u32> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let executable = fs::read_link(entry.path().join("exe")).ok()?;
            (executable.file_name()?.to_str()? == program).then_some(id)
        })
        .collect()
}

/// The last line that is not empty.
pub fn last_line(text: &str) -> &str {
    text.lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or("")
}

/// Runs `check` while the shims' configuration is `change`d.
pub fn with_config(stage: &Stage, change: impl FnOnce(&mut OrlopConfig), check: impl FnOnce()) {
    let usual = stage.node.orlop_config().unwrap();
    let mut changed = usual.clone();
    change(&mut changed);
    stage.node.write_orlop_config(&changed).unwrap();
    let result = catch_unwind(AssertUnwindSafe(check));
    stage.node.write_orlop_config(&usual).unwrap();
    if let Err(panic) = result {
        resume_unwind(panic);
    }
}
