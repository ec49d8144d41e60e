//! The pictures' host: HTTP/1.1 by hand, so that it can be out of order in every way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::material::Material;

/// How the host answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Serves,
    /// 503.
    Unavailable,
    /// 429, ask again in a second.
    Busy,
    /// Takes the request and never answers.
    Hangs,
    /// Takes the request and closes.
    Closes,
    /// Announces more bytes than it sends.
    BreaksOff,
}

pub const FAULTS: [Mode; 5] = [Mode::Unavailable, Mode::Busy, Mode::Hangs, Mode::Closes, Mode::BreaksOff];

/// A host on a port of the loopback interface.
pub struct Host {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    /// Requests that met a fault.
    pub failed: Arc<AtomicU64>,
}

impl Host {
    pub async fn start(material: Arc<Material>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (mode, modes) = watch::channel(Mode::Serves);
        let failed = Arc::new(AtomicU64::new(0));
        let counter = failed.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, material.clone(), modes.clone(), counter.clone()));
            }
        });
        Ok(Self { address, mode, failed })
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn answer(
    mut stream: TcpStream,
    material: Arc<Material>,
    mut modes: watch::Receiver<Mode>,
    failed: Arc<AtomicU64>,
) {
    let Ok(Ok(path)) = tokio::time::timeout(Duration::from_secs(10), read_path(&mut stream)).await else { return };
    let mode = *modes.borrow_and_update();
    if mode != Mode::Serves {
        failed.fetch_add(1, Ordering::Relaxed);
    }
    let (status, header, mut body) = match mode {
        Mode::Unavailable => ("503 Service Unavailable", "", Vec::new()),
        Mode::Busy => ("429 Too Many Requests", "Retry-After: 1\r\n", Vec::new()),
        Mode::Hangs => {
            let _ = modes.changed().await;
            return;
        }
        Mode::Closes => return,
        Mode::Serves | Mode::BreaksOff => page(&path, &material),
    };
    let length = body.len();
    if mode == Mode::BreaksOff {
        body.truncate(length / 2);
    }
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{header}\r\n");
    if stream.write_all(&[head.as_bytes(), &body].concat()).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}

async fn read_path(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 8_192 {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).split(' ').nth(1).unwrap_or_default().to_owned())
}

fn page(path: &str, material: &Material) -> (&'static str, &'static str, Vec<u8>) {
    let number = path.strip_prefix("/picture/").and_then(|number| number.parse::<usize>().ok());
    if let Some(picture) = number.and_then(|number| material.pictures.get(number)) {
        return ("200 OK", "", picture.bytes.clone());
    }
    match path {
        "/page" => ("200 OK", "Content-Type: text/html\r\n", b"<!doctype html><title>hello</title>".to_vec()),
        "/inside" => ("302 Found", "Location: http://10.1.2.3/a.png\r\n", Vec::new()),
        _ => ("404 Not Found", "", Vec::new()),
    }
}
