//! A test fails when a program warns of something that the test did not expect.
//!
//! A warning that nobody reads in a test is one that nobody reads in production: either it tells of a defect, or the level is
//! wrong, or the test is about what it tells.

use std::{
    io::{self, Write},
    sync::{Mutex, Once, PoisonError},
    thread,
};

use tracing_subscriber::{
    EnvFilter, Layer as _, filter::LevelFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// Fewer letters would fit lines that the test does not mean.
const WORDS_LETTERS_MIN: usize = 12;
/// A failed test shows so many of its lines.
const SHOWN_MAX: usize = 20;

static STARTED: Once = Once::new();
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());
static EXPECTED: Expected = Expected::none();

/// Words of which lines may hold one.
#[derive(Debug, Default)]
pub struct Expected(Mutex<Vec<&'static str>>);

impl Expected {
    /// Every warning is a surprise.
    pub const fn none() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// From now on lines at WARN or ERROR that hold `words` are no surprise.
    ///
    /// # Panics
    /// When `words` are so few that they would fit other lines.
    pub fn add(&self, words: &'static str) {
        assert!(words.len() >= WORDS_LETTERS_MIN, "{words:?} fits too many lines");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(words);
    }

    /// Fails the test when one of `lines` is at WARN or ERROR and was not expected. Says nothing in a test that
    /// fails already.
    ///
    /// # Panics
    /// When there is such a line.
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

/// Whether a line of a log, as Ferry's programs write them, is at WARN or ERROR, and of Ferry: what libraries warn of, such as a
/// slow machine, is no promise of ours.
fn is_alarm(line: &str) -> bool {
    // The level is the first word, or the second after the time.
    let is_loud = line.split_whitespace().take(2).any(|word| word == "WARN" || word == "ERROR");
    is_loud && line.contains(" ferry_")
}

/// In this test, lines at WARN or ERROR that hold `words` are no surprise.
///
/// # Panics
/// When `words` are so few that they would fit other lines.
pub fn expects_warning(words: &'static str) {
    EXPECTED.add(words);
}

/// Checks what was logged in this process, when it is dropped.
///
/// It does so only where each test has a process of its own, as under nextest: otherwise it cannot be told which test a
/// line is of.
#[derive(Debug)]
pub struct Watch(());

impl Watch {
    /// Begins to keep lines. Those at WARN and above are shown with the test's output; `FERRY_LOG` asks for others.
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

/// Keeps each line; the formatter writes a whole one at a time.
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
