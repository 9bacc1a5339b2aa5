use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, VerifierBuilderError,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
};

use crate::error::TlsError;
use crate::files::{CA_FILE, CERT_FILE, CertFiles};
use crate::identity::{Role, identity};
use crate::reload::ReloadingCerts;

/// Whose certificates a server takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// Hosts only: control, and data between host and node.
    Hosts,
    /// Also nodes: data that goes from node to node.
    HostsAndNodes,
}

impl ReloadingCerts {
    /// A node's side of mutual TLS 1.3: it shows `cert.pem` and takes only clients that
    /// `ca.pem` vouches for and `accept` names. Refuses a host's certificate as our own.
    pub fn server_config(
        self: &Arc<Self>,
        accept: Accept,
        alpn: &[&[u8]],
    ) -> Result<ServerConfig, TlsError> {
        let (found, wanted) = (self.identity(), Role::Node);
        if found.role() != wanted {
            return Err(TlsError::OwnRole { path: self.dir().join(CERT_FILE), found, wanted });
        }
        let verifier = Arc::new(Clients { certs: self.clone(), accept });
        let mut config = ServerConfig::builder_with_details(self.provider().clone(), self.clock())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Setup)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Own(self.clone())));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        // A resumed session would skip the check of the client's certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// The dialling side, a host or (for data between nodes) a node: it shows `cert.pem` and takes
    /// only a *node* that `ca.pem` vouches for and whose certificate names the dialled address
    /// (see [`server_name`](crate::server_name)).
    pub fn client_config(self: &Arc<Self>, alpn: &[&[u8]]) -> Result<ClientConfig, TlsError> {
        let mut config = ClientConfig::builder_with_details(self.provider().clone(), self.clock())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Setup)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Servers(self.clone())))
            .with_client_cert_resolver(Arc::new(Own(self.clone())));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(config)
    }
}

/// The checks of rustls against one set of authorities.
pub(crate) struct Checks {
    pub servers: Arc<dyn ServerCertVerifier>,
    pub clients: Arc<dyn ClientCertVerifier>,
}

impl Checks {
    pub fn new(
        roots: Arc<RootCertStore>,
        provider: &Arc<CryptoProvider>,
        dir: &Path,
    ) -> Result<Self, TlsError> {
        let bad = |error: VerifierBuilderError| TlsError::Bad {
            path: dir.join(CA_FILE),
            reason: error.to_string(),
        };
        let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone());
        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        Ok(Self { servers: servers.build().map_err(bad)?, clients: clients.build().map_err(bad)? })
    }

    /// That `ca.pem` vouches for our own certificate: a peer with the same file would refuse us.
    /// Certificates of both roles are good for clients.
    pub fn own(&self, files: &CertFiles, now: UnixTime) -> Result<(), TlsError> {
        let cert = files.dir.join(CERT_FILE);
        match self.clients.verify_client_cert(&files.chain[0], &files.chain[1..], now) {
            Ok(_) => Ok(()),
            Err(Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => Err(TlsError::ForeignCert { cert, ca: files.dir.join(CA_FILE) }),
            Err(error) => Err(TlsError::Bad { path: cert, reason: error.to_string() }),
        }
    }
}

/// Our certificate, as the files have it at each handshake.
#[derive(Debug)]
struct Own(Arc<ReloadingCerts>);

impl ResolvesServerCert for Own {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified.clone())
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes nodes.
#[derive(Debug)]
struct Servers(Arc<ReloadingCerts>);

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        cert: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // A host's certificate has no address and is for clients only: say that it is a host's,
        // where the chain is good.
        let servers = &self.0.current().servers;
        let checked = match servers.verify_server_cert(cert, chain, name, ocsp, now) {
            Err(error @ Error::InvalidCertificate(CertificateError::UnknownIssuer)) => Err(error),
            checked => role_is(cert, &[Role::Node], "a node").and(checked),
        };
        checked.inspect_err(|error| self.0.remember(error))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13_signature(&self.0, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes(&self.0)
    }
}

/// Takes hosts, and nodes where that was asked for.
#[derive(Debug)]
struct Clients {
    certs: Arc<ReloadingCerts>,
    accept: Accept,
}

impl ClientCertVerifier for Clients {
    /// None: the authorities may change while a configuration lives.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        cert: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.certs.current().clients.verify_client_cert(cert, chain, now);
        let roles = || match self.accept {
            Accept::Hosts => role_is(cert, &[Role::Host], "a host"),
            Accept::HostsAndNodes => role_is(cert, &[Role::Host, Role::Node], "a host or a node"),
        };
        let checked = verified.and_then(|verified| roles().map(|()| verified));
        checked.inspect_err(|error| self.certs.remember(error))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13_signature(&self.certs, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes(&self.certs)
    }
}

fn role_is(cert: &CertificateDer<'_>, wanted: &[Role], words: &'static str) -> Result<(), Error> {
    let refuse = |error: TlsError| {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    };
    let found = identity(cert).map_err(refuse)?;
    if wanted.contains(&found.role()) {
        return Ok(());
    }
    Err(refuse(TlsError::WrongRole { found, wanted: words }))
}

fn tls13_signature(
    certs: &ReloadingCerts,
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = &certs.provider().signature_verification_algorithms;
    rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
}

fn schemes(certs: &ReloadingCerts) -> Vec<SignatureScheme> {
    certs.provider().signature_verification_algorithms.supported_schemes()
}
