//! Ports for what is stopped and started again, or starts later.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// A port of the loopback interface that was free a moment ago, another at each call. It lies below those that the system gives
/// out (32768 and up): otherwise, while nobody listens there, another connection could get it, or a client that tries again and
/// again could meet itself.
pub fn free_port() -> u16 {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    loop {
        // Apart from those of other processes that ask, too; and from 15,000 up lie the brokers that tests start.
        let call = std::process::id().wrapping_mul(101).wrapping_add(CALLS.fetch_add(1, Ordering::Relaxed));
        let port = 11_000 + (call % 4_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
