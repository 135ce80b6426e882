//! TLS settings, built in one place. Only aws-lc-rs does the cryptography.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::ClientConfig;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The text holds no certificate, or a malformed one.
    #[error("malformed PEM certificate")]
    CertificatePem {
        /// What was wrong.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The text holds no private key, or a malformed one.
    #[error("malformed PEM private key")]
    KeyPem {
        /// What was wrong.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A certificate that cannot be a trust anchor.
    #[error("the certificate cannot serve as a trust anchor")]
    Root {
        /// What was wrong.
        #[source]
        source: rustls::Error,
    },
    /// No certificate to trust was given or found.
    #[error("there is no certificate to trust")]
    NoRoots,
    /// Key and certificate do not fit, or are of a kind that TLS cannot use.
    #[error("the certificate and key cannot be used for TLS")]
    Identity {
        /// What was wrong.
        #[source]
        source: rustls::Error,
    },
    /// The client verifier cannot be built.
    #[error("client certificates cannot be verified with this authority")]
    Verifier {
        /// What was wrong.
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
}

/// A certificate chain, end entity first, with its private key.
#[derive(Debug)]
pub struct Identity {
    /// End entity first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

impl Identity {
    /// From PEM texts.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        Ok(Self {
            chain: certificates(chain)?,
            key: PrivateKeyDer::from_pem_slice(key)
                .map_err(|source| TlsError::KeyPem { source })?,
        })
    }

    /// The same once more, for another door.
    pub fn duplicate(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

/// What doors present in handshakes from now on. It can be replaced while they serve; connections
/// that are open stay.
#[derive(Debug)]
pub struct Presented(ArcSwap<CertifiedKey>);

impl Presented {
    /// Presents `identity`.
    pub fn new(identity: Identity) -> Result<Self, TlsError> {
        Ok(Self(ArcSwap::from_pointee(certified(identity)?)))
    }

    /// Presents `identity` from the next handshake on. One that TLS cannot use changes nothing.
    pub fn replace(&self, identity: Identity) -> Result<(), TlsError> {
        self.0.store(Arc::new(certified(identity)?));
        Ok(())
    }

    /// Whether this is what is presented.
    pub fn is(&self, identity: &Identity) -> bool {
        self.0.load().cert == identity.chain
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn certified(identity: Identity) -> Result<CertifiedKey, TlsError> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(identity.chain, identity.key, &provider)
        .map_err(|source| TlsError::Identity { source })
}

/// All certificates of a PEM text; an error where there is none.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::CertificatePem { source })?;
    if certificates.is_empty() {
        return Err(TlsError::CertificatePem {
            source: rustls::pki_types::pem::Error::NoItemsFound,
        });
    }
    Ok(certificates)
}

/// A store that trusts exactly these certificates.
pub fn roots(
    certificates: impl IntoIterator<Item = CertificateDer<'static>>,
) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates {
        store
            .add(certificate)
            .map_err(|source| TlsError::Root { source })?;
    }
    if store.is_empty() {
        return Err(TlsError::NoRoots);
    }
    Ok(store)
}

/// A store that trusts what the operating system trusts.
pub fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if store.is_empty() {
        return Err(TlsError::NoRoots);
    }
    Ok(store)
}

/// A native door: TLS 1.3 only, a client certificate of `clients` required, HTTP/2 and HTTP/1.1.
///
/// Early data is off, as a replayed request must not reach a handler. Sessions are not resumed:
/// each connection proves possession of its key, and nothing about a removed client is kept.
pub fn mutual(
    presented: Arc<Presented>,
    clients: RootCertStore,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(clients), provider.clone())
        .build()
        .map_err(|source| TlsError::Verifier { source })?;
    door(presented, provider, verifier)
}

/// A door for browsers: as [`mutual`], but a client without a certificate gets as far as HTTP, where
/// it is refused with a reason that a page can read.
///
/// A certificate of another authority still ends the handshake. Browsers send no certificate with
/// a preflight (Fetch section 4.8), so a door that requires one serves no page.
pub fn browser(
    presented: Arc<Presented>,
    clients: RootCertStore,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(clients), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|source| TlsError::Verifier { source })?;
    door(presented, provider, verifier)
}

fn door(
    presented: Arc<Presented>,
    provider: Arc<rustls::crypto::CryptoProvider>,
    verifier: Arc<dyn rustls::server::danger::ClientCertVerifier>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|source| TlsError::Identity { source })?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(presented);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// A public service: TLS 1.3 and 1.2, no client certificate, HTTP/2 and HTTP/1.1, no early data.
pub fn public(identity: Identity) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|source| TlsError::Identity { source })?
        .with_no_client_auth()
        .with_single_cert(identity.chain, identity.key)
        .map_err(|source| TlsError::Identity { source })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// As [`public`], but a client may present a certificate. TLS proves that the client holds its key
/// and nothing more: whether the certificate is known and in force is for the handlers to look up.
pub fn offered(identity: Identity) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(PossessionOnly(provider.clone()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|source| TlsError::Identity { source })?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain, identity.key)
        .map_err(|source| TlsError::Identity { source })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// Takes any certificate whose key the client holds.
#[derive(Debug)]
struct PossessionOnly(Arc<rustls::crypto::CryptoProvider>);

impl ClientCertVerifier for PossessionOnly {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A client that trusts `roots`, with a certificate of its own where the server asks for one.
/// It speaks HTTP/1.1.
pub fn client(
    roots: RootCertStore,
    identity: Option<&Identity>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|source| TlsError::Identity { source })?
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => {
            let Identity { chain, key } = identity.duplicate();
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|source| TlsError::Identity { source })?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
