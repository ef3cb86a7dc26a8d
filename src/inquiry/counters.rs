//! Counters of the threads that answer. They write them with relaxed atomics, and the metrics page reads them.
//!
//! Invariant: no figure here decides anything.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::auth::Question;
use crate::metrics::figures::figures;

figures! {
    /// Counters of the questions, for the whole life of the process; they only grow.
    struct InquiryCounters of AtomicU64;
    plain {
        counter requests as "crossbar_requests_total" "Requests sent to the platform's REST API, those sent again included.";
        counter requests_again as "crossbar_requests_again_total" "Requests sent again because the connection ended before the answer began, as a kept one may.";
    }
    families {
        counter auth_questions_total [kind, outcome] "Questions of the authenticator that a thread has done with, by what was asked (jwt: whether a signature and its claims are good; account: whether the platform lets a token see an account; key: a public key) and by the answer." {
            verified ("jwt", "yes") "JWTs whose signature and claims are good; those known already are not among them.";
            verify_refused ("jwt", "no") "JWTs that are not good, or whose key is not known.";
            verify_panics ("jwt", "panic") "A panic of the thread, turned into an answer that is no yes.";
            yes ("account", "yes") "The platform lets the token see the account.";
            tokens_refused ("account", "token_refused") "The token is not good (401).";
            tokens_unsendable ("account", "token_unsendable") "Refused unasked: the token is empty, above 8 KiB, or has characters that no header takes.";
            accounts_refused ("account", "account_refused") "The token may not see the account (403, 404).";
            trouble_timeout ("account", "timeout") "No answer: it was not whole within crossbar_timeout_ms.";
            trouble_connect ("account", "connect") "No answer: no connection, or it broke before the answer's head.";
            trouble_status ("account", "status") "No answer: a status that says neither yes nor no, a redirect included.";
            trouble_body ("account", "body") "No answer: what came was not HTTP, cut off, too large or not the JSON of an answer.";
            trouble_tls ("account", "tls") "No answer: TLS failed, a certificate that is not trusted included.";
            trouble_late ("account", "late") "No answer: it waited 10 s for a thread and was not asked.";
            account_panics ("account", "panic") "A panic of the thread, turned into an answer that is no yes.";
            keys ("key", "yes") "The platform sent the key.";
            keys_unknown ("key", "unknown") "The platform does not know the key, or was not asked for it: its id cannot be one, or there is no crossbar_token.";
            key_timeout ("key", "timeout") "As of an account.";
            key_connect ("key", "connect") "As of an account.";
            key_status ("key", "status") "As of an account; that the crossbar_token may not fetch keys included.";
            key_body ("key", "body") "As of an account.";
            key_tls ("key", "tls") "As of an account.";
            key_late ("key", "late") "As of an account.";
            key_panics ("key", "panic") "A panic of the thread, turned into an answer that is no yes.";
        }
    }
    beside {}
}

impl InquiryCounters {
    pub(super) fn count_panic(&self, question: &Question) {
        increment(match question {
            Question::Verify { .. } => &self.verify_panics,
            Question::Account { .. } => &self.account_panics,
            Question::Key { .. } => &self.key_panics,
        });
    }
}

pub(super) fn increment(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
