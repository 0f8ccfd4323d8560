use super::*;

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(next).collect()
}

fn fixed(codecs: Codecs, choice: Choice) -> Adaptive {
    Adaptive::new(codecs, 1, Compression { fixed: Some(choice), cpu: None })
}

#[test]
fn a_codec_that_was_not_agreed_is_not_used() {
    let (zeroes, mut coded) = (vec![0; 1000], Vec::new());
    let lz4 = Codecs::from_byte(1).expect("known");
    for (choice, codec) in [(Choice::Lz4, Codec::Lz4), (Choice::Zstd(1), Codec::Raw), (Choice::ZstdLong(1), Codec::Raw)]
    {
        assert_eq!(fixed(lz4, choice).encode(&zeroes, &mut coded), codec);
    }
}

#[test]
fn frames_that_do_not_shrink_go_as_they_are_and_those_of_a_long_window_always_coded() {
    let (noise, zeroes, mut coded) = (noise(100_000), vec![0; 100_000], Vec::new());
    for choice in [Choice::Lz4, Choice::Zstd(1)] {
        let mut encoder = fixed(Codecs::all(), choice);
        for _ in 0..3 {
            assert_eq!(encoder.encode(&noise, &mut coded), Codec::Raw);
        }
        // Not tried at once, but soon.
        let raw = (0..40).take_while(|_| encoder.encode(&zeroes, &mut coded) == Codec::Raw).count();
        assert!((1..32).contains(&raw), "{raw}");
        assert_eq!(encoder.encode(&zeroes, &mut coded), codec_of(choice));
    }
    let mut long = fixed(Codecs::all(), Choice::ZstdLong(1));
    for length_min in [99_000, 0] {
        assert_eq!(long.encode(&noise, &mut coded), Codec::ZstdLong);
        assert!((length_min..length_min + 1500).contains(&coded.len()), "{}", coded.len());
    }
}

#[test]
fn a_sample_of_every_candidate_tells_what_it_makes_of_the_stream() {
    let (mut sampler, frame) = (Adaptive::new(Codecs::all(), 1, Compression::default()).sampler, vec![7; 256 << 10]);
    sampler.sample(Codecs::all(), &frame[..SAMPLE_BYTES - 1]);
    assert_eq!(sampler.samples, 0, "a frame that is too short tells little");
    for _ in 0..10 {
        sampler.sample(Codecs::all(), &frame);
    }
    assert!((1..10).contains(&sampler.samples), "not with every frame");
    let yields = sampler.trials.yields();
    assert!(yields.iter().all(|found| found.is_some_and(|found| found.ratio > 100.0)), "{yields:?}");
}
