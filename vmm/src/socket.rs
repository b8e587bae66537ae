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

/// A socket that listens, and its only client, connected already. For a moment it has a name in `directory`, which must be this user's
/// alone; nobody can connect to it any more when this returns.
///
/// # Errors
/// What the system says.
pub fn with_client(directory: &Path) -> io::Result<(UnixListener, UnixStream)> {
    // All who do this, one at a time; so what is there was left by one who was killed.
    let _lock = lock(directory)?;
    let path = directory.join("handover");
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = listen(&path)?;
    let unlink = Unlink::later(&path);
    let client = UnixStream::connect(&path)?;
    drop(unlink);
    listener.set_nonblocking(false)?;
    Ok((listener, client))
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
    use std::io::{Read, Write};

    use std::time::{Duration, Instant};

    use super::*;

    /// Waits until nobody listens any more. A process that another test is just making has a copy of the listener until it runs its program.
    fn until_dead(path: &Path) {
        let end = Instant::now() + Duration::from_secs(10);
        while UnixStream::connect(path).is_ok() {
            assert!(Instant::now() < end, "somebody still listens");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

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
        until_dead(&path);
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
            until_dead(path);
            let listeners: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| listen_anew(path))).collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            let listening = listeners.iter().filter(|listener| listener.is_ok());
            assert_eq!(listening.count(), 1, "{listeners:?}");
            assert!(UnixStream::connect(path).is_ok());
            drop(listeners);
            until_dead(path);
        }
    }

    #[test]
    fn a_socket_with_a_client_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        drop(listen(&dir.path().join("handover")).unwrap());
        for _ in 0..2 {
            let (listener, client) = with_client(dir.path()).unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
            let (server, _) = listener.accept().unwrap();
            (&client).write_all(b"x").unwrap();
            let mut byte = [0];
            (&server).read_exact(&mut byte).unwrap();
            assert_eq!(byte, *b"x");
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
