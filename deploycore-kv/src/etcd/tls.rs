//! Certificates: read once, for the connections and for a look at why one was closed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use url::Url;

use super::fault::Fault;
use super::settings::Tls;

/// What the files hold.
pub(super) struct Files {
    pub(super) config: ClientTlsConfig,
    pub(super) probe: Probe,
}

/// Looks why a server hangs up. With TLS 1.3 a client is through with the handshake before the server has looked at its certificate; the
/// refusal comes after it, and gets lost in the connection that ends with it.
#[derive(Clone)]
pub(super) struct Probe {
    connector: TlsConnector,
    server_name: Option<String>,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl Files {
    pub(super) async fn read(tls: &Tls) -> Result<Self, Fault> {
        let ca = read(&tls.ca).await?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&tls.ca, &ca)? {
            roots.add(certificate).map_err(|source| Fault::Unusable { path: tls.ca.clone(), source })?;
        }
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| Fault::Unusable { path: tls.ca.clone(), source })?
            .with_root_certificates(roots);
        let mut probe = match &tls.client {
            None => builder.with_no_client_auth(),
            Some(client) => {
                let (certificate, key) = (read(&client.certificate).await?, read(&client.key).await?);
                let chain = certificates(&client.certificate, &certificate)?;
                let secret = PrivateKeyDer::from_pem_slice(&key).map_err(|source| Fault::Pem {
                    path: client.key.clone(),
                    what: "private key",
                    source,
                })?;
                config = config.identity(Identity::from_pem(certificate, key));
                builder
                    .with_client_auth_cert(chain, secret)
                    .map_err(|source| Fault::Unusable { path: client.key.clone(), source })?
            }
        };
        // As the connections do: a server may insist on it.
        probe.alpn_protocols.push(b"h2".to_vec());
        if let Some(name) = &tls.server_name {
            config = config.domain_name(name);
        }
        let probe = Probe { connector: Arc::new(probe).into(), server_name: tls.server_name.clone() };
        Ok(Self { config, probe })
    }
}

impl Probe {
    /// What TLS has to say about a server; `None` when that is nothing.
    pub(super) async fn look(&self, endpoint: &str, limit: Duration) -> Option<std::io::Error> {
        let url = Url::parse(endpoint).ok()?;
        let (host, port) = (url.host_str()?.trim_matches(['[', ']']).to_owned(), url.port_or_known_default()?);
        let name = ServerName::try_from(self.server_name.clone().unwrap_or_else(|| host.clone())).ok()?;
        let look = async {
            let tcp = TcpStream::connect((host.as_str(), port)).await.ok()?;
            match self.connector.connect(name, tcp).await {
                Err(error) => Some(error),
                // A server that likes the certificate begins to speak HTTP/2.
                Ok(mut stream) => stream.read_u8().await.err(),
            }
        };
        timeout(limit, look).await.ok().flatten()
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking({
        let path = path.clone();
        move || std::fs::read(path)
    });
    let bytes = read.await.unwrap_or_else(|error| Err(error.into()));
    bytes.map_err(|source| Fault::File { path, source })
}

/// At least one: with none, every server would seem to have a bad certificate.
fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let wrong = |source| Fault::Pem { path: PathBuf::from(path), what: "certificate", source };
    let found = CertificateDer::pem_slice_iter(bytes).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    if found.is_empty() { Err(wrong(pem::Error::NoItemsFound)) } else { Ok(found) }
}
