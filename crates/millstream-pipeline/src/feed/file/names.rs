//! Names of files, as patterns, messages and positions have them.

use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A path as messages show it: from the pipeline file's directory where it lies below that.
pub(super) fn show(base: &Path, path: &Path) -> String {
    path.strip_prefix(base).unwrap_or(path).display().to_string()
}

/// A path as positions know it: as messages show it, but each byte that is not of UTF-8 as NUL, which no name has, and two
/// hexadecimal digits. So no two files have one.
pub(super) fn key(base: &Path, path: &Path) -> String {
    let path = path.strip_prefix(base).unwrap_or(path);
    let mut key = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        key.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(key, "\0{byte:02x}");
        }
    }
    key
}

/// The path of a key.
pub(super) fn path_of(base: &Path, key: &str) -> PathBuf {
    let mut parts = key.split('\0');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        // A key of somebody else's making leads to another file, or none.
        let digits = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.extend(digits);
        bytes.extend(part.get(2..).unwrap_or_default().as_bytes());
    }
    base.join(OsString::from_vec(bytes))
}

/// Whether `name` is what `pattern` says, `*` standing for anything. Hidden files must be named so.
pub(super) fn matches_pattern(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or("")) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_key_leads_to_its_file_and_to_no_other(name in proptest::collection::vec(1..=255u8, 1..12)) {
            let path = Path::new("/base").join(OsString::from_vec(name));
            let key = key(Path::new("/base"), &path);
            prop_assert_eq!(path_of(Path::new("/base"), &key), path);
        }

        #[test]
        fn a_name_of_utf_8_is_its_own_key(name in "[^\0/.]{1,12}") {
            prop_assert_eq!(key(Path::new("/base"), &Path::new("/base").join(&name)), name);
        }

        #[test]
        fn any_key_is_read(key in any::<String>()) {
            let _ = path_of(Path::new("/base"), &key);
        }
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, matches) in [
            ("*.csv", "a.csv", true),
            ("*.csv", ".a.csv", false),
            ("a*b*c", "abc", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("*.csv", "a.csv.gz", false),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(matches_pattern(pattern, name), matches, "{pattern} {name}");
        }
    }
}
