//! Fails a test when a program in its lab logged a warning that the test did not expect.

use std::{env, fs, path::PathBuf, thread};

use ferry_testkit::logs::Expected;

/// Reads the logs of a lab's programs when it is dropped, before the lab is. Active only in tests, because users who
/// try things out in a lab may provoke any warning.
pub struct Warnings {
    folder: PathBuf,
    expected: Expected,
    /// Whether the test has listed all warnings that it expects.
    checked: bool,
}

impl Warnings {
    /// For the lab in `folder`.
    pub fn of(folder: PathBuf) -> Self {
        Self { folder, expected: Expected::none(), checked: false }
    }

    /// From now on, lines at WARN or ERROR that contain `words` are expected.
    ///
    /// # Panics
    /// `words` is so short that it could match unrelated lines.
    pub fn expect(&self, words: &'static str) {
        self.expected.add(words);
    }

    /// From now on, every line that was not expected fails the test when its lab is dropped.
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
