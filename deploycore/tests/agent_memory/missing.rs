//! Blobs that somebody took away.

use super::*;

/// Another build takes the place of the first, whose blob somebody removes. The swarm goes on believing that it has it.
async fn replace_and_take_away(world: &World, first: &ArtifactRef) {
    tokio::time::sleep(Duration::from_secs(20)).await;
    world.deploy(2, b"2").await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    world.disk.remove(&first.digest).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_somebody_took_away_is_fetched_again() {
    let world = World::new(1 << 30);
    let first = world.deploy(1, b"1").await;
    let agent = world.agent();
    let drive = async {
        replace_and_take_away(&world, &first).await;
        world.deploy(3, b"1").await;
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert_eq!((world.running(), phase(&agent)), (Some(first.digest.to_string()), ServicePhase::Good));
    };
    beside(&agent, drive).await;
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_somebody_took_away_is_fetched_again_before_its_service_is_started_again() {
    let world = World::new(1 << 30);
    let artifact = world.deploy(1, b"1").await;
    let agent = world.agent();
    let drive = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        world.disk.remove(&artifact.digest).await.unwrap();
        let (instance, _) = world.runner.running().remove(0);
        world.runner.stop(&instance, Duration::ZERO).await.unwrap();
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert_eq!((world.running(), phase(&agent)), (Some(artifact.digest.to_string()), ServicePhase::Good));
    };
    beside(&agent, drive).await;
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_somebody_took_away_from_a_build_on_trial_says_nothing_about_the_build() {
    let slow = Program { answers_after: Some(Duration::from_secs(30)), ends_after: None };
    let world = World { runner: MemoryRunner::new(move |_| slow), ..World::new(1 << 30) };
    let artifact = world.deploy(1, b"1").await;
    let agent = world.agent();
    let drive = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(phase(&agent), ServicePhase::Running);
        world.disk.remove(&artifact.digest).await.unwrap();
        let (instance, _) = world.runner.running().remove(0);
        world.runner.stop(&instance, Duration::ZERO).await.unwrap();
        // A start has a minute. Before the blob is there again that is over.
        world.crawls.store(true, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert_eq!(phase(&agent), ServicePhase::Fetching);
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert_eq!((world.running(), phase(&agent)), (Some(artifact.digest.to_string()), ServicePhase::Good));
    };
    beside(&agent, drive).await;
}

#[tokio::test(start_paused = true)]
async fn a_swarm_that_does_not_answer_is_asked_again_to_let_go_of_what_somebody_took_away() {
    let world = World::new(1 << 30);
    let first = world.deploy(1, b"1").await;
    let agent = world.agent();
    let drive = async {
        replace_and_take_away(&world, &first).await;
        world.clings.store(true, Ordering::SeqCst);
        world.deploy(3, b"1").await;
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert_ne!(world.running(), Some(first.digest.to_string()));
        world.clings.store(false, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_mins(5)).await;
        assert_eq!((world.running(), phase(&agent)), (Some(first.digest.to_string()), ServicePhase::Good));
    };
    beside(&agent, drive).await;
}
