use proptest::prelude::*;

use super::*;

/// Measured on a quiet machine: LZ4, and zstd from -5 to 3.
const QUIET: [(f64, f64); CANDIDATES.len()] = [(891e6, 2.55), (879e6, 2.46), (700e6, 2.8), (515e6, 3.04), (250e6, 3.3)];
const NOTHING_SHRINKS: [(f64, f64); CANDIDATES.len()] =
    [(2e9, 1.0), (1.8e9, 1.0), (1.7e9, 1.0), (1.5e9, 1.0), (1e9, 1.0)];
const IDLE: CpuLoad = CpuLoad { idle_cpus: Some(3.0), some_percent: Some(2.0) };
const CROWDED: CpuLoad = CpuLoad { idle_cpus: Some(0.1), some_percent: Some(60.0) };

fn yields(of: [(f64, f64); CANDIDATES.len()]) -> [Option<Yield>; CANDIDATES.len()] {
    of.map(|(bytes_per_s, ratio)| Some(Yield { ratio, bytes_per_s }))
}

/// A stream in a simulated world, in steps of an interval.
struct World {
    state: State,
    now: Duration,
    link: f64,
    input: f64,
    cpu: CpuLoad,
    law: Law,
    yields: [Option<Yield>; CANDIDATES.len()],
    changes: u32,
    /// Plain bytes that arrived.
    arrived: f64,
}

impl World {
    fn new(link: f64, input: f64, of: [(f64, f64); CANDIDATES.len()]) -> Self {
        Self {
            state: State::default(),
            now: Duration::ZERO,
            link,
            input,
            cpu: IDLE,
            law: Law::Bulk,
            yields: yields(of),
            changes: 0,
            arrived: 0.0,
        }
    }

    /// Measured values are wrong by up to a tenth.
    fn run(&mut self, seconds: u32) -> Choice {
        for step in 0..seconds * 4 {
            let noise = 1.0 + f64::from((step * 7 + 3) % 11) / 50.0 - 0.1;
            let found = depth(self.state.choice).and_then(|depth| self.yields[depth.checked_sub(1)?]);
            let Yield { ratio, bytes_per_s } = found.unwrap_or(Yield { ratio: 1.0, bytes_per_s: f64::INFINITY });
            let plain = self.input.min(bytes_per_s).min(ratio * self.link);
            let limit = if plain == self.input {
                Limit::Input
            } else if plain == bytes_per_s {
                Limit::Encoder
            } else {
                Limit::Link
            };
            self.now += INTERVAL;
            self.arrived += plain * INTERVAL.as_secs_f64();
            let rates = Rates {
                input_bytes_per_s: plain * noise,
                wire_bytes_per_s: plain / ratio * noise,
                limit,
                yields: self
                    .yields
                    .map(|found| found.map(|found| Yield { bytes_per_s: found.bytes_per_s * noise, ..found })),
                cpu: self.cpu,
                law: self.law,
            };
            let after = next(&self.state, &rates, self.now);
            self.changes += u32::from(after.choice != self.state.choice);
            self.state = after;
        }
        self.state.choice
    }
}

#[test]
fn the_codec_follows_the_link_and_the_stream() {
    const UNLIMITED: f64 = 1e12;
    for (name, link, input, of, expected, gain) in [
        ("10 Gb/s outruns every codec", 1.25e9, UNLIMITED, QUIET, Choice::Raw, 0.99),
        ("5 Gb/s outruns the deep ones", 625e6, UNLIMITED, QUIET, Choice::Lz4, 1.2),
        ("1 Gb/s", 125e6, UNLIMITED, QUIET, Choice::Zstd(1), 2.7),
        ("100 Mb/s", 12.5e6, UNLIMITED, QUIET, Choice::Zstd(3), 3.0),
        ("nothing shrinks", 125e6, UNLIMITED, NOTHING_SHRINKS, Choice::Raw, 1.0),
        ("a guest that writes little, on a fast link", 1.25e9, 40e6, QUIET, Choice::Zstd(3), 1.0),
        ("as fast as the link, and no codec is free", 1.25e9, 1.1e9, QUIET, Choice::Raw, 1.0),
    ] {
        let mut world = World::new(link, input, of);
        let choice = world.run(60);
        assert_eq!(choice, expected, "{name}: {:?}", world.state);
        // The first half second, and measuring again, are the cost.
        let raw = link.min(input) * 60.0;
        assert!(world.arrived >= raw * gain, "{name}: {} of {raw}", world.arrived);
        assert!(world.changes <= 14, "{name}: {} changes", world.changes);
    }
}

#[test]
fn a_link_that_changes_is_followed() {
    let mut world = World::new(1.25e9, 1e12, QUIET);
    assert_eq!(world.run(10), Choice::Raw);
    world.link = 12.5e6;
    // They are nearly equal there, and the first that was chosen on the way stays.
    assert!(matches!(world.run(10), Choice::Zstd(1 | 3)), "{:?}", world.state);
    world.link = 1.25e9;
    // The encoder is the limit then, and only raw shows that it need not be.
    assert_eq!(world.run(35), Choice::Raw);
}

