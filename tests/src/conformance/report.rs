//! What a run of tests found, and how two runs differ.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It held.
    Passed,
    /// It was left out, for the reason given if there is one.
    Skipped(String),
    /// It did not hold: how that was said.
    Failed(String),
}

/// The tests of a run by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report(BTreeMap<String, Outcome>);

/// How a test ended with two runtimes, the second of which is the one that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair<'r> {
    /// The test.
    pub name: &'r str,
    /// With the runtime that it is compared with.
    pub reference: &'r Outcome,
    /// With the other.
    pub outcome: &'r Outcome,
}

impl Pair<'_> {
    /// True when the reference did what was asked and the other did not.
    #[must_use]
    pub fn falls_behind(&self) -> bool {
        *self.reference == Outcome::Passed && *self.outcome != Outcome::Passed
    }
}

/// A suite in Ginkgo's JSON report (`types.Report`).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Vec<Spec>,
}

/// A test in it (`types.SpecReport`).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    failure: Option<Failure>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Failure {
    message: String,
}

impl Report {
    /// Reads Ginkgo's JSON report.
    ///
    /// # Errors
    /// When it is none, or has no tests.
    pub fn read(text: &[u8]) -> Result<Self> {
        let suites: Vec<Suite> =
            serde_json::from_slice(text).context("this is no report of Ginkgo's")?;
        let specs = suites.into_iter().flat_map(|suite| suite.spec_reports);
        let tests: BTreeMap<_, _> = specs
            .filter(|spec| spec.leaf_node_type == "It")
            .map(named_outcome)
            .collect();
        anyhow::ensure!(!tests.is_empty(), "the report has no tests");
        Ok(Self(tests))
    }

    /// How many passed, failed and were skipped.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |of: fn(&Outcome) -> bool| self.0.values().filter(|it| of(it)).count();
        (
            count(|it| matches!(it, Outcome::Passed)),
            count(|it| matches!(it, Outcome::Failed(_))),
            count(|it| matches!(it, Outcome::Skipped(_))),
        )
    }

    /// Every test that `reference` has as well, beside what came of it there.
    pub fn beside<'r>(&'r self, reference: &'r Report) -> impl Iterator<Item = Pair<'r>> {
        let pair = |(name, outcome): (&'r String, _)| {
            let reference = reference.0.get(name)?;
            Some(Pair {
                name,
                reference,
                outcome,
            })
        };
        self.0.iter().filter_map(pair)
    }
}

fn named_outcome(spec: Spec) -> (String, Outcome) {
    let mut name = spec.container_hierarchy_texts.unwrap_or_default();
    name.push(spec.leaf_node_text);
    let said = spec.failure.unwrap_or_default().message;
    let outcome = match &*spec.state {
        "passed" => Outcome::Passed,
        "skipped" | "pending" => Outcome::Skipped(said),
        state => Outcome::Failed(format!("{state}: {said}")),
    };
    (name.join(" "), outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(tests: &[(&str, &str)]) -> Report {
        let specs: Vec<_> = tests
            .iter()
            .map(|(name, state)| {
                serde_json::json!({
                    "ContainerHierarchyTexts": ["[k8s.io] Pod"],
                    "LeafNodeType": "It",
                    "LeafNodeText": name,
                    "State": state,
                    "Failure": { "Message": "because" },
                })
            })
            .chain([serde_json::json!({
                "ContainerHierarchyTexts": null,
                "LeafNodeType": "BeforeSuite",
                "LeafNodeText": "",
                "State": "passed",
            })])
            .collect();
        let text = serde_json::json!([{ "SpecReports": specs }]).to_string();
        Report::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_report_is_its_tests_by_all_of_their_names() {
        let report = report(&[("a", "passed"), ("b", "timedout"), ("c", "skipped")]);
        assert_eq!(report.counts(), (1, 1, 1));
        assert_eq!(
            report.0["[k8s.io] Pod b"],
            Outcome::Failed("timedout: because".into())
        );
    }

    #[test]
    fn one_falls_behind_only_in_what_the_other_does() {
        let reference = report(&[("a", "passed"), ("b", "failed"), ("c", "passed")]);
        let other = report(&[
            ("a", "failed"),
            ("b", "failed"),
            ("c", "skipped"),
            ("d", "failed"),
        ]);
        let behind: Vec<_> = other
            .beside(&reference)
            .filter(Pair::falls_behind)
            .map(|pair| pair.name)
            .collect();
        assert_eq!(behind, ["[k8s.io] Pod a", "[k8s.io] Pod c"]);
    }

    #[test]
    fn what_is_no_report_is_said_to_be_none() {
        for text in ["", "{}", "[]", r#"[{"SpecReports": []}]"#] {
            assert!(Report::read(text.as_bytes()).is_err(), "{text}");
        }
    }
}
