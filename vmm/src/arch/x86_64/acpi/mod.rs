//! The ACPI tables: hardware-reduced (ACPI 6.5, 3.11.1), so there is no PM timer, no SCI and no fixed event.
//!
//! RSDP → XSDT → FADT (power-off, reset) → [`dsdt`] (the devices), MADT (processors, IOAPIC), MCFG (ECAM).

mod cpu_hotplug;
mod dsdt;
mod pci_hotplug;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Address, Bytes, GuestAddress};

use super::layout;

use crate::devices::power;
use crate::devices::virtio::GuestMemory;
use crate::pci::DeviceNumber;

const OEM: [u8; 6] = *b"ORLOP ";
const OEM_TABLE: [u8; 8] = *b"ORLOPVM ";
const REVISION: u32 = 1;

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// They are longer than the room for them.
    #[error("the ACPI tables do not fit into {} bytes", layout::ACPI_SIZE)]
    TooLong,
    /// They do not lie in guest memory.
    #[error("the ACPI tables do not fit into guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// What the tables tell of.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// How many vCPUs there are; vCPU n has APIC id n.
    pub vcpus: u8,
    /// How many there may be, if they come and go.
    pub most_vcpus: Option<u8>,
    /// The 64-bit PCI window: first and last address.
    pub pci_window64: (u64, u64),
    /// The last of the PCI slots whose devices may come and go.
    pub last_slot: DeviceNumber,
    /// Whether PCI devices have interrupt lines.
    pub interrupt_lines: bool,
}

/// Writes the tables, beginning with the RSDP at [`layout::ACPI`].
///
/// # Errors
/// When they do not fit.
pub fn write(memory: &GuestMemory, machine: Machine) -> Result<GuestAddress, Error> {
    let mut tables = Tables {
        memory,
        next: layout::ACPI.unchecked_add(Rsdp::len() as u64),
    };
    let dsdt = tables.add(dsdt::table(machine).as_slice())?;
    let fadt = tables.add_aml(&fadt(dsdt))?;
    let madt = tables.add_aml(&madt(machine))?;
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, REVISION);
    mcfg.add_ecam(layout::ECAM_START, 0, 0, 0);
    let mcfg = tables.add_aml(&mcfg)?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table.raw_value());
    }
    let xsdt = tables.add_aml(&xsdt)?;
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt.raw_value()).to_aml_bytes(&mut rsdp);
    memory.write_slice(&rsdp, layout::ACPI)?;
    Ok(layout::ACPI)
}

/// Writes one table behind the other.
struct Tables<'m> {
    memory: &'m GuestMemory,
    next: GuestAddress,
}

impl Tables<'_> {
    fn add_aml(&mut self, table: &dyn Aml) -> Result<GuestAddress, Error> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        self.add(&bytes)
    }

    fn add(&mut self, bytes: &[u8]) -> Result<GuestAddress, Error> {
        let at = GuestAddress(self.next.raw_value().next_multiple_of(16));
        let end = at.checked_add(bytes.len() as u64).ok_or(Error::TooLong)?;
        if end.raw_value() > layout::ACPI.raw_value() + layout::ACPI_SIZE {
            return Err(Error::TooLong);
        }
        self.memory.write_slice(bytes, at)?;
        self.next = end;
        Ok(at)
    }
}

/// ACPI 6.5, 5.2.9.
fn fadt(dsdt: GuestAddress) -> acpi_tables::fadt::FADT {
    /// No VGA (bit 2), no CMOS clock (bit 5); and no 8042, whose bit 1 stays clear (5.2.9.3).
    const IAPC_BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
    let port = |number: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(number),
        )
    };
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, REVISION)
        .dsdt_64(dsdt.raw_value())
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = IAPC_BOOT_ARCH.into();
    fadt.sleep_control_reg = port(layout::POWER_PORT + power::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(layout::POWER_PORT + power::SLEEP_STATUS);
    fadt.reset_reg = port(layout::POWER_PORT + power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.finalize()
}

/// ACPI 6.5, 5.2.12.
fn madt(machine: Machine) -> MADT {
    let mut madt = MADT::new(
        OEM,
        OEM_TABLE,
        REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC),
    );
    for id in 0..machine.most_vcpus.unwrap_or(machine.vcpus) {
        let enabled = if id < machine.vcpus {
            EnabledStatus::Enabled
        } else {
            EnabledStatus::DisabledOnlineCapable
        };
        madt.add_structure(ProcessorLocalApic::new(id, id, enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    madt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn table(memory: &GuestMemory, at: u64) -> Vec<u8> {
        let len: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
        let mut bytes = vec![0; len as usize];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    #[test]
    fn every_table_is_found_from_the_rsdp_and_sums_to_zero() {
        let memory = crate::memory::anonymous(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let machine = Machine {
            vcpus: 1,
            most_vcpus: Some(255),
            pci_window64: (1 << 33, (1 << 34) - 1),
            last_slot: DeviceNumber::LAST,
            interrupt_lines: true,
        };
        let rsdp = write(&memory, machine).unwrap();
        let mut bytes = [0; 36];
        memory.read_slice(&mut bytes, rsdp).unwrap();
        assert_eq!(&bytes[..8], b"RSD PTR ");
        assert_eq!(sum(&bytes), 0);
        let xsdt = table(
            &memory,
            u64::from_le_bytes(bytes[24..32].try_into().unwrap()),
        );
        assert_eq!(sum(&xsdt), 0);
        let mut seen = Vec::new();
        for entry in xsdt[36..].chunks(8) {
            let bytes = table(&memory, u64::from_le_bytes(entry.try_into().unwrap()));
            assert_eq!(sum(&bytes), 0);
            seen.push(bytes[..4].to_vec());
            if bytes.starts_with(b"FACP") {
                let dsdt = table(
                    &memory,
                    u64::from_le_bytes(bytes[140..148].try_into().unwrap()),
                );
                assert_eq!(&dsdt[..4], b"DSDT");
                assert_eq!(sum(&dsdt), 0);
            }
        }
        assert_eq!(seen, [b"FACP", b"APIC", b"MCFG"]);
    }
}
