//! Reading weights: the numbers are right, and whatever is wrong with a file is an error of its own, never a panic. The
//! oracle for what is valid is the `safetensors` crate.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use jevons_model::{
    Config,
    checkpoint::{Checkpoint, CheckpointError, StoredDtype},
};
use proptest::prelude::*;
use safetensors::{SafeTensors, tensor::TensorView as Oracle};
use tempfile::tempdir;

/// A file of this header and data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A file with these tensors, by the reference implementation.
fn written(tensors: &[(&str, StoredDtype, &[usize], Vec<u8>)]) -> Vec<u8> {
    let views =
        tensors.iter().map(|(name, dtype, shape, data)| (*name, Oracle::new(*dtype, shape.to_vec(), data).unwrap()));
    safetensors::serialize(views, Some(HashMap::from([("format".into(), "pt".into())]))).unwrap()
}

/// A small file of several formats.
fn small() -> Vec<u8> {
    written(&[
        ("a", StoredDtype::F32, &[2, 3], (0..24).collect()),
        ("b", StoredDtype::BF16, &[5], (0..10).collect()),
        ("empty", StoredDtype::F32, &[0, 4], vec![]),
        ("scalar", StoredDtype::I64, &[], vec![1; 8]),
    ])
}

fn error(bytes: &[u8]) -> String {
    Checkpoint::from_bytes(bytes).expect_err("accepted").to_string()
}

fn le<const N: usize, T: Copy>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&v| bytes(v)).collect()
}

// Values.

#[test]
fn f32_bf16_and_f16_are_read_exactly() {
    let values = [0.0_f32, -0.0, 1.0, -2.5, 65504.0, f32::INFINITY, f32::NEG_INFINITY, 6.103_515_6e-5];
    let as_bf16 = le(&values, |x| half::bf16::from_f32(x).to_le_bytes());
    let as_f16 = le(&values, |x| half::f16::from_f32(x).to_le_bytes());
    let bytes = written(&[
        ("f32", StoredDtype::F32, &[2, 4], le(&values, f32::to_le_bytes)),
        ("bf16", StoredDtype::BF16, &[8], as_bf16),
        ("f16", StoredDtype::F16, &[8], as_f16),
    ]);
    let checkpoint = Checkpoint::from_bytes(&bytes).unwrap();
    let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert_eq!(bits(checkpoint.read_f32("f32", &[2, 4]).unwrap()), bits(values.to_vec()));
    assert_eq!(bits(checkpoint.read_f32("f16", &[8]).unwrap()), bits(values.to_vec()));
    // 65504 has 11 significant bits; bf16 keeps 8.
    let rounded = values.map(|x| if x == 65504.0 { 65536.0 } else { x });
    assert_eq!(bits(checkpoint.read_f32("bf16", &[8]).unwrap()), bits(rounded.to_vec()));
}

#[test]
fn every_bf16_number_keeps_its_bits_through_f32() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let bytes = written(&[("all", StoredDtype::BF16, &[65_536], le(&all, u16::to_le_bytes))]);
    let read = Checkpoint::from_bytes(&bytes).unwrap().read_f32("all", &[65_536]).unwrap();
    assert!(read.iter().zip(&all).all(|(f, &b)| f.to_bits() == u32::from(b) << 16));
}

#[test]
fn f32_is_read_as_bf16_rounded_to_nearest_even() {
    // In sixteenths of the last place kept: exact, below half, half to even down, above half, half to even up.
    let bits = [0x3f80_0000_u32, 0x3f80_7fff, 0x3f80_8000, 0x3f80_8001, 0x3f81_8000, 0xbf81_8000, 0x7f7f_ffff];
    let want = [0x3f80_u16, 0x3f80, 0x3f80, 0x3f81, 0x3f82, 0xbf82, 0x7f80];
    let bytes = written(&[("x", StoredDtype::F32, &[7], le(&bits, u32::to_le_bytes))]);
    let read = Checkpoint::from_bytes(&bytes).unwrap().read_bf16("x", &[7]).unwrap();
    assert_eq!(read.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), want);
}

