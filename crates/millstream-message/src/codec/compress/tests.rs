use std::io::Write;

use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use proptest::prelude::*;

use super::*;
use crate::codec::{Json, Raw};

/// Each algorithm, and the name it announces.
fn algorithms() -> [(&'static str, Compression); 3] {
    [("gzip", Compression::gzip()), ("zstd", Compression::zstd()), ("lz4", Compression::lz4())]
}

fn encoding(message: &Message) -> Option<&str> {
    message.properties().content_encoding.as_deref()
}

fn encoded(encoding: &str, body: impl Into<Bytes>) -> Message {
    Message::new(body).with_content_encoding(encoding)
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex");
    digits.chunks(2).map(byte).collect()
}

/// What no algorithm makes shorter.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn what_is_compressed_says_so_and_comes_back() {
    for (name, compression) in algorithms() {
        let text = "to and fro ".repeat(1000);
        let codec = Compressed::new(Json, compression.clone());
        let message = codec.encode(&text).expect(name);
        assert_eq!(encoding(&message), Some(name));
        assert_eq!(message.content_type(), Some("application/json"));
        assert_eq!(Codec::<String>::content_type(&codec), "application/json");
        assert!(message.body().len() < 1000, "{name}: {}", message.body().len());
        // Whatever the reader would write itself.
        for (_, other) in algorithms().into_iter().chain([("", Compression::none())]) {
            assert_eq!(Codec::<String>::decode(&Compressed::new(Json, other), &message).expect(name), text);
        }
        assert!(Codec::<String>::decode(&Json, &message).is_err(), "a plain codec refuses it");
        // Everything else that is said about the body stays.
        let message = Message::new(text.clone()).with_header("a", 1_i64).with_priority(3);
        let back = decompress(compress(message.clone(), &compression).expect(name), 1 << 20).expect(name);
        assert_eq!((back.body(), back.header("a")), (message.body(), message.header("a")));
        assert_eq!((back.properties().priority, encoding(&back)), (3, None));
    }
}

#[test]
fn short_bodies_are_left_alone() {
    for (name, compression) in algorithms() {
        let of = |len: usize, compression: &Compression| {
            let message = compress(Message::new(vec![b'x'; len]), compression).expect(name);
            encoding(&message).is_some()
        };
        assert!(!of(1023, &compression) && of(1024, &compression), "{name}");
        assert!(of(100, &compression.clone().min_bytes(100)), "{name}");
        assert!(!of(5000, &compression.min_bytes(5001)), "{name}");
    }
}

#[test]
fn what_does_not_pay_off_is_left_alone() {
    for (name, compression) in algorithms() {
        // Of twenty parts, one can be saved: a twentieth, but not a tenth.
        let body = [noise(19_000), vec![0; 1000]].concat();
        let of = |compression: &Compression| {
            let message = compress(Message::new(body.clone()), compression).expect(name);
            assert!(encoding(&message).is_some() || message.body() == &body, "{name}: left as it was");
            encoding(&message).is_some()
        };
        assert!(!of(&compression) && of(&compression.clone().saving(4)), "{name}");
        assert!(of(&compression.clone().saving(0)) && !of(&compression.saving(100)), "{name}");
    }
    let tenth = Compression::none();
    assert!(tenth.pays_off(1000, 900) && !tenth.pays_off(1000, 901));
    assert!(!tenth.pays_off(usize::MAX, usize::MAX) && tenth.saving(0).pays_off(usize::MAX, usize::MAX));
}

#[test]
fn levels_are_heeded() {
    // Words in a row that a better search finds more of.
    let body: Vec<u8> = noise(60_000)
        .iter()
        .flat_map(|byte| [b"ab", b"cd", b"ef", b"gh"][*byte as usize % 4])
        .copied()
        .collect();
    let len = |compression: Compression| {
        compress(Message::new(body.clone()), &compression).expect("compressed").body().len()
    };
    assert!(len(Compression::gzip().level(9)) < len(Compression::gzip().level(1)));
    assert!(len(Compression::zstd().level(19)) < len(Compression::zstd().level(1)));
}

#[test]
fn a_level_that_does_not_exist_is_a_panic() {
    let refused = [
        || Compression::gzip().level(0),
        || Compression::gzip().level(10),
        || Compression::zstd().level(23),
        || Compression::lz4().level(1),
        || Compression::none().level(1),
        || Compression::gzip().saving(101),
    ];
    for (index, make) in refused.into_iter().enumerate() {
        assert!(std::panic::catch_unwind(make).is_err(), "{index}");
    }
}

