//! The kubelet's side of the talk is a client of ours: a gRPC server on a unix socket in one of its directories.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::Router;

/// Which file it is, also when another has its name.
pub type Identity = (u64, u64, i64);

/// The file that has this name now.
pub fn identity(path: &Path) -> Option<Identity> {
    let data = std::fs::symlink_metadata(path).ok()?;
    Some((data.dev(), data.ino(), data.ctime_nsec()))
}

/// Services on a socket. Both go with it.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    made: Option<Identity>,
    server: JoinHandle<()>,
}

impl Socket {
    /// Serves at `path`, in place of whatever is there: what is left of a process that was killed.
    ///
    /// # Errors
    /// When no socket can be made there.
    pub fn serve(path: impl Into<PathBuf>, services: Router) -> io::Result<Self> {
        let path = path.into();
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        let server = tokio::spawn(async move {
            let connections = UnixListenerStream::new(listener);
            if let Err(error) = services.serve_with_incoming(connections).await {
                eprintln!("orlop-node: a plugin is no longer served: {error}");
            }
        });
        Ok(Socket {
            made: identity(&path),
            path,
            server,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the kubelet can find it still: it removes what is in its directories when it starts, or somebody else does.
    pub fn is_there(&self) -> bool {
        self.made.is_some() && identity(&self.path) == self.made
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.server.abort();
        // What is there under the same name may be another process's.
        if self.is_there() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
