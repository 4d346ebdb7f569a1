//! TLS from PEM files, offering HTTP/2 and HTTP/1.1.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_rustls::rustls::{
    self, InconsistentKeys, ServerConfig,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
};

/// Why TLS could not be set up. Each message names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read the TLS {what} {}: {source}", path.display())]
    Read {
        /// `certificate` or `key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file holds no such thing, or not in PEM form.
    #[error("{} holds no TLS {what} in PEM form (a block that begins with -----BEGIN {label}-----): {reason}", path.display())]
    Pem {
        /// `certificate` or `key`.
        what: &'static str,
        /// What the block's first line says.
        label: &'static str,
        /// The file.
        path: PathBuf,
        /// Where reading stopped.
        reason: String,
    },
    /// Both files are fine, but not for each other.
    #[error("the TLS key {} does not belong to the certificate {}: its public key is another one; if the file holds a chain, the server's own certificate must come first", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The certificate or the key is of a kind that cannot be used.
    #[error("cannot use the TLS certificate {} with the key {}: {source}", cert.display(), key.display())]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
}

/// Reads a certificate chain (the server's own first) and its private key (PKCS#8, PKCS#1 or SEC1), both PEM.
/// Serves TLS 1.2 and 1.3, without client certificates.
///
/// # Errors
/// [`TlsError`] for a file that is missing, not PEM or of the wrong kind, and for a key that does not match.
pub fn load(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let bad_cert = |error| pem_error("certificate", "CERTIFICATE", cert, error);
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) })
        .map_err(bad_cert)?;
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| pem_error("key", "PRIVATE KEY", key, error))?;

    let unusable = |source| TlsError::Unusable { cert: cert.to_owned(), key: key.to_owned(), source };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                TlsError::Mismatch { cert: cert.to_owned(), key: key.to_owned() }
            }
            error => unusable(error),
        })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn pem_error(what: &'static str, label: &'static str, path: &Path, error: pem::Error) -> TlsError {
    let path = path.to_owned();
    match error {
        pem::Error::Io(source) => TlsError::Read { what, path, source },
        pem::Error::NoItemsFound => TlsError::Pem { what, label, path, reason: "none found".to_owned() },
        error => TlsError::Pem { what, label, path, reason: error.to_string() },
    }
}
