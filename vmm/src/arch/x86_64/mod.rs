//! x86_64: where everything lies ([`layout`]), what a vCPU begins with ([`cpuid`], [`regs`]), and the tables that tell the guest
//! about its machine ([`acpi`]).

pub mod acpi;
pub mod cpuid;
pub mod layout;
pub mod regs;
