//! A host of a region, written as its name or as a table.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use deploycore::model::{InvalidName, MachineName};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::places::listening;

/// A host that runs the role `region`. In a configuration a text is the host, with the usual ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replica {
    /// What it is called, unique in its region and kept over restarts; by default as its host.
    pub name: MachineName,
    /// Its host, as machines and the control plane reach it: a name or an address.
    pub host: String,
    /// The port of its gateway; 7410 by default.
    pub gateway_port: u16,
    /// The port of its store gate; 7411 by default.
    pub gate_port: u16,
    /// The port of its tracker; 7412 by default.
    pub tracker_port: u16,
    /// Where the three listen: by default at `host` if that is an address, everywhere if it is a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<IpAddr>,
}

impl Replica {
    /// With the usual ports; called as its host where that is a name.
    pub fn of_host(host: &str) -> Result<Self, InvalidName> {
        MachineName::new(host).map(|name| Self::named(name, host))
    }

    /// With the usual ports.
    pub fn named(name: MachineName, host: &str) -> Self {
        Self { name, host: host.to_owned(), gateway_port: 7410, gate_port: 7411, tracker_port: 7412, listen: None }
    }

    /// Where one of its ports listens.
    pub fn listening(&self, port: u16) -> SocketAddr {
        listening(&self.host, self.listen, port)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    host: String,
    name: Option<MachineName>,
    gateway_port: Option<u16>,
    gate_port: Option<u16>,
    tracker_port: Option<u16>,
    listen: Option<IpAddr>,
}

struct HostOrTable;

impl<'de> Visitor<'de> for HostOrTable {
    type Value = Replica;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a host, or a table with host and ports")
    }

    fn visit_str<E: Error>(self, host: &str) -> Result<Replica, E> {
        if host.contains(':') && host.parse::<IpAddr>().is_err() {
            return Err(E::custom(format!(
                "{host:?} is not a host: ports stand in a table, {{ host = ..., gateway_port = ... }}"
            )));
        }
        Replica::of_host(host).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Replica, A::Error> {
        let table = Table::deserialize(MapAccessDeserializer::new(map))?;
        let usual = match table.name {
            Some(name) => Replica::named(name, &table.host),
            None => Replica::of_host(&table.host).map_err(A::Error::custom)?,
        };
        Ok(Replica {
            gateway_port: table.gateway_port.unwrap_or(usual.gateway_port),
            gate_port: table.gate_port.unwrap_or(usual.gate_port),
            tracker_port: table.tracker_port.unwrap_or(usual.tracker_port),
            listen: table.listen,
            ..usual
        })
    }
}

impl<'de> Deserialize<'de> for Replica {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(HostOrTable)
    }
}
