//! Images of all kinds, made here, and what becomes of them.

mod endings;
mod kinds;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use serde_json::json;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::allowance::Allowance;
use super::digest::sha256;
use super::unpack::Unpacker;
use super::{Image, OciError, Store};

/// A layer: entries of a kind, name, and content or link.
fn layer(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut layer = Builder::new(Vec::new());
    for &(kind, name, text) in entries {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if name.contains("setuid") {
            0o4755
        } else {
            0o755
        });
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_000_000_000);
        // As it is: the library's own setter refuses some.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        let content = if kind.is_file() { text } else { "" };
        if !kind.is_file() {
            header.as_mut_bytes()[157..157 + text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        layer.append(&header, content.as_bytes()).unwrap();
    }
    layer.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut to, bytes).unwrap();
    to.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// Writes a layout of these layers, compressed by gzip, by zstd, and not, in turn.
fn layout(directory: &Path, layers: &[Vec<u8>]) {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], kind: &str| {
        let hex = sha256(bytes);
        fs::write(blobs.join(&hex), bytes).unwrap();
        json!({"mediaType": kind, "size": bytes.len(), "digest": format!("sha256:{hex}")})
    };
    let diff_ids: Vec<_> = layers
        .iter()
        .map(|one| format!("sha256:{}", sha256(one)))
        .collect();
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "config": {"Env": ["A=b"], "Cmd": ["sh"], "User": "www"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
    let layers: Vec<_> = (0..)
        .zip(layers)
        .map(|(n, one)| match n % 3 {
            0 => put(&gzip(one), kind),
            1 => put(&zstd(one), kind),
            _ => put(one, kind),
        })
        .collect();
    let config = put(
        config.to_string().as_bytes(),
        "application/vnd.oci.image.config.v1+json",
    );
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
    let manifest = put(
        manifest.as_bytes(),
        "application/vnd.oci.image.manifest.v1+json",
    );
    let index = json!({"schemaVersion": 2, "manifests": [manifest]}).to_string();
    fs::write(directory.join("index.json"), index).unwrap();
}

fn applied(layers: &[Vec<u8>]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let unpacker = Unpacker::new(directory.path(), Allowance::default()).unwrap();
    for layer in layers {
        unpacker.apply(layer.as_slice()).unwrap();
    }
    directory
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root may give files to other users");
    }
    root
}

fn can_make_disks() -> bool {
    let there = std::process::Command::new("mkfs.erofs").arg("-V").output();
    if there.is_err() {
        eprintln!("skipped: there is no mkfs.erofs");
    }
    there.is_ok()
}

const FILE: EntryType = EntryType::Regular;
const DIRECTORY: EntryType = EntryType::Directory;
const LINK: EntryType = EntryType::Link;
const SYMLINK: EntryType = EntryType::Symlink;

#[test]
fn owners_modes_times_and_hard_links_are_those_of_the_layer() {
    if !is_root() {
        return;
    }
    let root = applied(&[layer(&[
        (DIRECTORY, "bin", ""),
        (FILE, "bin/setuid", "program"),
        (LINK, "bin/other", "bin/setuid"),
    ])]);
    let [one, other] =
        ["bin/setuid", "bin/other"].map(|name| fs::metadata(root.path().join(name)).unwrap());
    assert_eq!(one.ino(), other.ino());
    assert_eq!(
        (one.uid(), one.gid(), one.permissions().mode() & 0o7777),
        (7, 8, 0o4755)
    );
    let directory = fs::metadata(root.path().join("bin")).unwrap();
    assert_eq!(
        (one.mtime(), directory.mtime()),
        (1_000_000_000, 1_000_000_000)
    );
}

#[test]
fn whiteouts_take_away_what_is_below_and_nothing_else() {
    if !is_root() {
        return;
    }
    let root = applied(&[
        layer(&[
            (FILE, "a", "1"),
            (FILE, "d/old", "1"),
            (FILE, "d/both", "1"),
            (FILE, "e", "1"),
        ]),
        // The opaque mark comes behind what it does not mean.
        layer(&[
            (FILE, ".wh.a", ""),
            (FILE, "d/both", "2"),
            (FILE, "d/.wh..wh..opq", ""),
            (FILE, ".wh.none", ""),
        ]),
    ]);
    let has = |name: &str| root.path().join(name).exists();
    assert!(!has("a") && !has("d/old") && has("e"));
    assert_eq!(fs::read_to_string(root.path().join("d/both")).unwrap(), "2");
    assert!(!has(".wh.a") && !has("d/.wh..wh..opq"));
}

#[test]
fn nothing_leads_out_of_the_root() {
    if !is_root() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let unpacker = Unpacker::new(root.path(), Allowance::default()).unwrap();
    let target = outside.path().to_str().unwrap();
    // Through an absolute link, as the container would see it.
    fs::create_dir_all(root.path().join(target.trim_start_matches('/'))).unwrap();
    let through = layer(&[(SYMLINK, "out", target), (FILE, "out/file", "x")]);
    unpacker.apply(through.as_slice()).unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(
        root.path()
            .join(target.trim_start_matches('/'))
            .join("file")
            .exists()
    );
    for bad in [
        layer(&[(FILE, "../escaped", "x")]),
        layer(&[(LINK, "link", "../../etc/passwd")]),
        layer(&[(FILE, ".wh...", "")]),
    ] {
        let failure = unpacker.apply(bad.as_slice()).unwrap_err();
        assert_eq!(
            failure.source.kind(),
            std::io::ErrorKind::InvalidInput,
            "{failure:?}"
        );
    }
}

