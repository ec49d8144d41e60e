//! A client that costs next to nothing: the worker is to be measured, not the client.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// 200.
    Answered,
    /// 429 with a `Retry-After`.
    Refused,
    /// Any other status, or none.
    Other,
}

/// A connection that is kept open; made anew where the worker closed it.
pub struct Client {
    address: SocketAddr,
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Client {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Self {
        Self { address, stream: open(address).await, answer: Vec::new() }
    }

    /// Sends a request and reads its answer to the end.
    pub async fn ask(&mut self, request: &str) -> Outcome {
        match self.exchange(request).await {
            Some(outcome) => outcome,
            None => {
                self.stream = open(self.address).await;
                Outcome::Other
            }
        }
    }

    async fn exchange(&mut self, request: &str) -> Option<Outcome> {
        self.stream.write_all(request.as_bytes()).await.ok()?;
        self.answer.clear();
        loop {
            if self.stream.read_buf(&mut self.answer).await.ok()? == 0 {
                return None;
            }
            let Some(end) = self.answer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(&self.answer[..end]).ok()?;
            let header = |wanted: &str| {
                let mut headers = head.lines().filter_map(|line| line.split_once(": "));
                headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value)
            };
            let length: usize = header("content-length")?.parse().ok()?;
            if self.answer.len() < end + 4 + length {
                continue;
            }
            return Some(match &head[..12] {
                "HTTP/1.1 200" => Outcome::Answered,
                "HTTP/1.1 429" if header("retry-after").is_some() => Outcome::Refused,
                _ => Outcome::Other,
            });
        }
    }
}

async fn open(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).await.expect("the worker listens");
    stream.set_nodelay(true).expect("a socket takes options");
    stream
}
