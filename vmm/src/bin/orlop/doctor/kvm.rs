//! Can this machine run guests?

use std::fs::{self, File};
use std::io;

use kvm_ioctls::{Cap, Kvm};

use super::Finding;

/// What the VMM asks KVM for.
const NEEDED: [(Cap, &str); 8] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// The version of KVM's interface, which has been the same since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// Where things run that cannot run here.
const ELSEWHERE: &str =
    "`cargo testbed host -- COMMAND` runs it in a virtual host, where there is a real KVM";

/// Looks at the processor and at /dev/kvm.
pub fn check() -> Vec<Finding> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut findings = vec![processor(&cpuinfo)];
    let device = match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => interface(virtualisation(&cpuinfo).is_some()),
        Err(error) => cannot_open(&error),
    };
    findings.push(device);
    findings
}

fn processor(cpuinfo: &str) -> Finding {
    let check = "processor";
    if !cfg!(target_arch = "x86_64") {
        return Finding::missing(
            check,
            format!("is {}", std::env::consts::ARCH),
            "Orlop runs on x86-64",
        );
    }
    match virtualisation(cpuinfo) {
        Some(name) => Finding::ok(check, format!("x86-64 with {name}")),
        None => Finding::missing(
            check,
            "x86-64 without VT-x or AMD-V",
            format!(
                "switch it on in the firmware or, for a VM, in its hypervisor (nested virtualisation); {ELSEWHERE}"
            ),
        ),
    }
}

/// The name of the virtualisation that the processor's flags show.
fn virtualisation(cpuinfo: &str) -> Option<&'static str> {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .find_map(|flag| match flag {
            "vmx" => Some("VT-x"),
            "svm" => Some("AMD-V"),
            _ => None,
        })
}

fn cannot_open(error: &io::Error) -> Finding {
    let check = "/dev/kvm";
    match error.kind() {
        io::ErrorKind::NotFound => Finding::missing(
            check,
            "is not there",
            format!("load the module kvm_intel or kvm_amd; {ELSEWHERE}"),
        ),
        io::ErrorKind::PermissionDenied => Finding::missing(
            check,
            "may not be opened",
            "run as root, or join the device's group: usermod -aG kvm USER",
        ),
        _ => Finding::missing(check, format!("cannot be opened: {error}"), ELSEWHERE),
    }
}

fn interface(hardware: bool) -> Finding {
    let check = "/dev/kvm";
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            return Finding::missing(check, format!("cannot be opened: {error}"), ELSEWHERE);
        }
    };
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Finding::missing(
            check,
            format!("speaks version {version} of its interface, not {API_VERSION}"),
            "use a Linux kernel of 5.10 or later",
        );
    }
    let lacking: Vec<_> = NEEDED
        .iter()
        .filter(|(capability, _)| !kvm.check_extension(*capability))
        .map(|(_, name)| *name)
        .collect();
    if !lacking.is_empty() {
        return Finding::missing(
            check,
            format!("lacks {}", lacking.join(", ")),
            "use a Linux kernel of 5.10 or later",
        );
    }
    if !hardware {
        return Finding::missing(
            check,
            "is of a software kind, without VT-x or AMD-V behind it: a stock kernel does not run on it",
            ELSEWHERE,
        );
    }
    Finding::ok(check, "has everything that the VMM needs")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_flag_is_a_whole_word_of_the_flags() {
        assert_eq!(virtualisation("flags\t\t: fpu svm\n"), Some("AMD-V"));
        assert_eq!(virtualisation("flags\t\t: vmx sse\n"), Some("VT-x"));
        assert_eq!(virtualisation("flags : svm_lock\nmodel name: vmx\n"), None);
    }

    #[test]
    fn each_failure_to_open_has_its_advice() {
        for (kind, advice) in [
            (io::ErrorKind::NotFound, "load the module"),
            (io::ErrorKind::PermissionDenied, "usermod"),
            (io::ErrorKind::Other, "testbed"),
        ] {
            let finding = cannot_open(&io::Error::from(kind));
            assert_eq!(finding.verdict, Verdict::Missing);
            assert!(finding.advice.unwrap().contains(advice));
        }
    }
}
