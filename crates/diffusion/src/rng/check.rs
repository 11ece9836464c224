//! The golden of the generators, made by `golden/rng.py`, and the checks that need it.

use super::{Generator, RNGS, RngState, find};
use crate::noise::NoiseSource;
use serde::Deserialize;

/// `golden/rng.json`.
#[derive(Deserialize)]
pub(super) struct Golden {
    runs: Vec<Run>,
    pub(super) exhaustive: Exhaustive,
}

/// A seed and the sizes drawn from it one after another.
#[derive(Deserialize)]
struct Run {
    seed: u64,
    calls: Vec<Call>,
}

/// One call of `torch.randn(size)`.
#[derive(Deserialize)]
struct Call {
    size: usize,
    /// Of the values' little-endian bytes.
    crc32: u32,
    /// The first two values' bits, for a failure that says something.
    head: Vec<u32>,
}

/// All pairs of uniforms `k` and `k * stride` modulo 2^24.
#[derive(Deserialize)]
pub(super) struct Exhaustive {
    pub(super) stride: u32,
    pub(super) crc32: u32,
}

impl Golden {
    pub(super) fn read() -> Self {
        let path = aquatint_testkit::golden("rng.json");
        let text = std::fs::read_to_string(path).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

/// CRC-32 as zlib's, continued from `crc`.
pub(super) fn crc32(crc: u32, values: &[f32]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let mut c = i as u32;
            let mut bit = 0;
            while bit < 8 {
                c = (c >> 1) ^ (0xedb8_8320 * (c & 1));
                bit += 1;
            }
            table[i] = c;
            i += 1;
        }
        table
    };
    !values
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .fold(!crc, |c, byte| {
            (c >> 8) ^ TABLE[((c as u8) ^ byte) as usize]
        })
}

fn draw(rng: &mut Generator, size: usize) -> Vec<f32> {
    let mut out = vec![0.0; size];
    rng.normal(&mut out);
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn the_checksum_is_zlibs() {
    // zlib.crc32(struct.pack("<2f", 1.0, -2.5))
    assert_eq!(crc32(0, &[1.0, -2.5]), 0x5603_02f4);
    assert_eq!(crc32(crc32(0, &[1.0]), &[-2.5]), 0x5603_02f4);
}

#[test]
fn torch_cpu_equals_torch_bit_for_bit() {
    let golden = Golden::read();
    assert!(golden.runs.len() > 20);
    for run in &golden.runs {
        let mut rng = Generator::from_name("torch-cpu", run.seed).unwrap();
        for (i, call) in run.calls.iter().enumerate() {
            let values = draw(&mut rng, call.size);
            let head = &bits(&values)[..call.head.len()];
            let context = format!("seed {}, call {i} of {} values", run.seed, call.size);
            assert_eq!(head, call.head, "{context}");
            assert_eq!(crc32(0, &values), call.crc32, "{context}");
        }
    }
}

#[test]
fn philox_gives_the_values_that_cuda_is_known_for() {
    // torch.manual_seed(0); torch.randn(3, 4, device="cuda"), as AUTOMATIC1111 records it in
    // modules/rng_philox.py.
    let expected = [
        -0.924_662_6,
        -0.425_344_15,
        -2.643_845_7,
        0.145_183_88,
        -0.120_866_47,
        -0.579_725_6,
        -0.622_851_2,
        -0.328_387_1,
        -1.074_542_3,
        -0.363_144_07,
        -1.671_050_7,
        2.265_505,
    ];
    let mut rng = Generator::from_name("philox", 0).unwrap();
    for (got, want) in draw(&mut rng, 12).into_iter().zip(expected) {
        // Four units in the last place of 2: the record comes from a transform in double precision.
        assert!((got - want).abs() < 1e-6_f32, "{got} for {want}");
    }
    // The second call goes on, and a longer call begins as a shorter one.
    let second = draw(&mut rng, 12);
    let mut again = Generator::from_name("cuda", 0).unwrap();
    let first = draw(&mut again, 1000);
    assert_ne!(first[..12], second[..]);
    assert_eq!(draw(&mut again, 5), second[..5]);
}

#[test]
fn a_saved_generator_goes_on_where_it_was() {
    for info in RNGS {
        for calls in [&[][..], &[3], &[17, 1], &[700, 5, 20]] {
            let mut rng = (info.from_seed)(7);
            for &size in calls {
                draw(&mut rng, size);
            }
            let text = serde_json::to_string(&rng.state()).unwrap();
            let state: RngState = serde_json::from_str(&text).unwrap();
            let mut loaded = Generator::from_state(&state).unwrap();
            let mut copy = rng.clone();
            for size in [1, 2, 40, 0, 7, 1300] {
                let expected = draw(&mut rng, size);
                assert_eq!(bits(&draw(&mut loaded, size)), bits(&expected));
                assert_eq!(bits(&draw(&mut copy, size)), bits(&expected));
            }
        }
    }
}

#[test]
fn a_damaged_state_is_an_error() {
    let bad = |words, used, spare| {
        let state = RngState::TorchCpu { words, used, spare };
        Generator::from_state(&state).map(|_| ()).unwrap_err()
    };
    says(&bad(vec![1; 5], 0, None).to_string(), "5 words");
    says(
        &bad(vec![1; 624], 625, None).to_string(),
        "625 of them used",
    );
    says(&bad(vec![1; 624], 0, Some(f64::NAN)).to_string(), "NaN");
}

fn says(message: &str, part: &str) {
    assert!(message.contains(part), "{message}");
}

#[test]
fn names_are_unique_and_found() {
    let mut seen = std::collections::BTreeSet::new();
    for info in RNGS {
        for name in std::iter::once(&info.name).chain(info.aliases) {
            assert!(seen.insert(*name), "{name} twice");
            assert_eq!(find(&name.to_uppercase()).unwrap().name, info.name);
        }
        let mut rng = (info.from_seed)(1);
        assert!(draw(&mut rng, 33).iter().all(|v| v.is_finite()));
    }
    let error = Generator::from_name("xorshift", 0).unwrap_err().to_string();
    for info in RNGS {
        assert!(error.contains(info.name), "{error}");
    }
}
