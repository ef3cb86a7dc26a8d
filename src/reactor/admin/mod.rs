//! What a request on the admin address begins (PROTOCOL 8).

mod metrics;
mod process;

use super::Reactor;
use super::socket::Socket;
use crate::session::admin::{AdminAnswer, AdminPage};

/// What `page` shows.
#[must_use]
pub fn page<S: Socket>(page: AdminPage, reactor: &Reactor<S>) -> AdminAnswer {
    match page {
        AdminPage::Health => AdminAnswer::Well("ok\n".to_owned()),
        AdminPage::Ready => {
            let lines = reactor.barred.iter();
            let barred: String = lines.map(|line| format!("{line}\n")).collect();
            match reactor.hub.readiness.unready() {
                None => AdminAnswer::Well(format!("ready\n{barred}")),
                Some(why) => AdminAnswer::Unwell(format!("{}\n{barred}", why.text())),
            }
        }
        AdminPage::Metrics => AdminAnswer::Metrics(metrics::metrics(reactor)),
    }
}
