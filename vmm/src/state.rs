//! Where a user's VMs are found: a directory with the control socket of each, `NAME.sock`.
//!
//! A VMM that is killed leaves its socket behind. It goes when another VM gets its name, or when the VMs are listed.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::config::VmName;
use crate::socket;

/// What follows a VM's name in the name of its socket.
const SUFFIX: &str = "sock";

/// The directory. It is made when the first VM needs it.
#[derive(Debug)]
pub struct StateDirectory(PathBuf);

impl StateDirectory {
    /// That of this user: `$XDG_RUNTIME_DIR/orlop/vm`, or below `/run` without that variable.
    #[must_use]
    pub fn of_user() -> Self {
        let base = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(|| "/run".into(), PathBuf::from);
        StateDirectory(base.join("orlop/vm"))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes it, if it is not there.
    ///
    /// # Errors
    /// What the system says.
    pub fn make(&self) -> io::Result<()> {
        fs::create_dir_all(&self.0)
    }

    /// The place of a VM's control socket.
    #[must_use]
    pub fn socket(&self, name: &VmName) -> PathBuf {
        self.0.join(format!("{}.{SUFFIX}", name.as_str()))
    }

    /// The place of what a VM in the background has to say.
    #[must_use]
    pub fn log(&self, name: &VmName) -> PathBuf {
        self.0.join(format!("{}.log", name.as_str()))
    }

    /// Makes that file anew, for this user alone.
    ///
    /// # Errors
    /// What the system says.
    pub fn create_log(&self, name: &VmName) -> io::Result<File> {
        fs::create_dir_all(&self.0)?;
        let path = self.log(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(path)
    }

    /// Listens on the control socket of a VM, in place of one that was killed.
    ///
    /// # Errors
    /// `AddrInUse` when a VM of this name runs; otherwise what the system says.
    pub fn listen(&self, name: &VmName) -> io::Result<UnixListener> {
        fs::create_dir_all(&self.0)?;
        socket::listen_anew(&self.socket(name))
    }

    /// The sockets of the VMs that run, in the order of their names. Those of killed ones are removed.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn alive(&self) -> io::Result<Vec<PathBuf>> {
        let _lock = match socket::lock(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            lock => lock?,
        };
        let mut alive = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let path = entry.path();
            if !entry.file_type()?.is_socket() || path.extension() != Some(OsStr::new(SUFFIX)) {
                continue;
            }
            match UnixStream::connect(&path) {
                Err(dead) if dead.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(&path)?;
                }
                // One that ended just now has removed it.
                Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
                _ => alive.push(path),
            }
        }
        alive.sort();
        Ok(alive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> VmName {
        name.parse().unwrap()
    }

    #[test]
    fn those_that_run_are_found_and_the_sockets_of_killed_ones_go() {
        let base = tempfile::tempdir().unwrap();
        let state = StateDirectory(base.path().join("orlop/vm"));
        assert!(state.alive().unwrap().is_empty(), "there is no directory");
        let web = state.listen(&name("web")).unwrap();
        let db = state.listen(&name("db")).unwrap();
        drop(state.listen(&name("killed")).unwrap());
        fs::write(state.path().join("notes.sock"), "precious").unwrap();
        let sockets = ["db", "web"].map(|vm| state.socket(&name(vm)));
        assert_eq!(state.alive().unwrap(), sockets);
        assert!(!state.socket(&name("killed")).exists());
        assert!(state.path().join("notes.sock").exists());
        drop((web, db));
    }

    #[test]
    fn a_name_is_free_again_when_its_vm_was_killed() {
        let base = tempfile::tempdir().unwrap();
        let state = StateDirectory(base.path().join("vm"));
        let first = state.listen(&name("web")).unwrap();
        let taken = state.listen(&name("web")).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        state.listen(&name("web")).unwrap();
    }
}
