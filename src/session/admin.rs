//! What a client of the admin listener may ask for.

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
