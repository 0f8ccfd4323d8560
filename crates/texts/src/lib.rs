//! What Ferry says, in the language of its user. English is where a sentence is made, in `ferry-core`; other languages are
//! catalogues here, held complete by the compiler: a sentence without its translation does not build, nor does one that
//! names an argument which there is none of.

mod ja;

use ferry_core::{
    api::problem::Problem,
    finding::{Finding, Message},
    job_text::{JobText, StepTitle, english},
};

use ja::Japanese as _;

/// A language that all of Ferry's sentences are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    /// English.
    #[default]
    English,
    /// Japanese.
    Japanese,
}

impl Language {
    /// The language that a locale asks for, as `LANG` has it (`ja_JP.UTF-8`) or as a user writes it (`ja`); English for every
    /// other.
    pub fn of(locale: &str) -> Self {
        let name = locale.split(['_', '-', '.', '@']).next().unwrap_or_default();
        if name.eq_ignore_ascii_case("ja") || name.eq_ignore_ascii_case("japanese") {
            Self::Japanese
        } else {
            Self::English
        }
    }

    /// What a finding says.
    pub fn message(self, message: &Message) -> String {
        match self {
            Self::English => message.to_string(),
            Self::Japanese => message.in_japanese(),
        }
    }

    /// How a job stands.
    pub fn summary(self, sentences: &[JobText]) -> String {
        match self {
            Self::English => english(sentences),
            Self::Japanese => sentences.iter().map(|sentence| sentence.in_japanese()).collect(),
        }
    }

    /// A line of a job's log, or another part of a text about it.
    pub fn job_text(self, sentence: &JobText) -> String {
        match self {
            Self::English => sentence.to_string(),
            Self::Japanese => sentence.in_japanese(),
        }
    }

    /// A step's title.
    pub fn step(self, title: StepTitle) -> String {
        match self {
            Self::English => title.to_string(),
            Self::Japanese => title.in_japanese(),
        }
    }

    /// What was attempted.
    pub fn title(self, problem: &Problem) -> String {
        match (self, &problem.sentence) {
            (Self::Japanese, Some(sentence)) if !sentence.is_unknown() => sentence.in_japanese(),
            (Self::English | Self::Japanese, _) => problem.title.clone(),
        }
    }

    /// What to do about a finding.
    pub fn fix(self, finding: &Finding) -> String {
        match self {
            Self::English => finding.fix.to_string(),
            Self::Japanese => finding.fix.in_japanese(),
        }
    }
}

#[cfg(test)]
mod tests {
    use ferry_core::finding::{Action, Command, FindingId, Message};

    use super::*;

    #[test]
    fn a_locale_asks_for_its_language_else_for_english() {
        for (locale, language) in [
            ("ja_JP.UTF-8", Language::Japanese),
            ("ja", Language::Japanese),
            ("JA-JP", Language::Japanese),
            ("jam_JM", Language::English),
            ("en_GB.UTF-8", Language::English),
            ("de_DE", Language::English),
            ("C.UTF-8", Language::English),
            ("", Language::English),
        ] {
            assert_eq!(Language::of(locale), language, "{locale}");
        }
    }

    #[test]
    fn a_finding_is_told_in_japanese_with_what_stands_in_it() {
        let (vm, host) = ("web01".to_owned(), "kvm1".to_owned());
        let on = Message::OnHost { host };
        let message = Message::VmPaused { vm: vm.clone(), on: on.clone().into() };
        let finding =
            Finding::blocks(FindingId::VmPaused, &vm, message, Command::Resume { vm: vm.clone(), on: on.into() });
        assert_eq!(Language::Japanese.message(&finding.message), "VM web01（ホスト kvm1）は一時停止しています");
        assert!(Language::Japanese.fix(&finding).contains("`virsh resume web01`"));
        assert_eq!(Language::English.message(&finding.message), "VM web01 is paused on kvm1");
        let which = ["kvm1/db", "kvm2/db"].iter().collect();
        let several = Message::VmAmbiguous { vm: "db".to_owned(), which };
        let finding = Finding::blocks(FindingId::VmAmbiguous, "db", several, Action::ListVms);
        assert!(Language::Japanese.message(&finding.message).ends_with("kvm1/db、kvm2/db"));
    }

    #[test]
    fn what_has_no_translation_is_told_as_it_came() {
        let finding = Finding::of_text(FindingId::VmPaused, "web01", "It is paused", "Resume it");
        assert_eq!(Language::Japanese.message(&finding.message), "It is paused");
        assert_eq!(Language::Japanese.fix(&finding), "Resume it");
    }
}
