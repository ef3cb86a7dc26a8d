//! `bare_send`, the limits: one `send` a frame, one `writev` of all frames in flight, one `send` of them put together
//! beforehand. The first is the limit of one event in flight, the others that of several. Where each session has a
//! request id, the limit is one `send` of them put together for each session, with its id written into each.

use std::io;

use crate::running::{Running, SERVER_CORE};
use crate::subject::{Batch, Candidate, Kind, Scenario, Subject};

/// One `send` a frame.
pub(crate) const SEND: Candidate = limit("bare-send", |_| Bare::start("send", &[]));
/// One `writev` of the frames in flight.
pub(crate) const WRITEV: Candidate = limit("bare-writev", |_| Bare::start("writev", &[]));
/// One `send` of the frames in flight, put together beforehand.
pub(crate) const MERGED: Candidate = limit("bare-merged", |_| Bare::start("merged", &[]));
/// One `send` of the frames in flight, copied together for each session and its request id written into each.
pub(crate) const PATCHED: Candidate = Candidate {
    has_request_ids: true,
    ..limit("bare-patched", |_| {
        Bare::start(
            "patched",
            &["--subscribe", SUBSCRIBE, "--event-end", EVENT_END],
        )
    })
};

/// All that `bare_send` reads of a command, and how its frames end.
const SUBSCRIBE: &str = r#"{"request_id":"{guid}"}"#;
const EVENT_END: &str = r#""request_id":"{guid}"}"#;

const fn limit(
    name: &'static str,
    start: fn(&crate::subject::Setup<'_>) -> io::Result<Box<dyn Subject>>,
) -> Candidate {
    Candidate {
        name,
        kind: Kind::Limit,
        sessions_max: None,
        has_bindings: false,
        has_request_ids: false,
        start,
    }
}

struct Bare {
    running: Running,
    address: String,
    order: &'static str,
    load_arguments: &'static [&'static str],
}

impl Bare {
    fn start(
        order: &'static str,
        load_arguments: &'static [&'static str],
    ) -> io::Result<Box<dyn Subject>> {
        let program = shared::programs::beside("bare_send", "blackhole-bench")?;
        let mut running = Running::start(SERVER_CORE, &program, &[])?;
        let address = running.listening()?;
        Ok(Box::new(Self {
            running,
            address,
            order,
            load_arguments,
        }))
    }
}

impl Subject for Bare {
    fn pids(&self) -> Vec<u32> {
        vec![self.running.pid()]
    }

    fn address(&self) -> String {
        self.address.clone()
    }

    fn load_arguments(&self, _: Scenario, _: u32) -> Vec<String> {
        let arguments = self.load_arguments.iter();
        arguments.map(|&text| text.to_owned()).collect()
    }

    fn publish(&mut self, batch: Batch) -> io::Result<()> {
        let order = format!("{} {} {}", self.order, batch.events, batch.frame_bytes);
        self.running.tell(&order)?;
        self.running.line().map(drop)
    }
}
