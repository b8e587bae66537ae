//! Images of the names that `critest` asks for, made from Debian's busybox: what the tests look at in them, and no more.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::image::{BUSYBOX_PROGRAM, Image, Layer, busybox, busybox_layer, pack};

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
const PAUSE: &str = "registry.k8s.io/pause:3.9";
const NGINX: &str = "registry.k8s.io/e2e-test-images/nginx:1.14-2";
const HTTPD: &str = "registry.k8s.io/e2e-test-images/httpd:2.4.39-4";
/// A web server for a pod in the host's network.
const HOST_WEB: &str = "gcr.io/k8s-staging-cri-tools/hostnet-nginx-amd64:latest";
/// One whose program says as whom it runs, which is root if that is allowed.
const PRIVILEGES: &str = "registry.k8s.io/e2e-test-images/nonewprivs:1.3";
/// One whose user is in a group that only the image knows.
const GROUP: &str = "gcr.io/k8s-staging-cri-tools/test-image-predefined-group:latest";

/// Images that differ.
const DIFFERENT: &[&str] = &[
    "gcr.io/k8s-staging-cri-tools/test-image-latest:latest",
    "gcr.io/k8s-staging-cri-tools/test-image-tag:test",
    "gcr.io/k8s-staging-cri-tools/test-image-tag:all",
    "gcr.io/k8s-staging-cri-tools/test-image-1:latest",
    "gcr.io/k8s-staging-cri-tools/test-image-2:latest",
    "gcr.io/k8s-staging-cri-tools/test-image-3:latest",
];

/// Names of one image.
const SAME: &[&str] = &[
    "gcr.io/k8s-staging-cri-tools/test-image-tags:1",
    "gcr.io/k8s-staging-cri-tools/test-image-tags:2",
    "gcr.io/k8s-staging-cri-tools/test-image-tags:3",
];

/// Images that say whose processes theirs are.
const USERS: &[(&str, &str)] = &[
    (
        "gcr.io/k8s-staging-cri-tools/test-image-user-uid:latest",
        "1002",
    ),
    (
        "gcr.io/k8s-staging-cri-tools/test-image-user-username:latest",
        "www-data",
    ),
    (
        "gcr.io/k8s-staging-cri-tools/test-image-user-uid-group:latest",
        "1003:users",
    ),
    (
        "gcr.io/k8s-staging-cri-tools/test-image-user-username-group:latest",
        "www-data:100",
    ),
];

/// A web server as the tests know nginx: by its name, by the file with its process id, and by what it calls itself. It ends when it is told to.
const SERVER: &str = "#!/bin/sh
echo $$ >/var/run/nginx.pid
echo 'nginx, httpd: what answers here is busybox'
httpd -f -p $2 -h /www &
trap 'kill $!; exit 0' TERM QUIT
wait
";

/// Debian's busybox has no `pgrep`. The tests look for programs by their names.
const PGREP: &str = "#!/bin/sh\nfor id in $(pidof \"$1\"); do echo $id; done\n";

/// A program that says as whom it runs.
const WHO: &str = r#"
#include <stdio.h>
#include <unistd.h>
int main(void) { return printf("Effective uid: %d\n", geteuid()) < 0; }
"#;

/// The names of all of them.
pub(super) fn names() -> Vec<&'static str> {
    let mut names = vec![BUSYBOX, PAUSE, NGINX, HTTPD, HOST_WEB, PRIVILEGES, GROUP];
    names.extend(DIFFERENT);
    names.extend(SAME);
    names.extend(USERS.iter().map(|(name, _)| name));
    names
}

/// An archive of them all for `ctr images import`.
pub(super) fn archive() -> Result<Vec<u8>> {
    let program = busybox()?;
    let applets = applets()?;
    // It names itself as well, which would be a link to itself.
    let is_other = |applet: &&str| *applet != "busybox";
    let applets: Vec<_> = applets.lines().filter(is_other).collect();
    let base = || {
        let mut layer = busybox_layer(&program, &applets)?;
        layer.file("bin/pgrep", PGREP.as_bytes(), 0o755)?;
        anyhow::Ok(layer)
    };
    // What a name needs of its own to be another image.
    let marked = |mark: &str| {
        let mut layer = base()?;
        layer.file("mark", mark.as_bytes(), 0o644)?;
        layer.finish()
    };
    let server = ["/usr/sbin/nginx", "master process", "80"];
    let host_server = ["/usr/sbin/nginx", "master process", "12003"];
    let shell = ["sh"];
    let mut images = vec![
        Image::new(BUSYBOX, base()?.finish()?, &shell),
        Image::new(PAUSE, marked("pause")?, &["sleep", "2147483647"]),
        Image::new(NGINX, server_layer(base()?)?, &server),
        Image::new(HTTPD, server_layer(base()?)?, &server),
        Image::new(HOST_WEB, server_layer(base()?)?, &host_server),
        Image::new(PRIVILEGES, privileges_layer(base()?)?, &["/who"]),
        Image {
            user: "1000",
            ..Image::new(GROUP, group_layer(&program, &applets)?, &shell)
        },
        Image {
            names: SAME.to_vec(),
            ..Image::new("", marked("same")?, &shell)
        },
    ];
    for &name in DIFFERENT {
        images.push(Image::new(name, marked(name)?, &shell));
    }
    for &(name, user) in USERS {
        images.push(Image {
            user,
            ..Image::new(name, marked(name)?, &shell)
        });
    }
    pack(&images)
}

fn applets() -> Result<String> {
    let output = Command::new(BUSYBOX_PROGRAM).arg("--list").output()?;
    Ok(String::from_utf8(output.stdout)?)
}

fn server_layer(mut layer: Layer) -> Result<Vec<u8>> {
    for directory in ["usr", "usr/sbin", "var", "var/run", "www"] {
        layer.directory(directory, 0o755)?;
    }
    layer.file("usr/sbin/nginx", SERVER.as_bytes(), 0o755)?;
    layer.file("www/index.html", b"It works.\n", 0o644)?;
    layer.finish()
}

fn privileges_layer(mut layer: Layer) -> Result<Vec<u8>> {
    let directory = tempfile::tempdir()?;
    let (source, program) = (directory.path().join("who.c"), directory.path().join("who"));
    fs::write(&source, WHO)?;
    let done = Command::new("gcc")
        .args(["-static", "-o"])
        .args([&program, &source])
        .stdin(Stdio::null())
        .output()
        .context("cannot run gcc; install Debian's gcc")?;
    if !done.status.success() {
        bail!("gcc failed: {}", String::from_utf8_lossy(&done.stderr));
    }
    layer.file("who", &fs::read(program)?, 0o4755)?;
    layer.finish()
}

/// Its users and groups are those that its name promises.
fn group_layer(program: &[u8], applets: &[&str]) -> Result<Vec<u8>> {
    let mut layer = busybox_layer(program, applets)?;
    // Of two files of a name in an archive the last one counts.
    let users = "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/root:/bin/sh\n";
    layer.file("etc/passwd", users.as_bytes(), 0o644)?;
    let groups = "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n";
    layer.file("etc/group", groups.as_bytes(), 0o644)?;
    layer.finish()
}
