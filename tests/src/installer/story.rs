//! From nothing to a release, to a newer one, and to nothing again, while pods run.

use std::fs;
use std::time::{Duration, Instant};

use super::{DEBIAN_CONFIG, Node, tree};

#[test]
fn a_node_is_given_a_release_once() {
    let node = Node::new();
    node.write("etc/containerd/config.toml", DEBIAN_CONFIG);
    let release = node.release("1.0.0");
    let before = tree(&node.root());

    let told = node.installs(&release, &["--dry-run"]);
    assert!(told.contains("would write"), "{told}");
    assert!(!told.contains("is installed"), "{told}");
    assert_eq!(tree(&node.root()), before, "a dry run changes things");

    let told = node.installs(&release, &[]);
    assert!(told.contains("Orlop 1.0.0 is installed"), "{told}");
    let root = node.root();
    let link = |path: &str| fs::read_link(root.join(path)).unwrap();
    assert_eq!(link("opt/orlop/current").to_str(), Some("1.0.0"));
    for program in ["orlop", "containerd-shim-orlop-v2"] {
        let target = link(&format!("usr/local/bin/{program}"));
        assert_eq!(
            target,
            std::path::Path::new("/opt/orlop/current/bin").join(program)
        );
        assert!(root.join("opt/orlop/current/bin").join(program).exists());
    }
    assert!(node.read("etc/orlop/config.toml").contains("#vcpus = 1"));
    assert_eq!(
        node.read("etc/containerd/config.toml.before-orlop"),
        DEBIAN_CONFIG
    );
    assert_eq!(node.restarts(), "containerd\n");

    // What its user has changed stays, and nothing else happens.
    node.write("etc/orlop/config.toml", "vcpus = 2\n");
    let installed = tree(&node.root());
    node.installs(&release, &[]);
    assert_eq!(tree(&node.root()), installed);
    assert_eq!(node.restarts(), "containerd\n", "for nothing");

    node.installs(&root.join("opt/orlop/current"), &["--uninstall"]);
    assert_eq!(tree(&node.root()), before);
    assert_eq!(node.restarts(), "containerd\ncontainerd\n");
    node.installs(&release, &["--uninstall"]);
    assert_eq!(tree(&node.root()), before, "twice");
}

#[test]
fn a_restart_that_is_left_to_the_user_is_told_until_it_is_made() {
    let node = Node::new();
    let release = node.release("1.0.0");
    let told = node.installs(&release, &["--no-restart"]);
    assert!(told.contains("restart containerd"), "{told}");
    assert_eq!(node.restarts(), "");
    node.installs(&release, &[]);
    assert_eq!(node.restarts(), "containerd\n");
}

#[test]
fn pods_keep_the_release_that_they_run_from() {
    let node = Node::new();
    let (old, new) = (node.release("1.0.0"), node.release("2.0.0"));
    let before = tree(&node.root());
    node.installs(&old, &[]);
    let pod = node.pod("1.0.0", "web-0");
    wait_until_it_runs(&node, &old);

    let told = node.installs(&new, &[]);
    assert!(
        told.contains("1.0.0 stays for its pods: default/web-0\n"),
        "{told}"
    );
    let current = fs::read_link(node.root().join("opt/orlop/current")).unwrap();
    assert_eq!(current.to_str(), Some("2.0.0"));
    assert_eq!(node.restarts(), "containerd\n", "the handler is the same");
    let refused = node.refuses(&new, &["--uninstall"]);
    assert!(refused.contains("pods: default/web-0"), "{refused}");
    assert!(node.root().join("opt/orlop/1.0.0/share/vmlinux").exists());

    drop(pod);
    node.installs(&new, &[]);
    assert!(!node.root().join("opt/orlop/1.0.0").exists());
    fs::remove_dir_all(node.root().join("run/containerd")).unwrap();
    node.installs(&new, &["--uninstall"]);
    assert_eq!(tree(&node.root()), before);
}

/// Until the process has become the program that it executes.
fn wait_until_it_runs(node: &Node, release: &std::path::Path) {
    let end = Instant::now() + Duration::from_secs(60);
    while node
        .install(release, &["--uninstall", "--dry-run"])
        .status
        .success()
    {
        assert!(Instant::now() < end, "the pod is not seen");
        std::thread::sleep(Duration::from_millis(50));
    }
}
