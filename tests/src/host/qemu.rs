//! QEMU's command line for a virtual host.

use std::ffi::OsString;
use std::path::Path;

use super::channel::Port;
use super::initrd::ROOT_TAG;
use super::kernel::Kernel;
use super::{HostKernel, Machine};

/// The virtual host's kernel command line.
///
/// The IOMMU is on for VFIO; `tsc=reliable` spares the clock's watchdog, which takes emulation's jitter for a broken TSC and
/// falls back to a clock whose every reading is an exit; `no_timer_check` spares the panic of a kernel that missed timer ticks
/// because its emulator waited for a processor; the mitigations would cost time and protect nothing here.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 loglevel=4 panic=-1 intel_iommu=on iommu=pt tsc=reliable mitigations=off \
     cgroup_no_v1=all random.trust_cpu=1 audit=0 preempt=none i8042.noaux no_timer_check";

/// What Debian 12's first kernel is told beside that: with cpusets, whoever is put into a control group may run everywhere again there,
/// [`SPARE`] included. Newer ones keep those from it who have left it.
const STABLE_COMMAND_LINE: &str = " cgroup_disable=cpuset";

/// How many processors there are beside those that a command may use: the first, on which no VM may ever run.
///
/// Whenever any processor loads the state of its FPU, QEMU clears a flag (`HF2_IGNNE_MASK`) of the *first* processor, with neither a lock nor an
/// atomic operation (`cpu_clear_ignne`). In the same word are the flags that each entry into a guest and each exit change. If the two
/// meet, the first processor believes that a guest has no nested page tables, and the guest ends by a triple fault; or that interrupts may
/// come before the host's state is loaded, and the host panics; or that none may, and it hangs.
const SPARE: u32 = 1;

/// The arguments with which QEMU runs `kernel` as `machine`. `run` is the directory of this run's initrd, console log and
/// sockets.
pub(super) fn arguments(machine: &Machine, kernel: &Kernel, run: &Path) -> Vec<OsString> {
    let mut line: Vec<OsString> = [
        "-name",
        "orlop-virtual-host",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-machine",
        "q35,kernel-irqchip=split,hpet=off",
        "-cpu",
        "max,+svm,-erms,-fsrm",
        "-device",
        "intel-iommu,intremap=on,caching-mode=on",
        "-device",
        "virtio-rng-pci",
        "-device",
        "virtio-serial-pci",
        "-virtfs",
    ]
    .map(OsString::from)
    .into();
    line.push(
        format!("local,path=/,mount_tag={ROOT_TAG},security_model=none,multidevs=remap").into(),
    );
    let mut option = |name: &str, value: OsString| {
        line.push(name.into());
        line.push(value);
    };
    if machine.counts_instructions {
        option("-accel", "tcg,thread=single".into());
        option("-icount", "shift=0".into());
        option("-smp", "1".into());
    } else {
        option("-accel", "tcg,thread=multi".into());
        option(
            "-smp",
            machine.cpus.saturating_add(SPARE).to_string().into(),
        );
    }
    option("-m", format!("{}M", machine.memory_mib).into());
    option("-kernel", kernel.image.clone().into());
    option("-initrd", initrd(run).into());
    let more = match machine.kernel {
        HostKernel::Stable => STABLE_COMMAND_LINE,
        HostKernel::Newer | HostKernel::Iommufd => "",
    };
    option("-append", format!("{KERNEL_COMMAND_LINE}{more}").into());
    option("-serial", with_path("file:", &console(run)));
    for (number, port) in Port::ALL.into_iter().enumerate() {
        let character_device = format!("socket,id=port{number},path=");
        option("-chardev", with_path(&character_device, &socket(run, port)));
        option(
            "-device",
            format!("virtserialport,chardev=port{number},name={}", port.name()).into(),
        );
    }
    if machine.passthrough {
        line.extend(super::devices::arguments(run));
    }
    line.extend(machine.qemu.iter().cloned());
    line
}

/// The initrd of a run.
pub(super) fn initrd(run: &Path) -> std::path::PathBuf {
    run.join("initrd")
}

/// The console log of a run.
pub(super) fn console(run: &Path) -> std::path::PathBuf {
    run.join("console")
}

/// The unix socket of a port, on which the outside listens and to which QEMU connects.
pub(super) fn socket(run: &Path, port: Port) -> std::path::PathBuf {
    run.join(port.name())
}

/// A QEMU option value that ends in a path; QEMU wants commas doubled.
pub(super) fn with_path(prefix: &str, path: &Path) -> OsString {
    format!("{prefix}{}", path.to_string_lossy().replace(',', ",,")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_arguments_come_last_and_commas_are_doubled() {
        let machine = Machine {
            qemu: vec!["-device".into(), "nvme".into()],
            ..Machine::default()
        };
        let kernel = Kernel {
            image: "/k".into(),
            modules: None,
        };
        let line = arguments(&machine, &kernel, Path::new("/a,b"));
        assert_eq!(line[line.len() - 2..], ["-device", "nvme"]);
        assert!(line.contains(&"file:/a,,b/console".into()));
    }

    #[test]
    fn there_is_a_processor_to_spare_where_several_run_at_once() {
        let kernel = Kernel {
            image: "/k".into(),
            modules: None,
        };
        for (counts_instructions, processors) in [(false, "3"), (true, "1")] {
            let machine = Machine {
                cpus: 2,
                counts_instructions,
                ..Machine::default()
            };
            let line = arguments(&machine, &kernel, Path::new("/run"));
            let at = line.iter().position(|word| word == "-smp").unwrap();
            assert_eq!(line[at + 1], processors);
        }
    }
}
