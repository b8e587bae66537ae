//! Container images made here, from Debian's static busybox, so that no registry is needed.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// The image that stories run: a shell and the usual commands.
pub const BUSYBOX: &str = "localhost/orlop-busybox:1";
/// The image of a pod's sandbox container.
pub const PAUSE: &str = "localhost/orlop-pause:1";
/// An image with a root file system that holds nothing.
pub const EMPTY: &str = "localhost/orlop-empty:1";

/// Where Debian's busybox-static installs it.
pub(crate) const BUSYBOX_PROGRAM: &str = "/bin/busybox";

/// The commands of the busybox image. Not all that busybox has: each link costs a virtual host time when it is unpacked.
const COMMANDS: &[&str] = &[
    "cat",
    "chmod",
    "chown",
    "cmp",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "free",
    "grep",
    "head",
    "hostname",
    "id",
    "kill",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mknod",
    "mount",
    "mv",
    "nc",
    "nproc",
    "od",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "stty",
    "sync",
    "tail",
    "tar",
    "test",
    "timeout",
    "top",
    "touch",
    "tr",
    "true",
    "tty",
    "umount",
    "uname",
    "uniq",
    "vi",
    "wc",
    "wget",
    "which",
    "whoami",
    "xargs",
    "yes",
];

/// Makes an archive of all images, in the form that `docker save` writes: one import costs a third of three.
///
/// # Errors
/// When busybox is missing.
pub fn archive() -> Result<Vec<u8>> {
    let busybox = busybox()?;
    let pause = ["/bin/busybox", "sleep", "2147483647"];
    pack(&[
        Image::new(
            BUSYBOX,
            busybox_layer(&busybox, COMMANDS)?.finish()?,
            &["sh"],
        ),
        Image::new(PAUSE, pause_layer(&busybox)?, &pause),
        Image::new(EMPTY, Layer::default().finish()?, &["sh"]),
    ])
}

/// Debian's busybox, a program that needs no libraries.
///
/// # Errors
/// When it is not installed.
pub fn busybox() -> Result<Vec<u8>> {
    fs::read(BUSYBOX_PROGRAM)
        .with_context(|| format!("no {BUSYBOX_PROGRAM}; install Debian's busybox-static"))
}

/// Makes the directory `root`, and in it the files of the image [`BUSYBOX`].
///
/// # Errors
/// When busybox is missing, or the directory cannot be written to.
pub fn unpack_busybox(root: &Path) -> Result<()> {
    let layer = busybox_layer(&busybox()?, COMMANDS)?.finish()?;
    let unpacked = tar::Archive::new(layer.as_slice()).unpack(root);
    unpacked.with_context(|| format!("cannot write to {}", root.display()))
}

/// Debian's busybox with links for `commands`, and the files that say who there is.
pub(crate) fn busybox_layer(busybox: &[u8], commands: &[&str]) -> Result<Layer> {
    let mut layer = Layer::default();
    for directory in ["bin", "dev", "etc", "proc", "root", "sys"] {
        layer.directory(directory, 0o755)?;
    }
    layer.directory("tmp", 0o1777)?;
    layer.file("bin/busybox", busybox, 0o755)?;
    for applet in commands {
        layer.link(&format!("bin/{applet}"), "busybox")?;
    }
    let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    layer.file("etc/passwd", users.as_bytes(), 0o644)?;
    layer.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644)?;
    Ok(layer)
}

fn pause_layer(busybox: &[u8]) -> Result<Vec<u8>> {
    let mut layer = Layer::default();
    layer.directory("bin", 0o755)?;
    layer.file("bin/busybox", busybox, 0o755)?;
    layer.finish()
}

/// An image of one layer.
pub(crate) struct Image<'i> {
    /// What it is called; several names for the same.
    pub(crate) names: Vec<&'i str>,
    pub(crate) layer: Vec<u8>,
    pub(crate) command: &'i [&'i str],
    /// Whose process its command is: nothing for root.
    pub(crate) user: &'i str,
}

impl<'i> Image<'i> {
    /// One whose command is root's.
    pub(crate) fn new(name: &'i str, layer: Vec<u8>, command: &'i [&'i str]) -> Self {
        Self {
            names: vec![name],
            layer,
            command,
            user: "",
        }
    }
}

/// One layer of an image: a tar archive.
pub(crate) struct Layer(Builder<Vec<u8>>);

impl Default for Layer {
    fn default() -> Self {
        Self(Builder::new(Vec::new()))
    }
}

impl Layer {
    pub(crate) fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        let mut header = header(EntryType::Directory, 0, mode);
        self.0.append_data(&mut header, path, io::empty())
    }

    pub(crate) fn file(&mut self, path: &str, content: &[u8], mode: u32) -> io::Result<()> {
        let mut header = header(EntryType::Regular, content.len(), mode);
        self.0.append_data(&mut header, path, content)
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        let mut header = header(EntryType::Symlink, 0, 0o777);
        self.0.append_link(&mut header, path, target)
    }

    pub(crate) fn finish(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

fn header(kind: EntryType, size: usize, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(mode);
    header
}

/// Packs images as an archive that `ctr images import` understands.
pub(crate) fn pack(images: &[Image]) -> Result<Vec<u8>> {
    let mut archive = Layer::default();
    let mut manifest = Vec::new();
    for image in images {
        let layer_digest = digest(&image.layer);
        let configuration = json!({
            "architecture": "amd64",
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Cmd": image.command,
                "User": image.user,
                "WorkingDir": "/",
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
            "history": [{ "created": "1970-01-01T00:00:00Z" }],
        })
        .to_string();
        let configuration_name = format!("{}.json", digest(configuration.as_bytes()));
        let layer_name = format!("{layer_digest}/layer.tar");
        archive.file(&configuration_name, configuration.as_bytes(), 0o644)?;
        archive.file(&layer_name, &image.layer, 0o644)?;
        manifest.push(json!({
            "Config": configuration_name,
            "RepoTags": image.names,
            "Layers": [layer_name],
        }));
    }
    let manifest = serde_json::to_vec(&manifest)?;
    archive.file("manifest.json", &manifest, 0o644)?;
    archive.finish()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_names_its_layer_by_what_is_in_it() {
        let bytes = pack(&[Image::new("localhost/x:1", b"layer".to_vec(), &["sh"])]).unwrap();
        let mut names: Vec<_> = tar::Archive::new(bytes.as_slice())
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        names.sort();
        let layer = format!("{}/layer.tar", digest(b"layer"));
        assert!(names.contains(&layer));
        assert!(names.contains(&"manifest.json".to_owned()));
        assert_eq!(names.len(), 3);
    }
}
