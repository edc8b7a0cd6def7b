//! How the path of a request is read by those behind, and where that differs from what is written.
//!
//! Servers decode a path, some take `\` for `/`, several slashes for one, or leave out what follows a `;`. A path that means one
//! place here and another one there would pass whatever guards the place. Paths are decoded once: who decodes them again, tells no
//! case apart, or ends them at a zero byte must guard its places itself.

/// Whether a path is another one to who resolves `.` and `..`. Clients resolve these before they send them (RFC 3986, 5.2.4).
pub(crate) fn leads_elsewhere(path: &str) -> bool {
    if !path.contains("/.") && !path.contains(['%', '\\']) {
        return false;
    }
    names(&decoded(path)).any(|name| matches!(name, b"." | b".."))
}

/// Whether a path may be another one to who reads it otherwise.
pub(crate) fn reads_otherwise(path: &str) -> bool {
    let odd = |pair: &[u8]| matches!(pair[1], b'%' | b'\\' | b';') | (pair == b"//");
    path.as_bytes().windows(2).any(odd)
}

/// Whether it depends on the order in which a server reads where a name of the path ends: a slash that is written otherwise stands
/// behind a `;`, so that it is left out by who cuts first, and parts the path for who decodes first.
pub(crate) fn ends_in_doubt(path: &str) -> bool {
    let coded = |bytes: &[u8], code: &[u8]| bytes.len() >= 3 && bytes[..3].eq_ignore_ascii_case(code);
    path.as_bytes().split(|byte| *byte == b'/').any(|part| {
        let rests = || (0..part.len()).map(|at| &part[at..]);
        let cut = rests().position(|rest| rest[0] == b';' || coded(rest, b"%3b"));
        let slash = |rest: &[u8]| rest[0] == b'\\' || coded(rest, b"%5c") || coded(rest, b"%2f");
        cut.is_some_and(|cut| rests().skip(cut).any(slash))
    })
}

/// A path as servers take it that decode it, with `\` as a slash, without what follows a `;`, and with one slash for several. It ends
/// with no slash: `/` is empty.
pub(crate) fn plain(path: &str) -> Vec<u8> {
    let decoded = decoded(path);
    names(&decoded).filter(|name| !name.is_empty()).flat_map(|name| [b"/", name].concat()).collect()
}

fn decoded(path: &str) -> Vec<u8> {
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        let code = digit(at + 1).zip(digit(at + 2)).filter(|_| byte == b'%');
        let (means, len) = code.map_or((byte, 1), |(high, low)| ((high << 4 | low) as u8, 3));
        decoded.push(if means == b'\\' { b'/' } else { means });
        at += len;
    }
    decoded
}

/// What stands between the slashes, up to a `;`.
fn names(decoded: &[u8]) -> impl Iterator<Item = &[u8]> {
    let parts = decoded.split(|byte| *byte == b'/');
    parts.map(|part| part.split(|byte| *byte == b';').next().unwrap_or_default())
}
