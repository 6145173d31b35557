//! Which of the hosts of a configuration this one is: as the command line says, and else as its own name does.

use anyhow::{Context, Result, anyhow, bail};
use deploycore::model::{MachineName, RegionName, WorkerName};

use crate::cluster::cli::Place;
use crate::cluster::config::{Config, Region, Replica};

/// The worker of this host.
pub(in crate::cluster) fn worker(place: &Place) -> Result<WorkerName> {
    WorkerName::new(name(place)?).context("--name")
}

/// The machine that this host is, and its region.
pub(in crate::cluster) fn machine<'a>(
    config: &'a Config,
    place: &Place,
) -> Result<(&'a RegionName, &'a Region, MachineName)> {
    let wanted = place.region.as_ref().or(config.agent.region.as_ref());
    let (name, region) = self::region(config, wanted)?;
    Ok((name, region, MachineName::new(self::name(place)?).context("--name")?))
}

/// The host of a region that this one is.
pub(in crate::cluster) fn replica<'a>(
    config: &'a Config,
    place: &Place,
) -> Result<(&'a RegionName, &'a Region, &'a Replica)> {
    let (name, region) = self::region(config, place.region.as_ref())?;
    if let ([only], None) = (&region.replicas[..], &place.name) {
        return Ok((name, region, only));
    }
    let own = self::name(place)?;
    let is_own = |replica: &&Replica| replica.name.as_str() == own || replica.host == own;
    let replica = region.replicas.iter().find(is_own).ok_or_else(|| {
        let known: Vec<_> = region.replicas.iter().map(|replica| replica.name.as_str()).collect();
        anyhow!("{own} is none of the hosts of region {name}: say by --name which of {} this host is", known.join(", "))
    })?;
    Ok((name, region, replica))
}

fn region<'a>(config: &'a Config, wanted: Option<&RegionName>) -> Result<(&'a RegionName, &'a Region)> {
    let known = || config.regions.keys().map(RegionName::as_str).collect::<Vec<_>>().join(", ");
    match wanted {
        Some(wanted) => {
            let found = config.regions.get_key_value(wanted);
            found.ok_or_else(|| {
                anyhow!("region {wanted} is not configured: say by --region which of {} this host is in", known())
            })
        }
        None if config.regions.len() == 1 => config.regions.iter().next().context("there is one"),
        None => bail!("this host's region is not known: say by --region which of {} it is in", known()),
    }
}

/// Of this host: as it is told, or as the system calls it.
fn name(place: &Place) -> Result<String> {
    if let Some(name) = &place.name {
        return Ok(name.clone());
    }
    let system = rustix::system::uname();
    Ok(system.nodename().to_str().context("the host's name is not UTF-8")?.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(region: Option<&str>, name: Option<&str>) -> Place {
        let region = region.map(|name| RegionName::new(name).unwrap());
        Place { region, name: name.map(str::to_owned), labels: Vec::new() }
    }

    #[test]
    fn a_host_that_could_be_several_must_say_which() {
        let config: Config =
            toml::from_str("[regions.eu]\nreplicas = ['eu-1', 'eu-2']\n[regions.us]\nreplicas = ['us-1']").unwrap();
        let found =
            |region, name| replica(&config, &place(region, name)).map(|(_, _, replica)| replica.name.to_string());
        assert_eq!(found(Some("eu"), Some("eu-2")).unwrap(), "eu-2");
        assert_eq!(found(Some("us"), None).unwrap(), "us-1");
        let refused = |region, name| found(region, name).unwrap_err().to_string();
        assert!(refused(None, Some("eu-1")).contains("--region which of eu, us"));
        assert!(refused(Some("asia"), None).contains("region asia is not configured"));
        assert!(refused(Some("eu"), Some("eu-3")).contains("--name which of eu-1, eu-2"));
        assert!(machine(&config, &place(None, Some("m1"))).is_err());
        let (region, _, name) = machine(&config, &place(Some("us"), Some("m1"))).unwrap();
        assert_eq!((region.as_str(), name.as_str()), ("us", "m1"));
        let upper = machine(&config, &place(Some("us"), Some("M1"))).unwrap_err();
        assert!(format!("{upper:#}").contains("--name: \"M1\" is not a valid machine name"), "{upper:#}");
    }
}