#[test]
fn what_is_encoded_already_is_not_encoded_again() {
    let message = encoded("br", vec![0; 5000]);
    assert_eq!(compress(message.clone(), &Compression::gzip()).expect("left"), message);
    let identity = compress(encoded("identity", vec![0; 5000]), &Compression::gzip()).expect("plain");
    assert_eq!(encoding(&identity), Some("gzip"));
    let plain = Message::new(vec![0; 5000]);
    assert_eq!(compress(plain.clone(), &Compression::none()).expect("left"), plain);
}

#[test]
fn what_other_programs_compress_is_read() {
    let plain = "Millstream moves streams of items through services. ".repeat(4);
    let fixtures = [
        // Python 3.11: gzip.compress(plain, mtime=0)
        (
            "gzip",
            "1f8b0800000000000203f3cdccc9292e294a4dcc55c8cd2f4b2d5680708a15f2d314324b52818c928ca2fcd2f40c85\
                  e2d4a2b2cce4d4623d05df41ac07000b4d4b38d0000000",
        ),
        // gzip 1.12: gzip -c plain, with the file's name and time
        (
            "x-gzip",
            "1f8b0808b4a1016b0003706c61696e00f3cdccc9292e294a4dcc55c8cd2f4b2d5680708a15f2d314324b52818c92\
                    8ca2fcd2f40c85e2d4a2b2cce4d4623d05df41ac07000b4d4b38d0000000",
        ),
        // zstd 1.5.4: zstd plain
        (
            "zstd",
            "28b52ffd24d0cd0100e4024d696c6c73747265616d206d6f7665732073206f66206974656d73207468726f75676820\
                  73657276696365732e20020065aea22e0c7309194e523f",
        ),
        // zstd 1.5.4: zstd -19 < plain, which does not say how long it is and wants a window
        (
            "zstd",
            "28b52ffd04689d0100e2c2090fd0e744be12b20aeda477d042086b0105f7a8847e4d4187267b7356c9f5bdd3594d18\
                  f3e75408020065aea22e0c7309194e523f",
        ),
        // lz4 1.9.4: lz4 plain
        (
            "lz4",
            "04224d186440a73d000000f2024d696c6c73747265616d206d6f766573200d00ff0e73206f66206974656d732074687\
                 26f7567682073657276696365732e20340084506365732e20000000001873278b",
        ),
        // lz4 1.9.4: lz4 -BD -B4 --content-size plain, whose blocks may refer to earlier ones
        (
            "LZ4",
            "04224d186c40d000000000000000c03d000000f2024d696c6c73747265616d206d6f766573200d00ff0e73206f66206\
                 974656d73207468726f7567682073657276696365732e20340084506365732e20000000001873278b",
        ),
    ];
    for (name, body) in fixtures {
        let body = hex(body);
        let message = encoded(name, body.clone()).with_content_type("text/plain");
        assert_eq!(decompress(message, 1000).expect(name).body(), &plain, "{name}");
        // Two in a row are one body, in each of the formats.
        let twice = decompress(encoded(name, body.repeat(2)), 1000).expect(name);
        assert_eq!(twice.body(), &plain.repeat(2), "{name}");
    }
}

#[test]
fn chained_encodings_are_undone_from_the_last() {
    let plain = vec![b'x'; 5000];
    let gzipped = gzip::compress(&plain, 6).expect("gzip");
    let both = zstd::compress(&gzipped, 3).expect("zstd");
    for chain in ["gzip, zstd", "gzip,ZSTD", "identity, x-gzip , zstd"] {
        assert_eq!(decompress(encoded(chain, both.clone()), 5000).expect(chain).body(), &plain);
    }
    assert!(matches!(decompress(encoded("zstd, gzip", both.clone()), 5000), Err(CodecError::Corrupt { .. })));
    let error = decompress(encoded("gzip,gzip,gzip,gzip,gzip", both), 5000).expect_err("five");
    assert!(matches!(error, CodecError::TooManyEncodings { count: 5, max: 4 }), "{error}");
}

#[test]
fn an_unknown_encoding_is_named() {
    for strange in ["br", "", "gzip,", "deflate"] {
        let error = decompress(encoded(strange, "x"), 100).expect_err(strange);
        assert!(matches!(error, CodecError::UnknownEncoding { feature: None, .. }), "{error}");
    }
    let error = decompress(encoded("br", "x"), 100).expect_err("br").to_string();
    assert_eq!(error, "the body is encoded as `br`, which is not known here");
    let missing = CodecError::UnknownEncoding { encoding: "zstd".to_owned(), feature: feature("zstd") };
    assert!(missing.to_string().contains("needs the feature `zstd` of millstream-message"), "{missing}");
}

