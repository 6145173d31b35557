//! The XML protocol of Google Cloud Storage, as far as a store needs it.
//!
//! No emulator that can be installed knows its uploads by parts and conditional writes. It is the protocol of S3 with other names of headers, so
//! moto serves it behind a page of Python that translates those. Signing and the JSON protocol are not there.

use crate::s3::S3;
use crate::{Error, Launch, tools};

const SERVER: &str = include_str!("gcs.py");

/// A server, and its data. Dropped, both are gone.
#[derive(Debug)]
pub struct Gcs(S3);

impl Gcs {
    /// Starts a server without a bucket.
    pub fn start() -> Result<Self, Error> {
        let server = S3::launch("gcs", |folder, port| {
            let script = folder.path().join("gcs.py");
            std::fs::write(&script, SERVER).map_err(Error::io(&script))?;
            let python = tools::find("moto", "bin/python")?;
            let log = folder.path().join("log");
            Ok(Launch::new(python, log).with_arguments([script.into_os_string(), port.to_string().into()]))
        })?;
        Ok(Self(server))
    }

    /// Makes a bucket and gives the URL of a store in it, with all that a client needs.
    pub fn create_bucket(&self, name: &str) -> Result<String, Error> {
        self.0.create_bucket(name)?;
        Ok(self.url(name))
    }

    /// The URL of a store in a bucket that may not be there.
    pub fn url(&self, bucket: &str) -> String {
        format!("gs://{bucket}/store?base_url=http://{}&bearer_token=test&allow_http=true", self.0.address())
    }
}
