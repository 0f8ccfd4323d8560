//! Data go to stdout, messages to stderr. A reader that closes the pipe is not an error.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::OnceLock,
};

use comfy_table::{ContentArrangement, Table, presets};
use ferry_core::{
    api::server::{Candidate, StepView},
    error::chain,
    finding::{Finding, Severity},
    job::JobKind,
    job_text::{JobText, StepTitle},
};
use ferry_texts::Language;
use serde::Serialize;

use crate::Failure;

/// The language of this run, for whatever words findings: a program has one user.
static LANGUAGE: OnceLock<Language> = OnceLock::new();

/// The output of a command.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Whether data are printed as one JSON document.
    pub json: bool,
}

impl Output {
    /// Prints tables, or JSON. Findings and jobs are told in `language`, else in the language of the environment, else in English.
    pub fn new(json: bool, language: Option<&str>) -> Self {
        let of_environment = || ["LC_ALL", "LC_MESSAGES", "LANG"].iter().find_map(|name| std::env::var(name).ok());
        let asked = language.map(str::to_owned).or_else(of_environment).unwrap_or_default();
        LANGUAGE.get_or_init(|| Language::of(&asked));
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
                self.talk(&format!("error: {}", language().title(problem)));
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

fn language() -> Language {
    LANGUAGE.get().copied().unwrap_or_default()
}

/// What is said of a job. In English, and where a sentence is of a later version, as the server words it.
pub(crate) fn summary(sentences: &[JobText], english: &str) -> String {
    match language() {
        Language::Japanese if !sentences.is_empty() && !sentences.iter().any(JobText::is_unknown) => {
            Language::Japanese.summary(sentences)
        }
        Language::English | Language::Japanese => english.to_owned(),
    }
}

/// Why a move to a host is possible or not.
pub(crate) fn why(candidate: &Candidate) -> String {
    match (language(), &candidate.sentence) {
        (Language::Japanese, Some(sentence)) if !sentence.is_unknown() => Language::Japanese.message(sentence),
        (Language::English | Language::Japanese, _) => candidate.why.clone(),
    }
}

/// Whether a place can be used, and why not.
pub(crate) fn usable(trouble: Option<&str>, finding: Option<&Finding>) -> String {
    match (language(), finding) {
        (Language::Japanese, Some(finding)) if !finding.message.is_unknown() => {
            Language::Japanese.message(&finding.message)
        }
        (Language::English | Language::Japanese, _) => trouble.unwrap_or("ok").to_owned(),
    }
}

/// A step's title.
pub(crate) fn step_title(kind: JobKind, step: &StepView) -> String {
    match language() {
        Language::English => step.title.clone(),
        other @ Language::Japanese => other.step(StepTitle { kind, step: step.step }),
    }
}

/// Findings with their fixes, one per paragraph.
pub(crate) fn findings(findings: &[Finding]) -> String {
    let language = language();
    let fix_is = match language {
        Language::English => "fix",
        Language::Japanese => "対処",
    };
    findings
        .iter()
        .map(|finding| {
            let bullet = match finding.severity {
                Severity::Blocks => "✗",
                Severity::Warns => "!",
            };
            let (message, fix) = (language.message(&finding.message), language.fix(finding));
            format!("  {bullet} {message} [{}]\n    {fix_is}: {fix}\n", finding.id)
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
