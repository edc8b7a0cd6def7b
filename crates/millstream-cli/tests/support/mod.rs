//! Running the binary as a user does, in a directory of its own.
#![allow(dead_code, reason = "each test binary uses its part of this")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// The longest that any command of these tests may run: hundreds of times what they take. One that hangs fails its
/// test by name, and the suite goes on.
const TIME_MAX: Duration = Duration::from_secs(300);

/// A directory that is gone after the test, and the binary in it.
pub(crate) struct Place(tempfile::TempDir);

/// How a command ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place(tempfile::tempdir().expect("a temporary directory"))
    }

    /// A place with the examples of this workspace, without what runs of them left there.
    pub(crate) fn with_examples() -> Place {
        let place = Place::new();
        copy(&workspace().join("examples"), &place.path("examples"));
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("it lies in the place")).expect("a directory is made");
        std::fs::write(&path, text).expect("a file is written");
        path
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The binary with these arguments, to be started in this place.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
        command.args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the binary to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        ended(self.command(arguments).spawn().expect("the binary starts"))
    }

    /// Runs the binary with this on its standard input.
    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Ended {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().expect("the binary starts");
        let mut stdin = child.stdin.take().expect("it is piped");
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let end = ended(child);
        // A process that refuses its input may end before it has read all of it.
        let _ = writer.join();
        end
    }

    /// A process that has the directory of this broker open: it waits for messages of `queue`, which must hold
    /// one, and has printed that.
    pub(crate) fn holding(&self, url: &str, queue: &str) -> Child {
        let mut child =
            self.command(&["queue", "consume", url, queue, "--follow"]).spawn().expect("it starts");
        let out = child.stdout.as_mut().expect("it is piped");
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).expect("it is text");
        assert!(!line.is_empty(), "it prints the message");
        child
    }

    /// Runs the binary, which must succeed; its standard output.
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        let end = self.run(arguments);
        assert_eq!(end.code, Some(0), "{arguments:?}: {}", end.err);
        end.out
    }
}

/// Kills a process that still runs after [`TIME_MAX`], unless the sender is dropped before; then says whether it did.
pub(crate) fn watched(child: &Child) -> (mpsc::Sender<()>, JoinHandle<bool>) {
    let id = child.id().to_string();
    let (done, waited) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let hangs = waited.recv_timeout(TIME_MAX) == Err(mpsc::RecvTimeoutError::Timeout);
        if hangs {
            let _ = Command::new("kill").args(["-KILL", &id]).status();
        }
        hangs
    });
    (done, watch)
}

/// The most memory that the process has taken so far, code left out: that of a build for tests is not what is shipped.
/// `None` when the process is gone.
pub(crate) fn taken(child: &Child) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Some((kib("VmHWM")?.saturating_sub(kib("RssFile")?)) << 10)
}

/// Waits for its end, at most [`TIME_MAX`].
pub(crate) fn ended(child: Child) -> Ended {
    let (done, watch) = watched(&child);
    let output = child.wait_with_output().expect("it is ours");
    drop(done);
    let end = Ended {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    assert!(!watch.join().expect("it does not panic"), "it did not end within {TIME_MAX:?}: {}", end.err);
    end
}

/// Sends a signal, by the name that `kill` knows.
pub(crate) fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(status.expect("kill is there").success(), "the process is there");
}

/// The address of the status page, which a run says as it starts.
pub(crate) fn announced(err: &mut impl BufRead) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        assert!(err.read_line(&mut line).expect("it is text") > 0, "the address is announced");
        if let Some((_, address)) = line.trim().split_once("http://") {
            return address.trim_end_matches('/').to_owned();
        }
    }
}

/// What a server answers.
pub(crate) fn got(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

/// The root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace is there")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory is made");
    for entry in std::fs::read_dir(from).expect("it is a directory") {
        let entry = entry.expect("it can be listed");
        let name = entry.file_name();
        if name == "state" || name == "out" {
            continue;
        }
        if entry.path().is_dir() {
            copy(&entry.path(), &to.join(name));
        } else {
            std::fs::copy(entry.path(), to.join(name)).expect("a file is copied");
        }
    }
}
