//! What a VM's start may cost: the table `benches/budgets.toml`, and whether it is kept.

use std::fs;

use anyhow::{Context, Result, bail};
use orlop_testbed::setup::build;
use serde::Deserialize;

/// The table, from the source tree's root.
const FILE: &str = "benches/budgets.toml";
/// What is below this part of its budget is better than it needs to be.
const SLACK: f64 = 0.9;

/// The table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    /// A VM's start.
    pub start: Costs,
}

/// What a start costs, or may cost.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// From the VMM's execution to its guest's first instruction: the VMM's own part.
    pub first_instruction_ms: f64,
    /// From there to process 1: the guest's kernel, with what its exits cost.
    pub kernel_ms: f64,
    /// Private memory beyond the guest's RAM.
    pub beyond_ram_mib: f64,
    /// System calls before the guest's first instruction.
    pub system_calls: f64,
    /// Exits until process 1.
    pub exits: f64,
    /// Those of them that the VMM saw.
    pub exits_to_user_space: f64,
}

impl Budgets {
    /// Reads the table.
    ///
    /// # Errors
    /// When it is not there, or has other keys.
    pub fn read() -> Result<Self> {
        let path = build::source().join(FILE);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| FILE.to_owned())
    }
}

impl Costs {
    fn named(&self) -> [(&'static str, &'static str, f64); 6] {
        [
            (
                "first_instruction_ms",
                "from exec to the guest's first instruction, ms",
                self.first_instruction_ms,
            ),
            (
                "kernel_ms",
                "from there to the guest's process 1, ms",
                self.kernel_ms,
            ),
            (
                "beyond_ram_mib",
                "private memory beyond the guest's RAM, MiB",
                self.beyond_ram_mib,
            ),
            (
                "system_calls",
                "system calls before the first instruction",
                self.system_calls,
            ),
            ("exits", "exits until process 1", self.exits),
            (
                "exits_to_user_space",
                "exits that the VMM sees until then",
                self.exits_to_user_space,
            ),
        ]
    }

    /// A line for each figure, beside its budget.
    ///
    /// # Errors
    /// When a budget is exceeded: by which figures.
    pub fn keep_to(&self, budget: &Costs) -> Result<()> {
        let mut exceeded = Vec::new();
        for ((key, what, cost), (_, _, most)) in self.named().into_iter().zip(budget.named()) {
            let verdict = if cost > most {
                exceeded.push(format!("{what}: {cost:.1}, and {key} allows {most}"));
                "exceeded"
            } else if cost < most * SLACK {
                "kept; the budget can be lowered"
            } else {
                "kept"
            };
            println!("{what}: {cost:.1} of {most}, {verdict}");
        }
        if !exceeded.is_empty() {
            bail!("{FILE} is exceeded: {}", exceeded.join("; "));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_one_and_an_excess_is_named() {
        let budget = Budgets::read().unwrap().start;
        budget.keep_to(&budget).unwrap();
        let costs = Costs {
            kernel_ms: budget.kernel_ms * 1.02,
            ..budget
        };
        let error = costs.keep_to(&budget).unwrap_err().to_string();
        assert!(error.contains("kernel_ms allows"), "{error}");
        assert!(!error.contains("beyond_ram_mib"), "{error}");
    }
}
