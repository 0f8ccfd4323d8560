//! What the carriers of this host have carried: a sum that only rises while the agent runs. Each carrier tells its own
//! part with every answer.

use std::{collections::BTreeMap, sync::Mutex};

use ferry_core::{
    api::agent::Role,
    carried::{Carried, Stages, Waits},
    id::JobId,
    metrics::{Counter, Exposition},
};

use crate::lock::lock;

/// The sum over all carriers.
pub(crate) struct Totals {
    /// What each carrier that runs has told last.
    reported: Mutex<BTreeMap<JobId, Carried>>,
    bytes: Counter<3>,
    encoding_ms: Counter<2>,
    waited_ms: Counter<3>,
    changed_blocks: Counter<1>,
}

impl Default for Totals {
    fn default() -> Self {
        Self {
            reported: Mutex::default(),
            bytes: Counter::new(["role", "channel", "stage"]),
            encoding_ms: Counter::new(["role", "channel"]),
            waited_ms: Counter::new(["role", "channel", "for"]),
            changed_blocks: Counter::new(["role"]),
        }
    }
}

impl Totals {
    /// A carrier is started: all that it will carry counts.
    pub(crate) fn begin(&self, job: JobId) {
        lock(&self.reported).insert(job, Carried::default());
    }

    /// A carrier tells what it has carried. What a carrier had carried before this agent started has been counted already.
    pub(crate) fn add(&self, job: JobId, role: Role, now: Carried) {
        let mut reported = lock(&self.reported);
        let before = reported.entry(job).or_insert(now);
        let role = match role {
            Role::Source => "source",
            Role::Destination => "destination",
        };
        for (channel, before, now) in
            [("memory", &mut before.memory, now.memory), ("disk", &mut before.disks, now.disks)]
        {
            let Stages { plain, wire, zeroes, held, compressed_from, compressed_to, encoding_ms, waits } = now;
            for (stage, before, now) in [
                ("plain", &mut before.plain, plain),
                ("wire", &mut before.wire, wire),
                ("zeroes", &mut before.zeroes, zeroes),
                ("held", &mut before.held, held),
                ("compressed_from", &mut before.compressed_from, compressed_from),
                ("compressed_to", &mut before.compressed_to, compressed_to),
            ] {
                self.bytes.add([role, channel, stage], risen(before, now));
            }
            self.encoding_ms.add([role, channel], risen(&mut before.encoding_ms, encoding_ms));
            let Waits { source_ms, lane_ms, window_ms, limit_ms, delivery_ms } = waits;
            for (what, before, now) in [
                ("source", &mut before.waits.source_ms, source_ms),
                ("lane", &mut before.waits.lane_ms, lane_ms),
                ("window", &mut before.waits.window_ms, window_ms),
                ("limit", &mut before.waits.limit_ms, limit_ms),
                ("delivery", &mut before.waits.delivery_ms, delivery_ms),
            ] {
                self.waited_ms.add([role, channel, what], risen(before, now));
            }
        }
        self.changed_blocks.add([role], risen(&mut before.changed_blocks, now.changed_blocks));
    }

    /// A carrier has ended.
    pub(crate) fn end(&self, job: JobId) {
        lock(&self.reported).remove(&job);
    }

    /// Writes the metrics.
    pub(crate) fn write(&self, text: &mut Exposition) {
        let help = "Bytes of live moves that this host's carriers have carried, by stage";
        self.bytes.write(text, "ferry_agent_carried_bytes_total", help);
        let help = "Time that this host's encoders took, of all lanes together";
        self.encoding_ms.write(text, "ferry_agent_encoding_milliseconds_total", help);
        let help = "Time that the streams of live moves waited, of all channels together";
        self.waited_ms.write(text, "ferry_agent_waited_milliseconds_total", help);
        let help = "Blocks of unfinished copies that were something else than the source had been told";
        self.changed_blocks.write(text, "ferry_agent_changed_blocks_total", help);
    }
}

/// By how much a value has risen since; answers may overtake each other.
fn risen(before: &mut u64, now: u64) -> u64 {
    let more = now.saturating_sub(*before);
    *before += more;
    more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(totals: &Totals) -> String {
        let mut text = Exposition::default();
        totals.write(&mut text);
        text.into_text()
    }

    #[test]
    fn each_byte_is_counted_once_also_of_a_carrier_that_is_older_than_the_agent() {
        let (totals, started, found) = (Totals::default(), JobId(1), JobId(2));
        let disks = |wire, held| Carried { disks: Stages { wire, held, ..Stages::default() }, ..Carried::default() };
        totals.begin(started);
        for (job, carried, wire, held) in [
            (started, disks(10, 1), 10, 1),
            (started, disks(30, 1), 30, 1),
            // An answer that was overtaken.
            (started, disks(20, 1), 30, 1),
            (found, disks(1000, 100), 30, 1),
            (found, disks(1005, 107), 35, 8),
            (started, disks(31, 1), 36, 8),
        ] {
            totals.add(job, Role::Source, carried);
            let text = text(&totals);
            for (stage, value) in [("wire", wire), ("held", held)] {
                let line = format!(
                    "ferry_agent_carried_bytes_total{{role=\"source\",channel=\"disk\",stage=\"{stage}\"}} {value}\n"
                );
                assert!(text.contains(&line), "{line} {text}");
            }
        }
        totals.end(started);
        totals.begin(started);
        totals.add(started, Role::Destination, Carried { changed_blocks: 3, ..Carried::default() });
        assert!(
            text(&totals).contains("ferry_agent_changed_blocks_total{role=\"destination\"} 3\n"),
            "{}",
            text(&totals)
        );
    }
}
