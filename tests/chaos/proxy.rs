//! The network between a worker and the store: a TCP proxy that can be cut, hang or become slow.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How the line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    Open,
    /// Connections are closed, new ones too.
    Cut,
    /// Connections stay, and nothing passes.
    Hangs,
    /// At most 4 KiB each 40 ms, in each direction.
    Slow,
}

pub const FAULTS: [Line; 3] = [Line::Cut, Line::Hangs, Line::Slow];

const CHUNK: usize = 4_096;
const SLOW: Duration = Duration::from_millis(40);

/// A line to one address.
pub struct Proxy {
    pub address: SocketAddr,
    line: watch::Sender<Line>,
    /// Connections that were closed by a cut.
    pub cut: Arc<AtomicU64>,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (line, lines) = watch::channel(Line::Open);
        let cut = Arc::new(AtomicU64::new(0));
        let counter = cut.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(connect(near, target, lines.clone(), counter.clone()));
            }
        });
        Ok(Self { address, line, cut })
    }

    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }
}

async fn connect(near: TcpStream, target: SocketAddr, mut line: watch::Receiver<Line>, cut: Arc<AtomicU64>) {
    if *line.borrow() == Line::Cut {
        cut.fetch_add(1, Ordering::Relaxed);
        return;
    }
    // A hanging line takes the connection, as a lost packet does not tell that it is lost.
    if line.wait_for(|line| *line != Line::Hangs).await.is_err() {
        return;
    }
    let Ok(far) = TcpStream::connect(target).await else { return };
    let (_, _) = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let mut until_cut = line.clone();
    tokio::select! {
        _ = pass(near_in, far_out, line.clone()) => {}
        _ = pass(far_in, near_out, line) => {}
        _ = until_cut.wait_for(|line| *line == Line::Cut) => {
            cut.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut line: watch::Receiver<Line>) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        let now = line.wait_for(|line| *line != Line::Hangs).await.map(|line| *line).unwrap_or(Line::Cut);
        if now == Line::Slow {
            tokio::time::sleep(SLOW).await;
        }
        to.write_all(&chunk[..length]).await?;
    }
}
