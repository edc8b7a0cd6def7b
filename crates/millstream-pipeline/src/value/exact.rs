//! Which numbers 64 bits do not hold with the digits they are written with.

/// Digits and points in a row that a number of 64 bits may not hold exactly: of fewer digits it holds all.
const LONG: usize = 16;

/// Whether there may be a number in `text` that is not told exactly by 64 bits. jq's own reader keeps those as they are
/// written, and takes several times as long.
pub(super) fn has_long_number(text: &[u8]) -> bool {
    let numeric = |byte: &u8| byte.is_ascii_digit() || *byte == b'.';
    // A run of that length covers one of these places.
    (LONG - 1..text.len()).step_by(LONG).any(|at| {
        if !numeric(&text[at]) {
            return false;
        }
        let begin = at - text[..at].iter().rev().take_while(|byte| numeric(byte)).count();
        let run = text[begin..].iter().take_while(|byte| numeric(byte)).count();
        let behind = |byte: &&u8| matches!(byte, b'e' | b'E' | b'+' | b'-' | b'0'..=b'9');
        let exponent = text[begin + run..].iter().take_while(behind).count();
        let negative = begin > 0 && text[begin - 1] == b'-';
        run >= LONG && !is_exact(&text[begin..begin + run + exponent], negative)
    })
}

/// Whether a number of 64 bits is written with the digits of `text`. What is no number, as in a text, is exact.
fn is_exact(text: &[u8], negative: bool) -> bool {
    if text.iter().all(u8::is_ascii_digit) {
        // Without a sign it may have 64 bits, with one 63.
        return text.len() <= if negative { 18 } else { 19 };
    }
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<f64>().ok());
    let Some(number) = number else { return true };
    let mut written = [0; 32];
    let mut rest = &mut written[..];
    // It has 25 bytes at most.
    let _ = serde_json::to_writer(&mut rest, &number);
    let left = rest.len();
    significant(text).eq(significant(&written[..written.len() - left]))
}

/// The digits that make a number's value, without the zeros at either end.
fn significant(number: &[u8]) -> impl Iterator<Item = &u8> {
    let mantissa = number.split(|byte| matches!(byte, b'e' | b'E')).next().unwrap_or_default();
    let counts = |byte: &u8| (b'1'..=b'9').contains(byte);
    let from = mantissa.iter().position(counts).unwrap_or(mantissa.len());
    let to = mantissa.iter().rposition(counts).map_or(from, |last| last + 1);
    mantissa[from..to].iter().filter(|byte| **byte != b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_64_bits_hold_need_no_other_reader() {
        for number in [
            "0.30000000000000004",
            "-0.0000000000000000000000125",
            "1.2345678901234567e3",
            "9007199254740992.0",
            "1000000000000000000.0",
            "18.000000000000000000000",
            "\"1.2.3.4.5.6.7.8.9.10\"",
            "1234567890123456789",
            "-123456789012345678",
        ] {
            assert!(!has_long_number(number.as_bytes()), "{number}");
        }
        for number in
            ["12345678901234567.5", "1234567890123457.15", "1.23456789012345678e17", "-1234567890123456789"]
        {
            assert!(has_long_number(number.as_bytes()), "{number}");
        }
    }
}
