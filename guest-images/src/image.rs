//! Puts a guest's image together: a read-only file system with the agent as `/init`, which a guest finds in persistent memory.
//!
//! It is for a kernel that has everything built in. Where an initramfs is unpacked into each guest's memory, the pages of an image are the host's, once for all
//! guests, and the agent runs from where they lie (DAX). For that a file's content must begin at a page and not be compressed, which is how
//! `mkfs.erofs` is asked to do it. The same agent makes the same image.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::initramfs::{self, NoAgent};

/// The directories that the agent mounts on before it has a root of its own.
const DIRECTORIES: [&str; 4] = ["dev", "proc", "root", "sys"];

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent would not start.
    #[error(transparent)]
    Agent(#[from] NoAgent),
    /// What the image is made of cannot be put together.
    #[error("cannot put the image's files together: {0}")]
    Stage(#[from] io::Error),
    /// The program that writes the file system is not there.
    #[error("cannot run mkfs.erofs: {0}; install it: apt install erofs-utils")]
    Tool(#[source] io::Error),
    /// It failed.
    #[error("mkfs.erofs failed: {0}")]
    Failed(String),
}

/// Writes an image with the agent's binary `agent` to the file `output`.
///
/// # Errors
/// When the agent is no static executable, or `mkfs.erofs` is not there or fails.
pub fn build(agent: &Path, output: &Path) -> Result<(), Error> {
    let binary = initramfs::read_agent(agent)?;
    let stage = tempfile::tempdir()?;
    fs::set_permissions(stage.path(), fs::Permissions::from_mode(0o755))?;
    for directory in DIRECTORIES {
        fs::create_dir(stage.path().join(directory))?;
    }
    let init = stage.path().join("init");
    fs::write(&init, binary)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let done = Command::new("mkfs.erofs")
        // Nothing of when and where it was made.
        .args(["-T0", "--all-root", "-x-1"])
        .args(["-U", "00000000-0000-0000-0000-000000000000"])
        .args(["-E", "noinline_data"])
        .arg(output)
        .arg(stage.path())
        .output()
        .map_err(Error::Tool)?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    Err(Error::Failed(said.replace('\n', " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_agent_makes_the_same_image_and_its_content_begins_at_a_page() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let mut agent = initramfs::executable();
        agent.resize(9000, 0xa5);
        fs::write(at("agent"), &agent).unwrap();
        build(&at("agent"), &at("first")).unwrap();
        build(&at("agent"), &at("second")).unwrap();
        let image = fs::read(at("first")).unwrap();
        assert!(image == fs::read(at("second")).unwrap());
        let is_there = |page: &[u8]| page == &agent[..4096];
        assert!(image.chunks(4096).any(is_there));
    }

    #[test]
    fn what_is_no_agent_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let agent = directory.path().join("agent");
        fs::write(&agent, "#!/bin/sh").unwrap();
        let output = directory.path().join("image");
        let error = build(&agent, &output).unwrap_err().to_string();
        assert!(error.contains("not an x86-64 executable"), "{error}");
        assert!(!output.exists());
    }
}
