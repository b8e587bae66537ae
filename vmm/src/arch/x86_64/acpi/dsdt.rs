//! The DSDT: the devices that no bus tells of.

use acpi_tables::aml;
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::{Machine, OEM, OEM_TABLE, REVISION, cpu_hotplug, pci_hotplug};
use crate::arch::x86_64::layout;
use crate::devices::power;
use crate::pci::DeviceNumber;

/// The size of a system description table's header (ACPI 6.5, 5.2.6).
const SDT_HEADER: u32 = 36;

/// The table.
pub(super) fn table(machine: Machine) -> Sdt {
    let mut code = Vec::new();
    pci_host_bridge(machine, &mut code);
    pci_hotplug::slots(machine.last_slot, &mut code);
    if machine.interrupt_lines {
        interrupt_lines(&mut code);
    }
    motherboard(&mut code);
    serial(&mut code);
    power_button(&mut code);
    if let Some(most) = machine.most_vcpus {
        cpu_hotplug::processors(most, &mut code);
    }
    events(machine, &mut code);
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

/// Where the interrupt lines of PCI devices end (ACPI 6.5, 6.2.13): all pins of a device at one of the IOAPIC's.
fn interrupt_lines(code: &mut dyn AmlSink) {
    /// Any function of the device, in the lower half of an address.
    const ANY: u32 = 0xffff;
    let lines: Vec<_> = DeviceNumber::all()
        .flat_map(|device| {
            let number = device.get();
            let address = u32::from(number) << 16 | ANY;
            let gsi = layout::line_gsi(number);
            // The pin, no link device, the IOAPIC's pin.
            (0u8..4).map(move |pin| (address, pin, gsi))
        })
        .collect();
    let entries: Vec<_> = lines
        .iter()
        .map(|(address, pin, gsi)| aml::Package::new(vec![address, pin, &aml::ZERO, gsi]))
        .collect();
    let entries = entries.iter().map(|entry| entry as &dyn Aml).collect();
    aml::Scope::new(
        "_SB_.PCI0".into(),
        vec![&aml::Name::new("_PRT".into(), &aml::Package::new(entries))],
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

/// A control-method power button (ACPI 6.5, 4.8.2.2.1.2).
fn power_button(code: &mut dyn AmlSink) {
    aml::Device::new(
        "_SB_.PWRB".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C0C")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
        ],
    )
    .to_aml_bytes(code);
}

/// The generic event device (ACPI 6.5, 5.6.9), which says what happened: an interrupt each for the power button, the PCI bus and the
/// processors.
fn events(machine: Machine, code: &mut dyn AmlSink) {
    /// Notify value: the button was pressed.
    const PRESSED: u8 = 0x80;
    let button = aml::Path::new("\\_SB_.PWRB");
    let pressed = aml::Notify::new(&button, &PRESSED);
    let pci = aml::MethodCall::new(pci_hotplug::SCAN.into(), vec![]);
    let processors = aml::MethodCall::new(cpu_hotplug::SCAN.into(), vec![]);
    let mut sources: Vec<(u32, &dyn Aml)> = vec![
        (layout::POWER_GSI, &pressed),
        (layout::PCI_HOTPLUG_GSI, &pci),
    ];
    if machine.most_vcpus.is_some() {
        sources.push((layout::CPU_HOTPLUG_GSI, &processors));
    }
    let interrupts: Vec<_> = sources
        .iter()
        .map(|(gsi, _)| aml::Interrupt::new(true, true, false, false, *gsi))
        .collect();
    let is_from: Vec<_> = sources
        .iter()
        .map(|(gsi, _)| aml::Equal::new(&aml::Arg(0), gsi))
        .collect();
    let each: Vec<_> = is_from
        .iter()
        .zip(&sources)
        .map(|(is_from, (_, then))| aml::If::new(is_from, vec![*then]))
        .collect();
    let interrupts = interrupts.iter().map(|interrupt| interrupt as &dyn Aml);
    let each = each.iter().map(|each| each as &dyn Aml);
    aml::Device::new(
        "_SB_.GED_".into(),
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0013"),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(interrupts.collect()),
            ),
            &aml::Method::new("_EVT".into(), 1, true, each.collect()),
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
