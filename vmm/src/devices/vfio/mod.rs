//! Devices of the host's that a guest is given (VFIO): it drives them itself, they reach its memory and no other, and their interrupts reach
//! its processors, without this process taking part.
//!
//! - [`sysfs`] says what the host has; [`device`] opens one, or takes what was [`given`], in the [`space`] of the VM's devices, by the calls of [`ioctl`];
//! - [`ground`] is a guest's machine for them: its memory and its KVM;
//! - [`recall`] hears that the host wants one back;
//! - [`function`] puts one on the guest's bus: its [`config_space`] with [`capabilities`], its [`bars`], its [`interrupts`].
//!
//! A device stays the VM's when its guest resets itself, and is reset then. The kernel resets it once more when the VM's process ends,
//! however that ends.

mod bars;
mod capabilities;
mod config_space;
mod device;
mod error;
mod function;
mod given;
mod ground;
mod interrupts;
mod ioctl;
mod recall;
mod space;
pub mod sysfs;

pub use device::{Device, Passage};
pub use error::{Driver, Error};
pub use function::VfioPci;
pub use ground::Ground;
