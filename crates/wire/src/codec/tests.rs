use proptest::prelude::*;

use super::*;
use crate::frame::DATA_BYTES_MAX;

const CHOICES: [Choice; 7] = [
    Choice::Raw,
    Choice::Lz4,
    Choice::Zstd(-5),
    Choice::Zstd(1),
    Choice::Zstd(3),
    Choice::ZstdLong(-5),
    Choice::ZstdLong(1),
];

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(next).collect()
}

/// Pieces as a guest's memory has: zeroes, words, noise, and each of them again.
fn any_plain() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![1..2000_usize, Just(DATA_BYTES_MAX), 1..=DATA_BYTES_MAX];
    (length, 0..4_u8, 0..4_u64).prop_map(|(length, kind, seed)| match kind {
        0 => vec![seed as u8; length],
        1 => format!("the page {seed} of a guest; ").into_bytes().into_iter().cycle().take(length).collect(),
        2 => noise(length, seed),
        _ => [noise(length / 2, seed), vec![0; length - length / 2]].concat(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_the_codec_of_each_frame_all_of_them_arrive(
        frames in prop::collection::vec((any_plain(), 0..CHOICES.len()), 1..20),
        lanes in 1..=8_u8,
    ) {
        let (mut encoders, mut decoders, mut coded) = (Encoders::new(lanes), Decoders::new(lanes), Vec::new());
        for (plain, choice) in frames {
            let codec = encoders.encode(CHOICES[choice], &plain, &mut coded);
            if codec == Codec::Raw {
                continue;
            }
            prop_assert!(codec == codec_of(CHOICES[choice]) && plain.len() >= CODED_BYTES_MIN);
            let bytes_max = if codec == Codec::ZstdLong { plain.len() + CODED_EXTRA_BYTES_MAX } else { plain.len() - 1 };
            prop_assert!((1..=bytes_max).contains(&coded.len()), "{codec:?}: {} of {}", coded.len(), plain.len());
            let mut decoded = vec![0; plain.len()];
            prop_assert!(decoders.decode(codec, &coded, &mut decoded));
            prop_assert!(decoded == plain, "{codec:?}");
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(
        frames in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..200), 0..4000_usize, 0..Codec::ALL.len()), 1..20),
    ) {
        let mut decoders = Decoders::new(1);
        for (bytes, length, codec) in frames {
            decoders.decode(Codec::ALL[codec], &bytes, &mut vec![0; length]);
        }
    }

    #[test]
    fn a_damaged_frame_is_refused_or_has_another_checksum(
        plain in any_plain(),
        choice in 1..CHOICES.len(),
        at: prop::sample::Index,
        bit in 0..8_u8,
        cut: prop::sample::Index,
    ) {
        let mut coded = Vec::new();
        let codec = Encoders::new(1).encode(CHOICES[choice], &plain, &mut coded);
        if codec != Codec::Raw {
            let mut decoded = vec![0; plain.len()];
            let cut = cut.index(coded.len());
            let is_decoded = Decoders::new(1).decode(codec, &coded[..cut], &mut decoded);
            prop_assert!(!is_decoded || decoded == plain, "cut at {cut}");
            prop_assert!(!Decoders::new(1).decode(codec, &coded, &mut vec![0; plain.len() + 1]), "longer");
            // With a window, the rest may wait for the next frame; the checksum tells.
            let is_shorter = Decoders::new(1).decode(codec, &coded, &mut vec![0; plain.len() - 1]);
            prop_assert!(!is_shorter || codec == Codec::ZstdLong, "shorter");
            let at = at.index(coded.len());
            coded[at] ^= 1 << bit;
            Decoders::new(1).decode(codec, &coded, &mut decoded);
        }
    }
}

#[test]
fn what_was_sent_before_is_nearly_free_within_the_long_window() {
    let (mut encoders, mut decoders, mut coded) = (Encoders::new(1), Decoders::new(1), Vec::new());
    let mut plain = vec![0; DATA_BYTES_MAX];
    // 16 MiB of noise, again and again.
    for (pass, bytes_max) in [(0, DATA_BYTES_MAX + CODED_EXTRA_BYTES_MAX), (1, 2000), (2, 2000)] {
        for frame in 0..64 {
            let noise = noise(DATA_BYTES_MAX, 77 + frame);
            assert_eq!(encoders.encode(Choice::ZstdLong(1), &noise, &mut coded), Codec::ZstdLong);
            assert!(coded.len() <= bytes_max, "pass {pass}: {} bytes", coded.len());
            assert!(decoders.decode(Codec::ZstdLong, &coded, &mut plain) && plain == noise);
        }
    }
}

#[test]
fn a_window_beyond_the_limit_is_refused() {
    assert_eq!([1, 2, 3, 4, 5, 8].map(zstd::window_log), [27, 26, 25, 25, 24, 24]);
    let (mut coded, mut plain) = (Vec::new(), vec![0; 1000]);
    assert_eq!(Encoders::new(1).encode(Choice::ZstdLong(1), &[7; 1000], &mut coded), Codec::ZstdLong);
    assert!(Decoders::new(1).decode(Codec::ZstdLong, &coded, &mut plain));
    assert!(!Decoders::new(2).decode(Codec::ZstdLong, &coded, &mut plain));
}

#[test]
fn codecs_are_sets() {
    let (all, zstd) = (Codecs::all(), Codecs::from_byte(0b10).expect("known"));
    assert!(Codec::ALL.iter().all(|codec| all.contain(*codec)));
    assert!(zstd.contain(Codec::Raw) && zstd.contain(Codec::Zstd) && !zstd.contain(Codec::Lz4));
    assert_eq!((all.common(zstd), Codecs::NONE.common(zstd)), (zstd, Codecs::NONE));
    assert_eq!(Codecs::from_byte(0b1000), None, "of a newer program");
    assert_eq!(Codecs::from_abilities(u32::MAX), all);
    assert_eq!((Codecs::from_abilities(1), Codecs::NONE.to_abilities()), (Codecs::NONE, 1));
    assert_eq!(Codecs::from_abilities(zstd.to_abilities()), zstd);
}
