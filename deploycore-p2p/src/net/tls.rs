//! Mutual TLS 1.3: both ends show a certificate that the swarm's authority signed.
//!
//! Members are machines that come and go with their addresses, so a certificate is not held against the address that was dialed. It is
//! held against the name that the member gives in its hello, where [`MutualTls::names_in_certificates`] asks for it.

use std::fmt::{self, Debug};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::transport::{Connection, Listener, Transport, tune};

/// Handshakes of accepted connections at once; more wait in the system's queue.
const MAX_HANDSHAKES: usize = 256;
/// How long an accepted connection's TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Where a member's certificate lies, and whom it trusts. All three are PEM files.
///
/// They are read again when one of them changes, so that a certificate is renewed by renaming a new file over the old one; connections
/// that stand go on under the old one. A set of files that does not fit together is not taken: the last good one holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MutualTls {
    /// The member's certificate, followed by those between it and the authority. If it limits its uses, it must allow both a
    /// server's and a client's.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The certificates of the authorities that sign members.
    pub authority: PathBuf,
    /// Whether a member may only go by a DNS name that stands in its certificate. Without it, any member may take any name, and one
    /// that is refused for bad bytes may come again as another.
    #[serde(default)]
    pub names_in_certificates: bool,
}

/// Both directions' configurations, and the state of the files that they were made of.
#[derive(Clone)]
struct Loaded {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    stamps: Stamps,
}

type Stamps = [Option<(SystemTime, u64)>; 3];

/// TLS over TCP.
#[derive(Clone)]
pub(super) struct Tls {
    files: MutualTls,
    name: String,
    loaded: Arc<Mutex<Loaded>>,
}

impl Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files. Errors name the file, and say what does not fit: one is that it is not for a member of this name.
    pub(super) fn new(files: &MutualTls, name: &str) -> io::Result<Self> {
        let loaded = Arc::new(Mutex::new(load(files, name)?));
        Ok(Self { files: files.clone(), name: name.to_owned(), loaded })
    }

    /// The newest configurations that fit together.
    fn current(&self) -> Loaded {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.files);
        if stamps != loaded.stamps {
            match load(&self.files, &self.name) {
                Ok(newer) => {
                    tracing::info!(certificate = %self.files.certificate.display(), "certificates read again");
                    *loaded = newer;
                }
                Err(error) => {
                    tracing::warn!(%error, "changed certificates are not taken: the last good ones hold");
                    loaded.stamps = stamps;
                }
            }
        }
        loaded.clone()
    }
}

fn stamps(files: &MutualTls) -> Stamps {
    let stamp = |path: &PathBuf| {
        let found = fs::metadata(path).ok()?;
        Some((found.modified().ok()?, found.len()))
    };
    [&files.certificate, &files.key, &files.authority].map(stamp)
}

fn named(path: &Path, error: impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {error}", path.display()))
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read.map_err(|error| named(path, error))? {
        found if found.is_empty() => Err(named(path, "no certificate in it")),
        found => Ok(found),
    }
}

fn load(files: &MutualTls, name: &str) -> io::Result<Loaded> {
    // Taken before the files are read: what changes meanwhile is read again.
    let stamps = stamps(files);
    let chain = certificates(&files.certificate)?;
    if let Some(names) = names(files, Some(&chain))?
        && !names.iter().any(|other| other == name)
    {
        return Err(named(&files.certificate, format!("it is for {names:?}, and this member's name is {name}")));
    }
    let key = || PrivateKeyDer::from_pem_file(&files.key).map_err(|error| named(&files.key, error));
    let mut roots = RootCertStore::empty();
    for authority in certificates(&files.authority)? {
        roots.add(authority).map_err(|error| named(&files.authority, error))?;
    }
    let (roots, provider) = (Arc::new(roots), Arc::new(ring::default_provider()));
    let unfit = |error: rustls::Error| named(&files.certificate, error);

    let members = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
        .build()
        .map_err(|error| named(&files.authority, error))?;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(unfit)?
        .with_client_cert_verifier(members)
        .with_single_cert(chain.clone(), key()?)
        .map_err(unfit)?;
    // Connections live long. Each shows its certificate, and none goes on where an earlier one ended.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;

    let signed = Arc::new(SignedByAuthority { roots, provider: Arc::clone(&provider) });
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(unfit)?
        .dangerous()
        .with_custom_certificate_verifier(signed)
        .with_client_auth_cert(chain, key()?)
        .map_err(unfit)?;
    client.resumption = Resumption::disabled();
    Ok(Loaded { client: Arc::new(client), server: Arc::new(server), stamps })
}

