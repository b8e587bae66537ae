//! What a VM's start costs in exits of its guest and in system calls of its VMM. They are counted in a start of their own: to count takes time.
//!
//! The host's kernel counts the exits itself (histogram triggers, Documentation/trace/histogram.rst), until the guest's mark.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::contender::{Contender, Guest};
use crate::trace::{Instance, is_mark};

/// How long one start may take where everything is emulated.
const LIMIT: Duration = Duration::from_secs(120);

/// The counts of one start.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// System calls of the VMM before its guest's first instruction.
    pub system_calls: u64,
    /// Exits until the guest's process 1.
    pub exits: Exits,
}

/// A guest's exits, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    /// All of them.
    pub all: BTreeMap<String, u64>,
    /// Those that the VMM saw.
    pub to_user_space: BTreeMap<String, u64>,
}

/// Counts the exits of all guests from its making on.
pub struct Counter(Instance);

impl Counter {
    /// Begins to count.
    ///
    /// # Errors
    /// When the kernel cannot count, or this is not root.
    pub fn begin() -> Result<Self> {
        let counter = Self(Instance::make("orlop-bench-exits")?);
        for (event, keys) in EVENTS {
            let count = format!("hist:keys={keys}");
            counter
                .0
                .write(&format!("events/kvm/{event}/trigger"), &count)?;
        }
        Ok(counter)
    }

    /// Has it end with the guest's mark, which is waited for.
    fn until_mark(self, mark: impl FnOnce() -> Result<()>) -> Result<Exits> {
        let filter = is_mark();
        for (event, _) in EVENTS {
            let stop = format!("disable_hist:kvm:{event} if {filter}");
            self.0.write("events/kvm/kvm_cpuid/trigger", &stop)?;
        }
        self.0.write("events/kvm/kvm_cpuid/filter", &filter)?;
        self.0.write("events/kvm/kvm_cpuid/enable", "1")?;
        mark()?;
        self.0.wait(LIMIT)?;
        self.end()
    }

    /// What was counted.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn end(self) -> Result<Exits> {
        self.so_far()
    }

    /// What was counted until now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn so_far(&self) -> Result<Exits> {
        let read = |event: &str| self.0.read(&format!("events/kvm/{event}/hist"));
        Ok(Exits {
            all: histogram(&read("kvm_exit")?, exit_name),
            to_user_space: histogram(&read("kvm_userspace_exit")?, user_exit_name),
        })
    }
}

/// What is counted, and by what it is told apart.
const EVENTS: [(&str, &str); 2] = [
    ("kvm_exit", "isa,exit_reason"),
    ("kvm_userspace_exit", "reason"),
];

impl Exits {
    /// A line for each kind, behind one for all; of each VMM a column.
    pub fn rows(of: &[&Exits]) -> Vec<(String, Vec<u64>)> {
        type Side = fn(&Exits) -> &BTreeMap<String, u64>;
        let sides: [(&str, Side); 2] = [
            ("exits", |exits| &exits.all),
            ("of them to the VMM", |exits| &exits.to_user_space),
        ];
        let mut rows = Vec::new();
        for (what, side) in sides {
            let counts: Vec<_> = of.iter().map(|exits| side(exits)).collect();
            let sums = counts.iter().map(|counts| counts.values().sum());
            rows.push((what.to_owned(), sums.collect()));
            let kinds: BTreeSet<_> = counts.iter().flat_map(|counts| counts.keys()).collect();
            for kind in kinds {
                let of_kind = counts.iter().map(|counts| counts.get(kind).copied());
                rows.push((
                    format!("… {kind}"),
                    of_kind.map(Option::unwrap_or_default).collect(),
                ));
            }
        }
        rows
    }
}

impl Counts {
    /// Starts `guest` once and counts.
    ///
    /// # Errors
    /// When the VMM does not run, or the kernel cannot count.
    pub fn of(contender: &Contender, guest: &Guest, console: &Path) -> Result<Self> {
        let calls = Instance::make("orlop-bench-calls")?;
        calls.write("options/overwrite", "0")?;
        calls.write("options/record-tgid", "1")?;
        calls.write("events/sched/sched_process_exec/enable", "1")?;
        calls.write("events/raw_syscalls/sys_enter/enable", "1")?;
        // One entry is enough to know when that ends.
        calls.write("events/kvm/kvm_entry/trigger", "traceoff:1")?;
        calls.write("events/kvm/kvm_entry/enable", "1")?;
        let mut vmm = None;
        let exits = Counter::begin()?.until_mark(|| {
            vmm = Some(contender.start(guest, console)?);
            Ok(())
        })?;
        let id = vmm.map(|vmm| vmm.id()).unwrap_or_default();
        Ok(Self {
            system_calls: system_calls(&calls.read("trace")?, id)
                .context("the VMM's execution is not in the trace")?,
            exits,
        })
    }
}