#[test]
fn guests_come_first() {
    let mut world = World::new(12.5e6, 1e12, QUIET);
    assert_eq!(world.run(5), Choice::Zstd(3));
    world.cpu = CROWDED;
    for expected in [Choice::Zstd(1), Choice::Zstd(-1), Choice::Zstd(-5), Choice::Lz4, Choice::Raw, Choice::Raw] {
        assert_eq!(world.run(1), expected);
    }
    // Not while the load only falls a little, and not as soon as a CPU is idle.
    world.cpu = CpuLoad { idle_cpus: Some(0.6), some_percent: Some(15.0) };
    assert_eq!(world.run(30), Choice::Raw);
    world.cpu = CROWDED;
    world.run(1);
    world.cpu = IDLE;
    assert_eq!(world.run(9), Choice::Raw);
    assert_eq!(world.run(2), Choice::Zstd(3));
    // It may go on when its own work leaves no CPU idle.
    world.cpu = CpuLoad { idle_cpus: Some(0.3), some_percent: Some(10.0) };
    assert_eq!(world.run(10), Choice::Zstd(3));
}

#[test]
fn what_a_load_lets_an_encoder_do() {
    for (idle_cpus, some_percent, room) in [
        (None, None, Room::More),
        (None, Some(5.0), Room::Same),
        (None, Some(50.0), Room::Less),
        (Some(4.0), None, Room::More),
        (Some(0.5), None, Room::Same),
        (Some(0.1), None, Room::Less),
        (Some(0.1), Some(5.0), Room::Same),
        (Some(0.1), Some(25.0), Room::Less),
        // On a large host something always waits.
        (Some(20.0), Some(60.0), Room::More),
    ] {
        assert_eq!(CpuLoad { idle_cpus, some_percent }.room(), room, "{idle_cpus:?} {some_percent:?}");
    }
    let shared = CpuLoad { idle_cpus: Some(4.0), some_percent: None }.shared(8);
    assert_eq!(shared.room(), Room::Same);
}

#[test]
fn nothing_is_tried_near_the_switchover() {
    let mut world = World::new(12.5e6, 1e12, QUIET);
    world.law = Law::Tail;
    assert_eq!((world.run(30), world.changes), (Choice::Raw, 0));
    world.law = Law::Bulk;
    let choice = world.run(5);
    world.law = Law::Tail;
    world.link = 1.25e9;
    assert_eq!(world.run(30), choice);
    world.cpu = CROWDED;
    assert_ne!(world.run(2), choice);
}

#[test]
fn what_the_stream_waits_for() {
    for (encoding, lane, held_back, limit) in [
        (0.9, 0.05, true, Limit::Encoder),
        (0.3, 0.05, true, Limit::Link),
        (0.3, 0.6, false, Limit::Link),
        (0.3, 0.05, false, Limit::Input),
        (0.0, 0.0, false, Limit::Input),
    ] {
        assert_eq!(Shares { encoding, lane, held_back }.limit(), limit, "{encoding} {lane} {held_back}");
    }
}

fn any_rate() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 1e3..1e6, 1e6..1e8, 1e8..2e10]
}

fn any_rates() -> impl Strategy<Value = Rates> {
    let found = prop::option::weighted(0.8, (1.0..20.0, 1e6..3e9))
        .prop_map(|found| found.map(|(ratio, bytes_per_s)| Yield { ratio, bytes_per_s }));
    let limit = prop_oneof![Just(Limit::Input), Just(Limit::Encoder), Just(Limit::Link)];
    let cpu = (prop::option::of(0.0..8.0), prop::option::of(0.0..100.0))
        .prop_map(|(idle_cpus, some_percent)| CpuLoad { idle_cpus, some_percent });
    let law = prop_oneof![3 => Just(Law::Bulk), 1 => Just(Law::Tail)];
    (any_rate(), any_rate(), limit, [(); CANDIDATES.len()].map(|()| found.clone().boxed()), cpu, law).prop_map(
        |(input_bytes_per_s, wire_bytes_per_s, limit, yields, cpu, law)| Rates {
            input_bytes_per_s,
            wire_bytes_per_s,
            limit,
            yields,
            cpu,
            law,
        },
    )
}

proptest! {
    #[test]
    fn no_codec_is_much_slower_than_raw_deeper_on_crowded_cpus_or_changed_too_often(
        history in prop::collection::vec((any_rates(), 1..8_u32), 1..80),
    ) {
        let (mut state, mut now) = (State::default(), Duration::ZERO);
        for (rates, intervals) in history {
            now += INTERVAL * intervals;
            let after = next(&state, &rates, now);
            let (before_depth, after_depth) = (depth(state.choice), depth(after.choice));
            prop_assert!(before_depth.is_some() && after_depth.is_some(), "a candidate");
            if after_depth > before_depth {
                prop_assert!(rates.cpu.room() == Room::More && rates.law == Law::Bulk);
                prop_assert!(now - state.since >= SETTLING && now >= state.paused_until);
            }
            if rates.cpu.room() == Room::Less {
                prop_assert!(after.paused_until >= now + PAUSE_OF_CROWDED);
            } else if rates.law == Law::Tail {
                prop_assert_eq!(after.choice, state.choice);
            } else if after.choice != Choice::Raw && after.link.is_some() {
                let [coded, raw] = [after.choice, Choice::Raw].map(|choice| seconds_per_byte(choice, &after, &rates));
                let (coded, raw) = (coded.expect("known"), raw.expect("known"));
                prop_assert!(coded <= raw * WORSE_THAN_RAW_MAX * 1.000_001, "{coded} {raw}");
            }
            state = after;
        }
    }
}