/// Verifies a certificate as rustls does by default, but for the address: see the [module](self).
#[derive(Debug)]
struct SignedByAuthority {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for SignedByAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The names that the other end may go by.
fn names(files: &MutualTls, shown: Option<&[CertificateDer<'_>]>) -> io::Result<Option<Vec<String>>> {
    if !files.names_in_certificates {
        return Ok(None);
    }
    let certificate = shown.and_then(<[_]>::first).ok_or(io::ErrorKind::PermissionDenied)?;
    let parsed = webpki::EndEntityCert::try_from(certificate).map_err(io::Error::other)?;
    Ok(Some(parsed.valid_dns_names().map(str::to_owned).collect()))
}

#[async_trait]
impl Transport for Tls {
    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        let listener = TcpListener::bind(addr).await?;
        Ok(Box::new(TlsListener { tls: self.clone(), listener, handshakes: JoinSet::new() }))
    }

    async fn connect(&self, addr: &str) -> io::Result<Connection> {
        let stream = TcpStream::connect(addr).await?;
        tune(&stream)?;
        let peer = stream.peer_addr()?.ip();
        let stream = TlsConnector::from(self.current().client).connect(ServerName::from(peer), stream).await?;
        let names = names(&self.files, stream.get_ref().1.peer_certificates())?;
        let (read, write) = tokio::io::split(stream);
        Ok(Connection { read: Box::new(read), write: Box::new(write), host: peer.to_string(), names })
    }
}

/// Accepts while earlier connections are still at their handshake: one that is slow holds up nobody.
struct TlsListener {
    tls: Tls,
    listener: TcpListener,
    handshakes: JoinSet<Option<Connection>>,
}

impl Debug for TlsListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsListener").field("listener", &self.listener).finish_non_exhaustive()
    }
}

async fn greet(tls: Tls, stream: TcpStream, peer: String) -> Option<Connection> {
    let handshake = async {
        tune(&stream)?;
        let stream = TlsAcceptor::from(tls.current().server).accept(stream).await?;
        let names = names(&tls.files, stream.get_ref().1.peer_certificates())?;
        let (read, write) = tokio::io::split(stream);
        Ok::<_, io::Error>(Connection { read: Box::new(read), write: Box::new(write), host: peer.clone(), names })
    };
    match timeout(HANDSHAKE, handshake).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(connection) => Some(connection),
        Err(error) => {
            tracing::warn!(host = peer, %error, "refused a connection: no TLS handshake with a certificate of the swarm");
            None
        }
    }
}

#[async_trait]
impl Listener for TlsListener {
    async fn accept(&mut self) -> io::Result<Connection> {
        loop {
            tokio::select! {
                Some(done) = self.handshakes.join_next() => {
                    if let Ok(Some(connection)) = done {
                        return Ok(connection);
                    }
                }
                accepted = self.listener.accept(), if self.handshakes.len() < MAX_HANDSHAKES => {
                    let (stream, peer) = accepted?;
                    self.handshakes.spawn(greet(self.tls.clone(), stream, peer.ip().to_string()));
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<String> {
        self.listener.local_addr().map(|addr| addr.to_string())
    }
}
