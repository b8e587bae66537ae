//! Keeps all claims offered: looks at them, at their devices and at the kubelet's socket again and again. A kubelet that starts removes all
//! plugins' sockets and forgets them, so that each is made and registered anew then.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_vmm::host_pci::System;
use orlop_vmm::host_pci::claims::{Claim, Name};
use tokio::sync::watch;
use tonic::transport::Server;

use crate::api::device_plugin as api;
use crate::api::device_plugin::device_plugin_server::DevicePluginServer;
use crate::api::device_plugin::registration_client::RegistrationClient;
use crate::inventory::{self, Unit};
use crate::plugin::{self, Plugin};
use crate::socket::{Identity, Socket, identity};

/// The version of the kubelet's interface.
const VERSION: &str = "v1beta1";
/// How long the kubelet may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// What is offered, and where.
pub struct Offer {
    system: System,
    directory: PathBuf,
    offered: BTreeMap<Name, Offered>,
}

/// A claim that the kubelet knows of.
struct Offered {
    units: watch::Sender<Vec<Unit>>,
    socket: Socket,
    /// Which socket of the kubelet's it was registered by.
    known_by: Option<Identity>,
}

/// Why a claim is not offered.
#[derive(Debug)]
pub enum Error {
    /// No socket.
    Listen(PathBuf, io::Error),
    /// No kubelet.
    Connect(tonic::transport::Error),
    /// It refuses.
    Refused(tonic::Status),
    /// It does not answer.
    Late,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Listen(path, error) => write!(f, "cannot listen on {}: {error}", path.display()),
            Error::Connect(error) => write!(f, "cannot reach the kubelet: {error}"),
            Error::Refused(status) => write!(f, "the kubelet refuses: {}", status.message()),
            Error::Late => write!(f, "the kubelet does not answer within {ANSWER:?}"),
        }
    }
}

impl std::error::Error for Error {}

impl Offer {
    /// Nothing yet, to the kubelet whose directory of plugins this is.
    pub fn new(system: System, directory: impl Into<PathBuf>) -> Self {
        Offer {
            system,
            directory: directory.into(),
            offered: BTreeMap::new(),
        }
    }

    /// Looks at everything once, and says what went wrong: the claims as a whole, or some.
    pub async fn look(&mut self) -> Vec<String> {
        let claims = match self.system.claims() {
            Ok(claims) => claims,
            Err(error) => return vec![error.to_string()],
        };
        self.offered
            .retain(|name, _| claims.iter().any(|claim| claim.name == *name));
        let mut problems = Vec::new();
        for claim in &claims {
            if let Err(error) = self.offer(claim).await {
                problems.push(format!("{}: {error}", claim.name.resource()));
            }
        }
        problems
    }

    async fn offer(&mut self, claim: &Claim) -> Result<(), Error> {
        let units = inventory::units(&self.system, claim);
        let kubelet = self.directory.join("kubelet.sock");
        if let Some(offered) = self.offered.get(&claim.name) {
            offered.units.send_if_modified(|now| {
                let changed = *now != units;
                if changed {
                    now.clone_from(&units);
                }
                changed
            });
            let kubelet = identity(&kubelet);
            let is_known = kubelet == offered.known_by && offered.socket.is_there();
            if is_known || kubelet.is_none() {
                return Ok(());
            }
        }
        self.offered.remove(&claim.name);
        if identity(&kubelet).is_none() {
            return Ok(());
        }
        let mut offered = self.serve(&claim.name, units)?;
        register(&kubelet, &claim.name, offered.socket.path()).await?;
        offered.known_by = identity(&kubelet);
        self.offered.insert(claim.name.clone(), offered);
        Ok(())
    }

    fn serve(&self, name: &Name, units: Vec<Unit>) -> Result<Offered, Error> {
        let path = self.directory.join(format!("orlop-{name}.sock"));
        let (units, seen) = watch::channel(units);
        let plugin = DevicePluginServer::new(Plugin::new(name.clone(), seen));
        let socket = Socket::serve(&path, Server::builder().add_service(plugin))
            .map_err(|error| Error::Listen(path.clone(), error))?;
        Ok(Offered {
            units,
            socket,
            known_by: None,
        })
    }
}

async fn register(kubelet: &Path, name: &Name, socket: &Path) -> Result<(), Error> {
    let endpoint = socket.file_name().unwrap_or_default();
    let request = api::RegisterRequest {
        version: VERSION.into(),
        endpoint: endpoint.to_string_lossy().into_owned(),
        resource_name: name.resource(),
        options: Some(plugin::options()),
    };
    let registering = async {
        let channel = orlop_proto::connect::unix(kubelet)
            .await
            .map_err(Error::Connect)?;
        let mut client = RegistrationClient::new(channel);
        client.register(request).await.map_err(Error::Refused)
    };
    match tokio::time::timeout(ANSWER, registering).await {
        Ok(registered) => registered.map(drop),
        Err(_) => Err(Error::Late),
    }
}
