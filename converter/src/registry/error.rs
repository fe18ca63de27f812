//! Why a registry did not do what was asked of it.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::cancel::Cancelled;
use crate::image::{BlobId, Digest};

/// Why a registry did not do what was asked. Addresses stand without their query, in which signatures
/// travel.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A file that the connection needs cannot be read.
    #[error("reading {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A certificate or key cannot be used.
    #[error("{} holds no usable {what}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// `certificate`, `key`.
        what: &'static str,
    },
    /// A file that says where registries are cannot be understood.
    #[error("{}: {reason}", path.display())]
    Hosts {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The credentials cannot be read.
    #[error("credentials for {host}: {reason}")]
    Credentials {
        /// The registry.
        host: String,
        /// What is wrong, without anything secret.
        reason: String,
    },
    /// The client cannot be made.
    #[error("preparing the connection to {host}")]
    Client {
        /// The registry.
        host: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// No answer, or not all of it.
    #[error("{operation} {url}")]
    Connection {
        /// `reading`, `asking for`, `uploading to`, …
        operation: &'static str,
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The answer is another than success.
    #[error("{operation} {url}: the registry answers {status}{}", said(message))]
    Status {
        /// As above.
        operation: &'static str,
        /// Where.
        url: String,
        /// HTTP's status code.
        status: u16,
        /// What the registry says about it, shortened; empty if nothing.
        message: String,
        /// For how long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// There is no such thing.
    #[error("{url} does not exist")]
    Missing {
        /// Where it was looked for.
        url: String,
    },
    /// The answer breaks the protocol.
    #[error("{url}: {reason}")]
    Answer {
        /// Where.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Other bytes than were asked for.
    #[error("{url} has {} bytes with the digest {}, expected {} with {}", found.size_bytes, found.digest, expected.size_bytes, expected.digest)]
    Damaged {
        /// Where.
        url: String,
        /// What was asked for.
        expected: BlobId,
        /// What came.
        found: BlobId,
    },
    /// The registry and the one who asks do not agree on a manifest's digest.
    #[error("{url} has the digest {found}, expected {expected}")]
    Digest {
        /// Where.
        url: String,
        /// What was asked for, or what the registry says that it is.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// A blob cannot be put into the scratch directory, or read from it.
    #[error("keeping blobs of {place} in {}", scratch.display())]
    Scratch {
        /// The registry.
        place: String,
        /// The directory.
        scratch: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A blob that is to be sent cannot be read, or is not what it should be.
    #[error("reading blob {digest} to send it")]
    Unreadable {
        /// The blob.
        digest: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The user interrupted.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl RegistryError {
    /// Whether the same request may succeed later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            // A certificate that is refused, on either side, stays so.
            Self::Connection { source, .. } => !is_of_tls(&**source),
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502..=504),
            _ => false,
        }
    }

    /// For how long the registry wants to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Whether TLS itself failed, not the connection below it.
fn is_of_tls(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // What an I/O error wraps is not its source.
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        if error.is::<rustls::Error>() || inner.is_some_and(|inner| is_of_tls(inner)) {
            return true;
        }
        next = error.source();
    }
    false
}

fn said(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(" ({message})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_certificate_is_not_asked_for_again() {
        let connection = |source: Box<dyn Error + Send + Sync>| RegistryError::Connection {
            operation: "reading",
            url: String::new(),
            source,
        };
        let refused = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::other(refused.clone()));
        assert!(!connection(Box::new(refused)).is_passing());
        assert!(!connection(Box::new(wrapped)).is_passing());
        let cut = io::Error::from(io::ErrorKind::ConnectionReset);
        assert!(connection(Box::new(cut)).is_passing());
        assert!(connection("nothing moves".into()).is_passing());
    }
}
