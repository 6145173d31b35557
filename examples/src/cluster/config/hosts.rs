//! What cannot work is refused before a role starts: above all what lives on one host in a configuration that spans several.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use url::Url;

use super::server::user_info;
use super::{Config, Server};

const DATABASES: &str = "name a server, as in postgres://USER@HOST/DATABASE or mysql://USER@HOST/DATABASE";
const GOALS: &str = "name a server, as in etcd://HOST:2379,HOST:2379/PREFIX";
const STORES: &str = "name a cloud's, as in s3://BUCKET/PREFIX, gs:// or az://";
const SHARED: &str = ", or a file:// folder that all its hosts share, and say shared_folders = true in [stores]";
/// Options of a store's URL with such a word in their names hold secrets.
const SECRET: [&str; 6] = ["secret", "password", "token", "sas", "account_key", "service_account_key"];

/// Whoever asks for a build asks again if the answer was lost, and reads the log of one that failed: both are still there after a night.
const LEAST_KEPT: Duration = Duration::from_hours(24);

/// What a URL is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Process,
    Host,
    Network,
}

fn reach(url: Option<&str>) -> Reach {
    match url.and_then(|url| url.split_once(':')) {
        Some(("memory", _)) => Reach::Process,
        Some(("sqlite" | "redb" | "file", _)) | None => Reach::Host,
        Some(_) => Reach::Network,
    }
}

impl Config {
    /// Whether everything is on this host: all hosts that are named are one address of loopback.
    pub fn is_one_host(&self) -> bool {
        let hosts = self.hosts();
        hosts.len() == 1 && hosts.iter().all(|host| is_loopback(host))
    }

    fn hosts(&self) -> BTreeSet<&str> {
        let replicas = self.regions.values().flat_map(|region| &region.replicas);
        replicas.map(|replica| replica.host.as_str()).chain([self.control.host.as_str()]).collect()
    }

