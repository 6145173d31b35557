//! What goes wrong between a service and what it calls, and with the service itself.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deploycore::model::RegionName;
use deploycore::port::BackendError;
use futures::future::pending;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::check::{Checker, Invariant};
use super::settings::{Rates, Settings, stream};
use super::trace::{Met, Trace};

/// Where a service or a backend stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// With the queue, the ledger, the main store and the global goals.
    Global,
    /// In a region.
    Region(RegionName),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.write_str("global"),
            Self::Region(region) => region.fmt(f),
        }
    }
}

/// The state of the whole network, and what a call needs to be noted and checked.
#[derive(Debug)]
pub struct Weather {
    seed: u64,
    watch: bool,
    pub trace: Arc<Trace>,
    pub checker: Arc<Checker>,
    state: Mutex<State>,
    /// A goal was written somewhere.
    pub written: Notify,
    /// Effects under way whose caller has given up.
    strays: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct State {
    rates: Rates,
    noise: u32,
    cut_off: BTreeSet<RegionName>,
}

impl Weather {
    /// Nothing goes wrong yet.
    pub fn new(settings: &Settings, trace: Arc<Trace>, checker: Arc<Checker>) -> Arc<Self> {
        let (seed, watch) = (settings.seed, settings.watch);
        Arc::new(Self {
            seed,
            watch,
            trace,
            checker,
            state: Mutex::default(),
            written: Notify::new(),
            strays: Mutex::default(),
        })
    }

    /// From now on calls and wires go wrong as often as the settings say.
    pub fn turn_bad(&self, settings: &Settings) {
        let mut state = self.lock();
        (state.rates, state.noise) = (settings.rates, settings.noise);
    }

    /// Per mille of reads from wires that are wrong.
    pub fn noise(&self) -> u32 {
        self.lock().noise
    }

    /// Cuts a region off from everything global.
    pub fn cut_off(&self, region: &RegionName) {
        self.trace.met(Met::Partitions);
        self.trace.event("chaos", format_args!("{region} is cut off"));
        self.lock().cut_off.insert(region.clone());
    }

    /// Joins it again.
    pub fn join(&self, region: &RegionName) {
        self.trace.event("chaos", format_args!("{region} is back"));
        self.lock().cut_off.remove(region);
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        self.trace.event("chaos", "healed");
        *self.lock() = State::default();
    }

    /// Whether a call from one place reaches another.
    pub fn reaches(&self, from: &Place, to: &Place) -> bool {
        let state = self.lock();
        let is_cut = |place: &Place| matches!(place, Place::Region(region) if state.cut_off.contains(region));
        from == to || !(is_cut(from) || is_cut(to))
    }

