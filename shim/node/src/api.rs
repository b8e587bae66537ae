//! The kubelet's interfaces, as `proto/` has them.

#![allow(
    missing_docs,
    clippy::all,
    reason = "generated, and described by the kubelet"
)]

/// To device plugins.
pub mod device_plugin {
    tonic::include_proto!("v1beta1");
}

/// To drivers of dynamic resource allocation.
pub mod dra {
    tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1");
}

/// To plugins of any kind, which it finds by their sockets.
pub mod registration {
    tonic::include_proto!("pluginregistration");
}
