//! The guest's side of vCPU hotplug: a processor device for each vCPU that there may be, and methods that read and write the registers of
//! [`crate::devices::cpu_hotplug`].
//!
//! The interrupt of the generic event device leads to [`SCAN`], which asks the registers what has happened until they know no more, and
//! notifies the processors. When Linux has let go of one, it calls its `_EJ0` (ACPI 6.5, 6.3.3).

use acpi_tables::aml;
use acpi_tables::{Aml, AmlSink};

use crate::arch::x86_64::layout;
use crate::devices::cpu_hotplug::{EJECT, NEXT, PRESENT, PRESENT_SIZE, REGISTERS_SIZE};

/// The method that finds out what has happened.
pub(super) const SCAN: &str = "\\_SB_.CPUS.SCAN";

/// A processor's `_STA`: there, enabled, shown, working (ACPI 6.5, 6.3.7).
const THERE: u8 = 0xf;

/// The container of the processors 0 to `most - 1`.
pub(super) fn processors(most: u8, code: &mut dyn AmlSink) {
    let mut inside: Vec<u8> = Vec::new();
    aml::Name::new("_HID".into(), &"ACPI0010").to_aml_bytes(&mut inside);
    aml::Name::new("_UID".into(), &aml::ZERO).to_aml_bytes(&mut inside);
    registers(most, &mut inside);
    for id in 0..most {
        processor(id, &mut inside);
    }
    tell(most, &mut inside);
    scan(&mut inside);
    aml::Device::new("_SB_.CPUS".into(), vec![&Raw(inside)]).to_aml_bytes(code);
}

/// AML that is written already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn device(id: u8) -> String {
    format!("C{id:03X}")
}

fn presence(id: u8) -> [u8; 4] {
    let [high, low] = [id >> 4, id & 0xf].map(|digit| match digit {
        0..=9 => b'0' + digit,
        _ => b'A' + digit - 10,
    });
    [b'P', b'_', high, low]
}

fn registers(most: u8, code: &mut dyn AmlSink) {
    // The fields lie one behind the other.
    const { assert!(PRESENT == 0 && NEXT == PRESENT_SIZE && EJECT == NEXT + 4) };
    let region = aml::OpRegion::new(
        "REGS".into(),
        aml::OpRegionSpace::SystemIO,
        &layout::CPU_HOTPLUG_PORT,
        &REGISTERS_SIZE,
    );
    let bits = (0..most).map(|id| aml::FieldEntry::Named(presence(id), 1));
    let present = aml::Field::new(
        "REGS".into(),
        aml::FieldAccessType::Byte,
        aml::FieldLockRule::NoLock,
        aml::FieldUpdateRule::WriteAsZeroes,
        bits.collect(),
    );
    let words = aml::Field::new(
        "REGS".into(),
        aml::FieldAccessType::DWord,
        aml::FieldLockRule::NoLock,
        aml::FieldUpdateRule::WriteAsZeroes,
        vec![
            aml::FieldEntry::Reserved(usize::from(PRESENT_SIZE) * 8),
            aml::FieldEntry::Named(*b"NEXT", 32),
            aml::FieldEntry::Named(*b"EJCT", 32),
        ],
    );
    for part in [&region as &dyn Aml, &present, &words] {
        part.to_aml_bytes(code);
    }
}

fn processor(id: u8, code: &mut dyn AmlSink) {
    let present = aml::Path::new(&String::from_utf8_lossy(&presence(id)));
    let there = aml::Return::new(&THERE);
    let absent = aml::Return::new(&aml::ZERO);
    let if_present = aml::If::new(&present, vec![&there]);
    let state = aml::Method::new("_STA".into(), 0, false, vec![&if_present, &absent]);
    // What the MADT would say of it (ACPI 6.5, 5.2.12.2): type, length, processor, APIC id, enabled.
    let entry = aml::BufferData::new(vec![0, 8, id, id, 1, 0, 0, 0]);
    let (hid, uid) = (
        aml::Name::new("_HID".into(), &"ACPI0007"),
        aml::Name::new("_UID".into(), &id),
    );
    let apic = aml::Name::new("_MAT".into(), &entry);
    let register = aml::Path::new("EJCT");
    let let_go = aml::Store::new(&register, &id);
    let eject = aml::Method::new("_EJ0".into(), 1, true, vec![&let_go]);
    let mut parts: Vec<&dyn Aml> = vec![&hid, &uid, &state, &apic];
    if id > 0 {
        parts.push(&eject);
    }
    aml::Device::new(device(id).as_str().into(), parts).to_aml_bytes(code);
}

/// Notifies the processor of the first argument with the second.
fn tell(most: u8, code: &mut dyn AmlSink) {
    let paths: Vec<_> = (0..most)
        .map(|id| (id, aml::Path::new(&device(id))))
        .collect();
    let notify: Vec<_> = paths
        .iter()
        .map(|(id, path)| (id, aml::Notify::new(path, &aml::Arg(1))))
        .collect();
    let equal: Vec<_> = notify
        .iter()
        .map(|(id, _)| aml::Equal::new(&aml::Arg(0), *id))
        .collect();
    let each: Vec<_> = equal
        .iter()
        .zip(&notify)
        .map(|(equal, (_, notify))| aml::If::new(equal, vec![notify]))
        .collect();
    let body = each.iter().map(|each| each as &dyn Aml).collect();
    aml::Method::new("TELL".into(), 2, true, body).to_aml_bytes(code);
}

/// Tells of all that has happened.
fn scan(code: &mut dyn AmlSink) {
    let next = aml::Path::new("NEXT");
    let read = aml::Store::new(&aml::Local(0), &next);
    let id = aml::And::new(&aml::Local(1), &aml::Local(0), &0xff_u8);
    let notify = aml::ShiftRight::new(&aml::Local(2), &aml::Local(0), &8_u8);
    let tell = aml::MethodCall::new("TELL".into(), vec![&aml::Local(1), &aml::Local(2)]);
    let each = aml::While::new(&aml::Local(0), vec![&id, &notify, &tell, &read]);
    aml::Method::new("SCAN".into(), 0, true, vec![&read, &each]).to_aml_bytes(code);
}