#[test]
fn whole_numbers_of_every_width_are_read() {
    let bytes = written(&[
        ("i64", StoredDtype::I64, &[2], le(&[i64::MIN, 7], i64::to_le_bytes)),
        ("i32", StoredDtype::I32, &[1], le(&[-7], i32::to_le_bytes)),
        ("u16", StoredDtype::U16, &[1], le(&[65_535], u16::to_le_bytes)),
        ("u8", StoredDtype::U8, &[2], vec![0, 255]),
        ("u64", StoredDtype::U64, &[1], le(&[u64::MAX], u64::to_le_bytes)),
        ("f32", StoredDtype::F32, &[1], vec![0; 4]),
    ]);
    let checkpoint = Checkpoint::from_bytes(&bytes).unwrap();
    let read = |name| checkpoint.get(name).unwrap().to_i64();
    assert_eq!(read("i64").unwrap(), [i64::MIN, 7]);
    assert_eq!(read("i32").unwrap(), [-7]);
    assert_eq!(read("u16").unwrap(), [65_535]);
    assert_eq!(read("u8").unwrap(), [0, 255]);
    assert_eq!(
        read("u64").unwrap_err().to_string(),
        "<memory>: `u64` has a value of 18446744073709551615, expected a number below 2^63"
    );
    assert_eq!(
        read("f32").unwrap_err().to_string(),
        "<memory>: `f32` is stored as F32, expected a format of whole numbers (I64, I32, U32, ...); is it another model's?"
    );
}

#[test]
fn a_checkpoint_tells_what_it_holds() {
    let bytes = small();
    let checkpoint = Checkpoint::from_bytes(&bytes).unwrap();
    let mut names: Vec<&str> = checkpoint.names().collect();
    names.sort_unstable();
    assert_eq!(names, ["a", "b", "empty", "scalar"]);
    assert_eq!(checkpoint.metadata(), &BTreeMap::from([("format".into(), "pt".into())]));
    assert_eq!(checkpoint.tensor_bytes(), 24 + 10 + 8);
    assert_eq!(checkpoint.read_f32("empty", &[0, 4]).unwrap(), [0.0; 0]);
    assert!(checkpoint.get("c").is_none());
    let a = checkpoint.get("a").unwrap();
    assert_eq!((a.name, a.dtype, a.shape), ("a", StoredDtype::F32, &[2, 3][..]));
    assert_eq!(a.bytes, (0..24).collect::<Vec<u8>>());
}

#[test]
fn the_stored_format_is_that_of_most_bytes() {
    let stored = |f32s: usize, bf16s: usize| {
        let bytes = written(&[
            ("f", StoredDtype::F32, &[f32s], vec![0; 4 * f32s]),
            ("b", StoredDtype::BF16, &[bf16s], vec![0; 2 * bf16s]),
        ]);
        let checkpoint = Checkpoint::from_bytes(&bytes).unwrap();
        (checkpoint.stored_dtype().unwrap(), checkpoint.is_mostly_f32())
    };
    assert_eq!(stored(10, 21), (StoredDtype::BF16, false));
    assert_eq!(stored(10, 19), (StoredDtype::F32, true));
    assert_eq!(Checkpoint::from_bytes(&file("{}", b"")).unwrap().stored_dtype(), None);
}

