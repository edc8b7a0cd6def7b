//! Why a file could not be written, with what to do about it.

use crate::exhausted;
use std::path::{Path, PathBuf};

/// A file that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}: {remedy}{left}", path = path.display(), remedy = remedy(source), left = left(source, *lost))]
pub(crate) struct FileError {
    what: &'static str,
    path: PathBuf,
    source: std::io::Error,
    /// Whether the source cannot give items again that were not written.
    lost: bool,
}

impl FileError {
    pub(crate) fn new(what: &'static str, path: &Path, source: std::io::Error) -> Self {
        FileError { what, path: path.to_owned(), source, lost: false }
    }

    /// The same of a run whose source cannot give items again, if `lost`.
    pub(crate) fn losing(self, lost: bool) -> Self {
        FileError { lost, ..self }
    }
}

fn remedy(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::*;
    if exhausted::is_out_of_files(error) {
        return "this process has as many files open as it may; raise `ulimit -n`, or lower `output.file.max_open`, and start again";
    }
    match error.kind() {
        FileTooLarge => {
            "the file is as large as it may be; raise `ulimit -f`, or set `rotate.size`, and start again"
        }
        _ if exhausted::is_out_of_room(error) => "the disk is full; free some space and start again",
        ReadOnlyFilesystem => {
            "its file system is read-only; mount it for writing, or change `output.file.path`"
        }
        PermissionDenied => "it is not writable for this user; change its permissions or `output.file.path`",
        NotADirectory | AlreadyExists | IsADirectory => {
            "something else has that name; move it or change `output.file.path`"
        }
        WouldBlock => "another process is writing it; give each run its own `output.file.path`",
        _ => "check the disk and the path, and start again",
    }
}

/// What became of items that were accepted and not written, where the remedy is to start again.
fn left(error: &std::io::Error, lost: bool) -> &'static str {
    match (remedy(error).ends_with("start again"), lost) {
        (false, false) => "",
        (true, false) => "; nothing accepted is lost",
        (_, true) => {
            "; what was under way is lost, for the source cannot give it again: `buffer: { queue: { … } }` would keep it"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_is_true_of_the_disk_and_of_the_items() {
        let told = |code, lost| {
            FileError::new("write", Path::new("f"), std::io::Error::from_raw_os_error(code))
                .losing(lost)
                .to_string()
        };
        let (full, read_only, denied) = (28, 30, 13);
        let (quota, too_large) = (122, 27);
        for full in [full, quota] {
            assert!(told(full, false).contains("the disk is full"));
            assert!(told(full, false).ends_with("start again; nothing accepted is lost"));
        }
        assert!(told(too_large, false).contains("`ulimit -f`, or set `rotate.size`"));
        assert!(told(full, true).contains("start again; what was under way is lost"));
        assert!(told(read_only, false).ends_with("mount it for writing, or change `output.file.path`"));
        for many in [23, 24] {
            let told = told(many, false);
            assert!(told.contains("`ulimit -n`") && told.contains("`output.file.max_open`"), "{told}");
            assert!(told.ends_with("start again; nothing accepted is lost"), "{told}");
        }
        assert!(told(denied, false).contains("not writable for this user"));
        assert!(told(denied, true).contains("what was under way is lost"));
    }
}
