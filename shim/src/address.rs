//! Where a pod's shim listens.
//!
//! containerd expects `unix://<its state directory>/s/<sha256 of "its socket/namespace/id">`; the digest keeps the path
//! short enough for a socket whatever the names are.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The directory of the shims' sockets.
const SOCKETS: &str = "/run/containerd/s";

/// A shim's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShimSocket(PathBuf);

impl ShimSocket {
    /// The socket of the shim that serves `sandbox` in `namespace` for the containerd at `grpc_address`.
    pub fn of(grpc_address: &str, namespace: &str, sandbox: &str) -> Self {
        // containerd joins these as a path, which drops doubled and trailing slashes.
        let joined: PathBuf = Path::new(grpc_address)
            .join(namespace)
            .join(sandbox)
            .components()
            .collect();
        let digest = Sha256::digest(joined.to_string_lossy().as_bytes());
        let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(Path::new(SOCKETS).join(name))
    }

    /// The path in the file system.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// As containerd is told it.
    pub fn url(&self) -> String {
        format!("unix://{}", self.0.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_joined_path() {
        // printf '/run/containerd/containerd.sock/default/demo' | sha256sum
        let socket = ShimSocket::of("/run/containerd/containerd.sock", "default", "demo");
        let expected = "12117510a54ae87cb9f59e68c4b6897783ff70cec968b5b5967a0a0cd503057e";
        assert_eq!(socket.url(), format!("unix:///run/containerd/s/{expected}"));
        assert_eq!(
            ShimSocket::of("/run//containerd/containerd.sock/", "default", "demo"),
            socket
        );
        assert_ne!(
            ShimSocket::of("/run/containerd/containerd.sock", "k8s.io", "demo"),
            socket
        );
    }
}
