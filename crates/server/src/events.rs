//! Numbered change events for any number of listeners. A slow listener loses events and is told so.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use ferry_core::api::server::Event;
use tokio::sync::broadcast;

use crate::clock::now_ms;

/// How many events a returning listener can catch up with, and how far a slow one may lag behind: some minutes of one
/// moving VM.
const RING_EVENTS_MAX: usize = 512;

/// An event in the form in which it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Numbered {
    /// Rises by one with each event; starts above all numbers of earlier runs of the server.
    pub(crate) sequence: u64,
    /// The event's name.
    pub(crate) name: &'static str,
    /// The event as JSON.
    pub(crate) json: Arc<str>,
}

/// The ring of recent events.
#[derive(Debug)]
pub(crate) struct Events {
    ring: Mutex<Ring>,
    live: broadcast::Sender<Numbered>,
}

#[derive(Debug)]
struct Ring {
    recent: VecDeque<Numbered>,
    next: u64,
}

/// A listener's events: first those that it missed, then new ones.
#[derive(Debug)]
pub(crate) struct Subscription {
    missed: VecDeque<Numbered>,
    live: broadcast::Receiver<Numbered>,
    last: u64,
}

impl Events {
    pub(crate) fn new() -> Self {
        // Below 2^53 for a hundred years, so JavaScript can represent it.
        let next = now_ms() << 10;
        let ring = Ring { recent: VecDeque::with_capacity(RING_EVENTS_MAX), next };
        Self { ring: Mutex::new(ring), live: broadcast::Sender::new(RING_EVENTS_MAX) }
    }

    pub(crate) fn publish(&self, event: &Event) {
        let json = serde_json::to_string(event).expect("our types have text keys only").into();
        let mut ring = self.ring.lock().expect("nobody panics with it");
        let numbered = Numbered { sequence: ring.next, name: name_of(event), json };
        ring.next += 1;
        if ring.recent.len() == RING_EVENTS_MAX {
            ring.recent.pop_front();
        }
        ring.recent.push_back(numbered.clone());
        // Under the lock, so that a subscription neither misses nor repeats an event. Sending fails if there are no
        // listeners.
        let _ = self.live.send(numbered);
    }

    /// Subscribes to all events after `last`, or to new events only.
    pub(crate) fn subscribe(&self, last: Option<u64>) -> Subscription {
        let ring = self.ring.lock().expect("nobody panics with it");
        let live = self.live.subscribe();
        let newest = ring.next - 1;
        let missed = match last {
            None => VecDeque::new(),
            Some(last) => {
                let oldest = ring.recent.front().map_or(ring.next, |event| event.sequence);
                if last <= newest && last + 1 >= oldest {
                    ring.recent.iter().filter(|event| event.sequence > last).cloned().collect()
                } else {
                    VecDeque::from([reset(newest)])
                }
            }
        };
        Subscription { missed, live, last: newest }
    }
}

impl Subscription {
    /// The next event; `None` if there will be no more.
    pub(crate) async fn next(&mut self) -> Option<Numbered> {
        if let Some(event) = self.missed.pop_front() {
            return Some(event);
        }
        match self.live.recv().await {
            Ok(event) => {
                self.last = event.sequence;
                Some(event)
            }
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                self.last += lost;
                Some(reset(self.last))
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

fn reset(sequence: u64) -> Numbered {
    let json = serde_json::to_string(&Event::Reset).expect("our types have text keys only").into();
    Numbered { sequence, name: name_of(&Event::Reset), json }
}

fn name_of(event: &Event) -> &'static str {
    match event {
        Event::Job(_) => "job",
        Event::Host { .. } => "host",
        Event::Reset => "reset",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Event {
        Event::Host { name: name.to_owned() }
    }

    #[tokio::test]
    async fn a_returning_listener_gets_what_it_missed_and_then_what_comes() {
        let events = Events::new();
        let mut first = events.subscribe(None);
        events.publish(&host("a"));
        events.publish(&host("b"));
        let seen = first.next().await.expect("an event").sequence;
        let mut again = events.subscribe(Some(seen));
        events.publish(&host("c"));
        for name in ["b", "c"] {
            let event = again.next().await.expect("an event");
            assert!(event.json.contains(&format!("{name:?}")), "{event:?}");
        }
    }

    #[tokio::test]
    async fn a_listener_that_lost_events_is_told_so() {
        let events = Events::new();
        events.publish(&host("a"));
        let first = events.subscribe(None).last;
        let mut slow = events.subscribe(None);
        for _ in 0..=RING_EVENTS_MAX {
            events.publish(&host("b"));
        }
        assert_eq!(slow.next().await.expect("an event").name, "reset");
        assert_eq!(events.subscribe(Some(first)).next().await.expect("an event").name, "reset");
        // An id of another run of the server.
        for foreign in [5, u64::MAX - 1] {
            assert_eq!(events.subscribe(Some(foreign)).next().await.expect("an event").name, "reset");
        }
    }
}
