//! Numbers with units, as people write them: `64MiB`, `500ms`, `1h 30m`.

use millstream_flow::Clock;
use millstream_message::StreamFrom;
use std::time::{Duration, SystemTime};

const SIZES: [(&str, u64); 10] = [
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

const TIMES: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// The longest time in whole days, as people write it: nanoseconds are counted in 64 bits.
pub(crate) const DURATION_MAX: &str = "213503d";

/// Bytes of `64MiB`, `1.5GB`, `512B`. A number without a unit is refused, except 0.
pub fn size(text: &str) -> Option<u64> {
    let bytes = quantity(text.trim(), &SIZES)?;
    (bytes <= u64::MAX as f64).then_some(bytes.round() as u64)
}

/// `500ms`, `1s`, `1h 30m`. A number without a unit is refused, except 0.
pub fn duration(text: &str) -> Option<Duration> {
    let mut total = 0.0;
    let mut parts = 0;
    for part in text.split_whitespace() {
        total += quantity(part, &TIMES)?;
        parts += 1;
    }
    (parts > 0 && total <= u64::MAX as f64).then(|| Duration::from_nanos(total.round() as u64))
}

/// `1%` or `0.01` as a share between 0 and 1.
pub(crate) fn ratio(text: &str) -> Option<f64> {
    let share = match text.strip_suffix('%') {
        Some(percent) => number(percent.trim())? / 100.0,
        None => number(text)?,
    };
    (0.0..=1.0).contains(&share).then_some(share)
}

/// Where to begin in a stream: `first`, `last`, `next`, an offset, or how long ago, as in `1h`.
pub fn stream_from(text: &str) -> Option<StreamFrom> {
    stream_from_at(text, Clock::system().now())
}

fn stream_from_at(text: &str, now: SystemTime) -> Option<StreamFrom> {
    Some(match text {
        "first" => StreamFrom::First,
        "last" => StreamFrom::Last,
        "next" => StreamFrom::Next,
        _ => match text.parse() {
            Ok(offset) => StreamFrom::Offset(offset),
            Err(_) => StreamFrom::Timestamp(now.checked_sub(duration(text)?)?),
        },
    })
}

fn quantity(text: &str, units: &[(&str, u64)]) -> Option<f64> {
    if text == "0" {
        return Some(0.0);
    }
    let split = text.find(|c: char| c.is_alphabetic())?;
    let (digits, unit) = text.split_at(split);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    Some(number(digits.trim_end())? * *factor as f64)
}

/// Digits with at most one point: no sign, no exponent, no `inf`.
fn number(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.') && text.len() <= 20;
    if plain { text.parse().ok() } else { None }
}

/// `67108864` as `64MiB`: the largest binary unit that keeps one decimal exact enough to read.
pub fn show_size(bytes: u64) -> String {
    const STEPS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, factor) in STEPS {
        if bytes >= factor {
            let tenths = (bytes as f64 / factor as f64 * 10.0).round() / 10.0;
            return format!("{tenths}{unit}");
        }
    }
    format!("{bytes}B")
}

/// `1500 ms` as `1.5s`.
pub fn show_duration(time: Duration) -> String {
    match time.as_nanos() {
        0 => "0s".to_owned(),
        n if n < 1_000 => format!("{n}ns"),
        n if n < 1_000_000 => format!("{}us", n as f64 / 1e3),
        n if n < 1_000_000_000 => format!("{}ms", n as f64 / 1e6),
        n if n < 60_000_000_000 => format!("{}s", n as f64 / 1e9),
        n if n < 3_600_000_000_000 => format!("{}m", n as f64 / 60e9),
        n => format!("{}h", n as f64 / 3600e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_need_their_unit() {
        assert_eq!(size("64MiB"), Some(64 << 20));
        assert_eq!(size("1.5 kB"), Some(1500));
        assert_eq!(size("0"), Some(0));
        assert_eq!(size("64"), None);
        assert_eq!(size("-1MB"), None);
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("1h 30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("5"), None);
        assert_eq!(duration(""), None);
        assert_eq!(duration("1e9d"), None);
        assert!(duration(DURATION_MAX).is_some() && duration("213504d").is_none());
        assert_eq!(ratio("1%"), Some(0.01));
        assert_eq!(ratio("1.5"), None);
    }

    #[test]
    fn a_stream_is_read_from_a_place_an_offset_or_a_time_ago() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let from = |text| stream_from_at(text, now);
        assert_eq!(from("first"), Some(StreamFrom::First));
        assert_eq!(from("last"), Some(StreamFrom::Last));
        assert_eq!(from("next"), Some(StreamFrom::Next));
        assert_eq!(from("0"), Some(StreamFrom::Offset(0)));
        assert_eq!(from("1h"), Some(StreamFrom::Timestamp(now - Duration::from_secs(3600))));
        assert_eq!((from("newest"), from("-1"), from("")), (None, None, None));
    }

    #[test]
    fn what_is_shown_reads_back() {
        assert_eq!(show_size(64 << 20), "64MiB");
        assert_eq!(show_duration(Duration::from_millis(1500)), "1.5s");
        assert_eq!(duration(&show_duration(Duration::from_secs(90))), Some(Duration::from_secs(90)));
        for millis in (1..100_000).chain((100_000..100_000_000).step_by(997)) {
            let time = Duration::from_millis(millis);
            assert_eq!(duration(&show_duration(time)), Some(time));
        }
    }
}