#[test]
fn tensors_that_the_config_does_not_know_are_listed() {
    let config =
        Config::from_file(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/configs/parity-qwen2.json"));
    let x = |name| (name, StoredDtype::F32, &[1][..], vec![0; 4]);
    let bytes = written(&[
        x("model.norm.weight"),
        x("model.layers.2.enorm.weight"),
        x("model.layers.0.self_attn.rotary_emb.inv_freq"),
    ]);
    assert_eq!(
        Checkpoint::from_bytes(&bytes).unwrap().unexpected(&config.unwrap()),
        ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.2.enorm.weight"]
    );
}

// Another model's tensors.

#[test]
fn a_missing_tensor_another_shape_and_another_format_have_messages_of_their_own() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let fp8 = ("fp8", StoredDtype::F8_E4M3, &[2][..], vec![0; 2]);
    let int = ("int", StoredDtype::I64, &[1][..], vec![0; 8]);
    fs::write(&path, written(&[fp8, int, ("w", StoredDtype::F32, &[2, 3], vec![0; 24])])).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let error = |name: &str, shape: &[usize]| checkpoint.read_f32(name, shape).unwrap_err().to_string();
    let path = path.display();
    assert_eq!(
        error("v", &[1]),
        format!("{path}: has no tensor `v`, which config.json asks for; is it another model's?")
    );
    assert_eq!(error("w", &[3, 2]), format!("{path}: `w` is [2, 3], config.json asks [3, 2]; is it another model's?"));
    assert_eq!(error("w", &[6]), format!("{path}: `w` is [2, 3], config.json asks [6]; is it another model's?"));
    assert_eq!(
        error("int", &[1]),
        format!(
            "{path}: `int` is stored as I64, expected BF16, F16, F32, or for a matrix F8_E4M3 with scales; is it another model's?"
        )
    );
    assert_eq!(
        error("fp8", &[2]),
        format!(
            "{path}: `fp8` is stored as F8_E4M3, expected BF16, F16, F32, or for a matrix F8_E4M3 with scales; is it another model's?"
        )
    );
}

// Block FP8.

/// A weight of 130 × 257 codes, and scales 1 to 6.
const WEIGHT: &[usize] = &[130, 257];

fn fp8(scales: (StoredDtype, &[usize], Vec<u8>)) -> Vec<u8> {
    let codes = (0..130 * 257).map(|i| (i % 127) as u8).collect();
    written(&[("w", StoredDtype::F8_E4M3, WEIGHT, codes), ("w_scale_inv", scales.0, scales.1, scales.2)])
}

fn six(dtype: StoredDtype) -> Vec<u8> {
    let values = [1.0_f32, 2.0, 4.0, 0.5, 0.25, 0.125];
    match dtype {
        StoredDtype::F32 => le(&values, f32::to_le_bytes),
        StoredDtype::BF16 => le(&values, |x| half::bf16::from_f32(x).to_le_bytes()),
        _ => vec![127, 128, 129, 126, 125, 124],
    }
}

#[test]
fn fp8_is_code_times_the_scale_of_its_block_whatever_the_scale_is_stored_as() {
    use jevons_kernels::formats::from_e4m3;
    for dtype in [StoredDtype::F32, StoredDtype::BF16, StoredDtype::F8_E8M0, StoredDtype::U8] {
        let bytes = fp8((dtype, &[2, 3], six(dtype)));
        let checkpoint = Checkpoint::from_bytes(&bytes).unwrap();
        let all = checkpoint.read_f32("w", WEIGHT).unwrap();
        for (row, col, scale) in [
            (0, 0, 1.0),
            (127, 127, 1.0),
            (0, 128, 2.0),
            (127, 255, 2.0),
            (5, 256, 4.0),
            (128, 127, 0.5),
            (129, 128, 0.25),
            (129, 256, 0.125),
        ] {
            let at = row * 257 + col;
            assert_eq!(all[at], from_e4m3((at % 127) as u8) * scale, "{dtype} {row} {col}");
        }
        // In pieces the same, however they are cut.
        let rows = checkpoint.rows("w", WEIGHT).unwrap();
        assert_eq!((rows.rows(), rows.cols()), (130, 257));
        let mut part = vec![0.0; 3 * 257];
        rows.read(126..129, &mut part).unwrap();
        assert_eq!(part, all[126 * 257..129 * 257]);
        for (first, len) in [(0, 257), (100, 100), (127, 2), (256, 1), (257, 0)] {
            let mut part = vec![0.0; len];
            rows.read_part(129, first, &mut part).unwrap();
            assert_eq!(part, all[129 * 257 + first..][..len]);
        }
        let rounded = checkpoint.read_bf16("w", WEIGHT).unwrap();
        assert!(rounded.iter().zip(&all).all(|(r, x)| *r == half::bf16::from_f32(*x)));
    }
}

