//! Pictures by URL. Names are resolved by [`GuardedResolver`], which hands out checked addresses only: the connection goes
//! to an address that was judged, so a name cannot change its mind in between. Redirects are followed here, each judged
//! like the first URL.

use std::collections::HashMap;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, LOCATION, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, redirect};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::{Host, Url};

use super::{Fetched, forbidden, too_large, unavailable};
use crate::error::{Fault, Outage, Reason};
use crate::image::ImagesConfig;
use crate::image::budget::Budget;
use crate::image::guard::AddressPolicy;
use crate::text::shortened;

/// Hosts whose places are kept before those that nobody holds are forgotten.
const HOSTS: usize = 1024;

/// Characters of a URL that a message repeats.
const SHOWN: usize = 200;

/// Connections kept open for each host between transfers.
const IDLE_CONNECTIONS: usize = 4;

/// Fetches over HTTP and HTTPS.
#[derive(Debug)]
pub(super) struct HttpFetcher {
    client: Client,
    policy: Arc<AddressPolicy>,
    permits: Semaphore,
    /// Places of each host that is being asked.
    hosts: Mutex<HashMap<String, Weak<Semaphore>>>,
    per_host: usize,
    budget: Budget,
    schemes: Vec<String>,
    max_bytes: u64,
    max_redirects: usize,
    timeout: Duration,
    max_retry_after: Duration,
}

impl HttpFetcher {
    pub(super) fn new(config: &ImagesConfig, budget: Budget) -> Result<Self> {
        anyhow::ensure!(
            config.concurrency > 0 && config.concurrency_per_host > 0,
            "images.concurrency and images.concurrency_per_host must be at least 1"
        );
        let policy = Arc::new(AddressPolicy::new(config.allow_networks.clone()));
        let client = Client::builder()
            .user_agent(concat!("feedlens/", env!("CARGO_PKG_VERSION")))
            // A proxy would resolve names by itself, and connect to what this process must not.
            .no_proxy()
            .redirect(redirect::Policy::none())
            .referer(false)
            .dns_resolver(Arc::new(GuardedResolver { policy: Arc::clone(&policy) }))
            .connect_timeout(config.connect_timeout)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_idle_timeout(Duration::from_secs(30))
            .build()
            .context("cannot make the HTTP client for pictures")?;
        Ok(Self {
            client,
            policy,
            permits: Semaphore::new(config.concurrency.min(Semaphore::MAX_PERMITS)),
            hosts: Mutex::default(),
            per_host: config.concurrency_per_host.min(Semaphore::MAX_PERMITS),
            budget,
            schemes: config.schemes.clone(),
            max_bytes: config.max_bytes,
            max_redirects: config.max_redirects,
            timeout: config.timeout,
            max_retry_after: config.retry_max,
        })
    }

    pub(super) async fn get(&self, text: &str) -> Result<Fetched, Fault> {
        let url = Url::parse(text).map_err(|error| {
            Fault::reject(Reason::BadField, format!("image.url: {:?} is not a URL: {error}", shortened(text, SHOWN)))
        })?;
        // Before the clock starts: waiting for one's turn is not the host's fault. The host's place first: who waits for
        // a slow host holds up nobody else.
        let _place = self.place_of(&url).await;
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed. This is a bug.");
        let started = Instant::now();
        let shown = shortened(url.as_str(), SHOWN).into_owned();
        let too_slow = |_| outage(format!("{shown}: not here within images.timeout = {:?}", self.timeout), None);
        let (url, response) = tokio::time::timeout(self.timeout, self.follow(url)).await.map_err(too_slow)??;
        let announced = response.content_length();
        if let Some(length) = announced.filter(|length| *length > self.max_bytes) {
            return Err(too_large(&self::shown(&url), length, self.max_bytes));
        }
        let left = self.timeout.saturating_sub(started.elapsed());
        // Nor is waiting for memory.
        let mut share = self.budget.take(announced.unwrap_or(self.max_bytes)).await;
        let bytes = tokio::time::timeout(left, self.read(&url, response)).await.map_err(too_slow)??;
        share.shrink_to(bytes.len() as u64);
        Ok(Fetched { bytes: bytes.into(), _share: share })
    }

