//! Fails a test when a program in its lab logged a warning that the test did not expect.

use std::{env, fs, path::PathBuf, thread};

use ferry_testkit::logs::Expected;

/// What may be logged when a host's agent or its network ends.
pub const AGENT_DIES: &[&str] = &["The host's agent does not answer"];

/// What may be logged when a live move fails or is cancelled: each end finds its channels gone.
pub const MOVE_FAILS: &[&str] = &[
    "Channel failed",
    "The channel was ended with the move",
    "libvirt's migrate call failed",
    "The move is ended reason",
    "A channel could not be opened",
    "The local socket could not be reached",
];

/// What may be logged when a program of the source dies in the hand-over.
pub const HAND_OVER_BREAKS: &[&str] = &[
    "The control connection from the source is gone",
    "libvirt left the VM paused at the source",
    "libvirt does not answer",
    "The destination's carrier gave up",
];

/// Reads the logs of a lab's programs when it is dropped, before the lab is. Active only in tests, because users who
/// try things out in a lab may provoke any warning; and in all of them only with `FERRY_LAB_WARNINGS` set, because a busy
/// machine provokes warnings that no run has shown yet.
pub struct Warnings {
    folder: PathBuf,
    expected: Expected,
    is_active: bool,
}

impl Warnings {
    /// For the lab in `folder`.
    pub fn of(folder: PathBuf) -> Self {
        // Only under nextest does each test have a process of its own.
        let is_active = env::var_os("NEXTEST").is_some() && env::var_os("FERRY_LAB_WARNINGS").is_some();
        Self { folder, expected: Expected::none(), is_active }
    }

    /// Every line that is not expected fails the test, also without `FERRY_LAB_WARNINGS`.
    pub fn check(&mut self) {
        self.is_active = env::var_os("NEXTEST").is_some();
    }

    /// From now on, lines at WARN or ERROR that contain `words` are expected.
    ///
    /// # Panics
    /// `words` is so short that it could match unrelated lines.
    pub fn expect(&self, words: &'static str) {
        self.expected.add(words);
    }

    /// As [`Self::expect`], for each of several.
    ///
    /// # Panics
    /// As [`Self::expect`].
    pub fn expect_all(&self, words: &[&'static str]) {
        words.iter().for_each(|words| self.expect(words));
    }

    /// Every warning is expected: for runs that provoke faults of any kind at any moment, and judge the result from
    /// outside.
    pub fn expect_any(&mut self) {
        self.is_active = false;
    }
}

impl Drop for Warnings {
    fn drop(&mut self) {
        if !self.is_active || thread::panicking() {
            return;
        }
        let logs = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let texts = logs.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        let texts: Vec<String> = texts.filter_map(|path| fs::read_to_string(path).ok()).collect();
        self.expected.check(texts.iter().flat_map(|text| text.lines()));
    }
}
