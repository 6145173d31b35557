//! A region whose members show certificates to each other.
#![cfg(feature = "tls")]

mod common;

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::{OneArtifact, Running, in_time};
use deploycore::model::RegionName;
use deploycore::port::PeerSwarm;
use deploycore::port::swarm::{Fetch, FetchRequest, Limits, Priority};
use deploycore_p2p::{Gate, GateSettings, MutualTls, Node, NodeSettings, Security, Tracker, TrackerSettings};
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Who signs certificates.
struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// Makes a member's files in a folder.
    fn sign(&self, folder: &Path, name: &str) -> MutualTls {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |kind: &str, text: String| -> PathBuf {
            let path = folder.join(format!("{name}-{kind}.pem"));
            std::fs::write(&path, text).unwrap();
            path
        };
        MutualTls {
            certificate: file("certificate", certificate.pem()),
            key: file("key", key.serialize_pem()),
            authority: file("authority", self.certificate.pem()),
            names_in_certificates: true,
        }
    }
}

struct Region {
    folder: TempDir,
    store: Arc<OneArtifact>,
    authority: Authority,
    services: MutualTls,
    tracker: Running<Tracker>,
    _gate: Running<Gate>,
}

fn name() -> RegionName {
    RegionName::new("eu").unwrap()
}

impl Region {
    /// Its tracker and gate share one certificate file, and one file of authorities.
    async fn new() -> Self {
        let (folder, store, authority) = (tempfile::tempdir().unwrap(), OneArtifact::new(6 << 20, 1), Authority::new());
        let services = authority.sign(folder.path(), "services");
        let security = || Security::MutualTls(services.clone());
        let tracker = Tracker::bind(TrackerSettings::new("services", name(), security())).await.unwrap();
        let gate = GateSettings::new("services", name(), folder.path().join("counts"), security())
            .with_tracker(tracker.local_addr());
        let gate = Arc::new(Gate::bind(gate, Arc::clone(&store) as _).await.unwrap());
        let (tracker, own_gate) = (Arc::new(tracker), Arc::clone(&gate));
        let own = Arc::clone(&tracker);
        let tracker = Running::spawn(tracker, async move { own.run(CancellationToken::new()).await });
        let gate = Running::spawn(gate, async move { own_gate.run(CancellationToken::new()).await });
        Self { folder, store, authority, services, tracker, _gate: gate }
    }

    async fn node(&self, name_of_node: &str, security: Security) -> Running<Node> {
        let settings =
            NodeSettings::new(name_of_node, name(), security).with_tracker(self.tracker.service.local_addr());
        let node = Arc::new(Node::bind(settings).await.unwrap());
        let own = Arc::clone(&node);
        Running::spawn(node, async move { own.run(CancellationToken::new()).await })
    }

    async fn fetch(&self, node: &Running<Node>, to: &str) -> Fetch {
        let (manifest, destination) = (Arc::new(self.store.manifest.clone()), self.folder.path().join(to));
        let (priority, limits) = (Priority::Normal, Limits::default());
        node.service.fetch(FetchRequest { manifest, destination, priority, limits }).await.unwrap()
    }