#[test]
fn a_layer_that_is_not_what_its_digest_says_leaves_nothing() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (image, store) = (
        directory.path().join("image"),
        directory.path().join("store"),
    );
    let good = layer(&[(FILE, "file", "x")]);
    layout(&image, std::slice::from_ref(&good));
    let blob = image.join("blobs/sha256").join(sha256(&gzip(&good)));
    let whole = fs::read(&blob).unwrap();
    let store = Store::new(store);
    for damage in [
        &whole[..whole.len() / 2],
        gzip(&layer(&[(FILE, "file", "y")])).as_slice(),
    ] {
        fs::write(&blob, damage).unwrap();
        let opened = Image::open(image.to_str().unwrap(), &store.unpacking()).unwrap();
        let error = store.provide(&opened, "it", &mut |_, _| {}).unwrap_err();
        assert!(!matches!(error, OciError::NotRoot), "{error}");
        assert!(
            error.to_string().contains("layer 1") || error.to_string().contains("cannot unpack"),
            "{error}"
        );
        assert_eq!(store.list().unwrap(), []);
        assert_eq!(fs::read_dir(store.unpacking()).unwrap().count(), 0);
    }
}

#[test]
fn an_image_is_made_once_and_can_be_removed() {
    if !is_root() {
        return;
    }
    if !can_make_disks() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let users = (FILE, "etc/passwd", "www:x:33:34::/srv:/bin/sh\n");
    let mut layers = vec![layer(&[users])];
    layers.extend((1..30).map(|n| layer(&[(FILE, "number", &n.to_string())])));
    layout(&image, &layers);
    let store = Store::new(directory.path().join("store"));
    let provide = || {
        let mut unpacked = 0;
        let opened = Image::open(image.to_str().unwrap(), &store.unpacking()).unwrap();
        let kept = store
            .provide(&opened, "it", &mut |_, _| unpacked += 1)
            .unwrap();
        (kept, unpacked)
    };
    let (first, unpacked) = std::thread::scope(|scope| {
        let other = scope.spawn(provide);
        let mine = provide();
        assert_eq!(other.join().unwrap().0.disk, mine.0.disk);
        mine
    });
    assert!(unpacked == 30 || unpacked == 0);
    assert_eq!(provide().1, 0);
    // EROFS_SUPER_MAGIC_V1, 1024 bytes from the beginning.
    assert_eq!(
        fs::read(first.disk).unwrap()[1024..1028],
        0xE0F5_E1E2_u32.to_le_bytes()
    );
    assert_eq!(first.config.cmd, Some(vec!["sh".to_owned()]));
    assert!(first.passwd.contains("www") && first.group.is_empty());
    let record = store.find("it").unwrap();
    store.remove(&record).unwrap();
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(fs::read_dir(store.unpacking()).unwrap().count(), 0);
}

#[test]
fn a_file_in_place_of_a_directory_bears_whiteouts_of_what_was_in_it() {
    let lower = layer(&[
        (EntryType::Directory, "d", ""),
        (EntryType::Regular, "d/f", "1"),
    ]);
    let upper = layer(&[
        (EntryType::Regular, "d", "file"),
        (EntryType::Regular, "d/.wh.f", ""),
        (EntryType::Regular, "d/.wh..wh..opq", ""),
    ]);
    let root = applied(&[lower, upper]);
    assert_eq!(fs::read(root.path().join("d")).unwrap(), b"file");
}

#[test]
fn a_number_that_is_left_out_is_zero() {
    if !is_root() {
        return;
    }
    let mut header = Header::new_gnu();
    header.set_path("file").unwrap();
    header.set_mode(0o600);
    header.set_size(0);
    header.set_cksum();
    let mut layer = tar::Builder::new(Vec::new());
    layer.append(&header, [].as_slice()).unwrap();
    let root = applied(&[layer.into_inner().unwrap()]);
    let file = fs::metadata(root.path().join("file")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mtime()), (0, 0, 0));
}

#[test]
fn a_directory_keeps_its_time_when_a_layer_changes_what_is_in_it() {
    if !is_root() {
        return;
    }
    let lower = layer(&[
        (DIRECTORY, "usr", ""),
        (DIRECTORY, "usr/lib", ""),
        (FILE, "usr/lib/a", "1"),
        (FILE, "usr/lib/b", "1"),
        (SYMLINK, "lib", "usr/lib"),
        (DIRECTORY, "gone", ""),
        (FILE, "gone/a", "1"),
    ]);
    let upper = layer(&[
        (FILE, "lib/a", "2"),
        (FILE, "usr/lib/.wh.b", ""),
        (FILE, "gone/b", "2"),
        (FILE, ".wh.gone", ""),
        (FILE, "new", "2"),
    ]);
    let root = applied(&[lower, upper]);
    for directory in ["usr", "usr/lib"] {
        let is = fs::metadata(root.path().join(directory)).unwrap();
        assert_eq!(is.mtime(), 1_000_000_000, "{directory}");
    }
    assert!(!root.path().join("usr/lib/b").exists());
}
