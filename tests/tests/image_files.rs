//! What an image's disk holds: what other tools unpack of the same image, whichever way it is packed.

mod common;
mod guest;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::stage;
use guest::orlop;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use orlop_testbed::containerd::ctr::Running;
use orlop_testbed::setup::debian_image;
use orlop_testbed::stories::size;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// How long one command may take where everything is emulated.
const LIMIT: Duration = Duration::from_secs(300);
/// How many layers the image has; at full size as many as large images have.
const LAYERS: (u64, u64) = (14, 30);
/// The layers up to this one are changed much by later ones.
const RESTLESS: u64 = 10;

/// An image that umoci has made, layer by layer, and a store of Orlop's.
struct Workshop {
    directory: TempDir,
}

impl Workshop {
    fn new() -> Self {
        let workshop = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        let layout = workshop.path("layout");
        let image = format!("{}:it", layout.display());
        let bundle = workshop.path("bundle").display().to_string();
        tool("umoci", &["init", "--layout", layout.to_str().unwrap()]);
        tool("umoci", &["new", "--image", &image]);
        tool("umoci", &["unpack", "--image", &image, &bundle]);
        for layer in 1..=size(LAYERS.0, LAYERS.1) {
            change(&workshop.path("bundle/rootfs"), layer);
            let refresh = ["repack", "--refresh-bundle", "--image", &image, &bundle];
            tool("umoci", &refresh);
        }
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the disk of an image holds, which is made in a store of its own.
    fn files(&self, image: &str) -> BTreeMap<PathBuf, File> {
        let (store, mounted) = (self.path("store"), self.path("mounted"));
        let mut command = orlop();
        command.args(["image", "build", image]);
        command.env("ORLOP_IMAGES", &store);
        let done = Running::start(command, &[]).unwrap().wait(LIMIT).unwrap();
        assert_eq!(done.status, 0, "{image}: {}", done.error());
        let [disk] = &disks(&store)[..] else {
            panic!("{:?}", disks(&store))
        };
        fs::create_dir_all(&mounted).unwrap();
        let (disk, place) = (disk.to_str().unwrap(), mounted.to_str().unwrap());
        tool("mount", &["-t", "erofs", "-o", "loop,ro", disk, place]);
        let files = walk(&mounted);
        tool("umount", &[place]);
        fs::remove_dir_all(&store).unwrap();
        files
    }
}

/// The disks in a store.
fn disks(store: &Path) -> Vec<PathBuf> {
    entries(&store.join("images"))
        .into_iter()
        .map(|image| image.join("root.erofs"))
        .collect()
}

/// What is in a directory, if it is there.
fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).map_or_else(
        |_| Vec::new(),
        |entries| entries.map(|entry| entry.unwrap().path()).collect(),
    )
}

/// Runs one of Debian's tools.
fn tool(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).output().unwrap();
    assert!(done.status.success(), "{program} {arguments:?}: {done:?}");
}

/// Does to a root file system what the layer of this number is for.
fn change(root: &Path, layer: u64) {
    let at = |name: &str| root.join(name);
    let directory = at(&format!("layer{layer}"));
    fs::create_dir(&directory).unwrap();
    for number in 0..10 {
        let text = format!("{number} of {layer}\n").repeat(1 << (number % 8));
        fs::write(directory.join(number.to_string()), text).unwrap();
    }
    // Some of each earlier layer's goes, or changes.
    if layer > 1 {
        let earlier = at(&format!("layer{}", layer - 1));
        fs::remove_file(earlier.join("1")).unwrap();
        fs::write(earlier.join("2"), "changed").unwrap();
        fs::remove_file(earlier.join("3")).unwrap();
        fs::create_dir(earlier.join("3")).unwrap();
        fs::write(earlier.join("3/inside"), "where a file was").unwrap();
    }
    match layer % 10 {
        1 => {
            fs::hard_link(directory.join("4"), directory.join("another")).unwrap();
            std::os::unix::fs::symlink("/absolute/and/absent", directory.join("link")).unwrap();
            std::os::unix::fs::symlink("../layer1/4", directory.join("relative")).unwrap();
        }
        2 => {
            let file = directory.join("4");
            std::os::unix::fs::chown(&file, Some(1234), Some(5678)).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o6755)).unwrap();
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o1777)).unwrap();
        }
        3 => {
            // cap_net_raw, permitted and effective: what ping has.
            let capability = [
                1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ];
            xattr::set(directory.join("4"), "security.capability", &capability).unwrap();
        }
        4 => {
            let mode = Mode::from_bits_truncate(0o640);
            mknod(&directory.join("fifo"), SFlag::S_IFIFO, mode, 0).unwrap();
            let null = makedev(1, 3);
            mknod(&directory.join("null"), SFlag::S_IFCHR, mode, null).unwrap();
        }
        // All of an earlier layer goes.
        5 if layer < RESTLESS => fs::remove_dir_all(at(&format!("layer{}", layer - 3))).unwrap(),
        // A directory becomes another one of the same name.
        6 if layer < RESTLESS => {
            let earlier = at(&format!("layer{}", layer - 2));
            fs::remove_dir_all(&earlier).unwrap();
            fs::create_dir(&earlier).unwrap();
            fs::write(earlier.join("new"), "").unwrap();
        }
        // A directory becomes a file, and a link.
        7 if layer < RESTLESS => {
            let [one, other] = [3, 4].map(|before| at(&format!("layer{}", layer - before)));
            fs::remove_dir_all(&one).unwrap();
            fs::write(&one, "where a directory was").unwrap();
            fs::remove_dir_all(&other).unwrap();
            std::os::unix::fs::symlink("layer1", &other).unwrap();
        }
        // A link to a file of an earlier layer: a hard one, across layers.
        8 => fs::hard_link(at("layer1/4"), directory.join("of-the-first")).unwrap(),
        9 => {
            let long = "n".repeat(120);
            let deep = directory.join(&long).join(&long).join("ö ß\u{1F600}");
            fs::create_dir_all(deep.parent().unwrap()).unwrap();
            fs::write(deep, "long names, and letters beyond ASCII").unwrap();
        }
        _ => {}
    }
}

