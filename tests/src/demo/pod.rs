//! A pod in a KVM guest, through containerd alone.

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::containerd::cri::{Container, Cri, Pod};
use crate::containerd::exec::stream;
use crate::containerd::{HANDLER, Node};
use crate::leaks::{Holdings, left_since};
use crate::progress::step;

const EXEC_LIMIT: Duration = Duration::from_secs(120);

/// What the pod's one container does: it waits for its end.
const WAIT: &[&str] = &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"];

/// Shows a pod on this machine, which has KVM.
///
/// # Errors
/// When a step fails, or something is left at the end.
pub fn show_pod() -> Result<ExitCode> {
    let directory = tempfile::Builder::new()
        .prefix("demo-")
        .tempdir_in("/run")?;
    step("starting containerd with the runtime handler `orlop`");
    let (node, _daemon) = Node::start(directory.path())?;
    let cri = Cri::connect(&node)?;
    let places = [node.orlop_state()];
    let before = Holdings::now(&places);

    step(format!(
        "starting a pod through the CRI, as the kubelet would: runtime handler `{HANDLER}`"
    ));
    let pod = cri.run_pod("demo").context("cannot start the pod")?;
    let shown = show(&node, &cri, &pod);
    step("deleting the pod");
    cri.remove_pod(&pod).context("cannot delete the pod")?;
    shown?;

    step("looking for what the pod left: processes, mounts, sockets, files, cgroups, networks");
    let left = left_since(&before, &places, |_| false);
    // The bridge belongs to the node's network, not to the pod.
    let left: Vec<_> = left.iter().map(ToString::to_string).collect();
    if left.is_empty() {
        step("nothing is left. That was a Kubernetes pod in a KVM guest.");
        Ok(ExitCode::SUCCESS)
    } else {
        bail!("the pod left:\n  {}", left.join("\n  "))
    }
}

fn show(node: &Node, cri: &Cri, pod: &Pod) -> Result<()> {
    step("starting a container in it: the guest boots now");
    let container = cri
        .run(pod, &Container::busybox("main", WAIT))
        .with_context(|| {
            format!(
                "cannot start the container; containerd's log:\n{}",
                node.log_tail()
            )
        })?;
    step("the container runs");

    let inside = |command: &[&str]| -> Result<String> {
        let done = cri.exec(&container, command)?;
        Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
    };
    let here = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    eprintln!();
    eprintln!("  {:<12} {:<46} in the pod", "", "on the host");
    eprintln!(
        "  {:<12} {:<46} {}",
        "uname -r",
        here.trim(),
        inside(&["uname", "-r"])?
    );
    let (cpu_here, cpu_inside) = (
        fs::read_to_string("/proc/cpuinfo")?,
        inside(&["cat", "/proc/cpuinfo"])?,
    );
    for field in ["model name", "processors"] {
        eprintln!(
            "  {field:<12} {:<46} {}",
            of_cpuinfo(&cpu_here, field),
            of_cpuinfo(&cpu_inside, field)
        );
    }
    let hypervisor = |cpuinfo: &str| {
        let found = cpuinfo.split_whitespace().any(|flag| flag == "hypervisor");
        if found { "yes" } else { "no" }
    };
    eprintln!(
        "  {:<12} {:<46} {}",
        "in a VM",
        hypervisor(&cpu_here),
        hypervisor(&cpu_inside)
    );
    let memory_here = of_meminfo(&fs::read_to_string("/proc/meminfo")?);
    let memory_inside = of_meminfo(&inside(&["cat", "/proc/meminfo"])?);
    eprintln!("  {:<12} {memory_here:<46} {memory_inside}", "memory");
    eprintln!();

    step("executing a shell in the container and typing into it");
    let script = "read name; echo \"hello $name, this is $(hostname)\"; exit 7";
    let address = cri.exec_address(&container, &["sh", "-c", script], false)?;
    let done = stream(&address, b"newcomer\n", EXEC_LIMIT)?;
    eprintln!();
    for line in String::from_utf8_lossy(&done.stdout).lines() {
        eprintln!("  {}", line.trim_end());
    }
    eprintln!();
    step(format!(
        "the shell said `exit 7`, and the status that arrived is {}",
        done.status
    ));
    Ok(())
}

/// A field of the first processor, or how many processors there are.
fn of_cpuinfo(cpuinfo: &str, field: &str) -> String {
    if field == "processors" {
        return cpuinfo
            .lines()
            .filter(|line| line.starts_with("processor"))
            .count()
            .to_string();
    }
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix(field)?.trim().strip_prefix(':'))
        .map_or_else(String::new, |value| value.trim().to_owned())
}

fn of_meminfo(meminfo: &str) -> String {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .map_or_else(String::new, |kib| format!("{} MiB", kib / 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found() {
        let cpuinfo =
            "processor\t: 0\nmodel name\t: Some CPU\nprocessor\t: 1\nmodel name\t: Some CPU\n";
        assert_eq!(of_cpuinfo(cpuinfo, "model name"), "Some CPU");
        assert_eq!(of_cpuinfo(cpuinfo, "processors"), "2");
        assert_eq!(of_meminfo("MemTotal:     2048 kB\n"), "2 MiB");
    }
}
