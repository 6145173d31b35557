//! A store chosen by URL.

use std::sync::Arc;

use deploycore::port::GoalStateStore;
use deploycore::port::goals::Error;

/// Opens the store of a URL:
///
/// | URL | store | feature |
/// |---|---|---|
/// | `redb:///absolute/path`, `redb://relative/path` | a file of this process | `redb` |
/// | `etcd://[user:password@]host:port[,host:port...][/prefix]`, `etcds://...?ca=FILE[&cert=FILE&key=FILE]` | etcd | `etcd` |
/// | `http://host:port[,host:port...][/path]` | what a gateway offers, or any of a region's gateways | `gateway` |
/// | `memory://` | this process's memory, empty: for a try | |
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let goals = deploycore_kv::open_url("memory://").await?;
/// assert!(goals.list("").await?.goals.is_empty());
/// # Ok::<(), deploycore::port::goals::Error>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Errors: `Invalid` for a URL that names no store of this build; otherwise as the store's own.
pub async fn open_url(url: &str) -> Result<Arc<dyn GoalStateStore>, Error> {
    match url.split_once("://") {
        #[cfg(feature = "redb")]
        Some(("redb", _)) => Ok(Arc::new(crate::redb::Goals::open_url(url).await?)),
        #[cfg(feature = "etcd")]
        Some(("etcd" | "etcds", _)) => Ok(Arc::new(crate::etcd::Goals::open_url(url).await?)),
        #[cfg(feature = "gateway")]
        Some(("http", _)) => {
            let bases = gateways(url).map_err(|error| invalid(&format!("it is no URL: {error}")))?;
            let settings = crate::gateway::GatewayClientSettings::default();
            Ok(Arc::new(crate::gateway::GatewayClient::of_replicas(bases, settings)?))
        }
        Some(("memory", "")) => Ok(Arc::new(deploycore::memory::Goals::new())),
        Some(("memory", _)) => Err(invalid("memory:// has nothing to name")),
        #[cfg(not(feature = "redb"))]
        Some(("redb", _)) => Err(left_out("redb")),
        #[cfg(not(feature = "etcd"))]
        Some(("etcd" | "etcds", _)) => Err(left_out("etcd")),
        #[cfg(not(feature = "gateway"))]
        Some(("http", _)) => Err(left_out("gateway")),
        Some((scheme, _)) => Err(invalid(&format!("{scheme}:// is none of redb, etcd, etcds, http, memory"))),
        None => Err(invalid("it has no scheme")),
    }
}

/// The URL of each gateway that is named.
#[cfg(feature = "gateway")]
fn gateways(url: &str) -> Result<Vec<url::Url>, url::ParseError> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (hosts, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    hosts.split(',').map(|host| url::Url::parse(&format!("http://{host}{path}"))).collect()
}

/// Tells what is wrong, and not the URL: it may hold a password.
fn invalid(what: &str) -> Error {
    Error::Invalid(format!(
        "the goal store cannot be opened by this URL: {what}; use redb:///path, etcd://host:port/prefix, etcds://host:port/prefix?ca=FILE, \
         http://host:port[,host:port] or memory://"
    ))
}

#[cfg(not(all(feature = "redb", feature = "etcd", feature = "gateway")))]
fn left_out(feature: &str) -> Error {
    invalid(&format!("this build has no such store; it is the feature {feature:?} of deploycore-kv"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_that_names_no_store_is_refused_on_one_line_without_a_password() {
        for url in [
            "",
            "goals",
            "/var/goals.redb",
            "redis://u:s3cret@h",
            "memory://x",
            "redb://",
            "etcd://u:s3cret@",
            "etcds://u:s3cret@h",
            "http://",
            "postgres://u:s3cret@h/d",
        ] {
            let error = open_url(url).await.unwrap_err();
            let Error::Invalid(text) = &error else { panic!("{url}: {error:?}") };
            assert!(!text.contains("s3cret") && !text.contains('\n'), "{text}");
        }
    }

    #[cfg(feature = "gateway")]
    #[tokio::test]
    async fn a_url_names_one_gateway_or_several() {
        let named = |url| gateways(url).unwrap().into_iter().map(String::from).collect::<Vec<_>>();
        assert_eq!(named("http://a:1"), ["http://a:1/"]);
        assert_eq!(named("http://a:1,b:2/eu"), ["http://a:1/eu", "http://b:2/eu"]);
        open_url("http://a:1,b:2").await.unwrap();
        assert!(open_url("http://a:1,,b:2").await.is_err());
    }

    #[cfg(feature = "redb")]
    #[tokio::test]
    async fn a_file_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("goals.redb");
        drop(open_url(&format!("redb://{}", file.display())).await.unwrap());
        assert!(file.exists());
    }
}
