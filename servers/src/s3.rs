//! The protocol of Amazon S3 by moto: with conditional writes and uploads by parts. It takes any credentials.

use std::net::{Ipv4Addr, SocketAddr};

use crate::{Error, Folder, Launch, Port, Process, http, tools};

/// By the credential's scope moto knows which service is meant; it checks no signature.
const SCOPE: &str =
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none";

/// A server, and its data. Dropped, both are gone.
#[derive(Debug)]
pub struct S3 {
    address: SocketAddr,
    process: Option<Process>,
    _port: Port,
    _folder: Folder,
}

impl S3 {
    /// Starts a server without a bucket.
    pub fn start() -> Result<Self, Error> {
        Self::launch("s3", |folder, port| {
            let server = tools::find("moto", "bin/moto_server")?;
            let port = port.to_string();
            Ok(Launch::new(server, folder.path().join("log")).with_arguments(["-H", "127.0.0.1", "-p", &port]))
        })
    }

    pub(crate) fn launch(name: &str, launch: impl Fn(&Folder, u16) -> Result<Launch, Error>) -> Result<Self, Error> {
        let folder = Folder::new(name)?;
        let port = Port::take()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        // Large bodies go to files there.
        let launch = launch(&folder, port.number())?.with_variable("TMPDIR", folder.path());
        let process = Some(Process::start(&launch, || http::answers(address))?);
        Ok(Self { address, process, _port: port, _folder: folder })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes a bucket and gives the URL of a store in it, with all that a client needs.
    pub fn create_bucket(&self, name: &str) -> Result<String, Error> {
        http::request(self.address, "PUT", &format!("/{name}"), &[("authorization", SCOPE)])?;
        Ok(self.url(name))
    }

    /// The URL of a store in a bucket that may not be there.
    pub fn url(&self, bucket: &str) -> String {
        let options = "allow_http=true&region=us-east-1&access_key_id=test&secret_access_key=test";
        format!("s3://{bucket}/store?endpoint=http://{}&{options}", self.address)
    }

    /// SIGKILL; what it held is gone.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }
}
