//! Goals on redb, with every write synced; and across the HTTP gateway on loopback.

use std::sync::Arc;

use deploycore::port::goals::Expect;
use deploycore::port::{GoalStateStore, goals};
use deploycore_benches::{folder, goal, runtime};
use deploycore_kv::RedbGoals;
use deploycore_kv::gateway::{Gateway, GatewayClient, GatewaySettings};
use divan::counter::ItemsCount;
use tempfile::TempDir;
use tokio::runtime::Runtime;

fn main() {
    divan::main();
}

struct Bed {
    runtime: Runtime,
    goals: Arc<dyn GoalStateStore>,
    _folder: TempDir,
}

impl Bed {
    /// A store with this many services.
    fn new(services: usize) -> Self {
        let runtime = runtime();
        let (folder, path) = folder();
        let goals: Arc<dyn GoalStateStore> =
            Arc::new(runtime.block_on(RedbGoals::open(path.join("goals.redb"))).unwrap());
        for service in 0..services {
            let first = goal(&format!("service-{service}"), 1);
            runtime.block_on(goals.put(&first, Expect::Absent)).unwrap();
        }
        Self { runtime, goals, _folder: folder }
    }

    /// The same store behind a gateway.
    fn client(&self) -> GatewayClient {
        let gateway = Gateway::new(GatewaySettings::default(), self.goals.clone(), None, None, None);
        let listener = self.runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        self.runtime.spawn(async move { axum_serve(listener, gateway.router()).await });
        GatewayClient::new(url).unwrap()
    }
}

async fn axum_serve(listener: tokio::net::TcpListener, router: axum::Router) {
    axum::serve(listener, router).await.unwrap();
}

#[divan::bench(sample_count = 50)]
fn put(bencher: divan::Bencher<'_, '_>) {
    let (bed, mut generation) = (Bed::new(300), 1);
    let mut expect = Expect::At(bed.runtime.block_on(bed.goals.list("service-0")).unwrap().goals[0].revision);
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| -> Result<(), goals::Error> {
        generation += 1;
        let revision = bed.runtime.block_on(bed.goals.put(&goal("service-0", generation), expect))?;
        expect = Expect::At(revision);
        Ok(())
    });
}

#[divan::bench(args = [10, 300], sample_count = 50)]
fn list(bencher: divan::Bencher<'_, '_>, services: usize) {
    let bed = Bed::new(services);
    bencher.counter(ItemsCount::new(services)).bench_local(|| bed.runtime.block_on(bed.goals.list("")).unwrap());
}

/// What a polling machine does most of the time: nothing has changed.
#[divan::bench(sample_count = 50)]
fn poll_through_the_gateway_unchanged(bencher: divan::Bencher<'_, '_>) {
    let bed = Bed::new(300);
    let client = bed.client();
    bed.runtime.block_on(client.list("")).unwrap();
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| bed.runtime.block_on(client.list("")).unwrap());
}
