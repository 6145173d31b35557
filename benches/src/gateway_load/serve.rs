//! The gateway under load: a process of its own, on one core.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, ValueEnum};
use deploycore::deploy::ReportBoard;
use deploycore::memory;
use deploycore::port::GoalStateStore;
use deploycore::port::goals::Expect;
use deploycore_kv::gateway::{Access, Gateway, GatewaySettings};
use deploycore_kv::redb;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::process;

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Store {
    /// A file that vanishes with the process.
    Redb,
    Memory,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[arg(long)]
    services: usize,
    #[arg(long, value_enum)]
    store: Store,
}

/// Serves until the standard input ends. Says its address in one line.
pub(crate) fn run(serve: &Serve) -> Result<()> {
    process::bind_to_core(0)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let (_folder, path) = deploycore_benches::folder();
        let goals: Arc<dyn GoalStateStore> = match serve.store {
            Store::Redb => Arc::new(redb::Goals::open(&path.join("goals.redb")).await?),
            Store::Memory => Arc::new(memory::Goals::new()),
        };
        for service in 0..serve.services {
            goals.put(&deploycore_benches::goal(&format!("service-{service}"), 1), Expect::Absent).await?;
        }
        let board = Arc::new(ReportBoard::default());
        let settings = GatewaySettings::default().with_access(Access::Writable);
        let gateway = Gateway::new(settings, goals, None, Some(board.clone()), Some(board));
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let listener: TcpListener = socket.listen(4_096)?;
        println!("{}", listener.local_addr()?);
        std::io::stdout().flush()?;
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        std::thread::spawn(move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            stop.cancel();
        });
        gateway.serve(listener, shutdown).await?;
        Ok(())
    })
}
