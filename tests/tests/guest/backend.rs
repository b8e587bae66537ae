//! virtiofsd as a user starts it, for `--fs tag=T,socket=S`.

use std::path::Path;
use std::process::{Child, Command};

use orlop_testbed::cache::Cache;

/// One of them, which is ended with this.
pub struct Backend(pub Child);

impl Backend {
    /// Serves a directory on a socket.
    pub fn start(directory: &Path, socket: &Path) -> Self {
        let mut command = Command::new(Cache::open().unwrap().virtiofsd());
        command.arg("--socket-path").arg(socket);
        command.arg("--shared-dir").arg(directory);
        command.args(["--sandbox", "none", "--log-level", "error"]);
        let backend = Backend(command.spawn().unwrap());
        super::until("virtiofsd listens", || socket.exists());
        backend
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // It ends by itself when its VM does.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
