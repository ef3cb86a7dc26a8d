//! The threads that ask the platform's REST API, and their HTTP client, against a real HTTP server.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use blackhole::account::AccountId;
use blackhole::auth::{AccountAnswer, Answer, KeyAnswer, Question};
use blackhole::handoff::LoopWaker;
use blackhole::inquiry::{
    Answering, Authorities, Crossbar, CrossbarOptions, CrossbarUrl, Inquiry, InquiryCounters,
    channels,
};
use support::platform_api::{Account, PlatformApi, SERVICE_TOKEN};

const ONE: &str = "4b8c6fec4b2597882c0390202d195419";
const TWO: &str = "00112233445566778899aabbccddeeff";

fn account(id: &str) -> AccountId {
    AccountId::parse(id).unwrap()
}

/// A client with a limit of time that no good answer comes near.
fn client(url: &str) -> (Crossbar, Arc<InquiryCounters>) {
    client_within(url, Duration::from_secs(20))
}

fn client_within(url: &str, timeout: Duration) -> (Crossbar, Arc<InquiryCounters>) {
    let counters = Arc::new(InquiryCounters::default());
    let options = CrossbarOptions {
        url: CrossbarUrl::parse(url).unwrap(),
        timeout,
        service_token: Some(SERVICE_TOKEN.into()),
        authorities: Authorities::System,
    };
    (Crossbar::new(options, counters.clone()).unwrap(), counters)
}

fn yes(realm: Option<&str>, superduper: bool) -> AccountAnswer {
    AccountAnswer::Yes {
        realm: realm.map(Arc::from),
        superduper,
    }
}

#[test]
fn the_platforms_answers_are_told_apart() {
    let api = PlatformApi::start();
    api.allow("child", ONE, "one.example");
    api.set_others(
        "parent",
        Account::Yes {
            realm: None,
            superduper: true,
        },
    );
    let (crossbar, counters) = client(&api.url());
    for (token, id, expected) in [
        ("child", ONE, yes(Some("one.example"), false)),
        ("child", TWO, AccountAnswer::AccountRefused),
        ("parent", TWO, yes(None, true)),
        ("nobody", ONE, AccountAnswer::TokenRefused),
    ] {
        assert_eq!(
            crossbar.account(token, account(id)),
            expected,
            "{token} {id}"
        );
    }
    for (status, expected) in [
        (401, AccountAnswer::TokenRefused),
        (403, AccountAnswer::AccountRefused),
        (404, AccountAnswer::AccountRefused),
        (201, AccountAnswer::Trouble),
        (204, AccountAnswer::Trouble),
        (400, AccountAnswer::Trouble),
        (402, AccountAnswer::Trouble),
        (429, AccountAnswer::Trouble),
        (500, AccountAnswer::Trouble),
        (503, AccountAnswer::Trouble),
    ] {
        api.set("child", ONE, Account::Status(status));
        assert_eq!(
            crossbar.account("child", account(ONE)),
            expected,
            "{status}"
        );
    }
    assert_eq!(counters.trouble_status.load(Relaxed), 7);
    assert_eq!(counters.yes.load(Relaxed), 2);
    assert_eq!(counters.tokens_refused.load(Relaxed), 2);
    assert_eq!(counters.accounts_refused.load(Relaxed), 3);
}
