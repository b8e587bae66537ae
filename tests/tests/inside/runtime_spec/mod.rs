//! What the OCI runtime specification demands of containers, looked at in a guest. docs/runtime-spec.md says the same in words.
//!
//! [`table`] has the rows that a container can look at from within, and [`lifecycle`] those that are about calls. Every row is looked at,
//! whatever becomes of those before it.

mod lifecycle;
mod table;

use crate::agent::AgentVm;
use crate::common::stage;

/// The rows that do not hold, each with what there is in place of what should be.
#[derive(Default)]
struct Findings {
    rows: usize,
    wrong: Vec<String>,
}

impl Findings {
    fn note(&mut self, row: &str, found: Result<(), String>) {
        self.rows += 1;
        if let Err(why) = found {
            self.wrong.push(format!("{row}: {why}"));
        }
    }

    fn end(self) {
        println!("{} rows of the runtime specification", self.rows);
        assert!(self.wrong.is_empty(), "{:#?}", self.wrong);
    }
}

#[test]
fn a_container_in_a_guest_is_what_the_runtime_specification_says() {
    if stage().is_none() {
        return;
    }
    let vm = AgentVm::start();
    let mut findings = Findings::default();
    for setting in table::SETTINGS {
        table::look(&vm, setting, &mut findings);
    }
    for (row, holds) in lifecycle::ROWS {
        findings.note(row, holds(&vm));
    }
    vm.stop();
    findings.end();
}

/// That every row of the tables stands in the document, and that the document has no others.
#[test]
fn the_document_of_the_runtime_specification_has_these_rows() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/runtime-spec.md");
    let text = std::fs::read_to_string(path).unwrap();
    let listed = text.lines().filter_map(|line| line.strip_prefix("- "));
    let mut listed: Vec<_> = listed
        .filter_map(|line| line.split_once(": ").map(|(row, _)| row))
        .collect();
    let looked_at = table::SETTINGS.iter().flat_map(|setting| setting.rows);
    let mut rows: Vec<_> = looked_at.map(|row| row.of).collect();
    rows.extend(lifecycle::ROWS.iter().map(|(row, _)| *row));
    listed.sort_unstable();
    rows.sort_unstable();
    assert_eq!(listed, rows);
}
