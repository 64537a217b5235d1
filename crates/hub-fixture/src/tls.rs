//! TLS, sound and unsound, with certificates that are good for tests alone: `tls/` has them, and their keys with them. The key of the
//! authority was thrown away.

use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// How a server speaks TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// With a certificate for 127.0.0.1 by the authority of [`authority_pem`].
    Trusted,
    /// With a certificate for 127.0.0.1 that nobody vouches for.
    SelfSigned,
    /// With a certificate by that authority, but for another host.
    WrongHost,
    /// Not: the connection ends when the client has said hello.
    Cut,
}

/// The certificate of the tests' authority, for `SSL_CERT_FILE`.
pub fn authority_pem() -> &'static str {
    include_str!("../tls/ca.pem")
}

impl Tls {
    /// `None` where the handshake is cut.
    pub(crate) fn acceptor(self) -> Option<TlsAcceptor> {
        let (certificate, key): (&[u8], &[u8]) = match self {
            Tls::Trusted => (include_bytes!("../tls/trusted.pem"), include_bytes!("../tls/trusted.key")),
            Tls::SelfSigned => (include_bytes!("../tls/selfsigned.pem"), include_bytes!("../tls/selfsigned.key")),
            Tls::WrongHost => (include_bytes!("../tls/elsewhere.pem"), include_bytes!("../tls/elsewhere.key")),
            Tls::Cut => return None,
        };
        let certificate = CertificateDer::from_pem_slice(certificate).expect("the certificate in tls/ is one");
        let key = PrivateKeyDer::from_pem_slice(key).expect("the key in tls/ is one");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate], key))
            .expect("certificate and key in tls/ belong together");
        Some(TlsAcceptor::from(Arc::new(config)))
    }
}
