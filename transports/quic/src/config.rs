//! Configurations of quinn: certificates, congestion control, sizes and times.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use genie_records::{check_settings, number};
use genie_tls::{Accept, ReloadingCerts};
use genie_transport::transport::{Cause, Options, Result, TransportError};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

use crate::NAME;

/// First packets that wait for quinn's thread to look at them, and what may be kept of those that
/// follow a first one, all together.
const INCOMING_MAX: usize = 1024;
const INCOMING_BUFFER_BYTES: u64 = 16 << 10;
const INCOMING_BUFFERS_BYTES: u64 = 4 << 20;
/// The protocol named in the handshake.
const ALPN: &[u8] = b"genie/1";
/// UDP payload of a datagram on Ethernet. Larger ones are tried only on demand: above 6553 bytes
/// they must leave one by one, which cost more than they saved (1.0-1.3 against 2.1 Gb/s, loopback).
const MTU_DEFAULT: u16 = 1452;
/// quinn puts up to ten datagrams into one batch, which must stay below 64 KiB.
const BATCH: u32 = 10;
/// Payload that a sender may be ahead of a peer's `poll`.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// Payload that a sender may have sent and not yet been acknowledged.
const SEND_WINDOW_BYTES: u64 = 16 << 20;
/// A sign of life is given this many times within the deadline.
const SIGNS_PER_DEADLINE: u64 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Congestion {
    Cubic,
    Bbr,
}

impl fmt::Display for Congestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Congestion::Cubic => "cubic",
            Congestion::Bbr => "bbr",
        })
    }
}

/// Settings of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tuning {
    pub congestion: Congestion,
    mtu: u16,
    deadline_ms: u64,
}

impl Tuning {
    pub fn read(options: &Options) -> Result<Self> {
        check_settings(options, NAME, &["congestion", "mtu"])?;
        let invalid = |message: String| TransportError::new(Cause::Invalid, message);
        let congestion = match options.settings.get("congestion").map(String::as_str) {
            None | Some("cubic") => Congestion::Cubic,
            Some("bbr") => Congestion::Bbr,
            Some(other) => {
                return Err(invalid(format!(
                    "QUIC has no congestion control {other:?}; it has cubic and bbr"
                )));
            }
        };
        let mtu = match number(options, "mtu")? {
            None => MTU_DEFAULT,
            Some(mtu @ 1200..=65_527) => mtu as u16,
            Some(mtu) => return Err(invalid(format!("the setting mtu={mtu} is not 1200..65527"))),
        };
        Ok(Tuning { congestion, mtu, deadline_ms: options.deadline_ms.max(1) })
    }

    pub fn transport(&self) -> Arc<TransportConfig> {
        let mtu = self.mtu;
        let mut config = TransportConfig::default();
        let idle = VarInt::from_u64(self.deadline_ms).unwrap_or(VarInt::MAX);
        config
            .max_idle_timeout(Some(IdleTimeout::from(idle)))
            .keep_alive_interval(Some(Duration::from_millis(
                (self.deadline_ms / SIGNS_PER_DEADLINE).max(1),
            )))
            .stream_receive_window(STREAM_WINDOW_BYTES.into())
            .send_window(SEND_WINDOW_BYTES)
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .max_concurrent_bidi_streams(VarInt::from_u32(2))
            .datagram_receive_buffer_size(None)
            .enable_segmentation_offload(u32::from(mtu) * BATCH < 1 << 16);
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(mtu);
        config.mtu_discovery_config(Some(discovery));
        match self.congestion {
            Congestion::Cubic => config
                .congestion_controller_factory(Arc::<quinn::congestion::CubicConfig>::default()),
            Congestion::Bbr => {
                config.congestion_controller_factory(Arc::<quinn::congestion::BbrConfig>::default())
            }
        };
        Arc::new(config)
    }
}

/// The addresses that a name and port stand for: the first that the system gives.
pub(crate) fn resolve(address: &str) -> Result<SocketAddr> {
    let unknown = |why: String| {
        let message = format!("the address {address:?} is not understood: {why}; give HOST:PORT");
        TransportError::new(Cause::Invalid, message)
    };
    let mut all = address.to_socket_addrs().map_err(|error| unknown(error.to_string()))?;
    all.next().ok_or_else(|| unknown("the name has no address".into()))
}

pub(crate) fn refused(error: genie_tls::TlsError) -> TransportError {
    TransportError::new(Cause::Refused, error.to_string())
}

fn failed(error: impl fmt::Display) -> TransportError {
    TransportError::new(Cause::Internal, format!("prepare TLS for QUIC: {error}"))
}

/// The certificates of the options, which follow their files.
pub(crate) fn certificates(options: &Options) -> Result<Arc<ReloadingCerts>> {
    let Some(dir) = options.certificates.as_deref() else {
        return Err(TransportError::new(
            Cause::Invalid,
            "there are no certificates: name their directory (`genie-host certs init` makes one), \
             or say that the network is trusted",
        ));
    };
    let clock = Arc::new(rustls::time_provider::DefaultTimeProvider);
    // A plugin's `tracing` reaches nobody.
    let warn = Box::new(|error: &_| eprintln!("genie-quic: {error}; the old ones stay in use"));
    ReloadingCerts::load_with(dir, clock, warn).map_err(refused)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The certificates that judge a peer; none on a trusted network.
pub(crate) type Judge = Option<Arc<ReloadingCerts>>;

/// The listening side. Nodes may bring data of other nodes; control is for hosts.
pub(crate) fn server(options: &Options) -> Result<(Arc<QuicServerConfig>, Judge)> {
    let judge = (!options.trusted).then(|| certificates(options)).transpose()?;
    let tls = match &judge {
        None => trusted_server()?,
        Some(certs) => {
            let accept =
                if options.secret.is_some() { Accept::HostsAndNodes } else { Accept::Hosts };
            certs.server_config(accept, &[ALPN]).map_err(refused)?
        }
    };
    Ok((QuicServerConfig::try_from(tls).map(Arc::new).map_err(failed)?, judge))
}

pub(crate) fn with_transport(
    crypto: Arc<QuicServerConfig>,
    transport: Arc<TransportConfig>,
) -> ServerConfig {
    let mut config = ServerConfig::with_crypto(crypto);
    config.transport_config(transport);
    // A peer's address stays: data connections are set up anew instead.
    config.migration(false);
    config
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BUFFER_BYTES)
        .incoming_buffer_size_total(INCOMING_BUFFERS_BYTES);
    config
}

/// The dialling side.
pub(crate) fn client(
    options: &Options,
    transport: Arc<TransportConfig>,
) -> Result<(ClientConfig, Judge)> {
    let judge = (!options.trusted).then(|| certificates(options)).transpose()?;
    let tls = match &judge {
        None => {
            let mut tls = rustls::ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .map_err(failed)?
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anyone(provider())))
                .with_no_client_auth();
            tls.alpn_protocols = vec![ALPN.to_vec()];
            tls
        }
        Some(certs) => certs.client_config(&[ALPN]).map_err(refused)?,
    };
    let crypto = QuicClientConfig::try_from(tls).map_err(failed)?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport);
    Ok((config, judge))
}

/// A certificate of the moment, which only serves to agree on keys.
fn trusted_server() -> Result<rustls::ServerConfig> {
    let made = rcgen::generate_simple_self_signed(["genie".to_owned()]).map_err(failed)?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(failed)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .map_err(failed)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.max_early_data_size = 0;
    Ok(tls)
}

/// Takes any certificate: for trusted networks only.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _cert: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
