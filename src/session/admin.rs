//! The pages of the admin listener: what may be asked for, and the HTTP around what the loop shows.

use crate::protocol::http::{TEXT, response};

use super::Session;
use super::hub::Context;

/// What a client of the admin listener asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminRequest {
    /// The page.
    pub page: AdminPage,
    /// By `HEAD`: the answer is that of a `GET` without the body.
    pub head_only: bool,
}

/// A page of the admin listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminPage {
    /// `/healthz`: the loop turns.
    Health,
    /// `/readyz`: sessions are taken and events come.
    Ready,
    /// `/metrics`.
    Metrics,
}

/// What a page shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAnswer {
    /// All is well, which the text says.
    Well(String),
    /// Something is not, which the text tells (503).
    Unwell(String),
    /// Metrics in the Prometheus text format 0.0.4.
    Metrics(String),
}

impl Session {
    /// Answers the request of a client of the admin listener, as its connection's last word. `Content-Length` is that of a
    /// `GET` in any case.
    pub fn show(&mut self, request: AdminRequest, answer: &AdminAnswer, cx: &mut Context<'_>) {
        let (status, content_type, body) = match answer {
            AdminAnswer::Well(body) => ("200 OK", TEXT, body),
            AdminAnswer::Unwell(body) => ("503 Service Unavailable", TEXT, body),
            AdminAnswer::Metrics(body) => {
                ("200 OK", "text/plain; version=0.0.4; charset=utf-8", body)
            }
        };
        let response = response(status, content_type, "", body, request.head_only);
        self.respond(&response, cx);
    }
}
