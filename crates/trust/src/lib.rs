//! Key pairs, pins and the rustls configurations built from them.
//!
//! Ferry needs no certificate authority. A program recognises another by the hash of its public key, its [`Pin`]. The
//! certificate is only the form in which TLS transports the key; its names and dates mean nothing. Every connection
//! uses TLS 1.3, so the peer proves in each handshake that it has the private key.

mod token;
mod verifier;

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use ferry_core::pin::Pin;
use rustls::{
    ClientConfig, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
};
use thiserror::Error;

pub use token::{new_token, random_secret, same_secret, token_hash};
pub use verifier::peer_pin;

/// An error with keys or certificates.
#[derive(Debug, Error)]
pub enum TrustError {
    /// A key file could not be read or written.
    #[error("Could not read or write key file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The content of a key file is not a key.
    #[error("Key file {} does not hold one certificate and its private key", path.display())]
    Content {
        /// The file.
        path: PathBuf,
    },
    /// A key pair could not be generated.
    #[error("Could not make a key pair")]
    Generate(#[from] rcgen::Error),
    /// rustls does not accept the key.
    #[error("Could not use the key pair for TLS")]
    Tls(#[from] rustls::Error),
}

/// A private key and the self-signed certificate that carries its public half.
pub struct KeyPair {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    pin: Pin,
    pem: String,
}

impl KeyPair {
    /// A new key pair (ECDSA P-256) that is not stored.
    ///
    /// # Errors
    /// [`TrustError::Generate`] if no randomness is available.
    pub fn generate() -> Result<Self, TrustError> {
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new(vec!["ferry.invalid".to_owned()])?;
        // Far in the future: trust ends when a pin is dropped, not by the calendar.
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2120, 1, 1);
        let certificate = params.self_signed(&key)?;
        let pem = format!("{}{}", certificate.pem(), key.serialize_pem());
        Ok(Self {
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            pin: verifier::pin_of(certificate.der())?,
            pem,
        })
    }

    /// The key pair stored at `path` (PEM). If there is no file, creates a key pair and stores it, readable only by its
    /// owner.
    ///
    /// # Errors
    /// [`TrustError::File`] and [`TrustError::Content`] name the file; an existing file is never replaced.
    pub fn load_or_create(path: &Path) -> Result<Self, TrustError> {
        match fs::read_to_string(path) {
            Ok(pem) => Self::from_pem(pem).ok_or_else(|| TrustError::Content { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pair = Self::generate()?;
                write_private(path, pair.pem.as_bytes())
                    .map_err(|source| TrustError::File { path: path.to_owned(), source })?;
                Ok(pair)
            }
            Err(source) => Err(TrustError::File { path: path.to_owned(), source }),
        }
    }

    fn from_pem(pem: String) -> Option<Self> {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).ok()?;
        let pin = verifier::pin_of(&certificate).ok()?;
        Some(Self { certificate, key, pin, pem })
    }

    /// The hash of the public key.
    pub fn pin(&self) -> Pin {
        self.pin
    }
}

/// Writes a file that only its owner can read, completely or not at all.
///
/// # Errors
/// The file system's errors. After an error the file at `path` is unchanged.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

/// Which clients a server accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Clients show no key: they are identified otherwise, by a token.
    Anonymous,
    /// Clients show any key; the caller checks it with [`peer_pin`].
    AnyKey,
    /// Only the client with this key.
    Only(Pin),
}

