//! Certificates for a registry on this machine and for its clients, made anew for every test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// An authority, a server's certificate and a client's, all by it.
#[derive(Debug)]
pub struct Certificates {
    /// The authority's certificate, PEM.
    pub authority: PathBuf,
    /// The client's certificate, PEM.
    pub client: PathBuf,
    /// The client's key, PEM.
    pub client_key: PathBuf,
    open: Arc<ServerConfig>,
    closed: Arc<ServerConfig>,
}

impl Certificates {
    /// Makes them; files are written into `dir`, which is made if there is none.
    ///
    /// # Panics
    /// When they cannot be made or written.
    pub fn new(dir: &Path) -> Self {
        let key = || KeyPair::generate().expect("a key can be made");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = "authority of a test";
        params.distinguished_name.push(DnType::CommonName, name);
        let authority_key = key();
        let authority = params
            .self_signed(&authority_key)
            .expect("it can be signed");
        let issuer = Issuer::new(params, authority_key);
        let signed = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            let key = key();
            let params = CertificateParams::new(names).expect("the names are valid");
            let certificate = params.signed_by(&key, &issuer).expect("it can be signed");
            (certificate, key)
        };
        let (server, server_key) = signed(&["127.0.0.1"]);
        let (client, client_key) = signed(&["client.example"]);

        fs::create_dir_all(dir).expect("the directory can be made");
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            fs::write(&path, text).expect("the directory is writable");
            path
        };
        // Whoever comes first in the process decides; any provider will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).expect("it is valid");
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
        let verifier = verifier.expect("there is an authority");
        let chain = || vec![server.der().clone()];
        let server_key = || PrivateKeyDer::Pkcs8(server_key.serialize_der().into());
        let open = ServerConfig::builder().with_no_client_auth();
        let closed = ServerConfig::builder().with_client_cert_verifier(verifier);
        Self {
            open: Arc::new(
                open.with_single_cert(chain(), server_key())
                    .expect("it fits"),
            ),
            closed: Arc::new(
                closed
                    .with_single_cert(chain(), server_key())
                    .expect("it fits"),
            ),
            client: write("client.pem", client.pem()),
            client_key: write("client.key", client_key.serialize_pem()),
            authority: write("authority.pem", authority.pem()),
        }
    }

    /// For a server that takes every client.
    pub fn for_all(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.open)
    }

    /// For a server that takes only clients with a certificate of the authority.
    pub fn for_known(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.closed)
    }
}
