//! The report as a file.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// A file that a report will be written to: opened before anything starts, so that a run of hours does not end
/// with a report that cannot be written.
#[derive(Debug)]
pub(crate) struct ReportFile {
    path: PathBuf,
    file: File,
    /// Where it is written until it is whole; `None` for what is no plain file, such as a pipe.
    partial: Option<PathBuf>,
}

impl ReportFile {
    /// Opens it. It must be none of `others`, the pipeline files, by whatever name.
    pub(crate) fn create(path: &Path, others: &[PathBuf]) -> Result<ReportFile, Failure> {
        if let Some(other) = others.iter().find(|other| is_same(path, other)) {
            return Err(Failure::Refused(format!(
                "the report would be written over the pipeline file {}; name another file in `--report`",
                other.display()
            )));
        }
        // What a process has open already, be it a file, goes on where it is.
        let open =
            ["/dev/stdout", "/dev/stderr", "/dev/fd", "/proc"].iter().any(|open| path.starts_with(open));
        // Where a link leads to, which stays a link.
        let path = std::fs::canonicalize(path).ok().filter(|_| !open).unwrap_or_else(|| path.to_owned());
        let plain = !open && std::fs::metadata(&path).map_or(true, |found| found.is_file());
        let partial = plain.then(|| {
            let mut name = path.as_os_str().to_owned();
            name.push(".partial");
            PathBuf::from(name)
        });
        let opened = match &partial {
            Some(partial) => File::create(partial),
            None => File::options().append(true).open(&path),
        };
        let file = opened.map_err(|error| {
            Failure::Refused(format!(
                "the report cannot be written to {}: {error}; \
                 name a file in a directory that is there and that you may write to",
                path.display()
            ))
        })?;
        Ok(ReportFile { path, file, partial })
    }

    /// Writes the report, which is then there under its name, whole.
    pub(crate) fn write(mut self, report: &str) -> Result<(), Failure> {
        let written = self.finish(report);
        written.map_err(|error| Failure::of(format_args!("cannot write {}", self.path.display()), &error))
    }

    fn finish(&mut self, report: &str) -> io::Result<()> {
        self.file.write_all(format!("{report}\n").as_bytes())?;
        if let Some(partial) = &self.partial {
            self.file.sync_all()?;
            std::fs::rename(partial, &self.path)?;
            self.partial = None;
        }
        Ok(())
    }
}

/// Whether both are one file, through links of either kind.
fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

impl Drop for ReportFile {
    /// What did not become a report is not left behind.
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            let _ = std::fs::remove_file(partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_appears_under_its_name_only_when_it_is_whole() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("report.json");
        std::fs::write(&path, "the one before").expect("writable");
        let file = ReportFile::create(&path, &[]).expect("the directory is writable");
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "the one before");
        file.write("{}").expect("there is room");
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "{}\n");
        drop(ReportFile::create(&path, &[]).expect("the directory is writable"));
        assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 1);
    }

    #[test]
    fn a_link_stays_one_and_what_it_leads_to_is_written() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (path, link) = (directory.path().join("there.json"), directory.path().join("report.json"));
        std::fs::write(&path, "the one before").expect("writable");
        std::os::unix::fs::symlink("there.json", &link).expect("writable");
        ReportFile::create(&link, &[]).expect("writable").write("{}").expect("there is room");
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "{}\n");
    }

    #[test]
    fn what_is_open_already_goes_on_behind_what_it_holds() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log");
        std::fs::write(&path, "before\n").expect("writable");
        let file = File::options().append(true).open(&path).expect("there");
        let open = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        ReportFile::create(Path::new(&open), &[]).expect("open").write("{}").expect("there is room");
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "before\n{}\n");
        assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 1);
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let file = ReportFile::create(Path::new("/dev/full"), &[]).expect("Linux has it");
        let failure = file.write("{}").expect_err("it is always full");
        assert!(format!("{failure:?}").contains("cannot write /dev/full"), "{failure:?}");
    }
}
