//! The socket below a connection: TCP, or TLS on it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::options::{Options, TlsFiles};

/// Either kind.
pub(crate) enum Socket {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Socket {
    /// Connects to one host.
    pub(crate) async fn connect(options: &Options, host: &str, port: u16) -> io::Result<Socket> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(options.nodelay)?;
        let socket = SockRef::from(&stream);
        if let Some(after) = options.keepalive {
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(after))?;
        }
        if let Some(bytes) = options.send_buffer {
            socket.set_send_buffer_size(bytes)?;
        }
        if let Some(bytes) = options.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        Socket::over(stream, host, options.tls.as_ref()).await
    }

    /// What is spoken over a connection to this host: TLS, if there are files for it.
    pub(crate) async fn over(stream: TcpStream, host: &str, tls: Option<&TlsFiles>) -> io::Result<Socket> {
        match tls {
            None => Ok(Socket::Plain(stream)),
            Some(files) => secure(stream, host, files).await,
        }
    }
}

#[cfg(not(feature = "tls"))]
async fn secure(_: TcpStream, _: &str, _: &TlsFiles) -> io::Result<Socket> {
    Err(io::Error::other(
        "this build has no TLS: enable the feature `tls` of millstream-rabbitmq, or use `amqp://`",
    ))
}

#[cfg(feature = "tls")]
async fn secure(stream: TcpStream, host: &str, files: &TlsFiles) -> io::Result<Socket> {
    use std::sync::Arc;
    use tokio_rustls::TlsConnector;

    let config = client_config(files)?;
    let name = files.server_name.as_deref().unwrap_or(host);
    let server = rustls::pki_types::ServerName::try_from(name.to_owned())
        .map_err(|_| io::Error::other(format!("`{name}` is no name that a certificate could have")))?;
    let tls = TlsConnector::from(Arc::new(config)).connect(server, stream).await?;
    Ok(Socket::Tls(Box::new(tls)))
}

#[cfg(feature = "tls")]
fn client_config(files: &TlsFiles) -> io::Result<rustls::ClientConfig> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use std::path::Path;
    use std::sync::Arc;

    let read = |path: &Path| -> io::Result<Vec<CertificateDer<'static>>> {
        let bad = |why: String| io::Error::other(format!("{}: {why}", path.display()));
        let found = CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))?;
        let found = found.collect::<Result<Vec<_>, _>>().map_err(|error| bad(error.to_string()))?;
        if found.is_empty() { Err(bad("there is no certificate in it".to_owned())) } else { Ok(found) }
    };
    let mut roots = rustls::RootCertStore::empty();
    match &files.ca {
        Some(path) => {
            for certificate in read(path)? {
                roots
                    .add(certificate)
                    .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
            }
        }
        None => {
            // What cannot be read of the system's is not trusted; if it is the one that is needed, the handshake says so.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots);
    match (&files.certificate, &files.key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(certificate), Some(key)) => {
            let bad = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", key.display()));
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(&error))?;
            builder.with_client_auth_cert(read(certificate)?, private).map_err(|error| bad(&error))
        }
        _ => Err(io::Error::other(
            "`certfile` and `keyfile` go together: a certificate is of no use without its key",
        )),
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Socket::Plain(stream) => stream.is_write_vectored(),
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::net::TcpListener;

    /// A socket that was made with these options of a URL.
    async fn made(options: &str) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let options = Options::parse(&format!("amqp://127.0.0.1:{port}?{options}")).expect("good");
        match Socket::connect(&options, "127.0.0.1", port).await.expect("connected") {
            Socket::Plain(stream) => stream,
            #[cfg(feature = "tls")]
            Socket::Tls(_) => panic!("nobody has asked for TLS"),
        }
    }

    #[tokio::test]
    async fn the_socket_is_as_the_url_says() {
        let usual = made("").await;
        assert!(usual.nodelay().expect("told"));
        let usual = SockRef::from(&usual);
        assert!(usual.keepalive().expect("told"));
        assert_eq!(usual.tcp_keepalive_time().expect("told"), Duration::from_secs(60));

        let other = made("nodelay=false&keepalive=0&send_buffer=16384&receive_buffer=20480").await;
        assert!(!other.nodelay().expect("told"));
        let other = SockRef::from(&other);
        assert!(!other.keepalive().expect("told"));
        // Linux takes twice what it is asked for, and tells that: socket(7).
        let (send, receive) =
            (other.send_buffer_size().expect("told"), other.recv_buffer_size().expect("told"));
        assert!([16384, 32768].contains(&send) && [20480, 40960].contains(&receive), "{send} {receive}");
        assert_ne!(usual.send_buffer_size().expect("told"), send);

        let silent = made("keepalive=7").await;
        assert_eq!(SockRef::from(&silent).tcp_keepalive_time().expect("told"), Duration::from_secs(7));
    }
}
