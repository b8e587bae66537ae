//! The guest's side of PCI hotplug: a slot for each device number up to a last one, and methods that read and write the registers of
//! [`crate::devices::pci_hotplug`].
//!
//! The interrupt of the generic event device leads to [`SCAN`], which asks the registers what has come and what is to go, and notifies
//! those slots: 1 has Linux look for a device, 3 has it let go of one (ACPI 6.5, 5.6.6). When it has, it calls the slot's `_EJ0` (6.3.3).

use acpi_tables::aml;
use acpi_tables::{Aml, AmlSink};

use crate::arch::x86_64::layout;
use crate::devices::pci_hotplug::{COME, EJECT, GO, REGISTERS_SIZE};
use crate::pci::DeviceNumber;

/// The method that finds out what has happened.
pub(super) const SCAN: &str = "\\_SB_.PCI0.SCAN";

/// Notify value: look for a device here.
const DEVICE_CHECK: u8 = 1;
/// Notify value: let go of the device here.
const EJECT_REQUEST: u8 = 3;
/// Waits for a mutex without limit.
const FOR_EVER: u16 = 0xffff;

/// Every device number up to `last` but the host bridge's.
fn numbers(last: DeviceNumber) -> impl Iterator<Item = DeviceNumber> {
    DeviceNumber::all()
        .take_while(move |number| *number <= last)
        .filter(|number| *number != DeviceNumber::HOST_BRIDGE)
}

fn name(number: DeviceNumber) -> String {
    format!("S{:03X}", number.get())
}

/// What the host bridge has for hotplug.
pub(super) fn slots(last: DeviceNumber, code: &mut dyn AmlSink) {
    let registers = aml::OpRegion::new(
        "REGS".into(),
        aml::OpRegionSpace::SystemIO,
        &layout::PCI_HOTPLUG_PORT,
        &REGISTERS_SIZE,
    );
    let word = |name: &[u8; 4]| aml::FieldEntry::Named(*name, 32);
    let fields = aml::Field::new(
        "REGS".into(),
        aml::FieldAccessType::DWord,
        aml::FieldLockRule::NoLock,
        aml::FieldUpdateRule::WriteAsZeroes,
        vec![word(b"COME"), word(b"GO__"), word(b"EJCT")],
    );
    // The fields lie one behind the other.
    const { assert!(COME == 0 && GO == 4 && EJECT == 8) };
    let mutex = aml::Mutex::new("LOCK".into(), 0);
    let (acquire, release) = (
        aml::Acquire::new("LOCK".into(), FOR_EVER),
        aml::Release::new("LOCK".into()),
    );

    // Notifies the slots whose bits are set in the first argument with the second.
    let notifications: Vec<_> = numbers(last)
        .map(|number| (number.bit(), aml::Path::new(&name(number))))
        .collect();
    let bits: Vec<_> = notifications
        .iter()
        .map(|(bit, _)| aml::And::new(&aml::ZERO, &aml::Arg(0), bit))
        .collect();
    let notify: Vec<_> = notifications
        .iter()
        .map(|(_, slot)| aml::Notify::new(slot, &aml::Arg(1)))
        .collect();
    let each: Vec<_> = bits
        .iter()
        .zip(&notify)
        .map(|(bit, notify)| aml::If::new(bit, vec![notify]))
        .collect();
    let tell = aml::Method::new(
        "TELL".into(),
        2,
        true,
        each.iter().map(|each| each as &dyn Aml).collect(),
    );
    let (come, go) = (aml::Path::new("COME"), aml::Path::new("GO__"));
    let come = aml::MethodCall::new("TELL".into(), vec![&come, &DEVICE_CHECK]);
    let go = aml::MethodCall::new("TELL".into(), vec![&go, &EJECT_REQUEST]);
    let scan = aml::Method::new("SCAN".into(), 0, true, vec![&acquire, &come, &go, &release]);
    let mut inside: Vec<u8> = Vec::new();
    for part in [&registers as &dyn Aml, &fields, &mutex] {
        part.to_aml_bytes(&mut inside);
    }
    for number in numbers(last) {
        slot(number, &acquire, &release, &mut inside);
    }
    tell.to_aml_bytes(&mut inside);
    scan.to_aml_bytes(&mut inside);
    aml::Scope::raw("_SB_.PCI0".into(), inside)
        .iter()
        .for_each(|byte| code.byte(*byte));
}

/// A slot, which can be ejected.
fn slot(number: DeviceNumber, acquire: &dyn Aml, release: &dyn Aml, code: &mut dyn AmlSink) {
    let eject = aml::Path::new("EJCT");
    let bit = number.bit();
    aml::Device::new(
        name(number).as_str().into(),
        vec![
            &aml::Name::new("_SUN".into(), &number.get()),
            // The device in the upper half, the function in the lower.
            &aml::Name::new("_ADR".into(), &(u32::from(number.get()) << 16)),
            &aml::Method::new(
                "_EJ0".into(),
                1,
                true,
                vec![acquire, &aml::Store::new(&eject, &bit), release],
            ),
        ],
    )
    .to_aml_bytes(code);
}
