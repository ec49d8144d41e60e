//! HTTP on a socket. As `axum::serve`, but slow clients cannot hold connections: neither one that never ends its request's
//! headers, nor one that does not read its answer, nor many that do nothing.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

use crate::service::tls::Tls;

/// Between attempts to accept while the system has no more connections to give.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);
/// Connections beyond the limit that are told so at a time; of more, each is cut at once.
const REFUSING: usize = 64;
/// A connection beyond the limit has so long to ask, or to read that it may not.
const REFUSING_TIMEOUT: Duration = Duration::from_secs(1);

/// What clients may take.
#[derive(Clone)]
pub struct Limits {
    /// A connection that is idle, has not shaken hands or sent its headers whole, or takes nothing of its answer for so long is cut.
    pub timeout: Duration,
    /// Connections at a time.
    pub connections: usize,
    /// What further ones are answered.
    pub full: Router,
}

/// Serves until `shutdown`, then until the requests under way are answered. Dropping the future cuts all connections.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let tls = tls.map(Arc::new);
    let open = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
    let refusing = Arc::new(Semaphore::new(REFUSING));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    let connection = if let Ok(place) = Arc::clone(&open).try_acquire_owned() {
                        let (router, timeout) = (router.clone(), limits.timeout);
                        Connection { stream, address, tls: tls.clone(), router, timeout, _place: place }
                    } else if let Ok(place) = Arc::clone(&refusing).try_acquire_owned() {
                        let (router, timeout) = (limits.full.clone(), REFUSING_TIMEOUT);
                        Connection { stream, address, tls: tls.clone(), router, timeout, _place: place }
                    } else {
                        continue;
                    };
                    connections.spawn(connection.serve(shutdown.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
    router: Router,
    timeout: Duration,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve(self, shutdown: CancellationToken) {
        // Small answers are written at once, and need not wait for company.
        let _ = self.stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(self.stream);
        stream.set_write_timeout(Some(self.timeout));
        let stream = Box::pin(stream);
        let Some(tls) = self.tls else { return talk(stream, self.address, self.router, self.timeout, shutdown).await };
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(self.timeout, tls.accept(stream)) => shaken,
            () = shutdown.cancelled() => return,
        };
        match shaken {
            Ok(Ok(stream)) => talk(stream, self.address, self.router, self.timeout, shutdown).await,
            Ok(Err(error)) => tracing::debug!(%error, "a client did not shake hands"),
            Err(_) => tracing::debug!("a client did not end its handshake"),
        }
    }
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    address: SocketAddr,
    router: Router,
    timeout: Duration,
    shutdown: CancellationToken,
) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(timeout);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(address));
        router.call(request)
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}
