//! A test fails when a program in its lab warned of something that the test did not expect.

use std::{env, fs, path::PathBuf, thread};

use ferry_testkit::logs::Expected;

/// Reads the logs of a lab's programs when it is dropped, which is before the lab is: in tests alone, since who tries things out
/// in a lab may break what he likes.
pub struct Warnings {
    folder: PathBuf,
    expected: Expected,
    /// Whether the test has said all that the programs may warn of.
    checked: bool,
}

impl Warnings {
    /// Those of the lab in `folder`.
    pub fn of(folder: PathBuf) -> Self {
        Self { folder, expected: Expected::none(), checked: false }
    }

    /// From now on lines at WARN or ERROR that hold `words` are no surprise.
    ///
    /// # Panics
    /// When `words` are so few that they would fit other lines.
    pub fn expect(&self, words: &'static str) {
        self.expected.add(words);
    }

    /// Every line that was not expected fails the test when its lab goes.
    pub fn check(&mut self) {
        self.checked = true;
    }
}

impl Drop for Warnings {
    fn drop(&mut self) {
        if !self.checked || thread::panicking() || env::var_os("NEXTEST").is_none() {
            return;
        }
        let logs = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let texts = logs.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        let texts: Vec<String> = texts.filter_map(|path| fs::read_to_string(path).ok()).collect();
        self.expected.check(texts.iter().flat_map(|text| text.lines()));
    }
}
