//! `orlop-node`: a node's claimed PCI devices, as resources of Kubernetes.
//!
//! Each claim of `orlop pci claim NAME …` is the resource `pci.orlop.dev/NAME`; a device of it is one of the IOMMU's groups, which goes to one
//! container at a time. [`inventory`] says what there is, [`plugin`] offers one claim to the kubelet, and [`offer`] keeps all of them offered:
//! over restarts of the kubelet, and as claims come and go. It is in no VM's life: it may end and come back without a pod noticing.

pub mod inventory;
pub mod offer;
pub mod plugin;
#[cfg(test)]
mod tests;

/// The kubelet's interface.
pub mod api {
    #![allow(
        missing_docs,
        clippy::all,
        reason = "generated, and described by the kubelet"
    )]
    tonic::include_proto!("v1beta1");
}
