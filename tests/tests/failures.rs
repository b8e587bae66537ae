//! What people see when something is wrong: one clear line, and a status that is not zero.

mod common;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use common::{Stage, last_line, stage, with_config};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use orlop_testbed::containerd::OrlopConfig;
use orlop_testbed::containerd::cri::Container;
use orlop_testbed::image;

#[test]
fn a_kernel_that_is_missing() {
    let Some(stage) = stage() else { return };
    let kernel = PathBuf::from("/nowhere/vmlinux");
    with_config(
        &stage,
        |config| config.guest.kernel = kernel,
        || {
            fails_with(&stage, &["/nowhere/vmlinux"]);
            pod_fails_with(&stage, "/nowhere/vmlinux");
        },
    );
    stage.leaves_nothing();
}

#[test]
fn a_kernel_that_is_truncated() {
    let Some(stage) = stage() else { return };
    let directory = tempfile::tempdir_in(stage.node.directory()).unwrap();
    let kernel = directory.path().join("half-a-vmlinux");
    let whole = fs::read(stage.node.orlop_config().unwrap().guest.kernel).unwrap();
    fs::write(&kernel, &whole[..whole.len() / 2]).unwrap();
    with_config(
        &stage,
        |config| config.guest.kernel = kernel.clone(),
        || {
            fails_with(&stage, &["half-a-vmlinux"]);
        },
    );
    drop(directory);
    stage.leaves_nothing();
}

#[test]
fn a_kernel_of_another_architecture() {
    let Some(stage) = stage() else { return };
    let directory = tempfile::tempdir_in(stage.node.directory()).unwrap();
    let kernel = directory.path().join("arm-vmlinux");
    let mut elf = fs::read(stage.node.orlop_config().unwrap().guest.kernel).unwrap();
    // e_machine: 183 is EM_AARCH64.
    elf[18..20].copy_from_slice(&183_u16.to_le_bytes());
    fs::write(&kernel, elf).unwrap();
    with_config(
        &stage,
        |config| config.guest.kernel = kernel.clone(),
        || {
            fails_with(&stage, &["arm-vmlinux"]);
        },
    );
    drop(directory);
    stage.leaves_nothing();
}

#[test]
fn a_root_file_system_that_is_empty() {
    let Some(stage) = stage() else { return };
    let done = stage.run_image(image::EMPTY, &["/bin/sh", "-c", "echo here"]);
    assert_ne!(done.status, 0);
    let error = done.error();
    assert!(last_line(&error).contains("rootfs is empty"), "{error}");
    stage.leaves_nothing();
}

#[test]
fn a_machine_without_kvm() {
    let Some(stage) = stage() else { return };
    fs::rename("/dev/kvm", "/dev/kvm-away").unwrap();
    let check = catch_unwind(AssertUnwindSafe(|| {
        fails_with(&stage, &["/dev/kvm"]);
        pod_fails_with(&stage, "/dev/kvm");
    }));
    fs::rename("/dev/kvm-away", "/dev/kvm").unwrap();
    check.unwrap();
    stage.leaves_nothing();
}

#[test]
fn a_machine_that_forbids_kvm() {
    let Some(stage) = stage() else { return };
    // Root passes any mode; a device node on a file system without devices is refused to root as well.
    let directory = tempfile::tempdir_in(stage.node.directory()).unwrap();
    let none: Option<&str> = None;
    let kind = Some("tmpfs");
    mount(none, directory.path(), kind, MsFlags::MS_NODEV, none).unwrap();
    let node = directory.path().join("kvm");
    mknod(
        &node,
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o666),
        makedev(10, 232),
    )
    .unwrap();
    mount(Some(&node), "/dev/kvm", none, MsFlags::MS_BIND, none).unwrap();
    let check = catch_unwind(AssertUnwindSafe(|| {
        fails_with(&stage, &["/dev/kvm", "ermission denied"]);
    }));
    umount2("/dev/kvm", MntFlags::MNT_DETACH).unwrap();
    umount2(directory.path(), MntFlags::MNT_DETACH).unwrap();
    check.unwrap();
    drop(directory);
    stage.leaves_nothing();
}

#[test]
fn a_guest_without_an_agent_is_given_up() {
    let Some(stage) = stage() else { return };
    let directory = tempfile::tempdir_in(stage.node.directory()).unwrap();
    let initramfs = directory.path().join("no-initramfs");
    fs::write(&initramfs, b"not a cpio archive").unwrap();
    let change = |config: &mut OrlopConfig| {
        config.guest.image = None;
        config.guest.initramfs.clone_from(&initramfs);
    };
    with_config(&stage, change, || {
        let done = stage.run("true");
        assert_ne!(done.status, 0);
        let error = done.error();
        assert!(last_line(&error).len() > 20, "{error}");
        // The pod is gone, and what its guest has said is not.
        let kept = fs::read_to_string(kept_console(last_line(&error))).unwrap();
        assert!(kept.contains("Kernel panic"), "{kept}");
        let cri = stage.cri();
        let pod = cri.run_pod("silent").unwrap();
        let error = cri
            .run(&pod, &Container::busybox("main", &["true"]))
            .unwrap_err();
        assert_one_line_with(error.message(), "Kernel panic - not syncing");
        let file = kept_console(error.message());
        assert!(file.contains("stories_silent_"), "{file}");
        let kept = fs::read_to_string(file).unwrap();
        assert!(kept.contains("Kernel panic"), "{kept}");
        cri.remove_pod(&pod).unwrap();
    });
    drop(directory);
    stage.leaves_nothing();
}

/// Where an error says that the guest's console is kept.
fn kept_console(error: &str) -> &str {
    let kept = error.split("console is kept in ").nth(1);
    let path = kept.unwrap_or_else(|| panic!("no console in: {error}"));
    path.split([' ', ':', ';', '"']).next().unwrap().trim()
}

/// `ctr run` fails, and the last line of what it says has all of `words`.
fn fails_with(stage: &Stage, words: &[&str]) {
    let done = stage.run("echo here");
    assert_ne!(done.status, 0, "it ran: {}", done.output());
    let error = done.error();
    let line = last_line(&error);
    for word in words {
        assert!(
            line.contains(word),
            "no {word:?} in the last line of: {error}"
        );
    }
}

/// A container of a pod fails to start, and the kubelet is told in one line that has `word`.
fn pod_fails_with(stage: &Stage, word: &str) {
    let cri = stage.cri();
    let pod = match cri.run_pod("failing") {
        Ok(pod) => pod,
        Err(error) => return assert_one_line_with(error.message(), word),
    };
    let error = cri
        .run(&pod, &Container::busybox("main", &["true"]))
        .unwrap_err();
    assert_one_line_with(error.message(), word);
    cri.remove_pod(&pod).unwrap();
}

fn assert_one_line_with(message: &str, word: &str) {
    assert!(message.contains(word), "no {word:?} in: {message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}