/// All that a file is, but for its name.
#[derive(Debug, PartialEq)]
struct File {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    modified: i64,
    device: u64,
    /// The first name, in order, of the same file.
    same_as: PathBuf,
    /// The digest of a file, or where a link leads to.
    content: String,
    attributes: BTreeMap<String, Vec<u8>>,
}

/// All below a directory.
fn walk(root: &Path) -> BTreeMap<PathBuf, File> {
    let (mut files, mut first_names, mut open) =
        (BTreeMap::new(), BTreeMap::new(), vec![root.to_owned()]);
    let mut paths = Vec::new();
    while let Some(directory) = open.pop() {
        for path in entries(&directory) {
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                open.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let name = path.strip_prefix(root).unwrap().to_owned();
        let is = fs::symlink_metadata(&path).unwrap();
        let kind = is.file_type();
        let (kind, content) = if kind.is_dir() {
            ("directory", String::new())
        } else if kind.is_symlink() {
            ("link", fs::read_link(&path).unwrap().display().to_string())
        } else if kind.is_fifo() {
            ("fifo", String::new())
        } else if kind.is_char_device() {
            ("device", String::new())
        } else {
            let digest = Sha256::digest(fs::read(&path).unwrap());
            ("file", format!("{digest:02x?}"))
        };
        let names = xattr::list(&path).unwrap();
        let attributes = names.map(|name| {
            let value = xattr::get(&path, &name).unwrap().unwrap_or_default();
            (name.to_string_lossy().into_owned(), value)
        });
        let same_as = first_names.entry(is.ino()).or_insert(name.clone());
        let file = File {
            kind,
            mode: is.mode(),
            owner: (is.uid(), is.gid()),
            modified: is.mtime(),
            device: is.rdev(),
            same_as: same_as.clone(),
            content,
            attributes: attributes.collect(),
        };
        files.insert(name, file);
    }
    files
}

/// Fails unless both hold the same, and says what differs.
fn same(what: &str, found: &BTreeMap<PathBuf, File>, expected: &BTreeMap<PathBuf, File>) {
    let names: std::collections::BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    let differ: Vec<_> = names
        .into_iter()
        .filter(|name| found.get(*name) != expected.get(*name))
        .map(|name| (name, found.get(name), expected.get(name)))
        .collect();
    assert!(differ.is_empty(), "{what}: {differ:#?}");
}

#[test]
fn the_files_of_debians_packages_are_those_that_umoci_unpacks() {
    let Some(stage) = stage() else { return };
    let Some(layout) = debian_image::at_full_size() else {
        return;
    };
    let workshop = Workshop {
        directory: tempfile::tempdir().unwrap(),
    };
    let image = format!("{}:{}", layout.display(), debian_image::TAG);
    let reference = workshop.path("reference");
    tool(
        "umoci",
        &["unpack", "--image", &image, reference.to_str().unwrap()],
    );
    let expected = walk(&reference.join("rootfs"));
    println!("{} entries", expected.len());
    let set_user_id = |file: &File| file.kind == "file" && file.mode & 0o4000 != 0;
    assert!(expected.values().any(set_user_id));
    same(
        "Debian",
        &workshop.files(layout.to_str().unwrap()),
        &expected,
    );
    drop(workshop);
    stage.leaves_nothing();
}

#[test]
fn an_images_files_are_those_that_other_tools_unpack_whichever_way_it_is_packed() {
    let Some(stage) = stage() else { return };
    let workshop = Workshop::new();
    let layout = workshop.path("layout");
    let image = format!("{}:it", layout.display());
    let reference = workshop.path("reference");
    tool(
        "umoci",
        &["unpack", "--image", &image, reference.to_str().unwrap()],
    );
    let expected = walk(&reference.join("rootfs"));
    let of_kind = |kind| expected.values().filter(|file| file.kind == kind).count();
    println!("{} entries", expected.len());
    assert!(of_kind("link") > 2 && of_kind("fifo") > 0 && of_kind("device") > 0);
    assert!(expected.values().any(|file| !file.attributes.is_empty()));

    let layout = layout.to_str().unwrap();
    same("the layout", &workshop.files(layout), &expected);
    let archive = workshop.path("layout.tar");
    let archive = archive.to_str().unwrap();
    tool("tar", &["-C", layout, "-cf", archive, "."]);
    same("an archive of it", &workshop.files(archive), &expected);
    let source = format!("oci:{image}");
    for (what, target, flags) in [
        (
            "zstd",
            format!("oci:{}:it", workshop.path("zstd").display()),
            &["--dest-compress-format", "zstd"][..],
        ),
        (
            "docker save",
            format!(
                "docker-archive:{}:it",
                workshop.path("docker.tar").display()
            ),
            &[],
        ),
    ] {
        let mut line = vec!["copy", "--quiet", "--insecure-policy"];
        line.extend(flags);
        line.extend([&*source, &target]);
        tool("skopeo", &line);
        let path = target.split(':').nth(1).unwrap();
        same(what, &workshop.files(path), &expected);
    }
    drop(workshop);
    stage.leaves_nothing();
}