#[test]
fn a_bomb_ends_at_the_bound() {
    const MAX: usize = 1 << 20;
    let mut streamed = ::zstd::stream::Encoder::new(Vec::new(), 3).expect("zstd");
    streamed.write_all(&vec![0; 64 << 20]).expect("zstd");
    let bombs = [
        ("gzip", gzip::compress(&vec![0; 64 << 20], 9).expect("gzip")),
        ("lz4", lz4::compress(&vec![0; 64 << 20]).expect("lz4")),
        ("zstd", zstd::compress(&vec![0; 64 << 20], 3).expect("zstd")),
        // This one does not say how long it is.
        ("zstd", streamed.finish().expect("zstd")),
    ];
    for (name, bomb) in bombs {
        let error = decompress(encoded(name, bomb.clone()), MAX).expect_err(name);
        assert!(matches!(error, CodecError::Expands { encoding, max: MAX } if encoding == name), "{error}");
        assert!(error.to_string().contains(name) && error.to_string().contains("1048576"), "{error}");
        let codec = Compressed::new(Raw, Compression::none().max_bytes(MAX));
        assert!(matches!(codec.decode(&encoded(name, bomb.clone())), Err(CodecError::Expands { .. })));
        // One within another.
        let outer = gzip::compress(&bomb, 9).expect("gzip");
        let error = decompress(encoded(&format!("{name}, gzip"), outer), MAX).expect_err(name);
        assert!(matches!(error, CodecError::Expands { .. }), "{error}");
        // The bound is the last length that is read.
        assert_eq!(decompress(encoded(name, bomb.clone()), 64 << 20).expect(name).body().len(), 64 << 20);
        assert!(decompress(encoded(name, bomb), (64 << 20) - 1).is_err());
    }
}

#[test]
fn no_more_is_allocated_or_read_than_the_bound() {
    struct Endless(usize);
    impl Read for Endless {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.0 += into.len();
            Ok(into.len())
        }
    }
    let mut endless = Endless(0);
    assert!(matches!(read_all(&mut endless, "x", 100_000), Err(CodecError::Expands { .. })));
    assert!(endless.0 <= 100_000 + (16 << 10), "{}", endless.0);
    for len in [0, 1, 16_384, 90_000, 100_000] {
        let all = read_all(Endless(0).take(len), "x", 100_000).expect("within the bound");
        assert_eq!((all.len() as u64, all.capacity() as u64), (len, len));
    }
    let mut all = Vec::new();
    for _ in 0..100 {
        make_room(&mut all, 1000, 100_000);
        all.extend_from_slice(&[0; 1000]);
        assert!(all.capacity() <= 100_000, "{}", all.capacity());
    }
}

#[test]
fn a_body_that_no_reader_would_take_is_not_written() {
    for (name, compression) in algorithms() {
        let codec = Compressed::new(Raw, compression.max_bytes(5000));
        assert!(codec.encode(&vec![0; 5000].into()).is_ok(), "{name}");
        let error = codec.encode(&vec![0; 5001].into()).expect_err(name);
        assert!(matches!(error, CodecError::TooLarge { len: 5001, max: 5000 }), "{error}");
    }
}

#[test]
fn a_zstd_window_beyond_the_bound_is_refused() {
    let framed = |log: u32| {
        let mut encoder = ::zstd::stream::Encoder::new(Vec::new(), 3).expect("zstd");
        encoder.window_log(log).expect("zstd");
        encoder.write_all(b"short").expect("zstd");
        encoder.finish().expect("zstd")
    };
    assert!(matches!(decompress(encoded("zstd", framed(24)), 1000), Err(CodecError::Corrupt { .. })));
    assert_eq!(decompress(encoded("zstd", framed(23)), 1000).expect("8 MiB").body(), "short");
    assert_eq!(decompress(encoded("zstd", framed(24)), 16 << 20).expect("16 MiB").body(), "short");
    assert!(decompress(encoded("zstd", framed(28)), usize::MAX).is_err(), "256 MiB");
}

#[test]
fn what_a_zstd_frame_says_of_its_length_is_heeded_first() {
    // The header of a single segment of 1 GiB, and nothing after it.
    let header = hex("28b52ffd a0 00000040");
    assert!(matches!(decompress(encoded("zstd", header), 1 << 29), Err(CodecError::Expands { .. })));
}

#[test]
fn a_plain_message_stays_plain() {
    assert!(decompress(Message::new("x"), 0).expect("not compressed").is_plain());
}

