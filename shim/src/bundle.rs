//! A container's bundle, and which pod it belongs to.
//!
//! containerd's CRI plugin writes into the annotations of each container's spec which sandbox it is of, and whether it
//! is that sandbox's own (pause) container. A container without these, such as `ctr run` makes, is a pod of its own.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::Deserialize;

const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// The largest config.json that is read, in bytes.
const SPEC_LIMIT: u64 = 16 << 20;

/// What a container is to its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is a pod of its own.
    Single,
    /// It is the sandbox of a CRI pod, which has no process in the guest.
    Sandbox,
    /// It is a container of the CRI pod with this sandbox id.
    Workload {
        /// The sandbox's id.
        sandbox: String,
    },
}

impl Role {
    /// The id of the pod that the container `id` of this role belongs to.
    pub fn sandbox_id<'a>(&'a self, id: &'a str) -> &'a str {
        match self {
            Role::Single | Role::Sandbox => id,
            Role::Workload { sandbox } => sandbox,
        }
    }
}

/// Why a bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The spec cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The spec is not one.
    #[error("{} is not an OCI runtime spec: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The annotation that names the sandbox is missing, or names what cannot be one.
    #[error("the annotation {SANDBOX_ID} is {0:?}, which is not a sandbox's id")]
    SandboxId(String),
}

/// The role of the container whose bundle is at `bundle`.
///
/// # Errors
/// When its spec cannot be read, or contradicts itself.
pub fn role(bundle: &Path) -> Result<Role, BundleError> {
    #[derive(Deserialize)]
    struct Annotated {
        #[serde(default)]
        annotations: HashMap<String, String>,
    }
    let annotated: Annotated = read(bundle)?;
    role_of(&annotated.annotations)
}

/// The same for `start`, whose bundle has no spec where the sandbox interface is to make what it is for: containerd says what a pod is by its
/// call.
///
/// # Errors
/// When there is a spec and it cannot be read, or contradicts itself.
pub fn role_at_start(bundle: &Path) -> Result<Role, BundleError> {
    match role(bundle) {
        Err(BundleError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(Role::Sandbox)
        }
        role => role,
    }
}

/// The role that a spec's annotations say.
///
/// # Errors
/// When they name a sandbox by what cannot be an id.
pub fn role_of(annotations: &HashMap<String, String>) -> Result<Role, BundleError> {
    let sandbox = annotations.get(SANDBOX_ID);
    match (annotations.get(CONTAINER_TYPE).map(String::as_str), sandbox) {
        (Some("sandbox"), _) => Ok(Role::Sandbox),
        (Some("container"), Some(sandbox)) if crate::cli::is_name(sandbox) => Ok(Role::Workload {
            sandbox: sandbox.clone(),
        }),
        (Some("container"), sandbox) => {
            Err(BundleError::SandboxId(sandbox.cloned().unwrap_or_default()))
        }
        _ => Ok(Role::Single),
    }
}

/// The OCI spec of the bundle at `bundle`.
///
/// # Errors
/// When it cannot be read or is none.
pub fn spec(bundle: &Path) -> Result<Spec, BundleError> {
    read(bundle)
}

fn read<T: serde::de::DeserializeOwned>(bundle: &Path) -> Result<T, BundleError> {
    use std::io::Read;
    let path = bundle.join("config.json");
    let mut text = Vec::new();
    let read =
        std::fs::File::open(&path).and_then(|file| file.take(SPEC_LIMIT).read_to_end(&mut text));
    if let Err(source) = read {
        return Err(BundleError::Read { path, source });
    }
    serde_json::from_slice(&text).map_err(|error| BundleError::Parse {
        path,
        message: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Role, BundleError> {
        role_of(
            &pairs
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    #[test]
    fn the_annotations_say_the_pod() {
        assert_eq!(of(&[]).unwrap(), Role::Single);
        let sandbox = of(&[(CONTAINER_TYPE, "sandbox"), (SANDBOX_ID, "s1")]).unwrap();
        assert_eq!((sandbox.sandbox_id("s1"), &sandbox), ("s1", &Role::Sandbox));
        let workload = of(&[(CONTAINER_TYPE, "container"), (SANDBOX_ID, "s1")]).unwrap();
        assert_eq!(workload.sandbox_id("c1"), "s1");
        assert!(of(&[(CONTAINER_TYPE, "container"), (SANDBOX_ID, "../s1")]).is_err());
        assert!(of(&[(CONTAINER_TYPE, "container")]).is_err());
    }

    #[test]
    fn a_bundle_without_a_spec_is_an_error_that_names_the_file() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(
            role(bundle.path())
                .unwrap_err()
                .to_string()
                .contains("config.json")
        );
        std::fs::write(bundle.path().join("config.json"), "{").unwrap();
        assert!(
            spec(bundle.path())
                .unwrap_err()
                .to_string()
                .contains("not an OCI runtime spec")
        );
        std::fs::write(
            bundle.path().join("config.json"),
            "{\"ociVersion\":\"1.0.2\"}",
        )
        .unwrap();
        assert_eq!(role(bundle.path()).unwrap(), Role::Single);
        assert_eq!(spec(bundle.path()).unwrap().version(), "1.0.2");
    }
}
