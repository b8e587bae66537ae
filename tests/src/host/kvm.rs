//! Whether this machine's `/dev/kvm` is backed by hardware.
//!
//! Some machines offer a `/dev/kvm` of a software kind, without VMX or SVM behind it. It answers the usual questions and then
//! cannot run a stock kernel, so the processor's flags decide, not the device alone.

use std::fs::{self, File};

/// True where the processor has VMX or SVM and `/dev/kvm` can be opened.
#[must_use]
pub fn is_hardware() -> bool {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    has_virtualisation(&flags) && can_open()
}

/// True when a `/proc/cpuinfo` names the processor flag of Intel VT-x or of AMD-V.
fn has_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm")
}

fn can_open() -> bool {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::has_virtualisation;

    #[test]
    fn a_flag_counts_only_as_a_whole_word_of_the_flags_line() {
        assert!(has_virtualisation(
            "processor\t: 0\nflags\t\t: fpu svm sse\n"
        ));
        assert!(has_virtualisation("flags\t\t: fpu vmx\n"));
        assert!(!has_virtualisation("flags\t\t: fpu svm_lock\n"));
        assert!(!has_virtualisation("model name\t: svm\nflags\t: fpu\n"));
    }
}
