//! Runs that are killed, at every step that changes something, and runs that meet each other.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use super::{DEBIAN_CONFIG, Node, Tree, tree};

/// What changes files, and restarts.
const STEPS: &[&str] = &[
    "chmod",
    "cp",
    "ln",
    "mkdir",
    "mv",
    "rm",
    "rmdir",
    "sync",
    "systemctl",
    "touch",
];

/// A node each of whose steps is counted, the `fatal`th of which kills the run before it is made.
fn counting(fatal: usize) -> Node {
    let node = Node::new();
    node.write("etc/containerd/config.toml", DEBIAN_CONFIG);
    let count = node.directory.path().join("count");
    for step in STEPS {
        let own = node.tools().join(step);
        let real = if own.exists() {
            let real = node.tools().join(format!("real-{step}"));
            fs::rename(own, &real).unwrap();
            real
        } else {
            Path::new("/bin").join(step)
        };
        let (count, real) = (count.display(), real.display());
        node.tool(
            step,
            &format!(
                "echo >>{count}; [ $(wc -l <{count}) != {fatal} ] || kill -9 0\nexec {real} \"$@\""
            ),
        );
    }
    node
}

impl Node {
    /// Runs it in a process group of its own, which it may kill. Returns whether it came to its end.
    fn survives(&self, release: &Path, arguments: &[&str]) -> bool {
        let mut command = self.command(release, arguments);
        let done = command.process_group(0).output().unwrap();
        done.status.success()
    }

    /// Everything without the directory's own name.
    fn contents(&self) -> Tree {
        let root = self.root();
        let relative = |(path, what): (std::path::PathBuf, String)| {
            (path.strip_prefix(&root).unwrap().to_owned(), what)
        };
        tree(&root).into_iter().map(relative).collect()
    }

    /// Nothing that is there is a part of something.
    fn has_nothing_half(&self) {
        let current = self.root().join("opt/orlop/current");
        if fs::symlink_metadata(&current).is_ok() {
            assert!(current.join("share/config.toml").exists());
            assert!(current.join("bin/virtiofsd").exists());
        }
        let config = self.read("etc/containerd/config.toml");
        assert!(config.starts_with(DEBIAN_CONFIG), "{config}");
        let whole = config == DEBIAN_CONFIG || config.ends_with("# <<< orlop\n");
        assert!(whole, "{config}");
        if config != DEBIAN_CONFIG {
            assert!(current.exists(), "a handler without a shim");
        }
    }
}

#[test]
fn a_run_that_is_killed_is_made_good_by_the_next() {
    let node = counting(0);
    let release = node.release("1.0.0");
    assert!(node.survives(&release, &[]));
    let wanted = node.contents();
    for fatal in 1.. {
        let node = counting(fatal);
        let ended = node.survives(&release, &[]);
        node.has_nothing_half();
        if ended {
            assert!(fatal > 20, "only {fatal} steps were seen");
            return;
        }
        assert!(node.survives(&release, &[]));
        assert_eq!(node.contents(), wanted, "after step {fatal}");
        let restarted = node.restarts().starts_with("containerd\n");
        assert!(restarted, "after step {fatal}");
    }
}

#[test]
fn taking_it_away_can_be_killed_as_well() {
    let clean = counting(0).contents();
    let shelf = Node::new();
    let release = shelf.release("1.0.0");
    for fatal in 1.. {
        let node = counting(0);
        assert!(node.survives(&release, &[]));
        fs::remove_file(node.directory.path().join("count")).unwrap();
        let before = node.restarts();
        for step in STEPS {
            let script = node.tools().join(step);
            let text = fs::read_to_string(&script).unwrap();
            fs::write(&script, text.replace("!= 0 ", &format!("!= {fatal} "))).unwrap();
        }
        let ended = node.survives(&release, &["--uninstall"]);
        if ended {
            assert!(fatal > 8, "only {fatal} steps were seen");
            return;
        }
        assert!(node.survives(&release, &["--uninstall"]));
        assert_eq!(node.contents(), clean, "after step {fatal}");
        let restarted = node.restarts().len() > before.len();
        assert!(restarted, "after step {fatal}");
    }
}

#[test]
fn two_runs_do_not_meet() {
    let node = Node::new();
    let release = node.release("1.0.0");
    let held = File::open(node.root().join("opt")).unwrap();
    held.lock().unwrap();
    let refused = node.refuses(&release, &[]);
    assert!(
        refused.contains("another install.sh is at work"),
        "{refused}"
    );
    drop(held);

    let runs: Vec<_> = (0..4)
        .map(|_| node.command(&release, &[]).spawn().unwrap())
        .collect();
    let ended = runs
        .into_iter()
        .map(|mut run| run.wait().unwrap().success());
    assert!(ended.filter(|success| *success).count() >= 1);
    let installed = tree(&node.root());
    node.installs(&release, &[]);
    assert_eq!(tree(&node.root()), installed);
    assert_eq!(node.restarts(), "containerd\n");
}
