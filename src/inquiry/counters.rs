//! Counters of the threads that answer. They write them with relaxed atomics, and the metrics page reads them.
//!
//! Invariant: no figure here decides anything.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::write_metric;

/// Declares [`InquiryCounters`]: one field, one metric, one help text each.
macro_rules! counters {
    ($($name:ident $metric:literal $help:literal;)*) => {
        /// Counters of the questions, for the whole life of the process; they only grow.
        #[derive(Debug, Default)]
        pub struct InquiryCounters {
            $(#[doc = $help] pub $name: AtomicU64,)*
        }

        impl InquiryCounters {
            /// Appends all of them to `out`, in Prometheus' text format.
            pub fn write(&self, out: &mut String) {
                $(write_metric(out, $metric, "counter", $help, self.$name.load(Ordering::Relaxed));)*
            }
        }
    };
}

counters! {
    verified "jwt_verified_total" "JWTs whose signature and claims were found good, on the thread for it; those known already are not among them.";
    verify_refused "jwt_verify_refused_total" "JWTs that were found not good there.";
    requests "crossbar_requests_total" "Requests sent to the platform's REST API, those sent again included.";
    requests_again "crossbar_requests_again_total" "Requests sent again because the connection ended before the answer began, as a kept one may.";
    yes "crossbar_yes_total" "Accounts that the platform let a token see.";
    tokens_refused "crossbar_tokens_refused_total" "Answers that a token is not good (401).";
    tokens_unsendable "crossbar_tokens_unsendable_total" "Tokens refused unasked: empty, above 8 KiB, or with characters that no header takes.";
    accounts_refused "crossbar_accounts_refused_total" "Answers that a token may not see an account (403, 404).";
    keys "crossbar_keys_total" "Public keys that the platform sent.";
    keys_unknown "crossbar_keys_unknown_total" "Key ids that the platform does not know, or that were not asked for: they cannot be ids, or there is no crossbar_token.";
    trouble_timeout "crossbar_trouble_timeout_total" "Questions without an answer: it was not whole within crossbar_timeout_ms.";
    trouble_connect "crossbar_trouble_connect_total" "Questions without an answer: no connection, or it broke before the answer's head.";
    trouble_status "crossbar_trouble_status_total" "Questions without an answer: a status that says neither yes nor no, a redirect included.";
    trouble_body "crossbar_trouble_body_total" "Questions without an answer: what came was not HTTP, cut off, too large or not the JSON of an answer.";
    trouble_tls "crossbar_trouble_tls_total" "Questions without an answer: TLS failed, a certificate that is not trusted included.";
    trouble_late "crossbar_trouble_late_total" "Questions without an answer: they waited 10 s for a thread and were not asked.";
    panics "inquiry_panics_total" "Panics of the threads that answer, each turned into an answer that is no yes.";
}

pub(super) fn increment(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
