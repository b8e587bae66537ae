//! The way to the VMM: its control socket.

use std::time::Duration;

use orlop_proto::connect;
use orlop_proto::files::Files;
use orlop_proto::vmm::v1::vmm_client::VmmClient;
use tonic::transport::Channel;

use super::state::sockets;
use crate::codes::{Failure, Outcome};

/// How long the VMM may take to answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A client of the VMM, and the way to hand it files.
pub async fn connect() -> Outcome<(VmmClient<Channel>, Files)> {
    let connected = connect::unix_with_files(sockets::VMM).await;
    let (channel, files) = connected.map_err(|error| Failure::unavailable(error.to_string()))?;
    Ok((VmmClient::new(channel), files))
}