    async fn place_of(&self, url: &Url) -> OwnedSemaphorePermit {
        let host =
            format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
        let places = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            if hosts.len() >= HOSTS {
                hosts.retain(|_, places| places.strong_count() > 0);
            }
            let known = hosts.get(&host).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let places = Arc::new(Semaphore::new(self.per_host));
                hosts.insert(host, Arc::downgrade(&places));
                places
            })
        };
        places.acquire_owned().await.expect("the semaphore is never closed. This is a bug.")
    }

    /// The answer of the last URL in a chain of redirects, with that URL.
    async fn follow(&self, mut url: Url) -> Result<(Url, Response), Fault> {
        for _ in 0..=self.max_redirects {
            self.check(&url)?;
            let request = self.client.get(url.clone()).header(ACCEPT, "image/*").header(ACCEPT_ENCODING, "identity");
            let response = request.send().await.map_err(|error| transfer_fault(&url, error))?;
            if !is_redirect(response.status()) {
                self.check_head(&url, &response)?;
                return Ok((url, response));
            }
            let target = response.headers().get(LOCATION).and_then(|target| target.to_str().ok());
            url = target.and_then(|target| url.join(target).ok()).ok_or_else(|| {
                unavailable(format!("{}: {} without a usable location", shown(&url), response.status()))
            })?;
        }
        Err(unavailable(format!("{}: more than images.max_redirects = {} redirects", shown(&url), self.max_redirects)))
    }

    /// Scheme, credentials, and the host where it is an address; names are judged when they are resolved.
    fn check(&self, url: &Url) -> Result<(), Fault> {
        if !self.schemes.iter().any(|scheme| scheme == url.scheme()) {
            let allowed = self.schemes.join(", ");
            return Err(forbidden(format!("{}: the scheme is none of images.schemes = {allowed}", shown(url))));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(forbidden(format!("{}: take the user name and password out", shown(url))));
        }
        let address = match url.host() {
            None => return Err(forbidden(format!("{}: it names no host", shown(url)))),
            Some(Host::Domain(_)) => return Ok(()),
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
        };
        if self.policy.permits(address) { Ok(()) } else { Err(refused(url)) }
    }

    fn check_head(&self, url: &Url, response: &Response) -> Result<(), Fault> {
        if response.status() != StatusCode::OK {
            return Err(self.status_fault(url, response));
        }
        // Never asked for; inflating would need bounds of its own.
        let encoding = response.headers().get(CONTENT_ENCODING).filter(|encoding| *encoding != "identity");
        if let Some(encoding) = encoding {
            let encoding = String::from_utf8_lossy(encoding.as_bytes());
            let detail = format!("image: {}: sent with content-encoding {encoding:?}, unasked", shown(url));
            return Err(Fault::reject(Reason::BadImage, detail));
        }
        Ok(())
    }

    async fn read(&self, url: &Url, mut response: Response) -> Result<Vec<u8>, Fault> {
        let announced = response.content_length().unwrap_or(0);
        // A length that lies costs no memory: pages that nothing is written to are not there.
        let mut bytes = Vec::with_capacity(announced.min(self.max_bytes) as usize);
        while let Some(chunk) = response.chunk().await.map_err(|error| transfer_fault(url, error))? {
            let length = bytes.len() + chunk.len();
            if length as u64 > self.max_bytes {
                return Err(too_large(&shown(url), length as u64, self.max_bytes));
            }
            if length > bytes.capacity() {
                // Doubled, but never above the share that was taken.
                let capacity = (bytes.capacity() * 2).min(self.max_bytes as usize).max(length);
                bytes.reserve_exact(capacity - bytes.len());
            }
            bytes.extend_from_slice(&chunk);
        }
        bytes.shrink_to_fit();
        Ok(bytes)
    }

    fn status_fault(&self, url: &Url, response: &Response) -> Fault {
        let status = response.status();
        let detail = format!("{}: the host answered {status}", shown(url));
        let for_now = status.is_server_error()
            || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS);
        if !for_now {
            return unavailable(detail);
        }
        let after = response.headers().get(RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?, Utc::now()));
        outage(detail, after.map(|after| after.min(self.max_retry_after)))
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(value: &str, now: DateTime<Utc>) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = DateTime::parse_from_rfc2822(value.trim()).ok()?.to_utc();
    Some((at - now).to_std().unwrap_or(Duration::ZERO))
}

fn outage(detail: impl std::fmt::Display, after: Option<Duration>) -> Fault {
    Fault::Retry { outage: Outage::ImageHost, detail: format!("image: {detail}"), after }
}

fn refused(url: &Url) -> Fault {
    let host = url.host_str().unwrap_or_default();
    forbidden(format!(
        "{}: {host} is a private, loopback, link-local or reserved address; images.allow_networks could allow it",
        shown(url)
    ))
}

fn transfer_fault(url: &Url, error: reqwest::Error) -> Fault {
    let mut causes: Vec<&(dyn Error + 'static)> =
        std::iter::successors(error.source(), |&cause| cause.source()).collect();
    if causes.iter().any(|cause| cause.is::<RefusedAddress>()) {
        return refused(url);
    }
    let last = causes.pop().map_or_else(|| "the request cannot be made".to_owned(), ToString::to_string);
    if error.is_builder() {
        return Fault::reject(Reason::BadField, format!("image.url: {}: {last}", shown(url)));
    }
    let what = if error.is_timeout() {
        "no connection within images.connect_timeout".to_owned()
    } else if error.is_connect() {
        format!("cannot connect: {last}")
    } else {
        format!("the transfer broke off: {last}")
    };
    outage(format!("{}: {what}", shown(url)), None)
}

/// A URL for people: without credentials, and short.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // These fail for URLs that cannot have credentials: then there are none to hide.
    let _ = url.set_password(None);
    let _ = url.set_username("");
    shortened(url.as_str(), SHOWN).into_owned()
}

/// The system's resolver, less the addresses that may not be connected to.
struct GuardedResolver {
    policy: Arc<AddressPolicy>,
}

/// A name that resolves, but to no address that may be connected to.
#[derive(Debug, thiserror::Error)]
#[error("the name has no public address")]
struct RefusedAddress;

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = Arc::clone(&self.policy);
        Box::pin(async move {
            // Port 0: the client puts the URL's port in its place.
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let permitted: Vec<SocketAddr> = found.into_iter().filter(|address| policy.permits(address.ip())).collect();
            if permitted.is_empty() {
                return Err(RefusedAddress.into());
            }
            let addresses: Addrs = Box::new(permitted.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date() {
        let now = DateTime::from_timestamp(1_445_412_420, 0).expect("a time");
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT", now), Some(Duration::from_secs(60)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:20:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
    }

    #[test]
    fn credentials_are_not_shown() {
        let url = Url::parse("http://user:secret@example.org/a").expect("a URL");
        assert_eq!(shown(&url), "http://example.org/a");
    }
}