#[test]
fn lz4_frames_of_every_kind_in_a_row_are_read() {
    let plain = noise(300).repeat(1000);
    let mut row = Vec::new();
    for block in [BlockSize::Max4MB, BlockSize::Max64KB, BlockSize::Max256KB] {
        for mode in [BlockMode::Linked, BlockMode::Independent] {
            for checks in [false, true] {
                let info = FrameInfo::new().block_size(block).block_mode(mode);
                let info = info.block_checksums(checks).content_checksum(checks);
                let mut encoder = FrameEncoder::with_frame_info(info, &mut row);
                encoder.write_all(&plain).expect("lz4");
                encoder.finish().expect("lz4");
            }
        }
    }
    let back = decompress(encoded("lz4", row), 64 << 20).expect("twelve frames");
    assert_eq!(back.body(), &plain.repeat(12));
    // What is not the frame format: made by `lz4 -l`, of "aaaa".
    let legacy = hex("02214c1805000000 4061616161");
    assert!(decompress(encoded("lz4", legacy), 1000).is_err(), "legacy");
}

/// Every way to cut a body short, and to put something behind it.
#[test]
fn what_is_cut_short_or_followed_by_something_is_an_error() {
    let mut plain = vec![b'x'; 3000];
    plain.extend(noise(200));
    let mut linked =
        FrameEncoder::with_frame_info(FrameInfo::new().block_mode(BlockMode::Linked), Vec::new());
    linked.write_all(&plain).expect("lz4");
    let mut streamed = ::zstd::stream::Encoder::new(Vec::new(), 3).expect("zstd");
    streamed.write_all(&plain).expect("zstd");
    let bodies = [
        ("gzip", gzip::compress(&plain, 6).expect("gzip")),
        ("zstd", zstd::compress(&plain, 3).expect("zstd")),
        ("zstd", streamed.finish().expect("zstd")),
        ("lz4", lz4::compress(&plain).expect("lz4")),
        ("lz4", linked.finish().expect("lz4")),
    ];
    for (name, body) in bodies {
        assert_eq!(decompress(encoded(name, body.clone()), 5000).expect(name).body(), &plain);
        for end in 0..body.len() {
            let cut = decompress(encoded(name, body[..end].to_vec()), 5000);
            assert!(
                matches!(cut, Err(CodecError::Corrupt { encoding, .. }) if encoding == name),
                "{name} {end}"
            );
            let cut = decompress(encoded(name, [&body[..], &body[..end]].concat()), 10_000);
            assert!(end == 0 || cut.is_err(), "{name}: the second is cut at {end}");
        }
        for behind in [&b"\0"[..], b"x", b"\0\0\0\0\0\0\0\0", b"garbage that is longer than any header"] {
            let followed = decompress(encoded(name, [&body, behind].concat()), 10_000);
            assert!(matches!(followed, Err(CodecError::Corrupt { .. })), "{name}, then {behind:?}");
        }
    }
}

/// Checksums see to it that a changed bit is no other body.
#[test]
fn what_is_damaged_is_an_error_or_the_same() {
    let mut plain = vec![b'x'; 1500];
    plain.extend(noise(300));
    for (name, compression) in algorithms() {
        let body = compress(Message::new(plain.clone()), &compression).expect(name).into_body();
        for at in 0..body.len() {
            for bit in 0..8 {
                let mut damaged = body.to_vec();
                damaged[at] ^= 1 << bit;
                if let Ok(read) = decompress(encoded(name, damaged), 1 << 20) {
                    assert_eq!(read.body(), &plain, "{name}: byte {at}, bit {bit}");
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn any_body_comes_back(body in proptest::collection::vec(any::<u8>(), 0..3000), repeat in 1_usize..20) {
        let body = body.repeat(repeat);
        for (_, compression) in algorithms() {
            let message = compress(Message::new(body.clone()), &compression.min_bytes(0)).expect("compressed");
            prop_assert!(message.body().len() <= body.len());
            let back = decompress(message, body.len()).expect("decompressed");
            prop_assert_eq!(back.body(), &body);
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), keep in 0_usize..20) {
        for (name, compression) in algorithms() {
            let _ = decompress(encoded(name, bytes.clone()), 10_000);
            // Behind an honest beginning they get further.
            let whole = compress(Message::new(vec![b'x'; 3000]), &compression).expect("compressed");
            let start = &whole.body()[..keep.min(whole.body().len())];
            let _ = decompress(encoded(name, [start, &bytes].concat()), 10_000);
        }
    }

    #[test]
    fn damaged_frames_of_lz4_never_panic(
        linked: bool,
        checked: bool,
        hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mode = if linked { BlockMode::Linked } else { BlockMode::Independent };
        let info = FrameInfo::new().block_size(BlockSize::Max64KB).block_mode(mode).block_checksums(checked);
        let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
        encoder.write_all(&noise(1000).repeat(200)).expect("lz4");
        let mut frame = encoder.finish().expect("lz4");
        for (at, byte) in hits {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        let _ = decompress(encoded("lz4", frame), 1 << 20);
    }
}
