//! Data go to stdout, messages to stderr. A reader that closes the pipe is not an error.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table, presets};
use ferry_core::{
    error::chain,
    finding::{Finding, Severity},
};
use serde::Serialize;

use crate::Failure;

/// The output of a command.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Whether data are printed as one JSON document.
    pub json: bool,
}

impl Output {
    /// Prints tables, or JSON.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints data: as JSON if requested, otherwise as the text that `text` returns.
    pub fn data<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) {
        let line = if self.json {
            serde_json::to_string(value).expect("bodies of the API are always JSON")
        } else {
            text(value).trim_end().to_owned()
        };
        // A closed pipe means that the reader needs no more.
        let _ = writeln!(io::stdout().lock(), "{line}");
    }

    /// Prints a message for the user.
    pub fn talk(&self, line: &str) {
        let _ = writeln!(io::stderr().lock(), "{line}");
    }

    /// Prints what went wrong and what to do about it.
    pub fn fail(&self, failure: &Failure) {
        match failure.problem() {
            Some(problem) => {
                self.talk(&format!("error: {}", problem.title));
                if problem.findings.is_empty()
                    && let Some(detail) = &problem.detail
                {
                    self.talk(&format!("  {detail}"));
                }
                self.talk(findings(&problem.findings).trim_end());
                if self.json {
                    self.data(problem, |_| String::new());
                }
            }
            None => self.talk(&format!("error: {}", chain(failure))),
        }
    }
}

/// Findings with their fixes, one per paragraph.
pub(crate) fn findings(findings: &[Finding]) -> String {
    findings
        .iter()
        .map(|finding| {
            let mark = match finding.severity {
                Severity::Blocks => "✗",
                Severity::Warns => "!",
            };
            format!("  {mark} {} [{}]\n    fix: {}\n", finding.message, finding.id, finding.fix)
        })
        .collect()
}

/// A table that fits the terminal; plain columns without a terminal.
pub(crate) fn table(heads: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if io::stdout().is_terminal() {
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    }
    table.set_header(heads.iter().map(|head| (*head).to_owned()).collect::<Vec<_>>());
    for row in rows {
        table.add_row(row);
    }
    let lines: Vec<String> = table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}
