//! How machines are shown.

use std::collections::BTreeSet;

use deploycore::model::{KnownMachine, MachineStanding, RegionName, Standing};

pub(super) fn show(machine: &KnownMachine) {
    let there = if machine.live { "live" } else { "absent" };
    println!("{:<12} {:<16} {there}", machine.report.region, machine.report.machine);
    for service in &machine.report.services {
        let digest = service.current.as_ref().map_or(String::new(), |(_, artifact)| artifact.digest.short());
        let port = service.port.map_or(String::new(), |port| format!("port {port}"));
        println!("    {:<12} {:<8} {:?}  {digest}  {port}", service.service, service.goal, service.phase);
    }
}

pub(super) fn show_standing(machine: &MachineStanding) {
    let why = |message: &Option<String>| message.as_ref().map_or(String::new(), |message| format!(": {message}"));
    let standing = match &machine.standing {
        Standing::Absent => format!("absent, silent for {:?}", machine.silent_for),
        Standing::Converged => "good".to_owned(),
        Standing::Reverted { message } => format!("reverted{}", why(message)),
        Standing::Behind { at: None, message } => format!("behind, has heard of no goal{}", why(message)),
        Standing::Behind { at: Some((position, phase)), message } => {
            format!("behind, {phase:?} at {position}{}", why(message))
        }
    };
    println!("{:<12} {:<16} {standing}", machine.key.region, machine.key.machine);
}

/// On standard error, beside a list that is for programs too.
pub(super) fn warn(incomplete: &BTreeSet<RegionName>) {
    for region in incomplete {
        eprintln!("{region} does not answer, or has just started: it may have more machines");
    }
}
