//! What a live move's channels have carried, as text.

use ferry_core::{
    carried::{Bottleneck, Stages},
    units::ByteCount,
};

/// What became of a part of a VM on its way, and what it waited for. Empty if nothing of it moved.
pub(super) fn line(what: &str, stages: &Stages) -> String {
    if stages.plain == 0 {
        return String::new();
    }
    let mut text = format!("  {what:<7} {} from QEMU", ByteCount(stages.plain + stages.zeroes + stages.held));
    for (count, became) in [(stages.zeroes, "zeroes"), (stages.held, "at the destination already")] {
        if count > 0 {
            text += &format!(", {} {became}", ByteCount(count));
        }
    }
    if stages.compressed_from > 0 {
        text += &format!(", {} compressed to {}", ByteCount(stages.compressed_from), ByteCount(stages.compressed_to));
    }
    text += &format!(" → {} on the wire\n", ByteCount(stages.wire));
    if let Some((bottleneck, percent)) = stages.bottleneck() {
        let waited = match bottleneck {
            Bottleneck::Source => "the source's QEMU, which reads it",
            Bottleneck::Compression => "the source's CPUs, which compress it",
            Bottleneck::Link => "the network",
            Bottleneck::Destination => "the destination's QEMU, which writes it",
            Bottleneck::Limit => "the limit that was set",
        };
        text += &format!("  {:<7} waited most for {waited}: {percent} % of its waiting\n", "");
    }
    text
}

#[cfg(test)]
mod tests {
    use ferry_core::carried::Waits;

    use super::*;

    #[test]
    fn each_stage_is_told_and_what_was_waited_for() {
        const MIB: u64 = 1 << 20;
        assert_eq!(line("memory", &Stages::default()), "");
        let plain = Stages { plain: 300 * MIB, wire: 301 * MIB, ..Stages::default() };
        assert_eq!(line("memory", &plain), "  memory  300.0 MiB from QEMU → 301.0 MiB on the wire\n");
        let waits = Waits { source_ms: 100, window_ms: 900, ..Waits::default() };
        let all = Stages {
            zeroes: 500 * MIB,
            held: 200 * MIB,
            compressed_from: 280 * MIB,
            compressed_to: 100 * MIB,
            wire: 120 * MIB,
            waits,
            ..plain
        };
        assert_eq!(
            line("disks", &all),
            "  disks   1000.0 MiB from QEMU, 500.0 MiB zeroes, 200.0 MiB at the destination already, \
             280.0 MiB compressed to 100.0 MiB → 120.0 MiB on the wire\n          waited most for the network: 90 % of its waiting\n"
        );
    }
}
