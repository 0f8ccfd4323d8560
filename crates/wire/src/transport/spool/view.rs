//! What is known of a session's folder, for all of its pipes: one listing and one watch serve them all.
//!
//! A watch tells of changes at once. A listing tells everything: at the start, when changes were lost, from time to time in
//! case some were, and again and again where there is no watch. A name is published once and deleted once, so what is told
//! late is harmless: a change that happened before a listing is repeated after it, and leads to the same.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{
    error::Fault,
    retry::{RETRY_FOR, fault, is_definite},
    share::{Change, Share, Watch},
};

/// How often a folder that is watched is listed: changes that no watch told are noticed by then.
const RELIST_EVERY: Duration = Duration::from_secs(1);
/// How often a folder without a watch is listed.
const POLL_EVERY: Duration = Duration::from_millis(5);
/// Wait before a share that failed is asked again.
const FAILED_WAIT: Duration = Duration::from_millis(200);
/// How long one listing may take.
const LIST_MAX: Duration = Duration::from_secs(20);

/// The known state.
#[derive(Default)]
struct Known {
    present: BTreeSet<String>,
    /// Files that this end publishes and that the other end has not deleted; with the number of listings that had begun
    /// when the file was published, once it is.
    own: HashMap<String, Option<u64>>,
    listings: u64,
    fault: Option<Fault>,
}

/// A session's folder, as far as it is known.
pub(super) struct View {
    known: Mutex<Known>,
    changed: watch::Sender<()>,
}

impl View {
    pub(super) fn new() -> Self {
        Self { known: Mutex::default(), changed: watch::Sender::new(()) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no thread panics while holding this lock")
    }

    /// Tells that something may have changed.
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Why nothing more will be known.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.known().fault.clone()
    }

    /// Whether a file of this name was there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.known().present.contains(name)
    }

    /// Files that begin so, in order.
    pub(super) fn beginning(&self, prefix: &str) -> Vec<String> {
        let known = self.known();
        known.present.range(prefix.to_owned()..).take_while(|name| name.starts_with(prefix)).cloned().collect()
    }

    /// The first file that fits.
    pub(super) fn find<T>(&self, fits: impl FnMut(&String) -> Option<T>) -> Option<T> {
        self.known().present.iter().find_map(fits)
    }

    /// A file that was there is not.
    pub(super) fn forget(&self, name: &str) {
        self.known().present.remove(name);
    }

    /// From now on until the other end deletes it, a file of this end is in flight.
    pub(super) fn publishing(&self, name: &str) {
        self.known().own.insert(name.to_owned(), None);
    }

    /// It was published. The other end may have deleted it already.
    pub(super) fn published(&self, name: &str) {
        let mut known = self.known();
        let listings = known.listings;
        if let Some(since) = known.own.get_mut(name) {
            *since = Some(listings);
        }
    }

    /// Whether the other end has not yet deleted a file of this end.
    pub(super) fn is_in_flight(&self, name: &str) -> bool {
        self.known().own.contains_key(name)
    }

    /// A listing begins. Returns its number.
    fn begin_listing(&self) -> u64 {
        let mut known = self.known();
        known.listings += 1;
        known.listings
    }

    fn listed(&self, listing: u64, names: BTreeSet<String>) {
        let mut known = self.known();
        // A file that was published after the listing had begun need not be in it.
        known.own.retain(|name, published| {
            names.contains(name) || published.is_none_or(|before_listing| before_listing >= listing)
        });
        known.present = names;
        drop(known);
        self.changed.send_replace(());
    }

    fn apply(&self, changes: Vec<Change>) {
        let mut known = self.known();
        for change in changes {
            match change {
                Change::Added(name) => drop(known.present.insert(name)),
                Change::Removed(name) => {
                    known.own.remove(&name);
                    known.present.remove(&name);
                }
                Change::Unknown => {}
            }
        }
        drop(known);
        self.changed.send_replace(());
    }

    fn fail(&self, fault: Fault) {
        self.known().fault = Some(fault);
        self.changed.send_replace(());
    }
}

/// Keeps the view until it is dropped, or the share is away for too long.
pub(super) async fn follow(share: Arc<dyn Share>, folder: String, view: Arc<View>) {
    let mut can_watch = true;
    let mut watch = None;
    let mut failing_since = None;
    loop {
        let listed = async {
            if watch.is_none() && can_watch {
                watch = match share.watch(&folder).await {
                    Ok(watch) => Some(watch),
                    Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
                        can_watch = false;
                        None
                    }
                    Err(error) => return Err(error),
                };
            }
            let listing = view.begin_listing();
            let entries = share.list(&folder).await?;
            view.listed(listing, entries.into_iter().map(|entry| entry.name).collect());
            Ok(())
        };
        let begun = Instant::now();
        let outcome = tokio::time::timeout(LIST_MAX, listed).await;
        match outcome.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
            Ok(()) => failing_since = None,
            Err(error) => {
                let after = failing_since.get_or_insert(begun).elapsed();
                if is_definite(&error) || after >= RETRY_FOR {
                    return view.fail(fault(&*share, "list the folder of the move", after, error));
                }
                watch = None;
                tokio::time::sleep(FAILED_WAIT).await;
                continue;
            }
        }
        match &mut watch {
            None => tokio::time::sleep(POLL_EVERY).await,
            Some(told) => {
                if tokio::time::timeout(RELIST_EVERY, tell(&mut **told, &view)).await == Ok(Told::Over) {
                    watch = None;
                }
            }
        }
    }
}

/// How the telling of a watch ended.
#[derive(PartialEq, Eq)]
enum Told {
    /// Changes were lost.
    Lost,
    /// Nothing more is told.
    Over,
}

async fn tell(watch: &mut dyn Watch, view: &View) -> Told {
    loop {
        match watch.changes().await {
            Ok(changes) => {
                let is_lost = changes.contains(&Change::Unknown);
                view.apply(changes);
                if is_lost {
                    return Told::Lost;
                }
            }
            Err(_) => return Told::Over,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_file_is_in_flight_until_its_deletion_is_certain() {
        let view = View::new();
        view.publishing("a");
        let early = view.begin_listing();
        view.published("a");
        view.listed(early, names(&[]));
        assert!(view.is_in_flight("a"), "that listing had begun before");
        let next = view.begin_listing();
        view.listed(next, names(&["a"]));
        assert!(view.is_in_flight("a"));
        let last = view.begin_listing();
        view.listed(last, names(&[]));
        assert!(!view.is_in_flight("a"));
    }

    #[test]
    fn a_deletion_may_be_told_before_the_publication_is_answered() {
        let view = View::new();
        view.publishing("a");
        view.apply(vec![Change::Added("a".into()), Change::Removed("a".into())]);
        view.published("a");
        assert!(!view.is_in_flight("a") && !view.has("a"));
    }

    #[test]
    fn names_are_found_by_how_they_begin() {
        let view = View::new();
        view.apply(["b2", "a1", "b1", "c1"].map(|name| Change::Added(name.into())).into());
        assert_eq!(view.beginning("b"), ["b1", "b2"]);
        assert_eq!(view.find(|name| (name.as_str() > "b1").then(|| name.clone())), Some("b2".into()));
    }
}