/// Makes *ring* the process's crypto provider. May be repeated.
pub fn install_provider() {
    // An error means that it is already installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The TLS configuration of a client that calls the server with the key `server`, and shows `me` if given.
///
/// # Errors
/// [`TrustError::Tls`] if rustls does not accept the key.
pub fn client_config(me: Option<&KeyPair>, server: Pin) -> Result<Arc<ClientConfig>, TrustError> {
    let builder = ClientConfig::builder_with_provider(verifier::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier::Pinned::new(Some(server))));
    let mut config = match me {
        Some(me) => builder.with_client_auth_cert(vec![me.certificate.clone()], me.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    // A resumed session would skip the proof that the peer still has its key.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The TLS configuration of a server with the key `me`.
///
/// # Errors
/// [`TrustError::Tls`] if rustls does not accept the key.
pub fn server_config(me: &KeyPair, clients: Clients) -> Result<Arc<ServerConfig>, TrustError> {
    let builder =
        ServerConfig::builder_with_provider(verifier::provider()).with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match clients {
        Clients::Anonymous => builder.with_no_client_auth(),
        Clients::AnyKey => builder.with_client_cert_verifier(Arc::new(verifier::Pinned::new(None))),
        Clients::Only(pin) => builder.with_client_cert_verifier(Arc::new(verifier::Pinned::new(Some(pin)))),
    };
    let mut config = builder.with_single_cert(vec![me.certificate.clone()], me.key.clone_key())?;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rustls::{ClientConnection, ServerConnection, pki_types::ServerName};

    use super::*;

    /// Runs a handshake in memory; Ok contains the pin that the server saw.
    fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<Option<Pin>, rustls::Error> {
        let name = ServerName::try_from("ferry.invalid").expect("a valid name");
        let mut client = ClientConnection::new(client, name)?;
        let mut server = ServerConnection::new(server)?;
        for _ in 0..10 {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).expect("memory takes all");
            }
            server.read_tls(&mut &bytes[..]).expect("memory gives all");
            server.process_new_packets()?;
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes).expect("memory takes all");
            }
            client.read_tls(&mut &bytes[..]).expect("memory gives all");
            client.process_new_packets()?;
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok(server.peer_certificates().and_then(peer_pin))
    }

    #[test]
    fn peers_with_the_pinned_keys_meet() {
        let (a, b) = (KeyPair::generate().expect("keys"), KeyPair::generate().expect("keys"));
        let client = client_config(Some(&a), b.pin()).expect("config");
        let seen = handshake(client.clone(), server_config(&b, Clients::Only(a.pin())).expect("config"));
        assert_eq!(seen.expect("they know each other"), Some(a.pin()));
        let seen = handshake(client, server_config(&b, Clients::AnyKey).expect("config"));
        assert_eq!(seen.expect("any key is let in"), Some(a.pin()));
    }

    #[test]
    fn a_peer_with_another_key_is_refused_on_either_side() {
        let [a, b, c] = [(); 3].map(|()| KeyPair::generate().expect("keys"));
        let wrong_server = client_config(Some(&a), c.pin()).expect("config");
        assert!(handshake(wrong_server, server_config(&b, Clients::AnyKey).expect("config")).is_err());
        let wrong_client = client_config(Some(&c), b.pin()).expect("config");
        assert!(handshake(wrong_client, server_config(&b, Clients::Only(a.pin())).expect("config")).is_err());
        let no_client = client_config(None, b.pin()).expect("config");
        assert!(handshake(no_client, server_config(&b, Clients::AnyKey).expect("config")).is_err());
    }

    #[test]
    fn a_certificate_without_its_private_key_is_refused() {
        let (honest, thief) = (KeyPair::generate().expect("keys"), KeyPair::generate().expect("keys"));
        let forged = KeyPair {
            certificate: honest.certificate.clone(),
            key: thief.key.clone_key(),
            pin: honest.pin(),
            pem: String::new(),
        };
        // rustls itself may refuse to build such a configuration; if it builds, the handshake must fail.
        if let Ok(server) = server_config(&forged, Clients::Anonymous) {
            let client = client_config(None, honest.pin()).expect("config");
            assert!(handshake(client, server).is_err());
        }
    }

    #[test]
    fn tls_1_2_is_refused() {
        let pair = KeyPair::generate().expect("keys");
        let old = ClientConfig::builder_with_provider(verifier::provider())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .expect("the provider has TLS 1.2")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier::Pinned::new(Some(pair.pin()))))
            .with_no_client_auth();
        assert!(handshake(Arc::new(old), server_config(&pair, Clients::Anonymous).expect("config")).is_err());
    }

    #[test]
    fn a_stored_key_is_private_and_found_again_and_a_broken_file_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("agent.key");
        let first = KeyPair::load_or_create(&path).expect("made");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(KeyPair::load_or_create(&path).expect("read").pin(), first.pin());
        fs::write(&path, "nonsense").expect("written");
        let error = KeyPair::load_or_create(&path).map(|pair| pair.pin()).expect_err("not a key");
        assert!(error.to_string().contains("agent.key"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("still there"), "nonsense");
    }
}
