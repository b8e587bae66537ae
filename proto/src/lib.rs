//! The two gRPC interfaces of Orlop, and how they are reached.
//!
//! - [`vmm`]: `orlop.vmm.v1`, control of one VM, served by the VMM on a unix socket;
//! - [`agent`]: `orlop.agent.v1`, control of the inside, served by the guest's PID 1 over vsock;
//! - [`not_executed`]: how it is told that a program could not be executed;
//! - [`connect`]: clients' connections to both;
//! - [`files`]: files that are handed over on a connection;
//! - [`streams`]: the standard streams of a process in a guest, and connections to its ports.
//!
//! The `.proto` files in `proto/proto` are the documentation of each call.

pub mod connect;
pub mod files;
pub mod not_executed;
pub mod streams;

/// `orlop.vmm.v1`: control of one VM.
pub mod vmm {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("orlop.vmm.v1");
    }
}

/// `orlop.agent.v1`: control of the inside of a guest.
pub mod agent {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("orlop.agent.v1");
    }

    /// The vsock port on which the agent serves `orlop.agent.v1`, and on which the host hears that it is ready.
    pub const CONTROL_PORT: u32 = 1024;
    /// The vsock port of the stdio streams.
    pub const STREAM_PORT: u32 = 1025;
    /// The vsock port of connections to ports of the guest's loopback.
    pub const FORWARD_PORT: u32 = 1026;
    /// What the guest's kernel is told if the agent is in persistent memory: in which it finds an EROFS, whose files are mapped where they lie.
    pub const IMAGE_CMDLINE: &str =
        "root=/dev/pmem0 rootfstype=erofs rootflags=dax=always ro init=/init";
    /// The tag of the virtio-fs that holds the pod's bundles.
    pub const SHARE_TAG: &str = "orlop";
    /// Where the agent mounts it.
    pub const SHARE_MOUNT: &str = "/run/orlop/share";
    /// Where it keeps the volumes of containers: one's number 0 is in `<container>/0`.
    pub const VOLUMES: &str = "/run/orlop/volumes";
    /// The largest [`v1::StreamHello`] or [`v1::PortHello`] that the agent accepts, in bytes.
    pub const MAX_HELLO: u32 = 4096;
}
