//! The kubelet's side of both ways, on a made-up host: sysfs as directories and links, and the sockets where the kubelet has its own or looks for
//! ours.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::api::device_plugin::device_plugin_client::DevicePluginClient;
use crate::api::device_plugin::registration_server::{Registration, RegistrationServer};
use crate::api::device_plugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerPreferredAllocationRequest, Empty,
    PreferredAllocationRequest, RegisterRequest,
};
use crate::api::dra::dra_plugin_client::DraPluginClient;
use crate::api::dra::{Claim, NodePrepareResourcesRequest, NodeUnprepareResourcesRequest};
use crate::api::registration::registration_client::RegistrationClient;
use crate::api::registration::{InfoRequest, RegistrationStatus};
use crate::dra::cluster::Cluster;
use crate::dra::{Driver, Error, cdi};
use crate::offer::Offer;
use orlop_vmm::host_pci::System;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

/// A host with two devices of VFIO's, each in a group of its own.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        let host = Host(tempfile::tempdir().unwrap());
        for driver in ["vfio-pci", "nvme"] {
            fs::create_dir_all(host.path(&format!("sys/bus/pci/drivers/{driver}"))).unwrap();
        }
        for (address, group) in [("0000:65:00.0", 7), ("0000:66:00.0", 8)] {
            let real = host.path(&format!("sys/devices/{address}"));
            fs::create_dir_all(&real).unwrap();
            for (name, text) in [
                ("class", "0x010802"),
                ("vendor", "0x1b36"),
                ("device", "0x0010"),
                ("numa_node", "1"),
            ] {
                fs::write(real.join(name), text).unwrap();
            }
            let directory = host.path(&format!("sys/kernel/iommu_groups/{group}"));
            fs::create_dir_all(directory.join("devices")).unwrap();
            symlink(&real, directory.join("devices").join(address)).unwrap();
            symlink(&directory, real.join("iommu_group")).unwrap();
            let devices = host.path("sys/bus/pci/devices");
            fs::create_dir_all(&devices).unwrap();
            symlink(&real, devices.join(address)).unwrap();
            host.drive(address, "vfio-pci");
        }
        let (name, both) = ("disk".parse().unwrap(), ["0000:65:00.0", "0000:66:00.0"]);
        let both = both.map(|address| address.parse().unwrap());
        host.system().claim(&name, &both).unwrap();
        fs::create_dir(host.plugins()).unwrap();
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn plugins(&self) -> PathBuf {
        self.path("plugins")
    }

    fn system(&self) -> System {
        System::at(self.0.path())
    }

    fn drive(&self, address: &str, driver: &str) {
        let link = self.path(&format!("sys/devices/{address}/driver"));
        let _ = fs::remove_file(&link);
        symlink(self.path(&format!("sys/bus/pci/drivers/{driver}")), link).unwrap();
    }
}

/// What the kubelet was told.
#[derive(Clone, Default)]
struct Kubelet(Arc<Mutex<Vec<RegisterRequest>>>);

impl Kubelet {
    /// Starts as a kubelet does: no plugin's socket is left.
    fn start(&self, plugins: &Path) -> JoinHandle<()> {
        for entry in fs::read_dir(plugins).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let listener = UnixListener::bind(plugins.join("kubelet.sock")).unwrap();
        let server = Server::builder().add_service(RegistrationServer::new(self.clone()));
        tokio::spawn(async move {
            let connections = UnixListenerStream::new(listener);
            server.serve_with_incoming(connections).await.unwrap();
        })
    }

    fn registered(&self) -> Vec<RegisterRequest> {
        self.0.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl Registration for Kubelet {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(Empty {}))
    }
}

