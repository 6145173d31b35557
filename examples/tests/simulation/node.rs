//! A node: one service on one host, started again whenever it ends.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::check::Invariant;
use super::fault::{Life, Place, Stall, Weather};
use super::trace::Met;

/// Starts a service with fresh memory over the durable backends; resolves when it has ended.
pub type Start = Box<dyn Fn(Arc<Life>, CancellationToken) -> BoxFuture<'static, ()> + Send + Sync>;

/// A service and its host.
pub struct Node {
    pub name: Arc<str>,
    pub place: Place,
    weather: Arc<Weather>,
    start: Start,
    stall: Arc<Stall>,
    current: Mutex<Option<(Arc<Life>, CancellationToken)>>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Node {
    /// A node that is not running yet.
    pub fn new(name: &str, place: Place, weather: Arc<Weather>, start: Start) -> Arc<Self> {
        Arc::new(Self { name: name.into(), place, weather, start, stall: Arc::default(), current: Mutex::default() })
    }

    /// Runs the service, life after life.
    pub async fn keep(self: Arc<Self>) {
        for number in 0.. {
            let life = Arc::new(Life::new(
                self.name.clone(),
                self.place.clone(),
                number,
                self.weather.clone(),
                self.stall.clone(),
            ));
            let shutdown = CancellationToken::new();
            let mut task = JoinSet::new();
            let service = (self.start)(life.clone(), shutdown.clone());
            life.runs_as(task.spawn(service));
            *self.current() = Some((life.clone(), shutdown.clone()));
            let ended = task.join_next().await;
            self.judge(&life, ended, shutdown.is_cancelled());
            life.end();
            let pause = Duration::from_millis(life.random().u64(100..30_000));
            tokio::time::sleep(pause).await;
        }
    }

    /// A service ends by a crash or because it was told to, never by itself.
    fn judge(&self, life: &Life, ended: Option<Result<(), tokio::task::JoinError>>, told: bool) {
        let why = match ended {
            Some(Err(error)) if error.is_panic() => format!("panicked: {}", panic_text(error.into_panic().as_ref())),
            Some(Ok(())) if !told && life.is_alive() => "ended by itself".to_owned(),
            _ => return,
        };
        self.weather.checker.violated(Invariant::TasksEndWithTheirService, format!("{} {why}", self.name));
    }

    /// Drops the service wherever it is.
    pub fn crash(&self, why: &str) {
        if let Some((life, _)) = &*self.current() {
            life.crash(why);
        }
    }

    /// Asks it to end in good order.
    pub fn shut_down(&self) {
        if let Some((life, shutdown)) = &*self.current()
            && life.is_alive()
        {
            self.weather.trace.event(&self.name, "is told to end");
            shutdown.cancel();
        }
    }

    /// From now on nothing that it does has an effect.
    pub fn stall(&self) {
        self.weather.trace.met(Met::Stalls);
        self.weather.trace.event(&self.name, "stalls");
        self.stall.begin();
    }

    /// It goes on where it was.
    pub fn resume(&self) {
        if self.stall.end() {
            self.weather.trace.event(&self.name, "goes on");
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<(Arc<Life>, CancellationToken)>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a text")
}
