//! Which machines of a region the faults hit, and when: drawn from its seed.

use std::time::Duration;

use fastrand::Rng;

use super::options::{Options, count};
use crate::sim::{Partition, Settings};

/// A region's settings with the faults that were asked for.
///
/// A machine crashes, gives bad blocks, is late or restarts, but not two of these; links and partitions are drawn apart.
pub(super) fn region(options: &Options, region: usize) -> Settings {
    let mut settings = options.base(region);
    let machines = settings.machines;
    let bound = settings.bound().time;
    // Apart from the generator of the run, which starts from the same seed.
    let mut rng = Rng::with_seed(settings.seed ^ 0x5EED_FA17);
    let mut deal = Deal::new(machines, &mut rng);
    let crashed = deal.take(options.crash.map_or(0, |share| count(share, machines)));
    settings.corrupt = deal.take(options.corrupt.unwrap_or(0));
    let late = deal.take(options.late.map_or(0, |late| count(late.share, machines)));
    let restarted = deal.take(options.restart.map_or(0, |share| count(share, machines)));

    // A machine that did not start yet could not die.
    let within = |rng: &mut Rng| settings.arrivals + bound.mul_f64(rng.f64());
    settings.crashes = crashed.into_iter().map(|machine| (machine, within(&mut rng))).collect();
    settings.restarts = restarted.into_iter().map(|machine| (machine, within(&mut rng))).collect();
    let from = options.late.and_then(|late| late.at).map_or(bound / 2, |at| at.0);
    settings.lates = late.into_iter().map(|machine| (machine, from)).collect();

    for links in [options.slow, options.spread].into_iter().flatten() {
        for machine in Deal::new(machines, &mut rng).take(count(links.share, machines)) {
            *settings.links.entry(machine).or_insert(1.0) *= links.factor;
        }
    }
    for cut in &options.partition {
        let machines = Deal::new(machines, &mut rng).take(count(cut.share, machines)).into_iter().collect();
        settings.partitions.push(Partition { machines, from: cut.from.0, to: cut.to.0 });
    }
    settings.tracker_restarts.extend(options.tracker_death.iter().map(|at| at.0));
    settings.gate_restarts.extend(options.gate_death.iter().map(|at| at.0));
    settings.second = options.second.map(|at| at.0);
    settings.second_priority = options.second_priority;
    settings.horizon = options.horizon(bound).max(Duration::from_millis(1));
    settings
}

/// Machines in a random order, each given once.
struct Deal(Vec<usize>);

impl Deal {
    fn new(machines: usize, rng: &mut Rng) -> Self {
        let mut order: Vec<usize> = (0..machines).collect();
        rng.shuffle(&mut order);
        Self(order)
    }

    fn take(&mut self, machines: usize) -> Vec<usize> {
        self.0.split_off(self.0.len().saturating_sub(machines))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser;

    use super::*;

    #[test]
    fn nobody_has_two_fates() {
        let command = "swarm-sim --machines 40 --size 8MiB --crash 10% --corrupt 4 --late 25% --restart 20% --slow 50%:2 \
                       --spread 50%:2 --partition 25%:1s:2s";
        let options = Options::try_parse_from(command.split(' ')).unwrap();
        let settings = super::region(&options, 0);
        let fates = settings.crashes.keys().chain(&settings.corrupt).chain(settings.lates.keys());
        let fates: BTreeSet<_> = fates.chain(settings.restarts.keys()).collect();
        assert_eq!(fates.len(), 4 + 4 + 10 + 8);
        assert_eq!(settings.partitions[0].machines.len(), 10);
        assert!(settings.links.values().all(|factor| [0.5, 1.0, 2.0].contains(factor)));
        assert_eq!(format!("{settings:?}"), format!("{:?}", super::region(&options, 0)));
    }
}
