//! The addresses of the REST API's host.
//!
//! The HTTP client asks for them before every request, those on a kept connection included. Its own resolver would
//! start a thread each time, and a name server that is silent would leave a thread behind for every question. Here an
//! address is no question, a name's addresses are kept for [`CROSSBAR_ADDRESSES_KEPT`], and one look-up at a time serves
//! all who wait: at most one thread is left behind.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::limits::CROSSBAR_ADDRESSES_KEPT;

/// Most addresses that the HTTP client takes.
const ADDRESSES_MAX: usize = 16;

/// The resolver of one host.
#[derive(Default)]
pub(super) struct OneHost(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    found: Condvar,
}

#[derive(Default)]
struct State {
    is_looking_up: bool,
    /// Look-ups that have ended.
    ended: u64,
    /// What the last one found, and when.
    found: Option<(Result<Vec<SocketAddr>, io::ErrorKind>, Instant)>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OneHost {
    fn look_up(
        &self,
        host: &str,
        port: u16,
        timeout: NextTimeout,
    ) -> Result<Vec<SocketAddr>, Error> {
        let mut state = self.0.lock();
        if let Some((Ok(addresses), at)) = &state.found
            && at.elapsed() < CROSSBAR_ADDRESSES_KEPT
        {
            return Ok(addresses.clone());
        }
        if !state.is_looking_up {
            let (shared, host) = (self.0.clone(), host.to_owned());
            thread::Builder::new()
                .name("crossbar-dns".to_owned())
                .spawn(move || {
                    let found = (host, port).to_socket_addrs();
                    let found = found.map(|all| all.take(ADDRESSES_MAX).collect());
                    let mut state = shared.lock();
                    state.is_looking_up = false;
                    state.ended += 1;
                    state.found = Some((found.map_err(|error| error.kind()), Instant::now()));
                    shared.found.notify_all();
                })?;
            state.is_looking_up = true;
        }
        let ended = state.ended;
        let (state, waited) = self
            .0
            .found
            .wait_timeout_while(state, *timeout.after, |state| state.ended == ended)
            .unwrap_or_else(PoisonError::into_inner);
        match &state.found {
            _ if waited.timed_out() => Err(Error::Timeout(timeout.reason)),
            Some((Ok(addresses), _)) => Ok(addresses.clone()),
            Some((Err(_), _)) | None => Err(Error::HostNotFound),
        }
    }
}

impl Resolver for OneHost {
    fn resolve(
        &self,
        uri: &Uri,
        _config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let addresses = match host.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => self.look_up(host, port, timeout)?,
        };
        let mut all = self.empty();
        for address in addresses {
            all.push(address);
        }
        if all.is_empty() {
            return Err(Error::HostNotFound);
        }
        Ok(all)
    }
}

impl fmt::Debug for OneHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneHost").finish_non_exhaustive()
    }
}