    fn signed(&self, name: &str) -> Security {
        Security::MutualTls(self.authority.sign(self.folder.path(), name))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_with_certificates_move_an_artifact() {
    let region = Region::new().await;
    let nodes = [region.node("m1", region.signed("m1")).await, region.node("m2", region.signed("m2")).await];
    let (one, two) = (region.fetch(&nodes[0], "one").await, region.fetch(&nodes[1], "two").await);
    let (one, two) = in_time(async { (one.done.await.unwrap(), two.done.await.unwrap()) }).await;
    assert_eq!(one.from_store + one.from_peers, 6 << 20);
    assert_eq!(two.from_store + two.from_peers, 6 << 20);
    let third = region.node("m3", region.signed("m3")).await;
    let fetched = region.fetch(&third, "three").await;
    assert!(in_time(fetched.done).await.unwrap().from_peers > 0, "peers talk to each other too");
    assert!(std::fs::read(region.folder.path().join("three")).unwrap() == region.store.bytes);
}

/// Strangers get nothing while a member gets all, from the same doors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_certificate_of_the_authority_is_refused() {
    let region = Region::new().await;
    // Signed by someone else, and trusting the region all the same.
    let mut other = Authority::new().sign(region.folder.path(), "stranger");
    other.authority.clone_from(&region.services.authority);
    let strangers = [
        region.node("stranger", Security::MutualTls(other)).await,
        region.node("plain", Security::PlainTcp).await,
        // A member that takes another's name.
        region
            .node("m9", {
                let files = region.authority.sign(region.folder.path(), "m8");
                Security::MutualTls(MutualTls { names_in_certificates: false, ..files })
            })
            .await,
    ];
    let in_vain = [
        region.fetch(&strangers[0], "a").await,
        region.fetch(&strangers[1], "b").await,
        region.fetch(&strangers[2], "c").await,
    ];
    let member = region.node("m1", region.signed("m1")).await;
    let fetched = region.fetch(&member, "one").await;
    in_time(fetched.done).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    for (stranger, fetch) in strangers.iter().zip(&in_vain) {
        let (progress, stats) = (fetch.progress.borrow().clone(), stranger.service.stats().await.unwrap());
        assert_eq!((progress.pieces, progress.peers, stats.peers), (0, 0, 0), "{progress:?} {stats:?}");
    }

    // Whoever speaks no TLS at all is cut off.
    let addr = region.tracker.service.local_addr().to_owned();
    let cut = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    });
    assert!(in_time(cut).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_that_comes_later_is_believed_without_a_restart() {
    let region = Region::new().await;
    let newer = Authority::new();
    let mut files = newer.sign(region.folder.path(), "m1");
    let both = region.authority.certificate.pem() + &newer.certificate.pem();
    files.authority = region.folder.path().join("both.pem");
    std::fs::write(&files.authority, &both).unwrap();
    let node = region.node("m1", Security::MutualTls(files)).await;
    let fetch = region.fetch(&node, "one").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(fetch.progress.borrow().pieces, 0, "nobody there knows who signed it");

    // What cannot be read changes nothing; then the real one comes, as a whole.
    std::fs::write(&region.services.authority, "not a certificate").unwrap();
    let member = region.node("m2", region.signed("m2")).await;
    in_time(region.fetch(&member, "two").await.done).await.unwrap();
    let next = region.folder.path().join("next.pem");
    std::fs::write(&next, &both).unwrap();
    std::fs::rename(&next, &region.services.authority).unwrap();
    in_time(fetch.done).await.unwrap();
}

#[tokio::test]
async fn certificates_that_do_not_serve_are_named() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let good = authority.sign(folder.path(), "m1");
    let other = authority.sign(folder.path(), "m2");
    let junk = folder.path().join("junk.pem");
    std::fs::write(&junk, "junk").unwrap();
    let missing = folder.path().join("missing.pem");
    let cases = [
        ("m3", good.clone(), "m1-certificate.pem: it is for [\"m1\"], and this member's name is m3"),
        ("m1", MutualTls { certificate: missing.clone(), ..good.clone() }, "missing.pem"),
        ("m1", MutualTls { certificate: junk.clone(), ..good.clone() }, "junk.pem: no certificate in it"),
        ("m1", MutualTls { authority: junk.clone(), ..good.clone() }, "junk.pem: no certificate in it"),
        ("m1", MutualTls { key: junk, ..good.clone() }, "junk.pem"),
        ("m1", MutualTls { key: other.key, ..good.clone() }, "m1-certificate.pem"),
    ];
    for (name_of_node, files, text) in cases {
        let settings = NodeSettings::new(name_of_node, name(), Security::MutualTls(files));
        let error = Node::bind(settings).await.unwrap_err().to_string();
        assert!(error.contains(text), "{error} does not say {text}");
    }
    assert!(Node::bind(NodeSettings::new("m1", name(), Security::MutualTls(good))).await.is_ok());
}
