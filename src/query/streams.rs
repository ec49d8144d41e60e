//! Places for streams: a bounded number, of which one client has a bounded share, so that none keeps all others out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntGauge;

use crate::query::QueryConfig;
use crate::query::error::{ErrorCode, SearchError};
use crate::query::keys::Accepted;

/// What a client is told to wait for a free stream.
const DELAY: Duration = Duration::from_secs(5);

/// Who asks for a stream.
#[derive(Clone)]
pub enum Client {
    /// Whoever has this key.
    Key(Accepted),
    /// Where no key is asked for, whoever asks from this address.
    Address(IpAddr),
}

impl Client {
    /// By its key, or else by its address.
    pub fn new(key: Option<Accepted>, address: SocketAddr) -> Self {
        key.map_or(Self::Address(address.ip()), Self::Key)
    }

    /// The name under which its streams are counted. Of an IPv6 address the network: a host has all addresses in it.
    fn name(&self) -> String {
        match self {
            Self::Key(accepted) => format!("key {}", accepted.key().name()),
            Self::Address(address) => match address.to_canonical() {
                IpAddr::V4(address) => format!("address {address}"),
                IpAddr::V6(address) => {
                    let network = Ipv6Addr::from_bits(address.to_bits() >> 64 << 64);
                    format!("network {network}/64")
                }
            },
        }
    }
}

/// The streams that are open, by their clients.
pub struct Streams {
    open: Mutex<HashMap<String, usize>>,
    most: usize,
    share: usize,
    gauge: IntGauge,
}

/// A stream's place; it is free again when this is dropped.
pub struct StreamPlace {
    streams: Arc<Streams>,
    client: String,
}

impl Streams {
    /// None is open. `gauge` shows how many are.
    pub fn new(config: &QueryConfig, gauge: IntGauge) -> Arc<Self> {
        let (most, share) = (config.max_streams, config.max_streams_per_client);
        Arc::new(Self { open: Mutex::default(), most, share, gauge })
    }

    /// A place for a stream of this client.
    ///
    /// # Errors
    /// 429 where all places are taken, or the client has its share.
    pub fn take(self: &Arc<Self>, client: &Client) -> Result<StreamPlace, SearchError> {
        let client = client.name();
        let mut open = self.open();
        let own = open.get(&client).copied().unwrap_or_default();
        let message = if open.values().sum::<usize>() >= self.most {
            format!("{} streams of matches are open already (query.max_streams); try again in a moment", self.most)
        } else if own >= self.share {
            format!(
                "{client} has {own} streams of matches open already (query.max_streams_per_client); close one first"
            )
        } else {
            open.insert(client.clone(), own + 1);
            self.gauge.inc();
            return Ok(StreamPlace { streams: Arc::clone(self), client });
        };
        Err(SearchError::for_now(ErrorCode::Overloaded, message, DELAY))
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        // Nothing between two statements under the lock can panic.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut open = self.streams.open();
        match open.get_mut(&self.client) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                open.remove(&self.client);
            }
        }
        self.streams.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Overrides};

    fn streams(most: usize, share: usize) -> Arc<Streams> {
        let mut config = Config::load(&[], &Overrides::default()).expect("loads").query;
        (config.max_streams, config.max_streams_per_client) = (most, share);
        Streams::new(&config, IntGauge::new("open", "open").expect("a gauge"))
    }

    fn at(address: &str) -> Client {
        Client::Address(address.parse().expect("an address"))
    }

    #[test]
    fn one_client_gets_its_share_and_another_one_finds_a_place() {
        let streams = streams(3, 2);
        let first = (streams.take(&at("10.0.0.1")).expect("free"), streams.take(&at("10.0.0.1")).expect("its share"));
        let error = streams.take(&at("10.0.0.1")).map(drop).expect_err("more than its share");
        assert_eq!((error.code, error.retry_after), (ErrorCode::Overloaded, Some(DELAY)));
        assert!(error.message.contains("10.0.0.1") && error.message.contains("max_streams_per_client"), "{error}");
        let second = streams.take(&at("10.0.0.2")).expect("free");
        let error = streams.take(&at("10.0.0.3")).map(drop).expect_err("all are taken");
        assert!(error.message.contains("query.max_streams)"), "{error}");
        drop(first.0);
        assert_eq!((streams.gauge.get(), streams.open().len()), (2, 2));
        drop((first.1, second));
        assert!(streams.gauge.get() == 0 && streams.open().is_empty(), "nothing is kept of who is gone");
    }

    #[test]
    fn the_addresses_of_one_network_are_one_client_in_ipv6_alone() {
        for (left, right, same) in [
            ("2001:db8::1", "2001:db8::2:3:4:5", true),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", false),
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
        ] {
            assert_eq!(at(left).name() == at(right).name(), same, "{left} {right}");
        }
    }
}
