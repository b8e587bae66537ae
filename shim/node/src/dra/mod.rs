//! The claims by dynamic resource allocation (`resource.k8s.io/v1`) rather than as a device plugin's resources: pods select devices by what
//! they are, and the scheduler knows each.
//!
//! What a node has goes one way: [`slices`] tell the scheduler, which chooses. What a pod gets comes the other way: the kubelet, which knows
//! the driver by its [`registration`], has the [`plugin`] prepare the pod's claim; the plugin asks the [`cluster`] what was chosen and leaves
//! [`cdi`] files for containerd. The [`objects`] are what is said on the way.
//!
//! A device is offered in one of the two ways, never both: neither would know what the other has given away.

pub mod cdi;
pub mod cluster;
pub mod objects;
pub mod plugin;
pub mod registration;
pub mod slices;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use orlop_vmm::host_pci::System;
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::Router;

use self::cluster::Cluster;
use self::objects::Device;
use self::plugin::Plugin;
use self::registration::{Registration, State};
use crate::api::dra::dra_plugin_server::DraPluginServer;
use crate::api::registration::registration_server::RegistrationServer;
use crate::socket::Socket;

/// What the driver is called: in slices, in claims' selectors, and in names of files.
pub const DRIVER: &str = "pci.orlop.dev";

/// How soon it is looked whether slices are as they were left. A kubelet that starts removes them, some time before or after it registers the
/// driver; so soon after something has happened, and seldom when nothing has.
const SOON: Duration = Duration::from_secs(2);
const SELDOM: Duration = Duration::from_secs(60);

/// The driver.
#[derive(Debug)]
pub struct Driver {
    plugin: Plugin,
    kubelet: PathBuf,
    state: watch::Sender<State>,
    sockets: Option<[Socket; 2]>,
    told: Told,
}

/// What the API server was told last.
#[derive(Debug)]
struct Told {
    devices: Vec<Device>,
    /// Newer than any that was told before: the time at which the devices became these.
    generation: u64,
    /// How many slices; unknown at first, for an earlier process may have left some.
    slices: Option<usize>,
    /// How often the kubelet had registered the driver.
    times: u64,
    next: Instant,
    interval: Duration,
}

/// Why the claims are not offered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the kubelet's directory.
    #[error("{} is not there: is the kubelet's directory another (--kubelet)?", .0.display())]
    NoKubelet(PathBuf),
    /// No socket.
    #[error("cannot listen on {}: {error}", .path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// It does not take the driver.
    #[error("the kubelet refuses the driver: {0}")]
    Refused(String),
    /// The claims of the node.
    #[error(transparent)]
    Claims(#[from] orlop_vmm::host_pci::Error),
    /// The API server.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
}

impl Driver {
    /// That of a node, to the kubelet whose directory this is.
    pub fn new(
        system: System,
        cluster: Cluster,
        node: &str,
        kubelet: impl Into<PathBuf>,
        files: cdi::Directory,
    ) -> Self {
        Driver {
            plugin: Plugin {
                system,
                cluster,
                node: node.into(),
                files,
            },
            kubelet: kubelet.into(),
            state: watch::Sender::default(),
            sockets: None,
            told: Told {
                devices: Vec::new(),
                generation: 0,
                slices: None,
                times: 0,
                next: Instant::now(),
                interval: SOON,
            },
        }
    }

    /// Looks at everything once: the kubelet's directories, the claims and their devices, and what the API server was told of them.
    ///
    /// # Errors
    /// What keeps the claims from being offered; the next look tries again.
    pub async fn look(&mut self) -> Result<(), Error> {
        self.listen()?;
        let state = self.state.borrow().clone();
        if let Some(refusal) = state.refusal {
            return Err(Error::Refused(refusal));
        }
        if state.times == 0 {
            return Ok(());
        }
        let claims = self.plugin.system.claims()?;
        let devices = slices::devices(&self.plugin.system, &claims);
        let told = &mut self.told;
        let is_new = told.generation == 0 || devices != told.devices;
        if is_new {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let now = now.map_or(0, |now| now.as_secs());
            // Twice in a second, or the clock was set back.
            told.generation = now.max(told.generation.saturating_add(1));
            told.devices = devices;
        }
        if is_new || state.times != told.times {
            told.times = state.times;
            (told.next, told.interval) = (Instant::now(), SOON);
        }
        if Instant::now() < told.next {
            return Ok(());
        }
        self.tell().await
    }

    async fn tell(&mut self) -> Result<(), Error> {
        let (told, cluster) = (&mut self.told, &self.plugin.cluster);
        told.next = Instant::now() + told.interval;
        told.interval = (told.interval * 2).min(SELDOM);
        // Asked for each time: a node that was removed and has joined again is another object.
        let node = cluster.node(&self.plugin.node).await?;
        let slices = slices::slices(&node, &told.devices, told.generation);
        for slice in &slices {
            cluster.apply(slice).await?;
        }
        if told.slices != Some(slices.len()) {
            cluster.remove_others(&self.plugin.node, &slices).await?;
            told.slices = Some(slices.len());
        }
        Ok(())
    }

    /// Is where the kubelet looks for plugins, and stays there.
    fn listen(&mut self) -> Result<(), Error> {
        let sockets = self.sockets.as_ref();
        if sockets.is_some_and(|sockets| sockets.iter().all(Socket::is_there)) {
            return Ok(());
        }
        let registry = self.kubelet.join("plugins_registry");
        if !registry.is_dir() {
            return Err(Error::NoKubelet(registry));
        }
        self.sockets = None;
        let own = self.kubelet.join("plugins").join(DRIVER);
        let endpoint = own.join("dra.sock");
        std::fs::create_dir_all(&own).map_err(|error| Error::Listen {
            path: endpoint.clone(),
            error,
        })?;
        let plugin = DraPluginServer::new(self.plugin.clone());
        let plugin = serve(&endpoint, Server::builder().add_service(plugin))?;
        let registration = Registration {
            endpoint: endpoint.display().to_string(),
            state: self.state.clone(),
        };
        // The last, for the kubelet asks as soon as it is there.
        let registration = serve(
            &registration_socket(&registry),
            Server::builder().add_service(RegistrationServer::new(registration)),
        )?;
        self.sockets = Some([registration, plugin]);
        Ok(())
    }
}

/// Where the kubelet finds the driver. Its client names the server by this path, with `%2F` for each slash; that is no host of a URI (RFC 3986, 3.2.2), and
/// a server of HTTP/2 that checks it hangs up. What is before an `@` may have it.
fn registration_socket(registry: &Path) -> PathBuf {
    registry.join(format!("orlop@{DRIVER}-reg.sock"))
}

fn serve(path: &Path, services: Router) -> Result<Socket, Error> {
    Socket::serve(path, services).map_err(|error| Error::Listen {
        path: path.into(),
        error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::codegen::http::uri::Authority;

    #[test]
    fn the_kubelets_name_for_the_socket_is_one() {
        let path = registration_socket(Path::new("/var/lib/kubelet/plugins_registry"));
        let name = path.to_str().unwrap().replace('/', "%2F");
        assert!(name.parse::<Authority>().is_ok(), "{name}");
    }
}
