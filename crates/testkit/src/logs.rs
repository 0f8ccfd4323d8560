//! Fails a test when a program logs a warning that the test did not expect.
//!
//! A warning that nobody reads in a test is not read in production either: either it reports a defect, or its level is
//! wrong, or it is the subject of the test.

use std::{
    io::{self, Write},
    sync::{Mutex, Once, PoisonError},
    thread,
};

use tracing_subscriber::{
    EnvFilter, Layer as _, filter::LevelFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// Fewer letters could match unrelated lines.
const WORDS_LETTERS_MIN: usize = 12;
/// A failed test shows at most this many of its lines.
const SHOWN_MAX: usize = 20;

static STARTED: Once = Once::new();
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());
static EXPECTED: Expected = Expected::none();

/// Words that mark expected lines.
#[derive(Debug, Default)]
pub struct Expected(Mutex<Vec<&'static str>>);

impl Expected {
    /// No warning is expected.
    pub const fn none() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// From now on, lines at WARN or ERROR that contain `words` are expected.
    ///
    /// # Panics
    /// `words` is so short that it could match unrelated lines.
    pub fn add(&self, words: &'static str) {
        assert!(words.len() >= WORDS_LETTERS_MIN, "{words:?} fits too many lines");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(words);
    }

    /// Fails the test if one of `lines` is at WARN or ERROR and was not expected. Does nothing in a test that is
    /// already failing.
    ///
    /// # Panics
    /// There is such a line.
    pub fn check<'a>(&self, lines: impl IntoIterator<Item = &'a str>) {
        if thread::panicking() {
            return;
        }
        let expected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_surprise = |line: &&str| is_alarm(line) && !expected.iter().any(|words| line.contains(words));
        let surprises: Vec<&str> = lines.into_iter().filter(is_surprise).take(SHOWN_MAX).collect();
        assert!(surprises.is_empty(), "not expected in the logs:\n{}", surprises.join("\n"));
    }
}

/// Whether a log line, as Ferry's programs write it, is at WARN or ERROR, and from Ferry's own code: libraries may warn
/// of conditions such as a slow machine, which say nothing about Ferry.
fn is_alarm(line: &str) -> bool {
    // The level is the first word, or the second after the time.
    let is_loud = line.split_whitespace().take(2).any(|word| word == "WARN" || word == "ERROR");
    is_loud && line.contains(" ferry_")
}

/// In this test, lines at WARN or ERROR that contain `words` are expected.
///
/// # Panics
/// `words` is so short that it could match unrelated lines.
pub fn expects_warning(words: &'static str) {
    EXPECTED.add(words);
}

/// The lines at WARN and ERROR that this process has logged since [`Watch::start`].
pub fn logged() -> Vec<String> {
    LOGGED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Checks this process's log when it is dropped.
///
/// Does so only if each test has its own process, as under nextest: otherwise a line cannot be attributed to a test.
#[derive(Debug)]
pub struct Watch(());

impl Watch {
    /// Begins to record lines. Those at WARN and above are shown with the test's output; `FERRY_LOG` selects others.
    pub fn start() -> Self {
        STARTED.call_once(|| {
            let shown = EnvFilter::try_from_env("FERRY_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
            let kept = fmt::layer().with_ansi(false).without_time().with_writer(|| Keep);
            tracing_subscriber::registry()
                .with(kept.with_filter(LevelFilter::WARN))
                .with(fmt::layer().with_test_writer().with_filter(shown))
                .init();
        });
        Self(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut *LOGGED.lock().unwrap_or_else(PoisonError::into_inner));
        if std::env::var_os("NEXTEST").is_some() {
            EXPECTED.check(lines.iter().map(String::as_str));
        }
    }
}

/// Records each line; the formatter writes one whole line at a time.
struct Keep;

impl Write for Keep {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(bytes).trim_end().to_owned();
        LOGGED.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_warnings_that_were_expected_pass() {
        let expected = Expected::default();
        expected.add("A share stays attached");
        expected.check([
            " INFO ferry_server: Somebody said WARN",
            "2026-11-29T15:00:00Z  WARN ferry_server: A share stays attached host=kvm1",
        ]);
        let surprised = std::panic::catch_unwind(|| expected.check(["ERROR ferry_server: The database failed"]));
        assert!(surprised.is_err(), "it was not expected");
        expected.check([" WARN sqlx::pool::acquire: acquired connection, but it took long"]);
    }

    #[test]
    #[should_panic(expected = "fits too many lines")]
    fn a_word_alone_is_no_expectation() {
        Expected::default().add("host");
    }
}
