//! The pod's network and its VM: joined before the VM boots, parted when it has ended.

use std::path::Path;

use crate::network::{Card, Joined, Namespace, NetworkError, join, listen, look, part};
use crate::spec::Network;

use super::boot::BootError;
use super::forward::Forwarding;
use super::{Pod, lock};

impl Pod {
    /// Joins the pod's network to cards for its VM of `vcpus`, none where it has loopback only.
    ///
    /// # Errors
    /// When that is not possible; then nothing of it is left.
    pub(super) async fn join_network(&self, vcpus: u32) -> Result<Vec<Card>, BootError> {
        let Network::Namespace(path) = lock(&self.network).clone() else {
            return Ok(Vec::new());
        };
        let place = path.clone();
        let looking = blocking(move || look(&Namespace::open(&place)?));
        let found = looking.await?;
        let joined = Joined {
            namespace: path.clone(),
            interfaces: found
                .iter()
                .map(|found| found.interface.name.clone())
                .collect(),
        };
        // Whoever cleans up must know before there is something to clean up.
        *lock(&self.joined) = Some(joined);
        self.directory
            .save(&self.state(None, None))
            .map_err(|source| BootError::File {
                path: self.directory.file("state.json"),
                source,
            })?;
        let joining = blocking(move || join(&Namespace::open(&path)?, found, vcpus));
        let cards = joining.await;
        if cards.is_err() {
            // What had been made is gone; what is there is not ours.
            *lock(&self.joined) = None;
        }
        cards.map_err(BootError::from)
    }

    /// Passes connections to the loopback of the pod's namespace on to that of the guest behind `vsock`. Where that is not possible the
    /// log says so: a pod is of use without.
    pub(super) async fn forward_ports(&self, vsock: &Path) {
        let Network::Namespace(path) = lock(&self.network).clone() else {
            return;
        };
        let listening = blocking(move || listen(&Namespace::open(&path)?)).await;
        match listening {
            Ok(Some(localhost)) => match Forwarding::begin(localhost, vsock) {
                Ok(forwarding) => *lock(&self.forwarding) = Some(forwarding),
                Err(error) => log::warn!("ports of the pod cannot be forwarded: {error}"),
            },
            Ok(None) => {}
            Err(error) => log::warn!("ports of the pod cannot be forwarded: {error}"),
        }
    }

    /// Takes away what was made in the pod's network namespace. May be called again.
    pub(super) async fn leave_network(&self) {
        *lock(&self.forwarding) = None;
        let Some(joined) = lock(&self.joined).take() else {
            return;
        };
        if let Err(error) = tokio::task::spawn_blocking(move || part(&joined)).await {
            log::error!("the pod's network was not left: {error}");
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(NetworkError::Interrupted))
}
