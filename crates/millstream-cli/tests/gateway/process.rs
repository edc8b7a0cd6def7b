//! The binary, and servers behind it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Child;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use crate::support::{Place, ended, signal};

/// No test waits longer than this for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// A gateway that listens; its standard error tells where. Killed when dropped.
pub(crate) struct Gateway {
    child: Option<Child>,
    pub(crate) public: String,
    pub(crate) admin: String,
    told: Receiver<String>,
}

impl Gateway {
    pub(crate) fn start(place: &Place, arguments: &[&str], variables: &[(&str, &str)]) -> Gateway {
        let fixed = ["gateway", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        let mut command = place.command(&[&fixed[..], arguments].concat());
        let mut child = command.envs(variables.iter().copied()).spawn().expect("the binary starts");
        let errors = child.stderr.take().expect("it is piped");
        let (tell, told) = sync_channel(10_000);
        std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                // It stands beside the test that fails.
                eprintln!("{line}");
                // What nobody waits for, nobody misses.
                let _ = tell.try_send(line);
            }
        });
        let mut gateway = Gateway { child: Some(child), public: String::new(), admin: String::new(), told };
        let mut address = |prefix: &str| {
            let line = gateway.says(prefix);
            line.split("://").nth(1).and_then(|rest| rest.split('/').next()).expect("an address").to_owned()
        };
        let (public, admin) = (address("gateway: http"), address("admin: http"));
        (gateway.public, gateway.admin) = (public, admin);
        gateway
    }

    /// The next line of its standard error that begins so.
    pub(crate) fn says(&mut self, prefix: &str) -> String {
        self.says_any(&[prefix])
    }

    /// The next that begins with one of these.
    pub(crate) fn says_any(&mut self, prefixes: &[&str]) -> String {
        loop {
            let line = self.told.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("it never says {prefixes:?}"));
            if prefixes.iter().any(|prefix| line.starts_with(prefix)) {
                return line;
            }
        }
    }

    /// Asks it to read its configuration again.
    pub(crate) fn hang_up(&self) {
        signal(self.child.as_ref().expect("it was not stopped before"), "HUP");
    }

    /// Asks it to end.
    pub(crate) fn signal(&self) {
        signal(self.child.as_ref().expect("it was not stopped before"), "TERM");
    }

    /// Asks it to end; its exit code.
    pub(crate) fn stop(self) -> Option<i32> {
        self.signal();
        self.end().0
    }

    /// Its exit code when it ends, and what it said since.
    pub(crate) fn end(mut self) -> (Option<i32>, Vec<String>) {
        let code = ended(self.child.take().expect("it was not stopped before")).code;
        let mut lines = Vec::new();
        while let Ok(line) = self.told.recv_timeout(LIMIT) {
            lines.push(line);
        }
        (code, lines)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // One that has ended already is no concern of a test that fails for another reason.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(LIMIT)).expect("a socket");
    stream
}

pub(crate) fn ask(address: &str, request: &str) -> String {
    let mut stream = connect(address);
    stream.write_all(request.as_bytes()).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

pub(crate) fn get(address: &str, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"))
}

/// A server that answers each connection's first request with `body`.
pub(crate) fn upstream(body: Vec<u8>) -> String {
    serve(move |_| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        [head.as_bytes(), &body].concat()
    })
}

/// A server that answers each connection's first request with what this gives for its head; with nothing, it closes.
pub(crate) fn serve(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepted");
            let mut head = Vec::new();
            let mut byte = [0; 1];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).expect("read") > 0 {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            stream.read_exact(&mut vec![0; length.unwrap_or(0)]).expect("the body");
            // A probe closes before it has asked anything.
            let _ = stream.write_all(&answer(&head));
        }
    });
    url
}

pub(crate) fn metric(gateway: &Gateway, line: &str) -> f64 {
    let metrics = get(&gateway.admin, "/metrics");
    let found = metrics.lines().find_map(|shown| shown.strip_prefix(line));
    found.unwrap_or_else(|| panic!("{line} is not in\n{metrics}")).trim().parse().expect("a number")
}
