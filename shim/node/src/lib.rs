//! `orlop-node`: a node's claimed PCI devices, offered to Kubernetes.
//!
//! [`inventory`] says what there is: of each claim of `orlop pci claim NAME …`, the IOMMU's groups, each of which one container at a time can have.
//! They are offered in one of two ways. As a device plugin, each claim is the resource `pci.orlop.dev/NAME`: [`plugin`] offers one to the kubelet,
//! and [`offer`] keeps all of them offered. Or by dynamic resource allocation, [`dra`]. Either lasts over restarts of the kubelet, and as
//! claims come and go. It is in no VM's life: it may end and come back without a pod noticing.

pub mod api;
pub mod dra;
pub mod inventory;
pub mod offer;
pub mod plugin;
mod socket;
#[cfg(test)]
mod tests;
