//! The traffic secrets of a TLS 1.3 handshake, from which later keys follow (KeyUpdate). rustls hands out keys but not
//! these secrets; it tells them to a key log only. This key log hands them to who steps the handshake, on the same thread,
//! and writes nothing.
//!
//! Invariant: a step leaves nothing behind on its thread.

use std::cell::RefCell;

use rustls::KeyLog;
use zeroize::Zeroizing;

/// The labels of NSS's key logs.
const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

/// A secret, of 32 or 48 bytes.
pub(super) type Secret = Zeroizing<Vec<u8>>;

/// What a handshake has told so far. No `Debug`.
#[derive(Default)]
pub(super) struct TrafficSecrets {
    pub(super) client: Option<Secret>,
    pub(super) server: Option<Secret>,
}

thread_local! {
    static TOLD: RefCell<TrafficSecrets> = RefCell::default();
}

impl TrafficSecrets {
    /// Takes what the last step on this thread told.
    pub(super) fn take_told(&mut self) {
        let told = TOLD.take();
        if told.client.is_some() {
            self.client = told.client;
        }
        if told.server.is_some() {
            self.server = told.server;
        }
    }
}

/// Forgets what a step on this thread told that did not end well.
pub(super) fn forget_told() {
    drop(TOLD.take());
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct ToThread;

impl KeyLog for ToThread {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        // Also called for labels that `will_log` declines.
        TOLD.with_borrow_mut(|told| match label {
            CLIENT => told.client = Some(Zeroizing::new(secret.to_vec())),
            SERVER => told.server = Some(Zeroizing::new(secret.to_vec())),
            _ => {}
        });
    }

    fn will_log(&self, label: &str) -> bool {
        label == CLIENT || label == SERVER
    }
}