#[test]
fn a_weight_and_its_scales_may_lie_in_different_shards() {
    let dir = tempdir().unwrap();
    let index = r#"{"weight_map": {"w": "b.safetensors", "w_scale_inv": "a.safetensors"}}"#;
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let scales = ("w_scale_inv", StoredDtype::F32, &[1, 1][..], 0.5_f32.to_le_bytes().to_vec());
    fs::write(dir.path().join("a.safetensors"), written(&[scales])).unwrap();
    fs::write(dir.path().join("b.safetensors"), written(&[("w", StoredDtype::F8_E4M3, &[1, 2], vec![0x38, 0xb8])]))
        .unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().read_f32("w", &[1, 2]).unwrap(), [0.5, -0.5]);
    fs::write(dir.path().join("model.safetensors.index.json"), r#"{"weight_map": {"w": "b.safetensors"}}"#).unwrap();
    let error = Checkpoint::open(dir.path()).unwrap().read_f32("w", &[1, 2]).unwrap_err().to_string();
    let path = dir.path().join("b.safetensors");
    assert_eq!(
        error,
        format!(
            "{}: `w` is stored as F8_E4M3, but no file of the checkpoint has its scales, `w_scale_inv`; is a shard missing?",
            path.display()
        )
    );
}

#[test]
fn hostile_fp8_is_refused_each_for_its_reason() {
    let (f32, one) = (StoredDtype::F32, 1.0_f32);
    let with = |bad: f32| le(&[one, one, bad, one, one, one], f32::to_le_bytes);
    let scales = "`w_scale_inv` has a value of";
    for (file, words) in [
        (
            written(&[("w", StoredDtype::F8_E4M3, WEIGHT, vec![0; 130 * 257])]),
            "no file of the checkpoint has its scales",
        ),
        (
            fp8((f32, &[3, 2], six(f32))),
            "`w_scale_inv` is [3, 2], expected [2, 3], a scale for each block of 128 × 128",
        ),
        (fp8((f32, &[6], six(f32))), "`w_scale_inv` is [6], expected [2, 3]"),
        (fp8((f32, &[1, 1], six(f32)[..4].to_vec())), "`w_scale_inv` is [1, 1], expected [2, 3]"),
        (fp8((f32, &[130, 3], vec![0; 1560])), "`w_scale_inv` is [130, 3], expected [2, 3]"),
        (fp8((f32, &[], vec![0; 4])), "`w_scale_inv` is [], expected [2, 3]"),
        (
            fp8((StoredDtype::F64, &[2, 3], vec![0; 48])),
            "`w_scale_inv` is stored as F64, expected F32, BF16 or F8_E8M0",
        ),
        (
            fp8((StoredDtype::F16, &[2, 3], vec![0; 12])),
            "`w_scale_inv` is stored as F16, expected F32, BF16 or F8_E8M0",
        ),
        (fp8((StoredDtype::F8_E4M3, &[2, 3], vec![56; 6])), "`w_scale_inv` is stored as F8_E4M3, expected F32"),
        (fp8((StoredDtype::I32, &[2, 3], vec![0; 24])), "`w_scale_inv` is stored as I32, expected F32"),
        (fp8((f32, &[2, 3], with(f32::NAN))), &format!("{scales} NaN, expected scales above 0")),
        (fp8((f32, &[2, 3], with(0.0))), &format!("{scales} 0, expected scales above 0")),
        (fp8((f32, &[2, 3], with(-1.0))), &format!("{scales} -1, expected scales above 0")),
        (fp8((f32, &[2, 3], with(f32::INFINITY))), &format!("{scales} inf, expected scales above 0")),
        (fp8((f32, &[2, 3], with(f32::NEG_INFINITY))), &format!("{scales} -inf, expected scales above 0")),
        (fp8((f32, &[2, 3], with(2e36))), &format!("{scales} 2000000000000000000000000000000000000, expected")),
        (
            fp8((StoredDtype::F8_E8M0, &[2, 3], vec![127, 0, 1, 255, 9, 9])),
            &format!("{scales} NaN, expected scales above 0"),
        ),
        (fp8((StoredDtype::F8_E8M0, &[2, 3], vec![254; 6])), "expected scales above 0 and at most 2^119"),
    ] {
        let checkpoint = Checkpoint::from_bytes(&file).unwrap();
        let error = checkpoint.read_f32("w", WEIGHT).expect_err("accepted").to_string();
        assert!(error.starts_with("<memory>: ") && error.contains(words), "{words}: {error}");
        assert!(checkpoint.rows("w", WEIGHT).is_err(), "{words}");
    }
    for code in [0x7f, 0xff] {
        let mut codes = vec![0; 130 * 257];
        codes[129 * 257 + 200] = code;
        let scales = ("w_scale_inv", f32, &[2, 3][..], six(f32));
        let file = written(&[("w", StoredDtype::F8_E4M3, WEIGHT, codes), scales]);
        let error = Checkpoint::from_bytes(&file).unwrap().read_f32("w", WEIGHT).unwrap_err().to_string();
        assert!(
            error.contains(&format!("`w` has a value of NaN (code {code:#04x}) in row 129, column 200")),
            "{error}"
        );
    }
    // FP8 that is no matrix, and other formats of eight bits.
    for (dtype, shape, words) in [
        (StoredDtype::F8_E4M3, &[6][..], "or for a matrix F8_E4M3 with scales"),
        (StoredDtype::F8_E4M3, &[1, 2, 3], "or for a matrix F8_E4M3 with scales"),
        (StoredDtype::F8_E5M2, &[2, 3], "this quantisation is not supported"),
        (StoredDtype::F8_E4M3FNUZ, &[2, 3], "this quantisation is not supported"),
        (StoredDtype::I8, &[2, 3], "this quantisation is not supported"),
    ] {
        let scales = ("w_scale_inv", f32, &[1, 1][..], one.to_le_bytes().to_vec());
        let file = written(&[("w", dtype, shape, vec![0; 6]), scales]);
        let error = Checkpoint::from_bytes(&file).unwrap().read_f32("w", shape).unwrap_err().to_string();
        assert!(error.contains(&format!("`w` is stored as {dtype}")) && error.contains(words), "{error}");
    }
}

