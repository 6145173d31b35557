//! Azure Blob Storage by Azurite, Microsoft's emulator: it checks signatures, conditions and lists of blocks.

use std::net::SocketAddr;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::s3::S3;
use crate::{Error, Launch, http, tools};

/// The account that Azurite has, and its public key.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
const VERSION: &str = "2021-08-06";

/// A server, and its data. Dropped, both are gone.
#[derive(Debug)]
pub struct Azure(S3);

impl Azure {
    /// Starts a server without a container.
    pub fn start() -> Result<Self, Error> {
        let server = S3::launch("azure", |folder, port| {
            let server = tools::find("azurite", "node_modules/.bin/azurite-blob")?;
            let (log, data, port) = (folder.path().join("log"), folder.path().join("data"), port.to_string());
            let data = data.display().to_string();
            let arguments = ["--blobHost", "127.0.0.1", "--blobPort", &port, "--location", &data];
            let rest = ["--silent", "--skipApiVersionCheck", "--disableTelemetry"];
            Ok(Launch::new(server, log).with_arguments(arguments).with_arguments(rest))
        })?;
        Ok(Self(server))
    }

    /// Makes a container and gives the URL of a store in it, with all that a client needs.
    pub fn create_container(&self, name: &str) -> Result<String, Error> {
        let date = httpdate::fmt_http_date(SystemTime::now());
        let resource = format!("/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container");
        let signed = format!("PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:{VERSION}\n{resource}");
        let wrong = |error| Error::io("the key of Azurite")(std::io::Error::other(error));
        let key = STANDARD.decode(KEY).map_err(wrong)?;
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
        let signature = STANDARD.encode(ring::hmac::sign(&key, signed.as_bytes()));
        let authorization = format!("SharedKey {ACCOUNT}:{signature}");
        let headers =
            [("x-ms-date", date.as_str()), ("x-ms-version", VERSION), ("authorization", authorization.as_str())];
        http::request(self.0.address(), "PUT", &format!("/{ACCOUNT}/{name}?restype=container"), &headers)?;
        Ok(self.url(name))
    }

    /// The URL of a store in a container that may not be there.
    pub fn url(&self, container: &str) -> String {
        self.url_with_key(container, KEY)
    }

    /// The same with another key, in base64.
    pub fn url_with_key(&self, container: &str, key: &str) -> String {
        let (address, key) = (self.0.address(), key.replace('+', "%2B"));
        format!(
            "az://{container}/store?endpoint=http://{address}/{ACCOUNT}&account_name={ACCOUNT}&account_key={key}&allow_http=true"
        )
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }
}
