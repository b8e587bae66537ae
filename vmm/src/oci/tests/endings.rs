//! What is left when an image cannot be made.

use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use super::*;

/// Has this program, started anew, unpack what is in the directory that it names, and stop in the middle.
const UNPACK: &str = "ORLOP_TEST_UNPACK_IN";

struct Full(TempDir);

impl Full {
    /// A file system of 1 MiB.
    fn mount() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "none"]);
        let done = mount.arg(directory.path()).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        Self(directory)
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_disk_that_is_full_is_said_to_be_and_holds_nothing_afterwards() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let large = "x".repeat(3 << 20);
    layout(
        &image,
        &[layer(&[(FILE, "small", "x"), (FILE, "large", &large)])],
    );
    let full = Full::mount();
    let store = Store::new(full.0.path().join("store"));
    let opened = Image::open(image.to_str().unwrap(), &store.unpacking()).unwrap();
    let error = store.provide(&opened, "it", &mut |_, _| {}).unwrap_err();
    assert_eq!(error.to_string(), "cannot unpack large of layer 1");
    let OciError::Write { source, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(fs::read_dir(store.unpacking()).unwrap().count(), 0);
}

#[test]
fn what_a_killed_process_has_left_is_removed_by_the_next() {
    if let Some(directory) = std::env::var_os(UNPACK) {
        stop_in_the_middle(Path::new(&directory));
        return;
    }
    if !is_root() || !can_make_disks() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    layout(
        &image,
        &[layer(&[(FILE, "a", "1")]), layer(&[(FILE, "b", "2")])],
    );
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "oci::tests::endings::what_a_killed_process_has_left_is_removed_by_the_next",
        ])
        .env(UNPACK, directory.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while !directory.path().join("midway").exists() {
        assert!(Instant::now() < end && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let store = Store::new(directory.path().join("store"));
    let left = || fs::read_dir(store.unpacking()).unwrap().flatten();
    assert_eq!(left().count(), 1);
    assert_eq!(store.list().unwrap(), []);

    // One that has just begun is not taken for left; this one has been there for a while.
    let place = fs::File::open(left().next().unwrap().path()).unwrap();
    place
        .set_modified(SystemTime::now() - Duration::from_secs(60))
        .unwrap();
    drop(place);
    let opened = Image::open(image.to_str().unwrap(), &store.unpacking()).unwrap();
    store.provide(&opened, "it", &mut |_, _| {}).unwrap();
    assert_eq!(left().count(), 0);
    assert_eq!(store.list().unwrap().len(), 1);
}

fn stop_in_the_middle(directory: &Path) {
    let store = Store::new(directory.join("store"));
    let image = directory.join("image");
    let opened = Image::open(image.to_str().unwrap(), &store.unpacking()).unwrap();
    let _ = store.provide(&opened, "it", &mut |layer, _| {
        if layer == 2 {
            fs::write(directory.join("midway"), "").unwrap();
            std::thread::sleep(Duration::from_secs(600));
        }
    });
}