#[test]
fn scales_are_expected_beside_fp8_only() {
    let case = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/parity/v3-fp8-odd");
    let config = Config::from_file(Path::new(case).join("config.json")).unwrap();
    assert_eq!(Checkpoint::open(case).unwrap().unexpected(&config), [""; 0]);
    let scale = "model.layers.0.self_attn.o_proj.weight_scale_inv";
    let weight = ("model.layers.0.self_attn.o_proj.weight", StoredDtype::BF16, &[1][..], vec![0; 2]);
    let file = written(&[weight, (scale, StoredDtype::F32, &[1], vec![0; 4])]);
    assert_eq!(Checkpoint::from_bytes(&file).unwrap().unexpected(&config), [scale]);
}

// Folders and shards.

#[test]
fn a_folder_without_weights_says_what_is_there_instead() {
    let dir = tempdir().unwrap();
    let error = || Checkpoint::open(dir.path()).unwrap_err().to_string();
    let start = format!("{}: no model.safetensors and no model.safetensors.index.json here", dir.path().display());
    assert_eq!(error(), format!("{start}; a model folder has config.json and *.safetensors"));
    fs::write(dir.path().join("model.gguf"), b"").unwrap();
    assert_eq!(
        error(),
        format!("{start}; GGUF files are not supported yet, take the safetensors version of the model")
    );
    fs::write(dir.path().join("pytorch_model.bin"), b"").unwrap();
    assert!(error().starts_with(&format!("{start}; PyTorch pickle files can run programs and are never read")));
    fs::write(dir.path().join("model-00001-of-00002.safetensors"), b"").unwrap();
    assert_eq!(error(), format!("{start}; shards need their index, fetch model.safetensors.index.json too"));
    let none = dir.path().join("none");
    assert!(Checkpoint::open(&none).unwrap_err().to_string().ends_with("here: there is no such folder"));
}

/// A folder of shards with this index.
fn shards(index: &str) -> tempfile::TempDir {
    let dir = tempdir().unwrap();
    let x = |name: &'static str, v: f32| (name, StoredDtype::F32, &[1][..], v.to_le_bytes().to_vec());
    fs::write(dir.path().join("one.safetensors"), written(&[x("a", 1.0)])).unwrap();
    fs::write(dir.path().join("two.safetensors"), written(&[x("b", 2.0), x("c", 3.0)])).unwrap();
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    dir
}

