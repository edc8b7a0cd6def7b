//! The proxies, each started as a process that leads to a port of this one.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::case::Absent;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The upstream itself.
    None,
    Ours,
    /// Ours with chunks of so many KiB, its buffers kept in the pool or allocated and freed.
    Chunks {
        kib: usize,
        pooled: bool,
    },
    Hyper,
    Nginx,
    Haproxy,
}

/// A started proxy; killed when dropped.
pub(super) struct Proxy {
    child: Option<Child>,
    port: u16,
    _place: tempfile::TempDir,
}

impl Proxy {
    pub(super) fn start(kind: Kind, upstream: u16) -> Result<Proxy, Absent> {
        let place = tempfile::tempdir().map_err(|error| format!("a temporary directory: {error}"))?;
        if kind == Kind::None {
            return Ok(Proxy { child: None, port: upstream, _place: place });
        }
        let port = free_port()?;
        let mut command = command(kind, port, upstream, place.path())?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.map_err(|error| format!("{kind:?}: {error}; is it installed?"))?;
        let mut proxy = Proxy { child: Some(child), port, _place: place };
        for _ in 0..500 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(proxy);
            }
            if let Some(Ok(Some(status))) = proxy.child.as_mut().map(Child::try_wait) {
                return Err(format!("{kind:?} ended with {status} instead of listening"));
            }
            crate::clock::pause(Duration::from_millis(10));
        }
        Err(format!("{kind:?} does not listen on {port}"))
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Processor time of the process so far, to 10 ms; none where there is none.
    pub(super) fn cpu_seconds(&self) -> Result<f64, Absent> {
        let Some(child) = &self.child else { return Ok(0.0) };
        let path = format!("/proc/{}/stat", child.id());
        let stat = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        // Behind the name, which may hold anything: `utime` and `stime` are the 12th and 13th, in ticks of 10 ms.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        Ok(ticks / 100.0)
    }

    /// The most memory that was resident so far.
    pub(super) fn peak_mib(&self) -> Result<f64, Absent> {
        let child = self.child.as_ref().ok_or("without a proxy there is none that has memory")?;
        let path = format!("/proc/{}/status", child.id());
        let status = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB"));
        let kibibytes = peak.and_then(|peak| peak.trim().parse::<f64>().ok());
        kibibytes.map(|kibibytes| kibibytes / 1024.0).ok_or_else(|| format!("{path} has no VmHWM"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_port() -> Result<u16, Absent> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let port = listener.and_then(|listener| listener.local_addr()).map(|address| address.port());
    port.map_err(|error| format!("a port: {error}"))
}

fn command(kind: Kind, port: u16, upstream: u16, place: &std::path::Path) -> Result<Command, Absent> {
    let text = match kind {
        Kind::None => return Err("nothing is started where there is no proxy".into()),
        Kind::Ours | Kind::Hyper | Kind::Chunks { .. } => {
            let own = std::env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
            let mut command = Command::new(own);
            let name = match kind {
                Kind::Hyper => "hyper".to_owned(),
                Kind::Chunks { kib, pooled } => format!("{kib},{pooled}"),
                _ => "ours".to_owned(),
            };
            command.args(["proxy", &name, &port.to_string(), &upstream.to_string()]);
            return Ok(command);
        }
        // One worker of each would do: client and upstream keep the other core busy.
        Kind::Nginx => format!(
            "daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 20000;
             error_log stderr crit; pid {place}/pid;
             events {{ worker_connections 8192; }}
             http {{ access_log off; client_max_body_size 0; client_body_temp_path {place}; proxy_temp_path {place};
               fastcgi_temp_path {place}; uwsgi_temp_path {place}; scgi_temp_path {place};
               upstream up {{ server 127.0.0.1:{upstream}; keepalive 128; }}
               server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://up; proxy_http_version 1.1;
                 proxy_set_header Connection ''; proxy_buffering off; proxy_request_buffering off;
                 proxy_buffer_size 64k; proxy_buffers 8 64k; client_body_buffer_size 64k; keepalive_requests 10000000; }} }} }}\n",
            place = place.display()
        ),
        Kind::Haproxy => format!(
            "global\n  maxconn 3000\n  nbthread 2\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 100s\n  timeout \
             server 100s\n  option http-no-delay\n  option splice-auto\nfrontend in\n  bind 127.0.0.1:{port}\n  default_backend \
             up\nbackend up\n  http-reuse always\n  server s 127.0.0.1:{upstream}\n"
        ),
    };
    let path = place.join("proxy.conf");
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut command = Command::new(if kind == Kind::Nginx { "nginx" } else { "haproxy" });
    match kind {
        Kind::Nginx => command.arg("-e").arg("stderr").arg("-p").arg(place).arg("-c").arg(path),
        _ => command.arg("-db").arg("-f").arg(path),
    };
    Ok(command)
}
