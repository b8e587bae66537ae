//! The guest's root file system: busybox, the programs that make a load, and their libraries, as an erofs image.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::workplace::run;

/// What makes a load.
const PROGRAMS: [&str; 3] = ["/usr/bin/fio", "/usr/bin/iperf3", "/usr/bin/socat"];

/// Makes the image of a root file system whose `/init` is `script`, with further programs that are linked statically, by their names. `scratch` is a directory
/// that is not there yet.
///
/// # Errors
/// When a program is missing, or the image cannot be made.
pub fn make(script: &str, further: &[(&str, &Path)], scratch: &Path, image: &Path) -> Result<()> {
    for directory in ["bin", "dev", "proc", "sys", "tmp", "shared"] {
        fs::create_dir_all(scratch.join(directory))?;
    }
    let init = scratch.join("init");
    fs::write(&init, script)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    fs::copy("/bin/busybox", scratch.join("bin/busybox"))?;
    for (name, program) in further {
        fs::copy(program, scratch.join("bin").join(name))
            .with_context(|| format!("cannot copy {}", program.display()))?;
    }
    for applet in [
        "sh", "mount", "ip", "echo", "cat", "grep", "sleep", "tail", "poweroff", "reboot",
    ] {
        std::os::unix::fs::symlink("busybox", scratch.join("bin").join(applet))?;
    }
    let mut files: Vec<String> = PROGRAMS.map(str::to_owned).into();
    for program in PROGRAMS {
        files.extend(libraries(program)?);
    }
    // Where the dynamic loader looks for them.
    run(Command::new("cp")
        .args(["--parents", "--dereference"])
        .args(&files)
        .arg(scratch))?;
    run(Command::new("mkfs.erofs").arg(image).arg(scratch))
}

/// The dynamic loader and the libraries of a program, by absolute paths: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`.
fn libraries(program: &str) -> Result<Vec<String>> {
    let listed = Command::new("ldd")
        .arg(program)
        .output()
        .context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&listed.stdout);
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(str::to_owned).collect())
}
