//! Why a file cannot be read.

use crate::exhausted;
use millstream_flow::BoxError;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

/// A file that cannot be read, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {remedy}", path = path.display(), remedy = remedy(source))]
pub(super) struct ReadError {
    pub(super) path: PathBuf,
    pub(super) source: Error,
}

impl ReadError {
    pub(super) fn of(path: &Path) -> impl FnOnce(Error) -> ReadError {
        move |source| ReadError { path: path.to_owned(), source }
    }
}

fn remedy(error: &Error) -> &'static str {
    if exhausted::is_out_of_files(error) {
        return "this process has as many files open as it may; raise `ulimit -n`, and start again";
    }
    match error.kind() {
        ErrorKind::NotFound => "check `source.file.path`, which starts from the pipeline file's directory",
        ErrorKind::PermissionDenied => {
            "it is not readable for this user; change its permissions or `source.file.path`"
        }
        ErrorKind::IsADirectory => "it is a directory; name a file in `source.file.path`, or all by `*`",
        ErrorKind::NotSeekable => {
            "it is a pipe, in which no place can be found again; `source: stdin` reads it, given as standard input"
        }
        _ => "check the disk, and start again",
    }
}

/// Why a file could not be opened.
pub(super) enum Opening {
    File(Error),
    Header(BoxError),
}

impl From<Error> for Opening {
    fn from(error: Error) -> Self {
        Opening::File(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_open_files_are_no_trouble_of_the_disk() {
        let told = ReadError::of(Path::new("f"))(Error::from_raw_os_error(24)).to_string();
        assert!(told.contains("`ulimit -n`") && !told.contains("disk"), "{told}");
    }
}