#[tokio::test]
async fn a_claim_is_offered_and_given_out_over_restarts_of_the_kubelet() {
    let host = Host::new();
    let kubelet = Kubelet::default();
    let mut offer = Offer::new(host.system(), host.plugins());
    assert!(offer.look().await.is_empty(), "without a kubelet it waits");
    let server = kubelet.start(&host.plugins());
    assert_eq!(offer.look().await, Vec::<String>::new());
    offer.look().await;
    let registered = kubelet.registered();
    assert_eq!(registered.len(), 1, "once");
    assert_eq!(registered[0].resource_name, "pci.orlop.dev/disk");
    assert_eq!(registered[0].version, "v1beta1");

    let socket = host.plugins().join(&registered[0].endpoint);
    let mut plugin = DevicePluginClient::new(orlop_proto::connect::unix(&socket).await.unwrap());
    let mut lists = plugin.list_and_watch(Empty {}).await.unwrap().into_inner();
    let list = lists.message().await.unwrap().unwrap();
    let seen: Vec<_> = list.devices.iter().map(|d| (&*d.id, &*d.health)).collect();
    assert_eq!(
        seen,
        [("0000:65:00.0", "Healthy"), ("0000:66:00.0", "Healthy")]
    );
    assert_eq!(list.devices[0].topology.as_ref().unwrap().nodes[0].id, 1);

    let wanted = |ids: &[&str]| AllocateRequest {
        container_requests: vec![ContainerAllocateRequest {
            devices_ids: ids.iter().map(ToString::to_string).collect(),
        }],
    };
    let given = plugin.allocate(wanted(&["0000:66:00.0"])).await.unwrap();
    let given = &given.into_inner().container_responses[0];
    let paths: Vec<_> = given.devices.iter().map(|d| &*d.host_path).collect();
    assert_eq!(paths, ["/dev/vfio/vfio", "/dev/vfio/8"]);
    assert_eq!(
        given.envs["PCI_RESOURCE_PCI_ORLOP_DEV_DISK"],
        "0000:66:00.0"
    );
    let unknown = plugin.allocate(wanted(&["0000:67:00.0"])).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
    let preferred = plugin.get_preferred_allocation(PreferredAllocationRequest {
        container_requests: vec![ContainerPreferredAllocationRequest {
            available_device_ids: vec!["0000:66:00.0".into()],
            must_include_device_ids: Vec::new(),
            allocation_size: 1,
        }],
    });
    let preferred = preferred.await.unwrap().into_inner();
    assert_eq!(
        preferred.container_responses[0].device_ids,
        ["0000:66:00.0"]
    );

    // A device that its driver has taken back.
    host.drive("0000:66:00.0", "nvme");
    offer.look().await;
    let list = lists.message().await.unwrap().unwrap();
    assert_eq!(list.devices[1].health, "Unhealthy");
    let refused = plugin.allocate(wanted(&["0000:66:00.0"])).await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    host.drive("0000:66:00.0", "vfio-pci");

    server.abort();
    let _ = server.await;
    kubelet.start(&host.plugins());
    offer.look().await;
    assert_eq!(kubelet.registered().len(), 2, "anew");
    assert!(socket.exists());
    host.system().release(&"disk".parse().unwrap()).unwrap();
    offer.look().await;
    assert!(!socket.exists(), "no longer claimed, no longer offered");
}

#[tokio::test]
async fn the_kubelet_finds_the_driver_and_is_told_why_a_claim_cannot_be_had() {
    let host = Host::new();
    let kubelet = host.path("kubelet");
    let cluster = Cluster::at("127.0.0.1", "9", host.path("no-account"));
    let files = cdi::Directory::at(host.path("cdi"));
    let mut driver = Driver::new(host.system(), cluster, "node-1", &kubelet, files);
    let without = driver.look().await.unwrap_err();
    assert!(matches!(without, Error::NoKubelet(_)), "{without}");
    fs::create_dir_all(kubelet.join("plugins_registry")).unwrap();
    driver.look().await.unwrap();

    let socket = kubelet.join("plugins_registry/orlop@pci.orlop.dev-reg.sock");
    let channel = orlop_proto::connect::unix(&socket).await.unwrap();
    let mut registration = RegistrationClient::new(channel);
    let info = registration.get_info(InfoRequest {}).await.unwrap();
    let info = info.into_inner();
    assert_eq!((&*info.r#type, &*info.name), ("DRAPlugin", "pci.orlop.dev"));
    assert_eq!(info.supported_versions, ["v1.DRAPlugin"]);

    let channel = orlop_proto::connect::unix(&info.endpoint).await.unwrap();
    let mut plugin = DraPluginClient::new(channel);
    let claims = vec![Claim {
        namespace: "default".into(),
        uid: "12".into(),
        name: "disk".into(),
    }];
    let prepared = plugin.node_prepare_resources(NodePrepareResourcesRequest {
        claims: claims.clone(),
    });
    let prepared = prepared.await.unwrap().into_inner();
    let error = &prepared.claims["12"].error;
    assert!(error.starts_with("claim default/disk: "), "{error}");
    assert!(error.contains("no-account/ca.crt"), "{error}");
    let ended = plugin.node_unprepare_resources(NodeUnprepareResourcesRequest { claims });
    assert_eq!(ended.await.unwrap().into_inner().claims["12"].error, "");

    let notify = |plugin_registered, error: &str| RegistrationStatus {
        plugin_registered,
        error: error.into(),
    };
    let refuses = notify(false, "too old");
    let told = registration.notify_registration_status(refuses);
    told.await.unwrap();
    let refused = driver.look().await.unwrap_err();
    assert!(refused.to_string().contains("too old"), "{refused}");
    let told = registration.notify_registration_status(notify(true, ""));
    told.await.unwrap();
    let unreached = driver.look().await.unwrap_err();
    assert!(matches!(unreached, Error::Cluster(_)), "{unreached}");

    fs::remove_file(&socket).unwrap();
    let _ = driver.look().await;
    assert!(socket.exists(), "made anew");
    drop(driver);
    assert!(!socket.exists(), "gone with it");
}
