//! How a driver reaches a device: one status machine ([`status`]), and the registers of each bus around it ([`pci`]).

pub mod pci;
pub mod status;
#[cfg(test)]
mod test_guest;
#[cfg(test)]
pub(crate) mod test_wires;
#[cfg(test)]
mod tests;
