//! What the operator orders of the process itself: to drain, to log more or less, to start and stop families (PROTOCOL 8).
//!
//! ```text
//! POST /drain -> drain_ordered -> the server, behind this turn, does as for a signal
//! POST /modules/… -> 409 while a change is under way, whoever asked for it; else a job (super::jobs)
//! ```

use log::LevelFilter;

use super::job::Work;
use crate::closest::closest;
use crate::json::write_text;
use crate::logging;
use crate::protocol::admin::AdminRefusal;
use crate::protocol::control::{ModuleChange, ModuleReply};
use crate::protocol::http::Status;
use crate::protocol::page;
use crate::reactor::Reactor;
use crate::reactor::modules::Switch;
use crate::reactor::socket::Socket;
use crate::session::admin::AdminAnswer;
use crate::session::clock::Now;
use crate::session::id::ConnId;

impl<S: Socket> Reactor<S> {
    /// Orders a drain, unless the process is about to end already.
    pub(super) fn order_drain(&mut self) -> AdminAnswer {
        let is_new = !self.hub.readiness.is_ending();
        if is_new {
            log::info!("the operator ordered a drain");
            self.announce_drain();
            self.drain_ordered = true;
        }
        let metrics = &self.hub.metrics;
        let sessions = metrics.sessions_opened_total - metrics.sessions_closed_total;
        let drain = if is_new { "begun" } else { "under way already" };
        done(
            Status::Accepted,
            &[("drain", drain)],
            &format!(r#""sessions":{sessions}"#),
        )
    }

    /// Lets a family be started or stopped, unless there is none or another change is under way.
    pub(super) fn begin_module(&mut self, change: ModuleChange, asker: ConnId, now: Now) {
        let refused = |status, text| AdminAnswer::Refused(AdminRefusal::new(status, text));
        if !self.jobs.has_room() {
            return self.refuse_job(asker, now);
        }
        let answer = if self.is_switching {
            let text = "another module is being started or stopped; ask again".to_owned();
            refused(Status::Conflict, text)
        } else {
            let module = change.module.clone();
            match self.begin_switch(change) {
                Ok(switch) => return self.begin_job(Work::Switching(switch), asker, now),
                Err(_) => refused(Status::NotFound, self.no_module(&module)),
            }
        };
        self.answer_admin(asker, &answer, now);
    }

    fn no_module(&self, module: &str) -> String {
        let known = self.hub.subscriptions.families().modules();
        match closest(module, known) {
            Some(meant) => format!("no such module; did you mean {meant}?"),
            None => "no such module".to_owned(),
        }
    }
}

/// Logs what is at least of this level from now on, until the configuration is read again.
pub(super) fn set_log_level(level: LevelFilter) -> AdminAnswer {
    let old = log::max_level();
    logging::set_level(level);
    let (old, new) = (word(old), word(level));
    log::info!("the operator set the log level from {old} to {new}");
    done(Status::Ok, &[("old", old), ("new", new)], "")
}

fn word(level: LevelFilter) -> &'static str {
    match level {
        LevelFilter::Off => "off",
        LevelFilter::Error => "error",
        LevelFilter::Warn => "warn",
        LevelFilter::Info => "info",
        LevelFilter::Debug => "debug",
        LevelFilter::Trace => "trace",
    }
}

/// What became of a change.
pub(super) fn switched(switch: &Switch, reply: &ModuleReply) -> AdminAnswer {
    let ModuleReply {
        persisted,
        started,
        error,
    } = reply;
    let mut texts = vec![("module", &*switch.module)];
    texts.extend(error.as_deref().map(|error| ("error", error)));
    let flags = format!(r#""started":{started},"persisted":{persisted}"#);
    done(Status::Ok, &texts, &flags)
}

/// An order that is carried out: an object of these members, and those that `more` has.
fn done(status: Status, texts: &[(&str, &str)], more: &str) -> AdminAnswer {
    let body = page::whole(|out| {
        out.push(b'{');
        for (index, (name, text)) in texts.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write_text(out, name);
            out.push(b':');
            write_text(out, text);
        }
        if !more.is_empty() {
            out.push(b',');
            out.extend_from_slice(more.as_bytes());
        }
        out.push(b'}');
    });
    AdminAnswer::Json { status, body }
}
