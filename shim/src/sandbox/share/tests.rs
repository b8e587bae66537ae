//! Real mounts, in a mount namespace of the test's own. Needs root; without it the test says that it was skipped.

use super::*;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Runs `work` on a thread with a private mount namespace and a tmpfs.
fn in_mount_namespace(work: impl FnOnce(&Path) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: mounting needs root");
        return;
    }
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let directory = tempfile::tempdir().unwrap();
        mount(
            Some("tmpfs"),
            directory.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            none,
        )
        .unwrap();
        work(directory.path());
        table::unmount_below(directory.path()).unwrap();
    })
    .join()
    .unwrap();
}

fn bind_request(source: &Path) -> MountRequest {
    MountRequest {
        kind: "bind".into(),
        source: source.into(),
        flags: MsFlags::MS_BIND | MsFlags::MS_REC,
        data: String::new(),
    }
}

fn share_in(root: &Path) -> (StateDir, Share) {
    let directory = StateDir::of(root, "ns", "pod");
    directory.create().unwrap();
    let share = Share::of(&directory);
    share.prepare().unwrap();
    share.prepare().unwrap();
    (directory, share)
}

#[test]
fn a_container_is_mounted_given_its_files_and_taken_away() {
    in_mount_namespace(|root| {
        let (directory, share) = share_in(root);
        let source = root.join("source");
        fs::create_dir_all(source.join("bin")).unwrap();
        fs::write(root.join("hosts"), "127.0.0.1").unwrap();
        let bind = |source: PathBuf, readonly| HostBind {
            source,
            recursive: true,
            readonly,
        };
        let binds = [bind(root.join("hosts"), true), bind(source.clone(), false)];
        share.add("c1", &[bind_request(&source)], &binds).unwrap();
        let served = share.served().join("c1");
        assert!(served.join("rootfs/bin").is_dir());
        assert_eq!(
            fs::read_to_string(served.join("mounts/0")).unwrap(),
            "127.0.0.1"
        );
        assert!(
            fs::write(served.join("mounts/0"), "x").is_err(),
            "read-only"
        );
        fs::write(served.join("mounts/1/new"), "x").unwrap();
        assert_eq!(fs::read_to_string(source.join("new")).unwrap(), "x");

        let junk = fs::write(share.served().join("junk"), "x").unwrap_err();
        assert_eq!(junk.raw_os_error(), Some(libc::EROFS));
        assert!(fs::write(served.join("junk"), "x").is_err());

        // A file that somebody holds open keeps nothing mounted.
        let held = fs::File::open(served.join("mounts/1/new")).unwrap();
        share.remove("c1").unwrap();
        assert!(!served.exists());
        share.remove("c1").unwrap();
        drop(held);
        assert!(source.join("new").exists());
        directory.remove().unwrap();
        assert!(!directory.path().exists());
    });
}

#[test]
fn mounts_made_later_reach_another_namespace_with_their_flags() {
    in_mount_namespace(|root| {
        let (_directory, share) = share_in(root);
        let source = root.join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "x").unwrap();
        let (ready, wait) = std::sync::mpsc::channel::<()>();
        let (unshared, wait_unshared) = std::sync::mpsc::channel::<()>();
        let served = share.served().to_owned();
        // As virtiofsd does it: a namespace of its own that receives and does not send.
        let daemon = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).unwrap();
            unshared.send(()).unwrap();
            wait.recv().unwrap();
            let file = served.join("c1/mounts/0/file");
            assert_eq!(fs::read_to_string(&file).unwrap(), "x");
            let error = fs::write(&file, "y").unwrap_err();
            assert_eq!(
                error.raw_os_error(),
                Some(libc::EROFS),
                "the copy must be read-only too"
            );
            assert!(fs::write(served.join("junk"), "").is_err());
            fs::write(served.join("c1/rootfs/file"), "z").unwrap();
        });
        wait_unshared.recv().unwrap();
        let readonly = HostBind {
            source: source.clone(),
            recursive: true,
            readonly: true,
        };
        share
            .add("c1", &[bind_request(&source)], &[readonly])
            .unwrap();
        ready.send(()).unwrap();
        daemon.join().unwrap();
        assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "z");
        share.remove("c1").unwrap();
    });
}

#[test]
fn a_failure_takes_back_what_was_mounted() {
    in_mount_namespace(|root| {
        let (directory, share) = share_in(root);
        let source = root.join("source");
        fs::create_dir(&source).unwrap();
        let absent = HostBind {
            source: root.join("absent"),
            recursive: true,
            readonly: false,
        };
        let error = share
            .add("c1", &[bind_request(&source)], &[absent])
            .unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
        assert!(!share.served().join("c1").exists());
        let error = share
            .add("c1", &[bind_request(&root.join("nowhere"))], &[])
            .unwrap_err();
        assert!(error.to_string().contains("nowhere"), "{error}");
        directory.remove().unwrap();
    });
}

#[test]
fn an_overlay_with_more_layers_than_fit_a_page_is_mounted() {
    in_mount_namespace(|root| {
        let (_directory, share) = share_in(root);
        let layers: Vec<String> = (0..100)
            .map(|n| {
                let layer = root.join(format!(
                    "snapshots-with-a-long-name-that-takes-place/{n}/fs"
                ));
                fs::create_dir_all(&layer).unwrap();
                fs::write(layer.join(format!("file{n}")), "").unwrap();
                layer.to_str().unwrap().to_owned()
            })
            .collect();
        for directory in ["upper", "work"] {
            fs::create_dir(root.join(directory)).unwrap();
        }
        let data = format!(
            "index=off,workdir={},upperdir={},lowerdir={}",
            root.join("work").display(),
            root.join("upper").display(),
            layers.join(":")
        );
        assert!(data.len() > 4096);
        let overlay = MountRequest {
            kind: "overlay".into(),
            source: "overlay".into(),
            flags: MsFlags::empty(),
            data,
        };
        share.add("c1", &[overlay], &[]).unwrap();
        let rootfs = share.served().join("c1/rootfs");
        assert!(rootfs.join("file0").exists() && rootfs.join("file99").exists());
        fs::write(rootfs.join("new"), "").unwrap();
        assert!(root.join("upper/new").exists());
        share.remove("c1").unwrap();
    });
}
