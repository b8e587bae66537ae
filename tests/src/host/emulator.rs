//! The QEMU that emulates the virtual host's processors.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The first release whose emulated processors are sound enough. Before 8.1 a processor that translates code while another one patches it
/// keeps the old instruction for good, and a kernel patches itself whenever the first VM starts and the last one ends: now and then it hung
/// in a breakpoint that was long gone. Before 10.2 the flags of pending interrupts are changed by two threads without a lock, and one
/// of them is lost now and then: a guest's timer that never fires again.
pub const SOUND: (u32, u32) = (10, 2);

/// A QEMU to run.
#[derive(Debug, Clone)]
pub struct Emulator {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Emulator {
    /// The one that Debian's package installs.
    #[must_use]
    pub fn installed() -> Self {
        Self {
            program: "/usr/bin/qemu-system-x86_64".into(),
            arguments: Vec::new(),
        }
    }

    /// The one in `root`, a directory in which Debian's packages were unpacked: QEMU and everything that it depends on, the C library and
    /// its loader included.
    #[must_use]
    pub fn unpacked(root: &Path) -> Option<Self> {
        let loader = root.join("usr/lib64/ld-linux-x86-64.so.2");
        let libraries = root.join("usr/lib/x86_64-linux-gnu");
        let qemu = root.join("usr/bin/qemu-system-x86_64");
        let data = ["usr/share/qemu", "usr/share/seabios"].map(|data| root.join(data));
        let whole = [&loader, &qemu].iter().all(|file| file.is_file())
            && data.iter().chain([&libraries]).all(|part| part.is_dir());
        if !whole {
            return None;
        }
        let mut arguments = vec!["--library-path".into(), libraries.into(), qemu.into()];
        for data in data {
            arguments.extend([OsString::from("-L"), data.into()]);
        }
        Some(Self {
            program: loader,
            arguments,
        })
    }

    /// A command that runs it.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        command
    }

    /// Its release: major and minor number. This also tells whether it runs at all.
    ///
    /// # Errors
    /// When it does not run, or says something else.
    pub fn release(&self) -> Result<(u32, u32)> {
        let program = self.program.display();
        let output =
            self.command().arg("--version").output().with_context(|| {
                format!("cannot run {program}; install Debian's qemu-system-x86")
            })?;
        let said = String::from_utf8_lossy(&output.stdout);
        release(&said).with_context(|| {
            let error = String::from_utf8_lossy(&output.stderr);
            format!("{program} --version says: {said}{error}")
        })
    }
}

/// The release in `QEMU emulator version 7.2.22 (Debian …)`.
fn release(said: &str) -> Option<(u32, u32)> {
    let version = said.split_once(" version ")?.1;
    let mut numbers = version.split(['.', ' ', '\n']);
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_from_what_qemu_says() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c) 2003";
        assert_eq!(release(debian), Some((7, 2)));
        assert_eq!(release("QEMU emulator version 11.1.3\n"), Some((11, 1)));
        assert!(release("QEMU emulator version 11.1.3\n") > Some(SOUND));
        assert_eq!(release("something else"), None);
    }

    #[test]
    fn half_an_unpacked_package_is_none() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        let qemu = root.path().join("usr/bin/qemu-system-x86_64");
        std::fs::write(qemu, "").unwrap();
        assert!(Emulator::unpacked(root.path()).is_none());
    }
}
