//! What people see when a node cannot be given a release: one line, and nothing has happened.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::{Node, containerds, tree};
use crate::stories::skip;

#[test]
fn half_a_release() {
    let node = Node::new();
    let release = node.release("1.0.0");
    fs::write(release.join("share/vmlinux"), [1; 1000]).unwrap();
    let refused = node.refuses(&release, &[]);
    assert!(refused.contains("damaged"), "{refused}");
    fs::remove_file(release.join("share/vmlinux")).unwrap();
    let refused = node.refuses(&release, &[]);
    assert!(refused.contains("share/vmlinux is missing"), "{refused}");
}

#[test]
fn a_machine_that_is_not_meant() {
    let node = Node::new();
    let release = node.release("1.0.0");
    node.tool("uname", "echo aarch64");
    let refused = node.refuses(&release, &[]);
    assert!(refused.contains("aarch64"), "{refused}");
    node.tool("uname", "echo x86_64");

    node.tool("containerd", "exit 127");
    let refused = node.refuses(&release, &[]);
    assert!(refused.contains("no containerd"), "{refused}");

    fs::remove_file(node.root().join("dev/kvm")).unwrap();
    let refused = node.refuses(&release, &[]);
    assert!(refused.contains("no KVM"), "{refused}");
    let refused = node.refuses(&release, &["--unistall"]);
    assert!(refused.contains("--unistall"), "{refused}");
}

#[test]
fn what_is_not_ours_stays() {
    let node = Node::new();
    let release = node.release("1.0.0");
    node.write("usr/local/bin/orlop", "somebody's own");
    let refused = node.refuses(&release, &[]);
    assert!(
        refused.contains("usr/local/bin/orlop is not from here"),
        "{refused}"
    );
    fs::remove_file(node.root().join("usr/local/bin/orlop")).unwrap();

    let by_hand =
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.orlop]\n";
    node.write("etc/containerd/config.toml", by_hand);
    let told = node.installs(&release, &[]);
    assert!(
        told.contains("has a handler orlop that is not from here"),
        "{told}"
    );
    assert_eq!(node.read("etc/containerd/config.toml"), by_hand);
    node.installs(&release, &["--uninstall"]);
    assert_eq!(node.read("etc/containerd/config.toml"), by_hand);
}

#[test]
fn another_build_of_a_version_that_is_there() {
    let node = Node::new();
    let release = node.release("1.0.0");
    node.installs(&release, &[]);
    let sums = release.join("SHA256SUMS");
    let text = fs::read_to_string(&sums).unwrap();
    fs::write(
        sums,
        text.lines()
            .skip(1)
            .fold(String::new(), |all, line| all + line + "\n"),
    )
    .unwrap();
    let refused = node.refuses(&release, &[]);
    assert!(refused.contains("another 1.0.0 is installed"), "{refused}");
}

#[test]
fn a_configuration_that_containerd_does_not_read() {
    for containerd in containerds() {
        let node = Node::with_containerd(&containerd, Some("version = 2\n[plugins\n"));
        let refused = node.refuses(&node.release("1.0.0"), &[]);
        assert!(
            refused.contains("config.toml is left as it is"),
            "{refused}"
        );
    }
}

#[test]
fn a_program_that_lacks_a_library() {
    let node = Node::new();
    let release = node.release("1.0.0");
    fs::write(
        release.join("bin/virtiofsd"),
        "#!/bin/sh\necho no libcap-ng >&2; exit 127\n",
    )
    .unwrap();
    let mut sums = Command::new("sh");
    sums.args([
        "-c",
        "sha256sum VERSION install.sh bin/* share/* >SHA256SUMS",
    ]);
    assert!(sums.current_dir(&release).status().unwrap().success());
    let refused = node.refuses(&release, &[]);
    assert!(refused.contains("no libcap-ng"), "{refused}");
}

#[test]
fn somebody_who_is_not_root() {
    if !nix::unistd::geteuid().is_root() {
        return skip("only root can become somebody else");
    }
    let node = Node::new();
    let release = node.release("1.0.0");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(node.directory.path(), open).unwrap();
    let before = tree(&node.root());
    let done = node.command(&release, &[]).uid(65534).output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(!done.status.success());
    assert!(error.contains("this is for root"), "{error}");
    assert_eq!(tree(&node.root()), before);
}

#[test]
fn a_disk_that_is_full() {
    // All of /opt, or all of /etc, is too small for the release, its first file, or a link.
    for (place, size) in [("opt", "256k"), ("opt", "8k"), ("etc", "4k")] {
        let node = Node::new();
        let release = node.release("1.0.0");
        let root = node.root();
        let root = root.display();
        let script = format!(
            "mount -t tmpfs -o size={size} none {root}/{place} || exit 99
             {}/install.sh --root {root}; echo status $?; find {root}/{place} {root}/usr/local/bin -mindepth 1",
            release.display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]);
        let done = command.env("PATH", node.search()).output().unwrap();
        if done.status.code() == Some(99) || !done.status.success() {
            return skip("this machine lets nobody mount a small disk");
        }
        let error = String::from_utf8_lossy(&done.stderr);
        let said = String::from_utf8_lossy(&done.stdout);
        assert_eq!(error.lines().count(), 1, "{error}");
        let full = error.contains("No space left on device") || error.contains("is the disk full");
        assert!(full, "{error}");
        assert!(said.contains("status 1\n"), "{said}");
        assert!(place == "etc" || said.ends_with("status 1\n"), "{said}");
    }
}

#[test]
fn the_script_is_clean() {
    let script = crate::setup::build::source().join("deploy/install.sh");
    match Command::new("shellcheck")
        .args(["-s", "sh"])
        .arg(script)
        .output()
    {
        Ok(done) => assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stdout)
        ),
        Err(_) => skip("there is no shellcheck"),
    }
}