    /// Whether watches bring news; otherwise only polls do.
    pub fn watches(&self) -> bool {
        self.watch
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a host stands still. Those who wait go on in the order in which they came, so that a run repeats: tokio's watch channel
/// would wake them in a random one.
#[derive(Debug, Default)]
pub struct Stall {
    stalled: AtomicBool,
    over: Notify,
}

impl Stall {
    /// It stands still.
    pub fn begin(&self) {
        self.stalled.store(true, Ordering::Relaxed);
    }

    /// It goes on; whether it stood still.
    pub fn end(&self) -> bool {
        let stood = self.stalled.swap(false, Ordering::Relaxed);
        self.over.notify_waiters();
        stood
    }
}

/// One incarnation of a service: from its start to its crash.
#[derive(Debug)]
pub struct Life {
    pub node: Arc<str>,
    pub place: Place,
    pub weather: Arc<Weather>,
    alive: AtomicBool,
    /// When it crashed, if it did.
    crashed_at: Mutex<Option<Instant>>,
    /// Shared by all incarnations: a stalled host stays stalled.
    stall: Arc<Stall>,
    random: Mutex<fastrand::Rng>,
    task: Mutex<Option<AbortHandle>>,
}

impl Life {
    /// The `number`-th life of a node.
    pub fn new(node: Arc<str>, place: Place, number: u64, weather: Arc<Weather>, stall: Arc<Stall>) -> Self {
        let random = Mutex::new(stream(weather.seed, &format!("{node} {number}")));
        Self {
            node,
            place,
            weather,
            alive: AtomicBool::new(true),
            crashed_at: Mutex::default(),
            stall,
            random,
            task: Mutex::default(),
        }
    }

    /// Whether it has not crashed.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// Names the task to drop at a crash.
    pub fn runs_as(&self, task: AbortHandle) {
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    /// Drops the service at the await where it is.
    pub fn crash(&self, why: &str) {
        if !self.alive.swap(false, Ordering::Relaxed) {
            return;
        }
        *self.crashed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.weather.trace.met(Met::Crashes);
        self.weather.trace.event(&self.node, format_args!("crashes: {why}"));
        if let Some(task) = &*self.task.lock().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }

    /// It ended in good order: from now on it makes no call.
    pub fn end(&self) {
        self.alive.store(false, Ordering::Relaxed);
    }

    /// A number for the service's own generator.
    pub fn seed(&self) -> u64 {
        self.random().u64(..)
    }

    /// The generator of this life's mishaps.
    pub fn random(&self) -> MutexGuard<'_, fastrand::Rng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when the host is not stalled.
    pub async fn awake(&self) {
        while self.stall.stalled.load(Ordering::Relaxed) {
            self.stall.over.notified().await;
        }
    }

    /// The way to something at `to`.
    pub fn link(self: &Arc<Self>, to: Place) -> Link {
        Link { life: self.clone(), to, attached: false }
    }

    /// The way to something on the service's own host.
    pub fn local(self: &Arc<Self>) -> Link {
        Link { life: self.clone(), to: self.place.clone(), attached: true }
    }
}

/// The way from a service to what it calls.
#[derive(Debug, Clone)]
pub struct Link {
    pub life: Arc<Life>,
    pub to: Place,
    /// A call within one host, or one that streams from it, has its effect while its caller lives, or never.
    attached: bool,
}

/// What happens to one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mishap {
    None,
    Fail,
    LoseReply,
    Stray,
    CrashBefore,
    CrashAfter,
}

impl Link {
    /// The same way, for a call that streams from its caller.
    pub fn attached(&self) -> Self {
        Self { attached: true, ..self.clone() }
    }

    /// Makes a call, or has it go wrong. `effect` holds the call on the backend with its checks; it never suspends for long.
    pub async fn call<T, E>(
        &self,
        what: &'static str,
        effect: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<BackendError> + Send + 'static,
    {
        self.call_with(what, E::from, effect).await
    }

    /// Like [`call`](Self::call), for errors of any kind.
    pub async fn call_with<T: Send + 'static, E: Send + 'static>(
        &self,
        what: &'static str,
        error: impl Fn(BackendError) -> E,
        effect: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E> {
        self.enter(what).await;
        let (mishap, before, after) = self.draw();
        tokio::time::sleep(before).await;
        self.life.awake().await;
        if mishap == Mishap::Fail || !self.reaches() {
            return Err(error(self.fail(what, Met::Failures, "failed")));
        }
        match mishap {
            Mishap::CrashBefore => self.crash(what, "before").await,
            Mishap::Stray if self.attached => return Err(error(self.fail(what, Met::Failures, "failed"))),
            Mishap::Stray => {
                self.stray(after, effect);
                return Err(error(self.fail(what, Met::Strays, "strays")));
            }
            _ => {}
        }
        let outcome = effect.await;
        if mishap == Mishap::CrashAfter {
            self.crash(what, "after").await;
        }
        tokio::time::sleep(after).await;
        self.life.awake().await;
        if mishap == Mishap::LoseReply || !self.reaches() {
            return Err(error(self.fail(what, Met::LostReplies, "reply lost")));
        }
        outcome
    }

    /// Does something on the service's own host: it takes a moment, during which the host may stall and the service may crash, but it
    /// does not fail.
    pub async fn act<T>(&self, what: &'static str, effect: impl Future<Output = T>) -> T {
        self.enter(what).await;
        let (mishap, before, after) = self.draw();
        tokio::time::sleep(before).await;
        self.life.awake().await;
        if mishap == Mishap::CrashBefore {
            self.crash(what, "before").await;
        }
        let outcome = effect.await;
        if mishap == Mishap::CrashAfter {
            self.crash(what, "after").await;
        }
        tokio::time::sleep(after).await;
        self.life.awake().await;
        outcome
    }

    /// Whether the network lets calls through now.
    pub fn reaches(&self) -> bool {
        self.life.weather.reaches(&self.life.place, &self.to)
    }

    /// Whether a stream breaks here.
    pub fn breaks(&self) -> bool {
        let rate = self.life.weather.lock().rates.fail;
        !self.reaches() || self.life.random().u32(0..1000) < rate
    }

    /// The error of a broken stream.
    pub fn broken<E: From<BackendError>>(&self, what: &'static str) -> E {
        self.life.weather.trace.met(Met::Failures);
        self.life.weather.trace.event(&self.life.node, format_args!("{what} breaks"));
        BackendError::retryable("simulated", format!("{what} broke")).into()
    }

    /// A call waits while the host is stalled, and a dead service makes none.
    async fn enter(&self, what: &'static str) {
        self.life.awake().await;
        if !self.life.is_alive() {
            // Within the instant of the crash a task may still run before the abort reaches it; time goes on only after that.
            let crashed_at = *self.life.crashed_at.lock().unwrap_or_else(PoisonError::into_inner);
            if crashed_at != Some(Instant::now()) {
                let text = format!("{} called {what} after it was dropped: a task outlived it", self.life.node);
                self.life.weather.checker.violated(Invariant::TasksEndWithTheirService, text);
            }
            pending::<()>().await;
        }
    }

    /// What happens to the next call, and its delays before and after the effect.
    fn draw(&self) -> (Mishap, Duration, Duration) {
        let rates = self.life.weather.lock().rates;
        let mut random = self.life.random();
        let mut happens = |rate: u32| random.u32(0..1000) < rate;
        let mishap = if happens(rates.crash) {
            if happens(500) { Mishap::CrashBefore } else { Mishap::CrashAfter }
        } else if happens(rates.fail) {
            Mishap::Fail
        } else if happens(rates.lose_reply) {
            Mishap::LoseReply
        } else if happens(rates.stray) {
            Mishap::Stray
        } else {
            Mishap::None
        };
        let (slow, hang) = (happens(rates.slow), happens(rates.hang));
        let mut delay = Duration::from_micros(random.u64(200..5_000));
        if slow {
            delay += Duration::from_millis(random.u64(100..10_000));
        }
        if hang {
            delay += Duration::from_secs(random.u64(30..240));
        }
        let (mut before, mut after) = (delay, Duration::from_micros(random.u64(200..5_000)));
        if random.bool() {
            (before, after) = (after, before);
        }
        (mishap, before, after)
    }

    fn fail(&self, what: &'static str, met: Met, how: &str) -> BackendError {
        self.life.weather.trace.met(met);
        self.life.weather.trace.event(&self.life.node, format_args!("{what} {how}"));
        BackendError::retryable("simulated", format!("{what} {how}"))
    }

    async fn crash(&self, what: &'static str, when: &str) {
        self.life.crash(&format!("{when} {what}"));
        pending::<()>().await;
    }

    /// The request is on its way although nobody waits for the answer.
    fn stray<T>(&self, delay: Duration, effect: impl Future<Output = T> + Send + 'static) {
        let weather = &self.life.weather;
        // Now and then long enough for a lease to be lost meanwhile.
        let extra = {
            let mut random = self.life.random();
            let most = if random.bool() { 10_000 } else { 400_000 };
            Duration::from_millis(random.u64(0..most))
        };
        let mut strays = weather.strays.lock().unwrap_or_else(PoisonError::into_inner);
        while strays.try_join_next().is_some() {}
        strays.spawn(async move {
            tokio::time::sleep(delay + extra).await;
            effect.await;
        });
    }
}
