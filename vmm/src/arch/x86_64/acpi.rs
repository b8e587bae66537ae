//! The ACPI tables: hardware-reduced (ACPI 6.5, 3.11.1), so there is no PM timer, no SCI and no fixed event.
//!
//! RSDP → XSDT → FADT (power-off, reset) → DSDT (PCI host bridge, COM1, power button), MADT (processors, IOAPIC), MCFG (ECAM).

use acpi_tables::aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Address, Bytes, GuestAddress};

use super::layout;

use crate::devices::power;
use crate::devices::virtio::GuestMemory;

const OEM: [u8; 6] = *b"ORLOP ";
const OEM_TABLE: [u8; 8] = *b"ORLOPVM ";
const REVISION: u32 = 1;
/// The size of a system description table's header (ACPI 6.5, 5.2.6).
const SDT_HEADER: u32 = 36;

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
    /// The 64-bit PCI window: first and last address.
    pub pci_window64: (u64, u64),
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
    let dsdt = tables.add(dsdt(machine).as_slice())?;
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
    for id in 0..machine.vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    madt
}

fn dsdt(machine: Machine) -> Sdt {
    let mut code = Vec::new();
    pci_host_bridge(machine, &mut code);
    motherboard(&mut code);
    serial(&mut code);
    power_button(&mut code);
    pvpanic(&mut code);
    let sleep = power::SLEEP_TYPE_OFF;
    aml::Name::new(
        "_S5_".into(),
        &aml::Package::new(vec![&sleep, &aml::ZERO, &aml::ZERO, &aml::ZERO]),
    )
    .to_aml_bytes(&mut code);
    let mut dsdt = Sdt::new(*b"DSDT", SDT_HEADER, 2, OEM, OEM_TABLE, REVISION);
    dsdt.append_slice(&code);
    dsdt
}

/// The root of PCI segment 0, with the windows from which its devices' BARs may come.
fn pci_host_bridge(machine: Machine, code: &mut dyn AmlSink) {
    let window32 = aml::AddressSpace::new_memory(
        aml::AddressSpaceCacheable::NotCacheable,
        true,
        layout::PCI_WINDOW_START as u32,
        (layout::PCI_WINDOW_START + layout::PCI_WINDOW_SIZE - 1) as u32,
        None,
    );
    let window64 = aml::AddressSpace::new_memory(
        aml::AddressSpaceCacheable::NotCacheable,
        true,
        machine.pci_window64.0,
        machine.pci_window64.1,
        None,
    );
    aml::Device::new(
        "_SB_.PCI0".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A08")),
            &aml::Name::new("_CID".into(), &aml::EISAName::new("PNP0A03")),
            &aml::Name::new("_SEG".into(), &aml::ZERO),
            &aml::Name::new("_BBN".into(), &aml::ZERO),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            // Cache-coherent DMA.
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::AddressSpace::new_bus_number(0u16, 0u16),
                    &aml::IO::new(
                        layout::PCI_CONFIG_PORT,
                        layout::PCI_CONFIG_PORT,
                        1,
                        layout::PCI_CONFIG_SIZE as u8,
                    ),
                    &window32,
                    &window64,
                ]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// Reserves the ECAM, without which Linux does not trust MCFG (PCI Firmware Specification 3.3, 4.1.2).
fn motherboard(code: &mut dyn AmlSink) {
    aml::Device::new(
        "_SB_.MBRD".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C02")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::Memory32Fixed::new(
                    true,
                    layout::ECAM_START as u32,
                    layout::ECAM_SIZE as u32,
                )]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// COM1.
fn serial(code: &mut dyn AmlSink) {
    aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_DDN".into(), &"COM1"),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Interrupt::new(true, true, false, false, layout::SERIAL_GSI),
                    &aml::IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 0, 8),
                ]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// A control-method power button (ACPI 6.5, 4.8.2.2.1.2) that the generic event device (5.6.9) announces.
fn power_button(code: &mut dyn AmlSink) {
    aml::Device::new(
        "_SB_.PWRB".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C0C")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
        ],
    )
    .to_aml_bytes(code);
    /// Notify value: the button was pressed.
    const PRESSED: u8 = 0x80;
    aml::Device::new(
        "_SB_.GED_".into(),
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0013"),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::Interrupt::new(
                    true,
                    true,
                    false,
                    false,
                    layout::POWER_GSI,
                )]),
            ),
            &aml::Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&aml::Notify::new(&aml::Path::new("\\_SB_.PWRB"), &PRESSED)],
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// pvpanic, under the id that Linux knows it by.
fn pvpanic(code: &mut dyn AmlSink) {
    aml::Device::new(
        "_SB_.PEVT".into(),
        vec![
            &aml::Name::new("_HID".into(), &"QEMU0001"),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::IO::new(
                    layout::PVPANIC_PORT,
                    layout::PVPANIC_PORT,
                    1,
                    1,
                )]),
            ),
        ],
    )
    .to_aml_bytes(code);
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
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let machine = Machine {
            vcpus: 255,
            pci_window64: (1 << 33, (1 << 34) - 1),
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
