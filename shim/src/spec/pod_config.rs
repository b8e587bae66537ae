//! The CRI's own configuration of a pod (`PodSandboxConfig` of `runtime.v1`), as it comes with `CreateSandbox`: what the spec of a sandbox's
//! task says otherwise.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use prost::Message;

use super::network::Network;
use super::{PodFile, PodSpec, SpecError, annotations};

/// `NamespaceMode.NODE`.
const NODE: i32 = 2;

/// A pod's configuration.
#[derive(Clone, PartialEq, Message)]
pub struct PodConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(message, optional, tag = "4")]
    dns: Option<Dns>,
    #[prost(map = "string, string", tag = "7")]
    annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<Linux>,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct Dns {
    #[prost(string, repeated, tag = "1")]
    servers: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    searches: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    options: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Linux {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security_context: Option<SecurityContext>,
    #[prost(map = "string, string", tag = "3")]
    sysctls: HashMap<String, String>,
    #[prost(message, optional, tag = "5")]
    resources: Option<Resources>,
}

#[derive(Clone, PartialEq, Message)]
struct SecurityContext {
    #[prost(message, optional, tag = "1")]
    namespace_options: Option<NamespaceOptions>,
}

#[derive(Clone, PartialEq, Message)]
struct NamespaceOptions {
    #[prost(int32, tag = "1")]
    network: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Resources {
    #[prost(int64, tag = "1")]
    cpu_period: i64,
    #[prost(int64, tag = "2")]
    cpu_quota: i64,
    #[prost(int64, tag = "3")]
    cpu_shares: i64,
    #[prost(int64, tag = "4")]
    memory_limit: i64,
}

impl PodConfig {
    /// What comes with a request, if it is of that type.
    ///
    /// # Errors
    /// When it is not what its type says.
    pub fn of(options: &Any) -> Result<Option<Self>, SpecError> {
        if !options.type_url.ends_with("runtime.v1.PodSandboxConfig") {
            return Ok(None);
        }
        let read = Self::decode(&*options.value);
        read.map(Some)
            .map_err(|error| SpecError::PodConfig(error.to_string()))
    }

    /// What the pod's user asks for and what containerd tells of it, as the annotations of a sandbox's task would have it.
    pub fn annotations(&self) -> HashMap<String, String> {
        let mut all: HashMap<_, _> = self
            .annotations
            .iter()
            .filter(|(name, _)| annotations::is_ours(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if let Some(metadata) = &self.metadata {
            all.extend(annotations::of_name(&metadata.namespace, &metadata.name));
        }
        if let Some(resources) = self.linux.as_ref().and_then(|it| it.resources.as_ref()) {
            all.extend(annotations::of_limits(
                resources.cpu_period,
                resources.cpu_quota,
                resources.cpu_shares,
                resources.memory_limit,
            ));
        }
        all
    }

    /// The pod's network, where containerd has made `netns` for it or, for the machine's own, none.
    ///
    /// # Errors
    /// When that is the network of the machine.
    pub fn network(&self, netns: &str) -> Result<Network, SpecError> {
        let context = self
            .linux
            .as_ref()
            .and_then(|it| it.security_context.as_ref());
        let options = context.and_then(|it| it.namespace_options.as_ref());
        if options.is_some_and(|options| options.network == NODE) {
            return Err(SpecError::HostNetwork);
        }
        Ok(if netns.is_empty() {
            Network::Loopback
        } else {
            Network::Namespace(netns.into())
        })
    }

    /// What the pod's containers share, these files included.
    pub fn shared(&self, etc: Vec<PodFile>) -> PodSpec {
        let sysctl = self.linux.as_ref().map(|linux| linux.sysctls.clone());
        PodSpec {
            hostname: self.hostname().map(str::to_owned),
            sysctl: sysctl.unwrap_or_default(),
            etc,
        }
    }

    /// The pod's host name, if it has one of its own.
    pub fn hostname(&self) -> Option<&str> {
        Some(self.hostname.as_str()).filter(|name| !name.is_empty())
    }

    /// The pod's `resolv.conf`, if it is not to be the machine's.
    pub fn resolv_conf(&self) -> Option<String> {
        let dns = self.dns.as_ref().filter(|dns| **dns != Dns::default())?;
        let joined = |key: &str, values: &[String]| match values {
            [] => String::new(),
            values => format!("{key} {}\n", values.join(" ")),
        };
        let servers = dns.servers.iter().map(|it| format!("nameserver {it}\n"));
        let servers: String = servers.collect();
        let (search, options) = (
            joined("search", &dns.searches),
            joined("options", &dns.options),
        );
        Some(format!("{search}{servers}{options}"))
    }

    /// The cgroup of sandbox `id`, as an OCI spec names one: below the pod's, which systemd has if it is a slice.
    pub fn cgroups_path(&self, id: &str) -> Option<PathBuf> {
        let parent = &self.linux.as_ref()?.cgroup_parent;
        let last = Path::new(parent).file_name()?.to_str()?;
        Some(if last.ends_with(".slice") {
            format!("{last}:cri-containerd:{id}").into()
        } else {
            Path::new(parent).join(id)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(linux: Linux) -> PodConfig {
        PodConfig {
            metadata: Some(Metadata {
                name: "web".into(),
                namespace: "shop".into(),
            }),
            hostname: "web-0".into(),
            annotations: HashMap::from([
                ("orlop.dev/vcpus".into(), "2".into()),
                ("other.dev/x".into(), "y".into()),
            ]),
            dns: Some(Dns {
                servers: vec!["10.96.0.10".into(), "fd00::a".into()],
                searches: vec!["shop.svc".into(), "svc".into()],
                options: vec!["ndots:5".into()],
            }),
            linux: Some(linux),
        }
    }

    #[test]
    fn it_says_what_the_task_s_spec_would() {
        let config = config(Linux {
            cgroup_parent: "/kubepods/pod1".into(),
            sysctls: HashMap::from([("net.a".into(), "1".into())]),
            resources: Some(Resources {
                cpu_period: 100_000,
                cpu_quota: 150_000,
                cpu_shares: 512,
                memory_limit: 64 << 20,
            }),
            ..Linux::default()
        });
        let any = Any {
            type_url: "type.googleapis.com/runtime.v1.PodSandboxConfig".into(),
            value: config.encode_to_vec(),
            ..Any::default()
        };
        let read = PodConfig::of(&any).unwrap().unwrap();
        assert_eq!(read, config);
        let annotations = read.annotations();
        assert_eq!(annotations["orlop.dev/vcpus"], "2");
        assert_eq!(annotations["io.kubernetes.cri.sandbox-name"], "web");
        assert_eq!(annotations["io.kubernetes.cri.sandbox-cpu-quota"], "150000");
        assert!(!annotations.contains_key("other.dev/x"));
        let shared = read.shared(Vec::new());
        assert_eq!(shared.hostname.as_deref(), Some("web-0"));
        assert_eq!(shared.sysctl["net.a"], "1");
        assert_eq!(
            read.resolv_conf().unwrap(),
            "search shop.svc svc\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5\n"
        );
        assert_eq!(read.cgroups_path("s"), Some("/kubepods/pod1/s".into()));
        let network = read.network("/run/netns/x").unwrap();
        assert_eq!(network, Network::Namespace("/run/netns/x".into()));
        assert_eq!(read.network("").unwrap(), Network::Loopback);
    }

    #[test]
    fn a_slice_is_systemd_s_and_the_machine_s_network_is_refused() {
        let config = config(Linux {
            cgroup_parent: "/kubepods.slice/kubepods-pod1.slice".into(),
            security_context: Some(SecurityContext {
                namespace_options: Some(NamespaceOptions { network: NODE }),
            }),
            ..Linux::default()
        });
        let path = config.cgroups_path("s");
        assert_eq!(path, Some("kubepods-pod1.slice:cri-containerd:s".into()));
        assert_eq!(config.network(""), Err(SpecError::HostNetwork));
    }

    #[test]
    fn others_options_say_nothing_and_broken_ones_are_refused() {
        let any = |type_url: &str| Any {
            type_url: type_url.into(),
            value: vec![0xff],
            ..Any::default()
        };
        assert_eq!(PodConfig::of(&any("x.Y")), Ok(None));
        assert!(PodConfig::of(&any("runtime.v1.PodSandboxConfig")).is_err());
        assert_eq!(PodConfig::default().cgroups_path("s"), None);
        assert_eq!(PodConfig::default().resolv_conf(), None);
    }
}
