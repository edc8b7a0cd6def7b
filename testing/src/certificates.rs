//! Certificates of the tests' own.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// An authority, what it has signed for the broker on `localhost`, and for the user `guest`; gone when dropped.
#[derive(Debug)]
pub struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    /// Makes them: `ca.pem`, `server.pem`, `server.key`, `client.pem`, `client.key`.
    ///
    /// # Panics
    /// If they cannot be made or written.
    pub fn make() -> Certificates {
        let directory = tempfile::tempdir().expect("a directory");
        let write =
            |name: &str, text: String| std::fs::write(directory.path().join(name), text).expect("written");
        let mut authority = CertificateParams::new([]).expect("no names");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "tests");
        let key = KeyPair::generate().expect("a key");
        write("ca.pem", authority.self_signed(&key).expect("signed").pem());
        let issuer = Issuer::new(authority, key);
        for (file, name) in [("server", "localhost"), ("client", "guest")] {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
            params.distinguished_name = Default::default();
            params.distinguished_name.push(DnType::CommonName, name);
            write(&format!("{file}.pem"), params.signed_by(&key, &issuer).expect("signed").pem());
            write(&format!("{file}.key"), key.serialize_pem());
        }
        Certificates { directory }
    }

    /// Where they are.
    pub fn place(&self) -> &Path {
        self.directory.path()
    }

    /// Lines of a node's configuration: it shows its certificate, and checks and believes those of clients.
    pub fn configuration(&self) -> String {
        let place = self.place().display();
        format!(
            "ssl_options.cacertfile = {place}/ca.pem\nssl_options.certfile = {place}/server.pem\n\
             ssl_options.keyfile = {place}/server.key\nssl_options.verify = verify_peer\n\
             ssl_options.fail_if_no_peer_cert = false\nssl_cert_login_from = common_name\n\
             auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = AMQPLAIN\nauth_mechanisms.3 = EXTERNAL\n"
        )
    }
}