/// Counts the system calls of process `id` behind its execution, in a trace that ends with the guest's first instruction.
fn system_calls(trace: &str, id: u32) -> Option<u64> {
    let exec = format!(" pid={id} ");
    let mut lines = trace.lines();
    lines.find(|line| line.contains("sched_process_exec:") && line.contains(&exec))?;
    let calls = lines.filter(|line| line.contains(": sys_enter:") && process_of(line) == Some(id));
    Some(calls.count() as u64)
}

/// The process in ` vcpu0-71  (   70) [000] d.... 12.345678: sys_enter: …`.
fn process_of(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once('(')?;
    let (id, _) = rest.split_once(')')?;
    id.trim().parse().ok()
}

/// The counts in a histogram's lines, such as `{ isa:          2, exit_reason:        114 } hitcount:        737`.
fn histogram(text: &str, name: fn(&[u64]) -> String) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let Some((keys, count)) = line
            .trim()
            .strip_prefix('{')
            .and_then(|line| line.split_once('}'))
        else {
            continue;
        };
        let keys: Vec<u64> = keys.split(',').filter_map(number).collect();
        if let Some(count) = number(count) {
            *counts.entry(name(&keys)).or_default() += count;
        }
    }
    counts
}

/// The number in `name:   12`.
fn number(field: &str) -> Option<u64> {
    field.split(':').next_back()?.trim().parse().ok()
}

/// The reasons that a guest's boot has, by SVM's numbers (AMD64 Architecture Programmer's Manual 2, appendix C) and VMX's (Intel SDM 3,
/// appendix C).
fn exit_name(keys: &[u64]) -> String {
    const VMX: u64 = 1;
    let name = match keys {
        [VMX, 1] => "interrupt",
        [VMX, 7] => "interrupt window",
        [VMX, 10] => "CPUID",
        [VMX, 12] => "HLT",
        [VMX, 18] => "hypercall",
        [VMX, 28] => "control register",
        [VMX, 29] => "debug register",
        [VMX, 30] => "port",
        [VMX, 31 | 32] => "MSR",
        [VMX, 48 | 49] => "memory",
        [VMX, 54] => "WBINVD",
        [VMX, 55] => "XSETBV",
        [_, 0x00..=0x1f | 0x65] => "control register",
        [_, 0x20..=0x3f] => "debug register",
        [_, 0x40..=0x5f] => "exception",
        [_, 0x60] => "interrupt",
        [_, 0x64] => "interrupt window",
        [_, 0x72] => "CPUID",
        [_, 0x78] => "HLT",
        [_, 0x7b] => "port",
        [_, 0x7c] => "MSR",
        [_, 0x81] => "hypercall",
        [_, 0x89] => "WBINVD",
        [_, 0x8d] => "XSETBV",
        [_, 0x400] => "memory",
        other => return format!("{other:?}"),
    };
    name.to_owned()
}

/// `KVM_EXIT_*` of `linux/kvm.h`.
fn user_exit_name(keys: &[u64]) -> String {
    let name = match keys {
        [2] => "port",
        [5] => "HLT",
        [6] => "memory",
        [10] => "signal",
        [12] => "TPR",
        [24] => "system event",
        [26] => "I/O APIC",
        other => return format!("{other:?}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_counts_by_name() {
        let text = "# event histogram\n#\n\n\
                    { isa:          2, exit_reason:        114 } hitcount:        737\n\
                    { isa:          2, exit_reason:         16 } hitcount:          1\n\
                    { isa:          2, exit_reason:          0 } hitcount:          2\n\
                    { isa:          2, exit_reason:       9999 } hitcount:          3\n\n\
                    Totals:\n    Hits: 743\n    Entries: 4\n    Dropped: 0\n";
        let counts = histogram(text, exit_name);
        let counts: Vec<_> = counts
            .iter()
            .map(|(name, count)| (name.as_str(), *count))
            .collect();
        assert_eq!(
            counts,
            [("CPUID", 737), ("[2, 9999]", 3), ("control register", 3)]
        );
    }

    #[test]
    fn system_calls_are_those_of_one_process_from_its_execution_on() {
        let trace = "# tracer: nop\n\
            bench-9     (      9) [000] ..... 1.0: sys_enter: NR 56 (0, 0, 0, 0, 0, 0)\n\
            orlop-70    (     70) [000] ..... 1.1: sys_enter: NR 59 (0, 0, 0, 0, 0, 0)\n\
            orlop-70    (     70) [000] ..... 1.2: sched_process_exec: filename=/x/orlop pid=70 old_pid=70\n\
            orlop-70    (     70) [000] ..... 1.3: sys_enter: NR 12 (0, 0, 0, 0, 0, 0)\n\
            bench-9     (      9) [000] ..... 1.4: sys_enter: NR 7 (0, 0, 0, 0, 0, 0)\n\
            vcpu0-71    (     70) [000] ..... 1.5: sys_enter: NR 16 (0, 0, 0, 0, 0, 0)\n";
        assert_eq!(system_calls(trace, 70), Some(2));
        assert_eq!(system_calls(trace, 71), None);
    }
}
