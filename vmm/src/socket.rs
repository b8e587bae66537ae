//! Unix sockets that the VMM listens on: for its own user only, and gone when it ends.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Listens at a path that only this user can connect to, from its first moment: what is made there gets its mode from the socket.
///
/// # Errors
/// `AddrInUse` when something is at the path already; otherwise what the system says.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = File::from(OwnedFd::from(Socket::new(
        Domain::UNIX,
        Type::STREAM,
        None,
    )?));
    socket.set_permissions(Permissions::from_mode(0o600))?;
    let socket = Socket::from(OwnedFd::from(socket));
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(UnixListener::from(OwnedFd::from(socket)))
}

/// As [`listen`], but takes the place of a socket that nobody listens on any more, such as a killed VMM leaves behind.
///
/// All who do so, one at a time: for a moment a new socket is there and nobody listens, and would be taken for a dead one.
///
/// # Errors
/// `AddrInUse` when somebody does listen there, or it is no socket.
pub fn listen_anew(path: &Path) -> io::Result<UnixListener> {
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let _lock = lock(parent.unwrap_or(Path::new(".")))?;
    match listen(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // A regular file refuses connections just as a dead socket does.
            if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
                return Err(error);
            }
            match UnixStream::connect(path) {
                Err(dead) if dead.kind() == io::ErrorKind::ConnectionRefused => {}
                _ => return Err(error),
            }
            std::fs::remove_file(path)?;
            listen(path)
        }
        result => result,
    }
}

/// Waits to be the only one who makes or removes sockets in a directory, for as long as the file is open.
///
/// # Errors
/// When the directory cannot be opened.
pub fn lock(directory: &Path) -> io::Result<File> {
    let directory = File::open(directory)?;
    directory.lock()?;
    Ok(directory)
}

/// A path that is removed when this is dropped.
#[derive(Debug)]
pub struct Unlink(PathBuf);

impl Unlink {
    /// Removes `path` later.
    pub fn later(path: impl Into<PathBuf>) -> Self {
        Unlink(path.into())
    }
}

impl Drop for Unlink {
    fn drop(&mut self) {
        // Somebody else may have removed it, which is just as well.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = listen_anew(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            listen_anew(&path).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(first);
        let second = listen_anew(&path).unwrap();
        drop(Unlink::later(&path));
        assert!(!path.exists());
        drop(second);
    }

    #[test]
    fn of_many_that_find_a_dead_socket_one_takes_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = &dir.path().join("s");
        for _ in 0..20 {
            drop(listen_anew(path).unwrap());
            let listeners: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| listen_anew(path))).collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            let listening = listeners.iter().filter(|listener| listener.is_ok());
            assert_eq!(listening.count(), 1, "{listeners:?}");
            assert!(UnixStream::connect(path).is_ok());
        }
    }

    #[test]
    fn a_file_in_the_way_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "precious").unwrap();
        assert!(listen_anew(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
