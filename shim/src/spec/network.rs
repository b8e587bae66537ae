//! Which network a pod is to have.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::SpecError;

/// A pod's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// None but the guest's loopback.
    #[default]
    Loopback,
    /// That of the network namespace at this path.
    Namespace(PathBuf),
}

impl Network {
    /// What the spec of a pod's sandbox, or of a lone container, says.
    ///
    /// # Errors
    /// When that is the network of the machine: no network namespace is named.
    pub fn of(spec: &Spec) -> Result<Self, SpecError> {
        let namespaces = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.namespaces().as_ref());
        let network = namespaces
            .into_iter()
            .flatten()
            .find(|namespace| namespace.typ() == LinuxNamespaceType::Network)
            .ok_or(SpecError::HostNetwork)?;
        let path = network.path().clone();
        Ok(path
            .filter(|path| !path.as_os_str().is_empty())
            .map_or(Self::Loopback, Self::Namespace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(namespaces: serde_json::Value) -> Result<Network, SpecError> {
        let spec = json!({"ociVersion": "1.0.2", "linux": {"namespaces": namespaces}});
        Network::of(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn a_namespace_of_its_own_is_empty_and_one_with_a_path_is_joined() {
        assert_eq!(of(json!([{"type": "network"}])), Ok(Network::Loopback));
        assert_eq!(
            of(json!([{"type": "network", "path": ""}])),
            Ok(Network::Loopback)
        );
        assert_eq!(
            of(json!([{"type": "pid"}, {"type": "network", "path": "/run/netns/x"}])),
            Ok(Network::Namespace("/run/netns/x".into()))
        );
    }

    #[test]
    fn the_machines_network_is_refused() {
        let error = of(json!([{"type": "pid"}])).unwrap_err();
        assert_eq!(error, SpecError::HostNetwork);
        assert!(error.to_string().contains("hostNetwork"));
        assert!(!error.to_string().contains('\n'));
    }
}
