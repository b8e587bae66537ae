//! The host's syslog, which Kata's shim does not do without.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};

/// Where a program looks for it (syslog(3)).
const SOCKET: &str = "/dev/log";

/// Hears what is said to the syslog until it is dropped, where nobody else does, as in a virtual host. Nothing of it is kept.
#[derive(Debug)]
pub struct Syslog(());

impl Syslog {
    /// None where a syslog is there.
    ///
    /// # Errors
    /// When its socket cannot be made.
    pub fn stand_in() -> Result<Option<Self>> {
        if Path::new(SOCKET).exists() {
            return Ok(None);
        }
        let socket = UnixDatagram::bind(SOCKET).with_context(|| format!("cannot make {SOCKET}"))?;
        thread::spawn(move || while socket.recv(&mut [0]).is_ok() {});
        Ok(Some(Self(())))
    }
}

impl Drop for Syslog {
    fn drop(&mut self) {
        let _ = fs::remove_file(SOCKET);
    }
}
