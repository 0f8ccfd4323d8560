//! Removes the folders of sessions that ended without anybody to do it: both agents lost power, or the share was away.

use std::{collections::BTreeMap, io, time::Duration};

use ferry_core::id::SessionId;
use uuid::Uuid;

use super::{
    session::{FOLDER, HEARTBEAT_EVERY, clear},
    share::{Entry, Share},
};

/// A folder in which nothing has changed for so long is of a dead session: ten signs of life are missing.
pub const DEAD_AFTER: Duration = HEARTBEAT_EVERY.saturating_mul(10);

/// What a janitor has seen of one share. It compares what the share tells with itself only, since clocks differ.
#[derive(Debug, Default)]
pub struct Janitor {
    seen: BTreeMap<String, Seen>,
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    entries: Vec<Entry>,
    /// The first look that saw these entries.
    since: Duration,
}

impl Janitor {
    /// Looks at the share `now`, by any clock that only goes forward, and removes what is dead. Returns the sessions whose
    /// folders were removed. Each look sees every session; a first look removes nothing.
    ///
    /// # Errors
    /// If the share does not answer; what was removed until then is gone.
    pub async fn look(&mut self, share: &dyn Share, now: Duration) -> io::Result<Vec<SessionId>> {
        let sessions = match share.list(FOLDER).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            listed => listed?,
        };
        let mut looked = BTreeMap::new();
        for entry in sessions {
            // Nothing else is ours.
            if entry.is_folder && Uuid::try_parse(&entry.name).is_ok() {
                let mut entries = share.list(&format!("{FOLDER}/{}", entry.name)).await?;
                entries.sort();
                looked.insert(entry.name, entries);
            }
        }
        let mut removed = Vec::new();
        for name in self.note(looked, now) {
            clear(share, &format!("{FOLDER}/{name}")).await.map_err(io::Error::other)?;
            self.seen.remove(&name);
            removed.extend(Uuid::try_parse(&name).map(SessionId));
        }
        Ok(removed)
    }

    /// Remembers a look; returns the folders of dead sessions.
    fn note(&mut self, looked: BTreeMap<String, Vec<Entry>>, now: Duration) -> Vec<String> {
        let mut before = std::mem::take(&mut self.seen);
        for (name, entries) in looked {
            let since = before.remove(&name).filter(|seen| seen.entries == entries).map_or(now, |seen| seen.since);
            self.seen.insert(name, Seen { entries, since });
        }
        let is_dead = |seen: &Seen| now.saturating_sub(seen.since) >= DEAD_AFTER;
        self.seen.iter().filter(|(_, seen)| is_dead(seen)).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use ferry_core::pin::Secret;

    use super::*;
    use crate::transport::spool::{local::LocalShare, session::Spool};

    fn looked(names: &[(&str, u64)]) -> BTreeMap<String, Vec<Entry>> {
        let entry = |bytes| Entry { name: "alive".into(), is_folder: false, bytes, written: None };
        names.iter().map(|&(name, bytes)| (name.to_owned(), vec![entry(bytes)])).collect()
    }

    #[test]
    fn only_what_did_not_change_for_long_is_dead() {
        let mut janitor = Janitor::default();
        assert_eq!(janitor.note(looked(&[("a", 1), ("b", 1)]), Duration::ZERO), [""; 0]);
        let almost = DEAD_AFTER - Duration::from_secs(1);
        assert_eq!(janitor.note(looked(&[("a", 1), ("b", 2)]), almost), [""; 0]);
        assert_eq!(janitor.note(looked(&[("a", 1), ("b", 2)]), DEAD_AFTER), ["a"]);
        // One that came back is new.
        assert_eq!(janitor.note(looked(&[("b", 2)]), DEAD_AFTER), [""; 0]);
        assert_eq!(janitor.note(looked(&[("a", 1), ("b", 2)]), 2 * DEAD_AFTER), ["b"]);
    }

    #[tokio::test]
    async fn a_dead_session_is_removed_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let share = Arc::new(LocalShare::new(directory.path()));
        let session = SessionId(Uuid::from_u128(7));
        let spool = Spool::open(share.clone(), session, &Secret([1; 32])).await.expect("opened");
        drop(spool);
        let inside = format!("{FOLDER}/{}", session.0.simple());
        share.publish(&format!("{inside}/left"), Bytes::from_static(b"x")).await.expect("written");
        share.make(&format!("{FOLDER}/somebody's")).await.expect("made");
        let mut janitor = Janitor::default();
        assert_eq!(janitor.look(&*share, Duration::ZERO).await.expect("looked"), []);
        assert_eq!(janitor.look(&*share, DEAD_AFTER).await.expect("looked"), [session]);
        let left: Vec<_> = share.list(FOLDER).await.expect("listed").into_iter().map(|entry| entry.name).collect();
        assert_eq!(left, ["somebody's"]);
    }
}
