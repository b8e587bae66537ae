//! The QEMU that emulates the virtual host's processors.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The first release whose emulated processors never run code that another one has just replaced. Before it, a processor that
/// translates code while another one patches it keeps the old instruction for good, and a kernel patches itself whenever the first
/// VM starts and the last one ends: now and then it hung in a breakpoint that was long gone.
pub const SOUND: (u32, u32) = (8, 1);

/// A QEMU to run.
#[derive(Debug, Clone)]
pub struct Emulator {
    /// The program.
    pub program: PathBuf,
    /// Where its firmware is, for one that does not look in the right place by itself.
    pub data: Vec<PathBuf>,
}

impl Emulator {
    /// The one that Debian's package installs.
    #[must_use]
    pub fn installed() -> Self {
        Self {
            program: "/usr/bin/qemu-system-x86_64".into(),
            data: Vec::new(),
        }
    }

    /// The one in `root`, a directory in which Debian's packages were unpacked.
    #[must_use]
    pub fn unpacked(root: &Path) -> Option<Self> {
        let program = root.join("usr/bin/qemu-system-x86_64");
        let data = ["usr/share/qemu", "usr/share/seabios"].map(|data| root.join(data));
        let whole = program.is_file() && data.iter().all(|data| data.is_dir());
        whole.then(|| Self {
            program,
            data: data.into(),
        })
    }

    /// Its release: major and minor number. This also tells whether it runs at all.
    ///
    /// # Errors
    /// When it does not run, or says something else.
    pub fn release(&self) -> Result<(u32, u32)> {
        let program = self.program.display();
        let output = Command::new(&self.program)
            .arg("--version")
            .output()
            .with_context(|| format!("cannot run {program}; install Debian's qemu-system-x86"))?;
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
        assert_eq!(release("QEMU emulator version 10.0.2\n"), Some((10, 0)));
        assert!(release("QEMU emulator version 10.0.2\n") > Some(SOUND));
        assert_eq!(release("something else"), None);
    }

    #[test]
    fn half_an_unpacked_package_is_none() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        std::fs::write(root.path().join("usr/bin/qemu-system-x86_64"), "").unwrap();
        assert!(Emulator::unpacked(root.path()).is_none());
    }
}
