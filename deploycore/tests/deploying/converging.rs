//! How far machines are, and waiting for them.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_wait_ends_when_each_live_machine_runs_the_goal() {
    let yard = Yard::new();
    yard.deployed(1..=1).await;
    yard.report("a", 1, ServicePhase::Good).await;
    yard.report("gone", 1, ServicePhase::Fetching).await;
    let wait = |at_least, limit| {
        let looks = Mutex::new(0);
        let deployer = &yard.deployer;
        async move { deployer.wait_converged(&web(), at(1), at_least, limit, |_| *looks.lock().unwrap() += 1).await }
    };
    let error = wait(1, secs(5)).await.unwrap_err();
    let Error::NotConverged { last, .. } = &error else { panic!("{error:?}") };
    assert_eq!(last.behind(), 1);
    assert_eq!(error.to_string(), "1 of 2 machines run 0.1 after 5s");
    // The silent one becomes absent and blocks nobody.
    let keep = async {
        for _ in 0..4 {
            sleep(secs(10)).await;
            yard.report("a", 1, ServicePhase::Good).await;
        }
    };
    let started = Instant::now();
    let (found, ()) = tokio::join!(wait(1, secs(60)), keep);
    let found = found.unwrap();
    assert_eq!((found.converged(), found.absent()), (1, 1));
    assert!(started.elapsed() <= secs(41));
    // Fewer than were asked for is not enough.
    assert!(matches!(wait(2, secs(3)).await, Err(Error::NotConverged { .. })));
    yard.report("b", 1, ServicePhase::Reverted).await;
    let error = wait(2, secs(3)).await.unwrap_err();
    assert_eq!(error.to_string(), "1 of 2 machines reverted 0.1");
    yard.deployed(2..=2).await;
    assert!(matches!(wait(1, Duration::MAX).await, Err(Error::Superseded { .. })));
}

#[tokio::test(start_paused = true)]
async fn machines_are_counted_as_they_are_listed() {
    let yard = Yard::new();
    assert!(matches!(yard.deployer.convergence(&web()).await, Err(Error::NeverDeployed { .. })));
    yard.deployed(1..=1).await;
    yard.report("absent", 1, ServicePhase::Good).await;
    sleep(secs(31)).await;
    for (machine, phase) in [
        ("a", ServicePhase::Good),
        ("b", ServicePhase::Good),
        ("c", ServicePhase::Fetching),
        ("d", ServicePhase::Reverted),
    ] {
        yard.report(machine, 1, phase).await;
    }
    let found = yard.deployer.convergence(&web()).await.unwrap();
    let counted = &found.regions[&region("r1")];
    assert_eq!([found.converged(), found.behind(), found.reverted(), found.absent()], [2, 1, 1, 1]);
    let examples: Vec<_> = counted.examples.iter().map(|one| one.key.machine.as_str()).collect();
    assert_eq!(examples, ["c", "d"]);
    // Whoever lists them by pages of any size finds the same.
    let goal = yard.deployer.current(&web()).await.unwrap().unwrap().goal;
    for limit in [0, 1, 2, 5, 6] {
        let (mut listed, mut after) = (Tally::default(), None);
        loop {
            let page = yard.board.standings(&goal, after.as_ref(), limit).await.unwrap();
            assert!(page.machines.len() <= limit.max(1) && !page.settling);
            page.machines.into_iter().for_each(|machine| listed.add(machine));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(listed, *counted, "by {limit}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_region_that_started_just_now_is_waited_for_by_who_does_not_know_its_machines() {
    let yard = Yard::new();
    yard.deployed(1..=1).await;
    let started = Instant::now();
    let wait = async |machines| yard.deployer.wait_converged(&web(), at(1), machines, secs(60), |_| {}).await;
    let later = async {
        sleep(secs(5)).await;
        yard.report("a", 1, ServicePhase::Good).await;
    };
    let (known, ()) = tokio::join!(wait(1), later);
    assert_eq!(known.unwrap().converged(), 1);
    assert!(started.elapsed() < secs(10), "{:?}", started.elapsed());
    assert_eq!(wait(0).await.unwrap().converged(), 1);
    assert!(started.elapsed() >= secs(30), "{:?}", started.elapsed());
}
