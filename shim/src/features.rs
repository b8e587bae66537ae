//! What the runtime can do, in the words of the OCI runtime specification (features.md): containerd 2 asks for it by `-info`, and the CRI
//! tells the kubelet of it.

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use serde_json::{Value, json};

/// The type's name in containerd. Its value is JSON.
const TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The features, as containerd takes them.
pub fn features() -> Any {
    Any {
        type_url: TYPE.to_owned(),
        value: described().to_string().into_bytes(),
        ..Any::default()
    }
}

fn described() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        // A mount that is read-only is so with all below it, whether it is `ro` or `rro`: the node shares it so.
        "mountOptions": [
            "bind", "rbind", "ro", "rro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec",
            "noatime", "atime", "nodiratime", "diratime", "relatime", "norelatime", "strictatime",
            "private", "rprivate", "slave", "rslave",
        ],
        // containerd looks at what is below `linux` without asking whether it is there.
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false},
            "seccomp": {"enabled": true},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": false}},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recursive_read_only_mounts_are_offered_and_mapped_ids_are_not() {
        let features: Value = serde_json::from_slice(&features().value).unwrap();
        let options = features["mountOptions"].as_array().unwrap();
        assert!(options.contains(&"rro".into()));
        let namespaces = features["linux"]["namespaces"].as_array().unwrap();
        assert!(!namespaces.contains(&"user".into()));
        let idmap = &features["linux"]["mountExtensions"]["idmap"]["enabled"];
        assert_eq!(idmap, &Value::Bool(false));
    }
}
