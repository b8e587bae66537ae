//! `orlop doctor`: what this machine has and lacks, and what to do about it.
//!
//! Each check is one line. [`kvm`] looks at virtualisation, [`programs`] at what Orlop is made of, [`host`] at the rest.

mod host;
mod kvm;
pub mod programs;

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::output::{self, Output};

/// The flags of `orlop doctor`.
#[derive(Args)]
pub struct Arguments {
    /// How to print what was found
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// One check.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What was looked at.
    check: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do, where something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Ok,
    /// Good to know; everything works without.
    Note,
    /// Nothing, or nothing but a part of it, works without.
    Missing,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Ok,
            found: found.into(),
            advice: None,
        }
    }

    fn note(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Note,
            found: found.into(),
            advice: None,
        }
    }

    fn missing(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Missing,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }

    fn line(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Missing => "missing",
        };
        let advice = self.advice.as_ref().map(|advice| format!("; {advice}"));
        format!(
            "{verdict:<8} {:<13} {}{}",
            self.check,
            self.found,
            advice.unwrap_or_default()
        )
    }
}

/// Makes all checks and prints what they found. The exit status is 1 when something is missing.
///
/// # Errors
/// When the findings cannot be printed.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut findings = kvm::check();
    findings.extend(host::check());
    findings.extend(programs::check());
    match arguments.output {
        Output::Text => {
            for finding in &findings {
                output::print(&(finding.line() + "\n"))?;
            }
        }
        Output::Json => output::print(&(serde_json::to_string_pretty(&findings)? + "\n"))?,
    }
    let missing = findings
        .iter()
        .any(|finding| finding.verdict == Verdict::Missing);
    Ok(ExitCode::from(u8::from(missing)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_and_what_to_do() {
        let finding = Finding::missing("/dev/kvm", "it is not there", "load kvm_amd");
        assert_eq!(
            finding.line(),
            "missing  /dev/kvm      it is not there; load kvm_amd"
        );
        assert_eq!(
            Finding::ok("memory", "2 GiB").line(),
            "ok       memory        2 GiB"
        );
    }

    #[test]
    fn json_has_the_same() {
        let json = serde_json::to_string(&Finding::note("iommu", "none")).unwrap();
        assert_eq!(json, r#"{"check":"iommu","verdict":"note","found":"none"}"#);
    }
}
