//! `GET /v2/status`: what the process is and how it stands, in a few lines. What one would ask the configuration and
//! `/readyz` for, without a secret of either.

use serde_json::json;

use crate::protocol::http::Status;
use crate::protocol::page;
use crate::reactor::Reactor;
use crate::reactor::socket::Socket;
use crate::session::admin::AdminAnswer;
use crate::session::clock::Now;
use crate::session::readiness::SourceState;
use crate::tls::ServerTls;

impl<S: Socket> Reactor<S> {
    /// Linear in the number of permissions that are missing, and of origins that may connect.
    pub(super) fn process_status(&self, now: Now) -> AdminAnswer {
        let (about, limits) = (&self.about, &self.hub.limits);
        let readiness = &self.hub.readiness;
        let source = match readiness.source() {
            SourceState::Starting => "starting",
            SourceState::Up => "up",
            SourceState::Away { .. } => "away",
        };
        let tls = about.websocket_tls.map(|address| {
            json!({
                "address": address.ip().to_string(),
                "port": address.port(),
                "certificate_expires": self.served_tls().map(ServerTls::expires),
            })
        });
        let status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "node": about.node,
            "host": self.host,
            "pid": std::process::id(),
            "uptime_seconds": now.clock.as_secs(),
            "websocket": {
                "address": about.websocket.map(|address| address.ip().to_string()),
                "port": about.websocket.map(|address| address.port()),
                "tls": tls,
                "allowed_origins": limits.allowed_origins,
                "style": limits.style.word(),
            },
            "ready": readiness.unready().is_none(),
            "why": readiness.unready().map(|why| why.text()),
            "draining": readiness.is_ending(),
            "drain_seconds": about.drain.as_secs_f64(),
            "auth": about.auth,
            "source": {
                "kind": about.source,
                "state": source,
                "demo_account": about.demo_account,
                "permissions_missing": self.barred,
            },
            "history": {
                "seconds": limits.history.keep.as_secs_f64(),
                "bytes": limits.history.bytes_max,
                "stream": about.has_stream,
            },
            "sessions": self.hub.metrics.sessions_open(),
        });
        AdminAnswer::Json {
            status: Status::Ok,
            body: page::whole(|out| out.extend_from_slice(status.to_string().as_bytes())),
        }
    }
}
