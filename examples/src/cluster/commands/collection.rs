//! What goes, and why the rest stays, for people.

use bytesize::ByteSize;
use deploycore::store::CollectorTick;

use crate::cluster::api::CollectAnswer;

pub(super) fn show(answer: &CollectAnswer) {
    let CollectAnswer { plan, round } = answer;
    for (artifact, kept) in &plan.kept {
        println!("stays  {artifact}: {kept}");
    }
    for bytes in &plan.collect {
        let names: Vec<_> = bytes.artifacts.iter().map(ToString::to_string).collect();
        println!("goes   {} ({}, {})", names.join(", "), bytes.digest.short(), ByteSize(bytes.size).display().iec());
    }
    let size = plan.collect.iter().map(|bytes| bytes.size).sum();
    println!(
        "{} stay, {} go with {} in each store",
        plan.kept.len(),
        plan.collect.len(),
        ByteSize(size).display().iec()
    );
    if !plan.unneeded.is_empty() {
        println!("{} more are of no artifact: those that are old go from their stores", plan.unneeded.len());
    }
    match round {
        None => println!("nothing was changed: --delete makes a round"),
        Some(round) => println!("{}", line(round)),
    }
}

fn line(round: &CollectorTick) -> String {
    let CollectorTick { marked, lifted, waiting, deleted, bytes, refused, failed, unneeded } = round;
    format!(
        "{marked} marked, {waiting} wait, {lifted} are needed again, {refused} turned out to be in use; {deleted} deleted with {}, \
         {unneeded} that no artifact has, {failed} could not be deleted yet",
        ByteSize(*bytes).display().iec()
    )
}
