//! Tells by gRPC whether a service is well, as a kubelet asks it (`grpc.health.v1`).

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use tonic::transport::Server;
use tonic_health::ServingStatus;

/// How often is looked whether it is well.
const LOOK: Duration = Duration::from_millis(200);

/// Serves on `port`, without end: the service is well while there is a `file`.
pub fn serve(port: u16, file: &Path) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (reporter, service) = tonic_health::server::health_reporter();
    let look = async {
        loop {
            let status = if file.exists() {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            // The service without a name is the whole server.
            reporter.set_service_status("", status).await;
            tokio::time::sleep(LOOK).await;
        }
    };
    let address = (Ipv4Addr::UNSPECIFIED, port).into();
    let served = Server::builder().add_service(service).serve(address);
    runtime.block_on(async {
        tokio::select! {
            ended = served => ended.map_err(io::Error::other),
            () = look => Ok(()),
        }
    })
}
