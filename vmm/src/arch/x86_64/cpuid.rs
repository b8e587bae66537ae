//! What CPUID tells a vCPU: what the host's KVM supports, with the guest's own topology.
//!
//! One socket, one thread a core: vCPU n has APIC id n. A wrong id costs seconds of start-up with many vCPUs, because Linux
//! then waits for processors that answer under another name.

use std::arch::x86_64::__cpuid;
use std::ops::RangeInclusive;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

/// Leaf 1: TSC deadline timer (ECX bit 24). KVM has it for every guest with an in-kernel APIC, but does not list it.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1: running under a hypervisor (ECX bit 31).
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1: more than one logical processor in the package (EDX bit 28).
const HTT: u32 = 1 << 28;

/// The leaves that tell of the topology in a form of their own: that of Intel's first, Intel's second, AMD's. Where the host has them they
/// tell of the host. The guest gets the first.
const TOPOLOGY: [u32; 3] = [0xb, 0x1f, 0x8000_0026];

/// The processor's name, 16 bytes a leaf.
const BRAND: RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;

/// What the host offers to every vCPU of the VM.
///
/// # Errors
/// What KVM says.
pub fn supported(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        if entry.function == 1 {
            entry.ecx |= HYPERVISOR | if deadline { TSC_DEADLINE } else { 0 };
        } else if BRAND.contains(&entry.function) {
            // KVM leaves the processor's name to the VMM.
            let host = __cpuid(entry.function);
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (host.eax, host.ebx, host.ecx, host.edx);
        }
    }
    Ok(cpuid)
}

/// What vCPU `id` of `count` sees.
///
/// # Errors
/// When the list would be longer than KVM takes.
pub fn of_vcpu(supported: &CpuId, id: u8, count: u8) -> Result<CpuId, vmm_sys_util::fam::Error> {
    let apic_id = u32::from(id);
    let cores = u32::from(count);
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| !TOPOLOGY.contains(&entry.function))
        .copied()
        .collect();
    for entry in &mut entries {
        match entry.function {
            // Intel SDM 3A, table 3-8; AMD APM 3, E.3.2.
            1 => {
                entry.ebx = (entry.ebx & 0x0000_ffff) | (cores << 16) | (apic_id << 24);
                entry.edx = if count > 1 {
                    entry.edx | HTT
                } else {
                    entry.edx & !HTT
                };
            }
            // Cache parameters: threads sharing the cache (EAX 25:14), cores in the package (EAX 31:26).
            4 if entry.eax & 0x1f != 0 => {
                let level = (entry.eax >> 5) & 7;
                let sharing = if level >= 3 { cores - 1 } else { 0 };
                entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | ((cores - 1).min(63) << 26);
            }
            // AMD: as leaf 4, threads only.
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let level = (entry.eax >> 5) & 7;
                let sharing = if level >= 3 { cores - 1 } else { 0 };
                entry.eax = (entry.eax & 0x3fff) | (sharing << 14);
            }
            // AMD: the number of cores, and the width of their part of the APIC id (ECX 7:0, 15:12).
            0x8000_0008 => {
                entry.ecx = (entry.ecx & !0xf0ff) | (cores - 1) | (core_bits(count) << 12);
            }
            // AMD: extended APIC id, core id with one thread, node.
            0x8000_001e => {
                entry.eax = apic_id;
                entry.ebx = apic_id & 0xff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    entries.extend(topology(apic_id, count));
    if let Some(first) = entries.iter_mut().find(|entry| entry.function == 0) {
        first.eax = first.eax.max(0xb);
    }
    CpuId::from_entries(&entries)
}

/// Leaf 0xb, extended topology (Intel SDM 2A, CPUID): one thread a core, all cores in one package.
fn topology(apic_id: u32, count: u8) -> [kvm_cpuid_entry2; 3] {
    const THREADS: u32 = 1;
    const CORES: u32 = 2;
    let level = |index: u32, shift: u32, processors: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: index | (kind << 8),
        edx: apic_id,
        ..Default::default()
    };
    [
        level(0, 0, 1, THREADS),
        level(1, core_bits(count), u32::from(count), CORES),
        level(2, 0, 0, 0),
    ]
}

/// How many bits of the APIC id number the cores.
fn core_bits(count: u8) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            ..Default::default()
        }
    }

    #[test]
    fn every_vcpu_is_told_its_own_apic_id() {
        let host = CpuId::from_entries(&[entry(0), entry(1), entry(0x8000_001e)]).unwrap();
        for id in 0..5 {
            let guest = of_vcpu(&host, id, 5).unwrap();
            for entry in guest.as_slice() {
                match entry.function {
                    1 => {
                        assert_eq!(entry.ebx >> 24, u32::from(id));
                        assert_eq!((entry.ebx >> 16) & 0xff, 5);
                        assert_ne!(entry.edx & HTT, 0);
                    }
                    0xb => assert_eq!(entry.edx, u32::from(id)),
                    0x8000_001e => assert_eq!(entry.eax, u32::from(id)),
                    _ => {}
                }
            }
            let cores = guest
                .as_slice()
                .iter()
                .find(|e| e.function == 0xb && e.index == 1)
                .unwrap();
            assert_eq!((cores.eax, cores.ebx), (3, 5), "five cores need three bits");
        }
    }

    #[test]
    fn the_hosts_topology_is_not_the_guests() {
        let host = CpuId::from_entries(&TOPOLOGY.map(entry)).unwrap();
        let guest = of_vcpu(&host, 0, 2).unwrap();
        let functions: Vec<_> = guest.as_slice().iter().map(|e| e.function).collect();
        assert_eq!(functions, [0xb; 3]);
    }

    #[test]
    fn a_single_vcpu_is_not_hyperthreaded() {
        let host = CpuId::from_entries(&[kvm_cpuid_entry2 {
            edx: HTT,
            ..entry(1)
        }])
        .unwrap();
        let guest = of_vcpu(&host, 0, 1).unwrap();
        assert_eq!(guest.as_slice()[0].edx & HTT, 0);
    }
}
