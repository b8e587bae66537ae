//! A control group of its own for a VMM, by which the host's kernel says what it holds, the kernel's own memory for it included.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// Where control groups of version 2 are.
const ROOT: &str = "/sys/fs/cgroup";
/// How often, and how long apart, it is tried to remove a group whose last process was just killed.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// A group that goes when this is dropped, which is when nothing runs in it any more.
pub struct Group(PathBuf);

/// What a group is charged with, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charged {
    /// Anonymous memory of its processes.
    pub anonymous: u64,
    /// The kernel's own memory.
    pub kernel: u64,
}

impl Group {
    /// Makes one with an account of its memory.
    ///
    /// # Errors
    /// When the host's control groups are not of version 2, or this is not root.
    pub fn make(name: &str) -> Result<Self> {
        let root = Path::new(ROOT);
        fs::write(root.join("cgroup.subtree_control"), "+memory")
            .with_context(|| format!("no control groups of version 2 in {ROOT}"))?;
        let path = root.join(name);
        match fs::create_dir(&path) {
            // One that a run has left that was killed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.with_context(|| format!("cannot make {}", path.display()))?,
        }
        Ok(Self(path))
    }

    /// `command` in it from its first instruction on.
    #[must_use]
    pub fn enter(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]);
        inside.arg(self.0.join("cgroup.procs"));
        inside.arg(command.get_program()).args(command.get_args());
        inside
    }

    /// What it is charged with now.
    ///
    /// # Errors
    /// When its `memory.stat` reads otherwise than Documentation/admin-guide/cgroup-v2.rst says, as before Linux 5.18.
    pub fn charged(&self) -> Result<Charged> {
        let path = self.0.join("memory.stat");
        let stat = fs::read_to_string(&path);
        let stat = stat.with_context(|| format!("cannot read {}", path.display()))?;
        charged(&stat).with_context(|| format!("{} does not say all", path.display()))
    }
}

fn charged(stat: &str) -> Option<Charged> {
    let field = |name| {
        let mut fields = stat.lines().filter_map(|line| line.split_once(' '));
        let (_, bytes) = fields.find(|(field, _)| *field == name)?;
        bytes.parse().ok()
    };
    Some(Charged {
        anonymous: field("anon")?,
        kernel: field("kernel")?,
    })
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..ATTEMPTS {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_charged_with_what_its_account_says() {
        let stat = "anon 4096\nfile 8192\nkernel 12288\nkernel_stack 16384\n";
        let (anonymous, kernel) = (4096, 12288);
        assert_eq!(charged(stat), Some(Charged { anonymous, kernel }));
        assert_eq!(charged("anon 4096\nkernel_stack 16384\n"), None);
    }

    #[test]
    fn a_command_is_run_with_its_arguments() {
        let directory = tempfile::tempdir().unwrap();
        let group = Group(directory.path().to_owned());
        let mut inside = group.enter(Command::new("printf").args(["%s|", "a b", "$c"]));
        assert_eq!(inside.output().unwrap().stdout, b"a b|$c|");
        let entered = fs::read_to_string(directory.path().join("cgroup.procs")).unwrap();
        assert!(entered.trim().parse::<u32>().is_ok(), "{entered}");
        fs::remove_file(directory.path().join("cgroup.procs")).unwrap();
    }
}
