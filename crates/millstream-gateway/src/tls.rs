//! TLS on both sides, by rustls.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, Error, RootCertStore, ServerConfig, crypto};

/// What clients are offered to speak, the preferred first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// TLS for clients: a chain of certificates and its key, from PEM files. HTTP/2 is offered.
///
/// # Errors
/// If a file cannot be read, holds nothing of use, or the two do not belong together.
pub fn server_tls(certificates: &Path, key: &Path) -> io::Result<Arc<ServerConfig>> {
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| match error {
        pem::Error::NoItemsFound => bad(
            key,
            &"there is no private key in it; name a PEM file with `-----BEGIN PRIVATE KEY-----` (certificates stand in the other file)",
        ),
        error => bad(key, &error),
    })?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(read(certificates)?, private)
        .map_err(|error| match error {
            Error::InconsistentKeys(_) => {
                let theirs = certificates.display();
                bad(key, &format!("it is not the key of the first certificate in {theirs}; name the two that were made together"))
            }
            error => bad(key, &error),
        })?;
    config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// TLS to upstreams, which must show a certificate of these authorities (a PEM file), or of the system's. HTTP/2 is spoken with
/// those that can.
///
/// # Errors
/// If the file cannot be read or holds no certificate.
pub fn client_tls(authorities: Option<&Path>) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(path) => {
            for certificate in read(path)? {
                roots.add(certificate).map_err(|error| bad(path, &error))?;
            }
        }
        None => {
            // What cannot be read of the system's is not trusted; if it is the one that is needed, the handshake says so.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

fn read(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(path).map_err(|error| bad(path, &error))?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(|error| bad(path, &error))?;
    if found.is_empty() {
        Err(bad(path, &"there is no certificate in it; name a PEM file with `-----BEGIN CERTIFICATE-----`"))
    } else {
        Ok(found)
    }
}

fn bad(path: &Path, why: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {why}", path.display()))
}