fn shards_error(index: &str) -> String {
    let dir = shards(index);
    let error = Checkpoint::open(dir.path()).expect_err("accepted").to_string();
    error
        .strip_prefix(&format!("{}/", dir.path().display()))
        .expect("no path")
        .replace(&dir.path().display().to_string(), "DIR")
}

#[test]
fn shards_are_one_checkpoint() {
    let dir =
        shards(r#"{"metadata": {"total_size": 12}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.read_f32("a", &[1]).unwrap(), [1.0]);
    assert_eq!(checkpoint.read_f32("b", &[1]).unwrap(), [2.0]);
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    assert_eq!(
        shards_error(r#"{"weight_map": {"a": "two.safetensors", "b": "two.safetensors"}}"#),
        "two.safetensors: has no tensor `a`, which DIR/model.safetensors.index.json places here; is it another model's shard?"
    );
    assert!(
        shards_error(r#"{"weight_map": {"a": "three.safetensors"}}"#)
            .starts_with("three.safetensors: cannot read the checkpoint: No such file")
    );
    assert_eq!(
        shards_error(r#"{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}"#),
        "model.safetensors.index.json: not a valid index of shards: tensor `a` is listed twice at line 1 column 63"
    );
    assert_eq!(
        shards_error(r#"{"weight_map": {}}"#),
        "model.safetensors.index.json: not a valid index of shards: it lists no tensors"
    );
    for wrong in ["", "{", "[]", "{}", r#"{"weight_map": ["a"]}"#, r#"{"weight_map": {"a": 1}}"#] {
        assert!(
            shards_error(wrong).starts_with("model.safetensors.index.json: not a valid index of shards: "),
            "{wrong}"
        );
    }
}

#[test]
fn an_index_cannot_reach_out_of_its_folder() {
    for name in [
        "../one.safetensors",
        "/etc/x.safetensors",
        "sub/one.safetensors",
        "..\\one.safetensors",
        "C:one.safetensors",
        "",
        "..",
        ".safetensors",
        "one.bin",
        "model.safetensors.index.json",
        "one.safetensors\u{0}",
        "a\nb.safetensors",
    ] {
        let index = serde_json::json!({"weight_map": {"a": name}}).to_string();
        let error = shards_error(&index);
        assert!(error.starts_with("model.safetensors.index.json: the index names the file "), "{name:?}: {error}");
    }
}

#[cfg(unix)]
#[test]
fn an_index_that_leads_in_a_circle_is_an_error() {
    let dir = shards(r#"{"weight_map": {"a": "loop.safetensors"}}"#);
    std::os::unix::fs::symlink("loop.safetensors", dir.path().join("loop.safetensors")).unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("loop.safetensors: cannot read the checkpoint: "), "{error}");
    let index = dir.path().join("model.safetensors.index.json");
    fs::remove_file(dir.path().join("loop.safetensors")).unwrap();
    std::os::unix::fs::symlink(&index, dir.path().join("loop.safetensors")).unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("loop.safetensors: not a valid safetensors file"), "{error}");
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let dir = shards(r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#);
    fs::copy(dir.path().join("two.safetensors"), dir.path().join("one.safetensors")).unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(matches!(&error, CheckpointError::Duplicate { name, .. } if name == "b"), "{error}");
}

// Hostile files.

#[test]
fn hostile_headers_are_refused_each_for_its_reason() {
    let tensor = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let start = "<memory>: not a valid safetensors file: ";
    let cases: &[(Vec<u8>, &str)] = &[
        (vec![], "<memory>: not a valid safetensors file: it has 0 bytes, the header's length alone takes 8"),
        (vec![0; 7], "it has 7 bytes"),
        (vec![0; 8], "its header does not start with `{`"),
        (u64::MAX.to_le_bytes().to_vec(), "its header would take 18446744073709551615 bytes, more than 100000000"),
        (100_000_001_u64.to_le_bytes().to_vec(), "its header would take 100000001 bytes"),
        (
            100_000_000_u64.to_le_bytes().to_vec(),
            "<memory>: the file is cut off: it has 8 bytes, its header describes 100000008; fetch or copy it again",
        ),
        (file(" {}", b""), "its header does not start with `{`"),
        (file("{", b""), "its header is wrong: EOF while parsing an object"),
        (file("{}{", b""), "its header is wrong: trailing characters"),
        (file("{\"\u{0}\":1}", b""), "its header is wrong: control character"),
        ([&5_u64.to_le_bytes()[..], b"{\"\xff\"}"].concat(), "its header is wrong: "),
        (file("{}", b"hidden"), "6 unused bytes at its end, where something may hide"),
        (
            file(&tensor("F32", "[2]", "[0,8]"), &[0; 7]),
            "<memory>: the file is cut off: it has 69 bytes, its header describes 70; fetch or copy it again",
        ),
        (file(&tensor("F32", "[2]", "[4,12]"), &[0; 12]), "`x` has 4 unused bytes before it, where something may hide"),
        (file(&tensor("F32", "[2]", "[8,0]"), &[0; 8]), "`x` ends at 0, before its beginning 8; the file is damaged"),
        (file(&tensor("F32", "[3]", "[0,8]"), &[0; 8]), "`x` has 8 bytes, [3] in F32 takes 12"),
        (file(&tensor("F4", "[3]", "[0,1]"), &[0]), "`x` of shape [3] in F4 does not fill whole bytes"),
        (
            file(&tensor("F32", "[4294967296,4294967296]", "[0,0]"), b""),
            "`x` has the impossible shape [4294967296, 4294967296]",
        ),
        (file(&tensor("F32", "[0]", "[18446744073709551615,18446744073709551615]"), b""), "the file is cut off"),
        (
            file(&tensor("U8", "[9223372036854775808]", "[0,9223372036854775808]"), b"x"),
            "`x` has the impossible shape [9223372036854775808]",
        ),
        (
            file(&tensor("F8_E4M3", "[1073741824,1073741824]", "[0,1152921504606846976]"), b"x"),
            "the file is cut off: it has",
        ),
        (file(&tensor("F32", "[-1]", "[0,4]"), &[0; 4]), "tensor `x`: invalid value: integer `-1`"),
        (file(&tensor("F32", "[1.5]", "[0,4]"), &[0; 4]), "tensor `x`: invalid type: floating point `1.5`"),
        (
            file(&tensor("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), &[0; 4]),
            "tensor `x`: a shape of more than 8 dimensions",
        ),
        (file(&tensor("F99", "[1]", "[0,4]"), &[0; 4]), "tensor `x`: unknown variant `F99`"),
        (file(&tensor("F32", "[1]", "[0]"), &[0; 4]), "tensor `x`: invalid length 1"),
        (file(r#"{"x":{"dtype":"F32","shape":[0]}}"#, b""), "tensor `x`: missing field `data_offsets`"),
        (
            file(r#"{"x":{"dtype":"F32","dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#, b""),
            "duplicate field `dtype`",
        ),
        (file(r#"{"__metadata__":{"a":1}}"#, b""), "its header is wrong: invalid type: integer `1`, expected a string"),
        (file(r#"{"__metadata__":{},"__metadata__":{}}"#, b""), "`__metadata__` is there twice"),
        (
            file(
                r#"{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                &[0; 2],
            ),
            "<memory>: `x` is here a second time (first in <memory>); which one counts is not defined",
        ),
        (
            file(
                r#"{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
                &[0; 3],
            ),
            "`y` shares 1 bytes with the tensor before it; the file is damaged",
        ),
    ];
    for (bytes, said) in cases {
        let error = error(bytes);
        assert!(error.starts_with("<memory>: ") && error.contains(said), "{error}\nexpected {start}{said}");
    }
}

#[test]
fn a_header_of_nothing_but_brackets_does_not_overflow_the_stack() {
    let deep = format!("{{\"x\":{}", "[".repeat(1_000_000));
    assert!(error(&file(&deep, b"")).contains("its header is wrong"));
}

#[test]
fn names_in_messages_are_short_and_printable() {
    let name = format!("\\u001b[2J{}", "x".repeat(10_000));
    let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,2]}}}}"#);
    let error = error(&file(&header, &[0; 2]));
    assert!(error.len() < 300 && error.contains("\\u{1b}[2Jxxx"), "{error}");
}

#[test]
fn every_truncation_is_an_error() {
    let whole = small();
    Checkpoint::from_bytes(&whole).unwrap();
    for n in 0..whole.len() {
        let error = Checkpoint::from_bytes(&whole[..n]).expect_err("accepted");
        let cut_off = matches!(error, CheckpointError::Truncated { .. });
        assert_eq!(cut_off, n >= 8, "{n} of {}: {error}", whole.len());
    }
}

#[test]
fn a_truncated_file_on_disk_is_named() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let whole = small();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let (found, all) = (whole.len() - 1, whole.len());
    assert_eq!(
        Checkpoint::open(dir.path()).unwrap_err().to_string(),
        format!(
            "{}: the file is cut off: it has {found} bytes, its header describes {all}; fetch or copy it again",
            path.display()
        )
    );
}

/// Accepted files are read whole, and are just what the reference implementation reads.
fn agrees_with_the_reference(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(ours) = Checkpoint::from_bytes(bytes) else { return Ok(()) };
    let theirs = SafeTensors::deserialize(bytes);
    prop_assert!(theirs.is_ok(), "accepted, the reference says {:?}", theirs.err());
    let theirs = theirs.unwrap();
    prop_assert_eq!(ours.names().len(), theirs.len());
    for view in ours.tensors() {
        let other = theirs.tensor(view.name).unwrap();
        prop_assert_eq!((view.dtype, view.shape, view.bytes), (other.dtype(), other.shape(), other.data()));
        let _ = (view.to_f32(), ours.read_f32(view.name, view.shape), view.to_i64());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn no_mutation_of_a_valid_file_panics_or_is_misread(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = small();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        agrees_with_the_reference(&bytes)?;
    }

    /// Digits for digits keep the JSON whole, so that shapes and offsets are what is wrong.
    #[test]
    fn no_change_of_a_number_in_the_header_panics_or_is_misread(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), b'0'..=b'9'), 1..4),
    ) {
        let mut bytes = small();
        let digits: Vec<usize> = (8..bytes.len() - 42).filter(|&i| bytes[i].is_ascii_digit()).collect();
        for (at, digit) in edits {
            bytes[*at.get(&digits)] = digit;
        }
        agrees_with_the_reference(&bytes)?;
    }

    #[test]
    fn no_header_of_random_tensors_panics_or_is_misread(
        tensors in proptest::collection::vec(
            ("[a-c]", prop_oneof![Just("F32"), Just("BF16"), Just("U8"), Just("F4"), Just("I64")],
             proptest::collection::vec(prop_oneof![0_u64..5, any::<u64>()], 0..4), 0_u64..20, 0_u64..20),
            0..4,
        ),
        data in 0_usize..40,
    ) {
        let entries: Vec<String> = tensors
            .iter()
            .map(|(name, dtype, shape, begin, length)| {
                format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{}]}}"#, begin + length)
            })
            .collect();
        agrees_with_the_reference(&file(&format!("{{{}}}", entries.join(",")), &vec![0; data]))?;
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        agrees_with_the_reference(&bytes)?;
    }

    #[test]
    fn what_the_reference_writes_is_read(
        tensors in proptest::collection::btree_map(
            "[a-z.]{1,8}", (any::<bool>(), proptest::collection::vec(0_usize..5, 0..5)), 0..6),
    ) {
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(name, (wide, shape))| {
                let dtype = if *wide { StoredDtype::F32 } else { StoredDtype::BF16 };
                let n = shape.iter().product::<usize>() * dtype.bitsize() / 8;
                (name.as_str(), dtype, &shape[..], (0..n).map(|i| i as u8).collect())
            })
            .collect();
        let bytes = written(&tensors);
        let ours = Checkpoint::from_bytes(&bytes).unwrap();
        prop_assert_eq!(ours.names().len(), tensors.len());
        agrees_with_the_reference(&bytes)?;
    }
}
