//! The HTTP client: certificates, proxies, time limits.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Identity, Proxy};

use crate::registry::RegistryError;
use crate::registry::hosts::Host;

/// How a connection is secured.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// Speak HTTP without TLS. A registry on this machine is spoken to so anyway, unless one of the
    /// others is given.
    pub plain_http: bool,
    /// Take any certificate of the server.
    pub skip_verify: bool,
    /// Certificates of authorities to trust beside the system's, PEM.
    pub authorities: Vec<PathBuf>,
    /// Our certificate and its key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Security {
    /// Whether `host` is spoken to without TLS.
    pub(super) fn is_plain(&self, host: &str) -> bool {
        let wants_tls = self.skip_verify || !self.authorities.is_empty() || self.identity.is_some();
        self.plain_http || (is_loopback(host) && !wants_tls)
    }
}

/// Whether `host`, which may have a port, is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[') {
        return address.split(']').next() == Some("::1");
    }
    let name = host.split(':').next().unwrap_or_default();
    let address: Option<std::net::Ipv4Addr> = name.parse().ok();
    name == "localhost" || address.is_some_and(|address| address.is_loopback())
}

/// A client for `host`, called `name`, that follows no redirect by itself.
pub(super) fn client(name: &str, host: &Host) -> Result<Client, RegistryError> {
    let security = &host.security;
    let unusable_client = |error| RegistryError::Client {
        host: name.to_owned(),
        source: Box::new(error),
    };
    // Whoever comes first in the process decides; any provider will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .redirect(Policy::none())
        .user_agent(concat!("esgz/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(30))
        .tls_danger_accept_invalid_certs(security.skip_verify);
    if let Some(proxy) = &host.proxy {
        builder = builder.proxy(Proxy::all(proxy.clone()).map_err(unusable_client)?);
    } else if is_loopback(name) {
        builder = builder.no_proxy();
    }
    for path in &security.authorities {
        let certificates = Certificate::from_pem_bundle(&read(path)?);
        let certificates = certificates.ok().filter(|list| !list.is_empty());
        builder =
            builder.tls_certs_merge(certificates.ok_or_else(|| unusable(path, "certificate"))?);
    }
    if let Some((certificate, key)) = &security.identity {
        let mut pem = read(key)?;
        pem.push(b'\n');
        pem.extend(read(certificate)?);
        let identity = Identity::from_pem(&pem);
        builder = builder.identity(identity.map_err(|_| unusable(key, "key"))?);
    }
    builder.build().map_err(unusable_client)
}

fn read(path: &Path) -> Result<Vec<u8>, RegistryError> {
    std::fs::read(path).map_err(|source| RegistryError::File {
        path: path.to_owned(),
        source,
    })
}

fn unusable(path: &Path, what: &'static str) -> RegistryError {
    RegistryError::Certificate {
        path: path.to_owned(),
        what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known() {
        for here in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:1",
            "127.8.9.1",
            "[::1]:5000",
        ] {
            assert!(is_loopback(here), "{here}");
        }
        for there in [
            "localhost.example",
            "127.example:1",
            "10.0.0.1",
            "[::2]",
            "ghcr.io",
        ] {
            assert!(!is_loopback(there), "{there}");
        }
        let tls = Security {
            skip_verify: true,
            ..Security::default()
        };
        assert!(!tls.is_plain("localhost") && Security::default().is_plain("localhost"));
    }
}