    /// What keeps roles from being started apart with this configuration, each on one line that says what to do.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        self.check_regions(&mut problems);
        self.check_swarm(&mut problems);
        let servers =
            [("queue", &self.queue, DATABASES), ("ledger", &self.ledger, DATABASES), ("goals", &self.goals, GOALS)];
        for (section, server, way) in servers {
            self.check_server(section, server, way, &mut problems);
        }
        let repository = self.worker.repository.as_deref().and_then(user_info);
        if repository.is_some_and(|user| user.contains(':')) && !self.is_one_host() {
            problems.push(
                "[worker] repository holds a password, and every host has this file: leave it out, and give the workers' user a key or a \
                 credential helper of git's"
                    .into(),
            );
        }
        let main = self.stores.main.as_ref();
        self.check_store("[stores] main", main, self.is_one_host(), &mut problems);
        for (name, region) in &self.regions {
            let hosts: BTreeSet<_> = region.replicas.iter().map(|replica| &replica.host).collect();
            let key = format!("[regions.{name}] store");
            self.check_store(&key, region.store.as_ref(), hosts.len() == 1 || self.is_one_host(), &mut problems);
        }
        self.check_kept(&mut problems);
        if let Some(problem) = self.collect.as_ref().and_then(|_| self.out_of_reach()) {
            problems.push(format!("[collect] cannot be: {problem}"));
        }
        problems
    }

    /// Why the control plane cannot delete in each region's store.
    pub fn out_of_reach(&self) -> Option<String> {
        let is_far = |region: &super::Region| reach(region.store.as_ref().map(Url::as_str)) != Reach::Network;
        if self.is_one_host() || self.stores.shared_folders {
            return None;
        }
        let (name, _) = self.regions.iter().find(|(_, region)| is_far(region))?;
        Some(format!("the store of region {name} is a folder of its host, in which control cannot delete: {STORES}"))
    }

    fn check_regions(&self, problems: &mut Vec<String>) {
        if self.regions.is_empty() {
            problems.push("there is no region: add a section [regions.NAME] with store and replicas".into());
        }
        for (name, region) in &self.regions {
            let names: BTreeSet<_> = region.replicas.iter().map(|replica| &replica.name).collect();
            if names.is_empty() {
                problems.push(format!("[regions.{name}] replicas is empty: name the hosts of its gateways"));
            }
            if names.len() < region.replicas.len() {
                problems.push(format!("[regions.{name}] replicas has two of one name: give each a name of its own"));
            }
        }
        if !self.is_one_host() {
            let here = self.hosts().into_iter().find(|host| is_here(host));
            if let Some(here) = here {
                problems.push(format!(
                    "the host {here} is one that no other can reach, and this configuration spans hosts ({}): name it in [control] host and \
                     in the replicas as others reach it",
                    self.told_hosts()
                ));
            }
        }
    }

    fn check_swarm(&self, problems: &mut Vec<String>) {
        let swarm = &self.swarm;
        let given = [&swarm.certificate, &swarm.key, &swarm.authority].into_iter().flatten().count();
        let problem = match (swarm.plain_tcp, given) {
            (true, 0) | (false, 3) => return,
            (false, 0) if self.is_one_host() => return,
            (true, _) => "[swarm] has plain_tcp and certificates: leave one out",
            (false, 0) => {
                "[swarm] does not say how connections are protected: give certificate, key and authority, or say plain_tcp = true where \
                 the network keeps strangers out"
            }
            (false, _) => "[swarm] needs all three of certificate, key and authority",
        };
        problems.push(problem.into());
    }

    fn check_server(&self, section: &str, server: &Server, way: &str, problems: &mut Vec<String>) {
        if section == "ledger" && server.url.is_none() {
            return;
        }
        let reach = reach(server.url.as_deref());
        if reach == Reach::Process {
            problems.push(format!("[{section}] url is memory, which is one process's: {way}"));
        }
        if self.is_one_host() {
            return;
        }
        if reach == Reach::Host {
            problems.push(self.lives_on_one_host(&format!("[{section}] url"), server.url.as_deref(), way));
        }
        if server.holds_password() {
            problems.push(format!(
                "[{section}] url holds a password, and every host has this file: leave it out, and name by password_file a file of the \
                 hosts that need it, or by password_env a variable"
            ));
        }
    }

    fn check_kept(&self, problems: &mut Vec<String>) {
        for (key, kept) in
            [("[control] keep_jobs", self.control.keep_jobs), ("[stores] keep_logs", self.stores.keep_logs)]
        {
            if kept < LEAST_KEPT {
                problems.push(format!("{key} is {kept:?}: a day, 24h, is the least"));
            }
        }
    }

    fn check_store(&self, key: &str, url: Option<&Url>, is_on_one_host: bool, problems: &mut Vec<String>) {
        let text = url.map(Url::as_str);
        let is_shared = url.is_some() && self.stores.shared_folders;
        match reach(text) {
            Reach::Process => problems.push(format!("{key} is memory, which is one process's: {STORES}")),
            Reach::Host if !(is_on_one_host || is_shared) => {
                problems.push(self.lives_on_one_host(key, text, &format!("{STORES}{SHARED}")));
            }
            _ => {}
        }
        let secret = url.into_iter().flat_map(Url::query_pairs).map(|(option, _)| option.to_ascii_lowercase());
        let secret = secret.into_iter().find(|option| SECRET.iter().any(|word| option.contains(word)));
        if let Some(option) = secret.filter(|_| !self.is_one_host()) {
            problems.push(format!(
                "{key} holds a secret, {option}, and every host has this file: set it in the environment of the hosts that need it, by \
                 the store's own name"
            ));
        }
    }

    fn lives_on_one_host(&self, key: &str, url: Option<&str>, way: &str) -> String {
        let hosts = self.told_hosts();
        match url.and_then(|url| url.split_once(':')) {
            Some((scheme, _)) => {
                format!(
                    "{key} is {scheme}, which lives on one host, and this configuration spans hosts ({hosts}): {way}"
                )
            }
            None => format!(
                "{key} is missing: without it a file is used, and this configuration spans hosts ({hosts}): {way}"
            ),
        }
    }

    /// Two of the hosts are enough to see it.
    fn told_hosts(&self) -> String {
        let hosts = self.hosts();
        let two: Vec<_> = hosts.iter().take(2).copied().collect();
        let more = if hosts.len() > 2 { ", ..." } else { "" };
        format!("{}{more}", two.join(", "))
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Names that every host means itself by. Other addresses of loopback stand for hosts where one plays several.
fn is_here(host: &str) -> bool {
    matches!(host, "localhost" | "127.0.0.1" | "::1" | "0.0.0.0" | "::")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    const APART: &str = "
        control.host = 'a'
        swarm.plain_tcp = true
        queue.url = 'postgres://u@db/d'
        goals.url = 'etcd://h:2379/p'
        stores.main = 's3://b/main'
        [regions.eu]
        store = 's3://b/eu'
        replicas = ['b', 'c']
        ";

    /// The only problem, after a change.
    fn problem(from: &str, to: &str) -> String {
        let problems = config(&APART.replace(from, to)).problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.into_iter().next().unwrap()
    }

    #[test]
    fn what_spans_hosts_needs_servers() {
        assert_eq!(config(APART).problems(), Vec::<String>::new());
        for (from, to, key) in [
            ("postgres://u@db/d", "sqlite:///q.db", "[queue] url is sqlite"),
            ("queue.url", "ledger.url", "[queue] url is missing"),
            ("etcd://h:2379/p", "redb:///g", "[goals] url is redb"),
            ("s3://b/main", "file:///main", "[stores] main is file"),
            ("s3://b/eu", "file:///eu", "[regions.eu] store is file"),
        ] {
            let problem = problem(from, to);
            assert!(problem.contains(key) && problem.contains("spans hosts (a, b, ...): name a"), "{problem}");
        }
        assert!(problem("etcd://h:2379/p", "memory://").contains("one process's"));
        let shared = APART.replace("s3://b/main", "file:///m").replace("s3://b/eu", "file:///e")
            + "\n[stores]\nshared_folders = true";
        let shared = shared
            .replace("stores.main = 'file:///m'", "")
            .replace("shared_folders", "main = 'file:///m'\nshared_folders");
        assert_eq!(config(&shared).problems(), Vec::<String>::new());
        let alone = APART.replace("'b', 'c'", "'b'").replace("s3://b/eu", "file:///eu");
        assert_eq!(config(&alone).problems(), Vec::<String>::new(), "one host's folder");
    }

    #[test]
    fn one_host_needs_nothing() {
        let one = config("[regions.eu]\n[regions.us]");
        assert!(one.is_one_host());
        assert_eq!(one.problems(), Vec::<String>::new());
        let problems = config("[regions.eu]\nreplicas = ['127.0.0.2']").problems();
        assert!(
            problems.iter().any(|problem| problem.contains("127.0.0.1 is one that no other can reach")),
            "{problems:?}"
        );
    }

    #[test]
    fn secrets_stay_out_of_a_file_that_every_host_has() {
        let told = problem("postgres://u@db/d", "postgres://u:s3cret@db/d");
        assert!(told.contains("[queue] url holds a password") && told.contains("password_file"), "{told}");
        let told = problem("s3://b/eu", "s3://b/eu?region=x&secret_access_key=s3cret");
        assert!(told.contains("[regions.eu] store holds a secret, secret_access_key"), "{told}");
        assert!(!told.contains("s3cret"));
    }

    #[test]
    fn the_swarms_protection_is_said_by_name() {
        let problem = |text| problem("swarm.plain_tcp = true", text);
        assert!(problem("").contains("plain_tcp = true"));
        assert!(problem("swarm.certificate = 'c'").contains("all three"));
        assert!(problem("swarm.plain_tcp = true\nswarm.key = 'k'").contains("leave one out"));
    }

    #[test]
    fn what_is_over_is_kept_for_a_day_at_least() {
        let problem = |key: &str| problem("control.host = 'a'", &format!("control.host = 'a'\n{key}"));
        assert_eq!(problem("control.keep_jobs = '1h'"), "[control] keep_jobs is 3600s: a day, 24h, is the least");
        assert_eq!(problem("stores.keep_logs = '0s'"), "[stores] keep_logs is 0ns: a day, 24h, is the least");
        let kept = config(&format!("control.keep_jobs = '24h'\nstores.keep_logs = '720h'\n{APART}"));
        assert_eq!(kept.problems(), Vec::<String>::new());
    }

    #[test]
    fn regions_have_hosts_of_different_names() {
        assert!(config("").problems()[0].contains("[regions.NAME]"));
        assert!(problem("'b', 'c'", "").contains("replicas is empty"));
        assert!(problem("'b', 'c'", "'b', 'b'").contains("two of one name"));
    }
}
