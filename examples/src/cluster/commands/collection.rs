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
    match round {
        None => println!("nothing was changed: --delete makes a round"),
        Some(round) => println!("{}", line(round)),
    }
}

fn line(round: &CollectorTick) -> String {
    let CollectorTick { marked, lifted, waiting, deleted, bytes, refused, failed } = round;
    format!(
        "{marked} marked, {waiting} wait, {lifted} are needed again, {refused} turned out to be in use; {deleted} deleted with {}, {failed} \
         could not be deleted yet",
        ByteSize(*bytes).display().iec()
    )
}
