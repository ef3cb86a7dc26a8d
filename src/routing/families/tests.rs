//! Every row of PROTOCOL 6, and the grammar's refusals.

use super::*;
use crate::account::AccountId;
use crate::event::EventHead;
use crate::event::Style;
use crate::routing::index::{SubscriptionIndex, SubscriptionList};

const ACCOUNT: &str = "4b8c6fec4b2597882c0390202d195419";
const DB: &str = "account%2F4b%2F8c%2F6fec4b2597882c0390202d195419";
const REALM: &str = "a b.example.com";
const NOVEMBER: u64 = 1_795_425_948; // 2026-11

fn scope() -> Scope {
    Scope::One(AccountId::parse(ACCOUNT).expect("an account id"))
}

fn rights() -> Rights<'static> {
    Rights {
        superduper: false,
        realm: Some(REALM),
    }
}

fn families() -> Families {
    Families::new(&FamilyOptions::default()).expect("the platform's families")
}

/// Exchange and AMQP keys.
fn keys(families: &Families, resolved: &Resolved<'_>, unix_seconds: u64) -> (String, Vec<String>) {
    let months = ActiveMonths::at(unix_seconds);
    let mut bindings = Vec::new();
    families.amqp_bindings(resolved, months, &mut bindings);
    let exchange = bindings[0].exchange.to_string();
    assert!(
        bindings
            .iter()
            .all(|binding| *binding.exchange == *exchange)
    );
    (
        exchange,
        bindings
            .iter()
            .map(|binding| binding.key.to_string())
            .collect(),
    )
}

/// The subscription key that an event is found by which comes by this AMQP key.
fn found_by(families: &Families, resolved: Resolved<'_>, exchange: &str, key: &str) -> String {
    let mut index = SubscriptionIndex::new();
    let mut list = SubscriptionList::default();
    index.subscribe(families, &mut list, 1, resolved, Style::Piston, None);
    let words = key
        .split('.')
        .map(|word| if word == "*" { "x" } else { word });
    let head = EventHead {
        account: resolved.scope().account(),
        ..EventHead::default()
    };
    let mut found = Vec::new();
    index.match_event(
        families,
        exchange,
        &words.collect::<Vec<_>>().join("."),
        &head,
        ActiveMonths::at(NOVEMBER),
        &mut |matched| found.push(matched.subscription_key.to_owned()),
    );
    found.pop().expect("the event is found by its own key")
}

/// A line a row, as in PROTOCOL 6: client binding, exchange, AMQP keys, and the subscription key where it is not the
/// first AMQP key. `A`, `DB`, `MODB` and `R` as words of a key stand for the account's.
fn check_rows(rows: &str, scope: Scope, rights: Rights<'_>) {
    let families = families();
    let expand = |key: &str| {
        let words = key.split('.').map(|word| match word {
            "A" => ACCOUNT.to_owned(),
            "DB" => DB.to_owned(),
            "MODB" => format!("{DB}-202611"),
            "R" => "a+b%2Eexample%2Ecom".to_owned(),
            word => word.to_owned(),
        });
        words.collect::<Vec<_>>().join(".")
    };
    for row in rows.trim().lines() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let (&[binding, exchange, amqp_keys] | &[binding, exchange, amqp_keys, _]) = &*cells else {
            panic!("{row}: three cells or four");
        };
        let expected: Vec<String> = amqp_keys.split(", ").map(expand).collect();
        let resolved = families
            .resolve(binding, scope, rights)
            .unwrap_or_else(|error| panic!("{binding}: {error}"));
        let (found_exchange, found_keys) = keys(&families, &resolved, NOVEMBER);
        assert_eq!(found_exchange, exchange, "{binding}");
        assert_eq!(found_keys, expected, "{binding}");
        assert_eq!(
            found_by(&families, resolved, exchange, &expected[0]),
            cells.get(3).map_or(expected[0].clone(), |key| expand(key)),
            "{binding}"
        );
    }
}

#[test]
fn every_row_of_the_protocol_has_its_exchange_and_keys() {
    const ROWS: &str = "
    call.CHANNEL_CREATE.* | callevt | call.CHANNEL_CREATE.* | call.A.CHANNEL_CREATE.*
    call.CHANNEL_CREATE.abc@1.2.3.4 | callevt | call.CHANNEL_CREATE.abc%401%2E2%2E3%2E4 | call.A.CHANNEL_CREATE.abc%401%2E2%2E3%2E4
    call.*.x y | callevt | call.CHANNEL_CREATE.x+y, call.CHANNEL_ANSWER.x+y, call.CHANNEL_DESTROY.x+y, call.CHANNEL_HOLD.x+y, call.CHANNEL_UNHOLD.x+y, call.CHANNEL_BRIDGE.x+y, call.PARK_PARKED.x+y, call.PARK_RETRIEVED.x+y, call.PARK_ABANDONED.x+y | call.A.*.x+y
    conference.event.C1.* | conference | conference.event.*.A.C1.*, conference.event.C1.*
    conference.event.add-member.C1.leg@1.2 | conference | conference.event.add-member.A.C1.leg%401%2E2
    conference.event.*.C1.* | conference | conference.event.*.A.C1.*
    conference.command.C 1 | conference | conference.command.C 1
    conference.command.Räume+%2E*#@~ | conference | conference.command.Räume+%2E*#@~
    fax.status.* | faxes | fax.status.A.*
    fax.object.doc_created | configuration | doc_created.MODB.fax.*
    fax.object.* | configuration | *.MODB.fax.*
    object.doc_edited.user | configuration | doc_edited.DB.user.*
    object.doc_edited.mailbox_message | configuration | doc_edited.MODB.mailbox_message.*
    object.*.fax | configuration | *.MODB.fax.*
    object.*.* | configuration | *.DB.*.*, *.MODB.*.*
    doc_created.*.user.* | configuration | doc_created.DB.user.*
    *.*.call_recording.d 1 | configuration | *.DB.call_recording.d+1
    doc_deleted.*.fax.f1 | configuration | doc_deleted.MODB.fax.f1
    presence.dialog.a@1.2 | presence | dialog.R.a%401%2E2
    dialog.a@1.2 | presence | dialog.R.a%401%2E2
    presence.update.* | presence | update.R.*
    update.* | presence | update.R.*
    presence.mwi_updates.1001 | presence | mwi_updates.R.1001
    mwi_updates.1001 | presence | mwi_updates.R.1001
    registration.success | registrar | registration.success.R.*
";
    check_rows(ROWS, scope(), rights());
}

#[test]
fn for_every_account_the_words_that_qualify_are_wildcards() {
    const ROWS: &str = "
    call.PARK_PARKED.* | callevt | call.PARK_PARKED.* | call.*.PARK_PARKED.*
    conference.event.*.* | conference | conference.event.*.*.*.*, conference.event.*.*
    fax.status.f | faxes | fax.status.*.f
    fax.object.doc_created | configuration | doc_created.*.fax.*
    object.doc_created.* | configuration | doc_created.*.*.*
    object.doc_created.user | configuration | doc_created.*.user.*
    presence.dialog.* | presence | dialog.*.*
    dialog.* | presence | dialog.*.*
    registration.success | registrar | registration.success.*.*
";
    let rights = Rights {
        superduper: true,
        realm: None,
    };
    check_rows(ROWS, Scope::Any, rights);
}

#[test]
fn refused_bindings_get_the_protocols_texts() {
    let families = families();
    let long = "x".repeat(255);
    let too_long = format!("call.CHANNEL_CREATE.{long}");
    let echoed = format!(
        "invalid format for call subscription : CHANNEL_CREATE.{}",
        &long[..ECHO_BYTES_MAX - 15]
    );
    let many_words = format!("fax.status{}", ".x".repeat(40_000));
    for (binding, expected) in [
        ("", "no available subscriptions to requested binding"),
        ("*", "invalid format for * subscription : "),
        ("#", "no available subscriptions to requested binding"),
        (".call", "no available subscriptions to requested binding"),
        (
            "nothing.known.here",
            "no available subscriptions to requested binding",
        ),
        (
            "doc_moved.*.user.*",
            "no available subscriptions to requested binding",
        ),
        ("*.x", "invalid format for * subscription : x"),
        ("call", "invalid format for call subscription : "),
        (
            "call.CHANNEL_CREATE",
            "invalid format for call subscription : CHANNEL_CREATE",
        ),
        (
            "call.CHANNEL_CREATE.#",
            "invalid format for call subscription : CHANNEL_CREATE.#",
        ),
        (
            "call.CHANNEL_CREATE.a.#.b",
            "invalid format for call subscription : CHANNEL_CREATE.a.#.b",
        ),
        (
            "call.CHANNEL_CREATE.",
            "invalid format for call subscription : CHANNEL_CREATE.",
        ),
        ("call..x", "invalid format for call subscription : .x"),
        (
            "call.CHANNEL_CREATE.a..b",
            "invalid format for call subscription : CHANNEL_CREATE.a..b",
        ),
        (&too_long, &echoed),
        ("call.NOTHING.*", "event NOTHING not supported"),
        ("conference.event.*.*", "ConferenceId required"),
        ("conference.event.add-member.*.*", "ConferenceId required"),
        ("conference.command.*", "ConferenceId required"),
        (
            "conference.command.#",
            "invalid format for conference subscription : command.#",
        ),
        (
            "conference.command.a.b",
            "invalid format for conference subscription : command.a.b",
        ),
        (
            "conference.command.a.#",
            "invalid format for conference subscription : command.a.#",
        ),
        (
            "conference.event.C1",
            "invalid format for conference subscription : event.C1",
        ),
        (
            "conference.other.C1.*",
            "invalid format for conference subscription : other.C1.*",
        ),
        (
            "fax.status.a.b",
            "invalid format for fax subscription : status.a.b",
        ),
        ("fax.object.doc_moved", "event doc_moved not supported"),
        ("object.doc_moved.user", "event doc_moved not supported"),
        ("object.doc_created.nothing", "event nothing not supported"),
        (
            "object.doc_created",
            "invalid format for object subscription : doc_created",
        ),
        (
            "doc_created.x.user.*",
            "invalid format for doc_created subscription : x.user.*",
        ),
        ("doc_created.*.nothing.*", "event nothing not supported"),
        (
            "registration.success.x",
            "invalid format for registration subscription : success.x",
        ),
        (
            "registration.failure",
            "invalid format for registration subscription : failure",
        ),
    ] {
        let error = families
            .resolve(binding, scope(), rights())
            .expect_err(binding);
        assert_eq!(error.to_string(), expected, "{binding}");
    }
    let error = families
        .resolve(&many_words, scope(), rights())
        .expect_err("too many words")
        .to_string();
    assert!(
        error.len() < 2 * ECHO_BYTES_MAX + 60,
        "the echo is cut: {}",
        error.len()
    );
}

#[test]
fn a_superduper_admin_may_leave_the_conference_open_in_events_and_not_in_commands() {
    let families = families();
    let admin = Rights {
        superduper: true,
        realm: None,
    };
    for binding in ["conference.event.*.*", "conference.event.add-member.*.*"] {
        assert!(
            families.resolve(binding, scope(), admin).is_ok(),
            "{binding}"
        );
    }
    assert_eq!(
        families.resolve("conference.command.*", Scope::Any, admin),
        Err(BindingError::Required("ConferenceId required".into()))
    );
}

#[test]
fn families_of_a_realm_need_one_that_is_no_wildcard() {
    let families = families();
    for realm in [None, Some(""), Some("*"), Some("#")] {
        for binding in ["presence.dialog.*", "update.*", "registration.success"] {
            let rights = Rights {
                superduper: false,
                realm,
            };
            assert_eq!(
                families.resolve(binding, scope(), rights),
                Err(BindingError::NoSubscriptions),
                "{realm:?}"
            );
        }
    }
}

#[test]
fn the_longest_amqp_key_has_255_bytes_escapes_included() {
    let families = families();
    for (id, is_ok) in [
        ("x".repeat(235), true),
        ("x".repeat(236), false),
        (".".repeat(236), false),
    ] {
        let binding = format!("call.CHANNEL_CREATE.{id}");
        assert_eq!(
            families.resolve(&binding, scope(), rights()).is_ok(),
            is_ok,
            "{} bytes",
            id.len()
        );
    }
    let escaped = format!("call.CHANNEL_CREATE.{}", "@".repeat(79));
    assert!(
        families.resolve(&escaped, scope(), rights()).is_err(),
        "237 bytes when escaped"
    );
    let realm = "r".repeat(250);
    let rights = Rights {
        superduper: false,
        realm: Some(&realm),
    };
    assert!(
        families
            .resolve("registration.success", scope(), rights)
            .is_err()
    );
}

#[test]
fn a_family_that_is_off_is_unknown_and_needs_no_exchange() {
    let mut options = FamilyOptions::default();
    options
        .autoload_modules
        .retain(|module| module != "bh_call" && module != "bh_object");
    let families = Families::new(&options).expect("two modules less");
    for binding in [
        "call.CHANNEL_CREATE.*",
        "object.doc_created.user",
        "doc_created.*.user.*",
    ] {
        assert_eq!(
            families.resolve(binding, scope(), rights()),
            Err(BindingError::NoSubscriptions),
            "{binding}"
        );
    }
    assert!(
        families
            .resolve("fax.object.doc_created", scope(), rights())
            .is_ok()
    );
    let names: Vec<&str> = families
        .exchanges()
        .map(|exchange| &*exchange.name)
        .collect();
    assert_eq!(
        names,
        [
            "callevt",
            "conference",
            "faxes",
            "configuration",
            "presence",
            "registrar"
        ]
    );
    assert!(
        families
            .exchanges()
            .all(|exchange| exchange.kind == ExchangeKind::Topic && !exchange.durable)
    );
}

#[test]
fn lists_of_the_configuration_replace_and_extend_the_platforms() {
    let options = FamilyOptions {
        channel_events: vec!["CHANNEL_CREATE".into(), "OWN".into()],
        extra_doc_types: vec!["widget".into()],
        ..FamilyOptions::default()
    };
    let families = Families::new(&options).expect("valid");
    let all = families
        .resolve("call.*.*", scope(), rights())
        .expect("the configured events");
    assert_eq!(
        keys(&families, &all, NOVEMBER).1,
        ["call.CHANNEL_CREATE.*", "call.OWN.*"]
    );
    assert!(
        families
            .resolve("call.CHANNEL_ANSWER.*", scope(), rights())
            .is_err()
    );
    assert!(
        families
            .resolve("object.*.widget", scope(), rights())
            .is_ok()
    );
}

#[test]
fn document_events_alone_have_the_type_in_their_name() {
    let families = families();
    for (binding, expected) in [
        ("call.PARK_PARKED.*", false),
        ("fax.status.*", false),
        ("fax.object.*", true),
        ("object.*.user", true),
        ("doc_created.*.user.*", true),
    ] {
        let resolved = families.resolve(binding, scope(), rights()).expect(binding);
        assert_eq!(
            families.rule(resolved.rule).name_with_type,
            expected,
            "{binding}"
        );
    }
}

#[test]
fn around_midnight_both_months_are_bound_and_a_roll_over_names_the_difference() {
    let families = families();
    let midnight = 1_798_761_600; // 2027-01-01T00:00:00Z
    let resolved = families
        .resolve("object.doc_created.*", scope(), rights())
        .expect("valid");
    let at = |unix_seconds| keys(&families, &resolved, unix_seconds).1;
    let (db, old, new) = (
        format!("doc_created.{DB}.*.*"),
        format!("doc_created.{DB}-202612.*.*"),
        format!("doc_created.{DB}-202701.*.*"),
    );
    assert_eq!(at(midnight - 3601), [db.clone(), old.clone()]);
    assert_eq!(at(midnight - 3600), [db.clone(), old.clone(), new.clone()]);
    assert_eq!(at(midnight + 3600), [db, new.clone()]);

    let (before, during) = (
        ActiveMonths::at(midnight - 3601),
        ActiveMonths::at(midnight),
    );
    let mut bound = Vec::new();
    families.monthly_bindings(&resolved, during.without(before), &mut bound);
    assert_eq!(
        bound
            .iter()
            .map(|binding| &*binding.key)
            .collect::<Vec<_>>(),
        [new]
    );
    let everywhere = families
        .resolve("object.doc_created.*", Scope::Any, rights())
        .expect("valid");
    assert!(families.follows_the_month(&resolved) && !families.follows_the_month(&everywhere));
}

fn operators(json: &str) -> Result<Families, String> {
    let families = serde_json::from_str(json).map_err(|error| error.to_string())?;
    Families::new(&FamilyOptions {
        families,
        ..FamilyOptions::default()
    })
    .map_err(|error| error.to_string())
}

#[test]
fn an_operator_adds_a_family_in_the_same_grammar() {
    let families = operators(
        r#"[{"name": "queue",
             "binding": "queue.{event}.{queue}",
             "exchange": "acdc", "exchange_type": "topic", "exchange_durable": true,
             "keys": ["acdc.{event}.{account}.{queue}.{agent}"],
             "words": {"event": ["login", "logout"]}}]"#,
    )
    .expect("valid");
    let resolved = families
        .resolve("queue.*.sales team", scope(), rights())
        .expect("valid");
    let expected = ["login", "logout"].map(|event| format!("acdc.{event}.{ACCOUNT}.sales+team.*"));
    assert_eq!(
        keys(&families, &resolved, NOVEMBER),
        ("acdc".into(), expected.to_vec())
    );
    assert_eq!(
        found_by(&families, resolved, "acdc", &expected[0]),
        format!("acdc.*.{ACCOUNT}.sales+team.*")
    );
    assert!(
        families
            .exchanges()
            .any(|exchange| &*exchange.name == "acdc" && exchange.durable)
    );
    assert_eq!(
        families.resolve("queue.pause.x", scope(), rights()),
        Err(BindingError::NotSupported("pause".into()))
    );
}

#[test]
fn an_operators_mistake_is_named_with_its_place() {
    let row = |changes: &str| {
        let mut row: serde_json::Value = serde_json::from_str(
            r#"{"name": "q", "binding": "q.{event}.{id}", "exchange": "acdc", "keys": ["q.{event}.{account}.{id}"]}"#,
        )
        .expect("JSON");
        let changes: serde_json::Value = serde_json::from_str(changes).expect("JSON");
        for (key, value) in changes.as_object().expect("an object") {
            row[key] = value.clone();
        }
        operators(&format!("[{row}]"))
    };
    assert!(row("{}").is_ok());
    assert!(
        row(
            r#"{"keys": ["{event}.{modb}.{id}"], "monthly": {"event": ["fax"]}, "words": {"event": ["fax"]}}"#
        )
        .is_ok()
    );
    for (changes, place) in [
        (r#"{"name": ""}"#, "families[0].name: must not be empty"),
        (
            r#"{"unescaped": ["x"]}"#,
            "families[0].unescaped: the binding has no variable {x}",
        ),
        (
            r#"{"unescaped": ["id"], "binding": "q.{event}.{id...}"}"#,
            "families[0].unescaped: {id...} may hold dots",
        ),
        (
            r#"{"binding": ""}"#,
            "families[0].binding: must not be empty",
        ),
        (
            r#"{"binding": "{event}.{id}"}"#,
            "families[0].binding: the first word",
        ),
        (
            r#"{"binding": "q.{event}.{id"}"#,
            "families[0].binding: `{id`",
        ),
        (
            r#"{"binding": "q.{event...}.{id}"}"#,
            "families[0].binding: ",
        ),
        (
            r#"{"binding": "q.{event}.{event}"}"#,
            "families[0].binding: {event} stands here twice",
        ),
        (
            r#"{"binding": "q.{event}.{account}"}"#,
            "families[0].binding: `{account}`",
        ),
        (r#"{"binding": "q.{event}.#"}"#, "families[0].binding: `#`"),
        (
            r#"{"binding": "q.{event}.x{id...}"}"#,
            "families[0].binding: ",
        ),
        (
            r#"{"binding": "q.{a}.{b}.{c}.{d}.{event}.{id}"}"#,
            "families[0].binding: has 6, at most 4",
        ),
        (
            r#"{"exchange": ""}"#,
            "families[0].exchange: must not be empty",
        ),
        (
            r#"{"exchange": "callevt", "exchange_durable": true}"#,
            "families[0].exchange: the exchange callevt",
        ),
        (r#"{"keys": []}"#, "families[0].keys: must not be empty"),
        (
            r#"{"keys": ["q.{event}.{account}.{id}", "q.{event}"]}"#,
            "families[0].keys[1]: lacks {id}",
        ),
        (
            r#"{"keys": ["q.{event}.{account}.{idd}"]}"#,
            "families[0].keys[0]: lacks {id}",
        ),
        (
            r#"{"keys": ["q.{event}.{account}.{id}.*"]}"#,
            "families[0].keys[0]: `*`",
        ),
        (
            r#"{"keys": ["q.{event}.{account}.{id}.{db}"]}"#,
            "families[0].keys[0]: every key has at most one",
        ),
        (
            r#"{"keys": ["q.{event}.{id}.{id}"]}"#,
            "families[0].keys[0]: {id} stands here twice",
        ),
        (
            r#"{"keys": ["q.{event}.{id}.{realm}", "q.{event}.{id}"]}"#,
            "families[0].keys: every key",
        ),
        (
            r#"{"keys": ["{a}.{b}.{c}.{d}.{e}.{event}.{id}"]}"#,
            "families[0].keys: has 5, at most 4",
        ),
        (
            r#"{"account": "none"}"#,
            "families[0].account: `none` beside",
        ),
        (
            r#"{"subscription_key": "q.{account}"}"#,
            "families[0].subscription_key: lacks {event}",
        ),
        (
            r#"{"subscription_key": "{realm}.{event}.{id}"}"#,
            "families[0].subscription_key: every key",
        ),
        (
            r#"{"subscription_key": "{x}.{event}.{id}"}"#,
            "families[0].subscription_key: the binding has no variable {x}",
        ),
        (
            r#"{"words": {"id": []}}"#,
            "families[0].words.id: must not be empty",
        ),
        (
            r#"{"words": {"id": ["ok", "a.b"]}}"#,
            "families[0].words.id[1]: `a.b`",
        ),
        (
            r#"{"words": {"other": ["a"]}}"#,
            "families[0].words: the binding has no variable {other}",
        ),
        (
            r#"{"required": {"other": "a"}}"#,
            "families[0].required: the binding has no variable {other}",
        ),
        (
            r#"{"monthly": {"other": ["a"]}}"#,
            "families[0].monthly: the binding has no variable {other}",
        ),
        (
            r#"{"monthly": {"id": ["a"]}}"#,
            "families[0].keys: lacks {modb}",
        ),
        (
            r#"{"keys": ["{event}.{modb}.{id}"], "monthly": {"event": ["fax"]}}"#,
            "families[0].keys: a word that is not in `monthly` has no key without {modb}",
        ),
        (
            r#"{"keys": ["{event}.{modb}.{id}"], "monthly": {"event": ["fax"]}, "words": {"event": ["fax", "a"]}}"#,
            "families[0].keys: a word that is not in `monthly`",
        ),
        (
            r#"{"exchange_type": "headers"}"#,
            "unknown variant `headers`",
        ),
        (r#"{"colour": "red"}"#, "unknown field `colour`"),
    ] {
        let error = row(changes)
            .err()
            .unwrap_or_else(|| panic!("{changes} is taken"));
        assert!(error.starts_with(place), "{changes}: {error}");
    }
    let many: Vec<String> = (0..100).map(|number| format!("\"w{number}\"")).collect();
    let error =
        row(&format!(r#"{{"words": {{"id": [{}]}}}}"#, many.join(","))).expect_err("too many");
    assert_eq!(error, "families[0].words: has 100, at most 64 are possible");
}

#[test]
fn wrong_lists_of_the_configuration_are_named_with_their_place() {
    let default = FamilyOptions::default;
    for (options, expected) in [
        (
            FamilyOptions {
                autoload_modules: vec!["bh_call".into(), "bh_nothing".into()],
                ..default()
            },
            "autoload_modules[1]: no module is called bh_nothing",
        ),
        (
            FamilyOptions {
                channel_events: vec![],
                ..default()
            },
            "channel_events: must not be empty",
        ),
        (
            FamilyOptions {
                channel_events: vec!["A".into(), "*".into()],
                ..default()
            },
            "channel_events[1]: `*` is not a word",
        ),
        (
            FamilyOptions {
                channel_events: vec!["A".into(); 65],
                ..default()
            },
            "channel_events: has 65, at most 64",
        ),
        (
            FamilyOptions {
                extra_doc_types: vec!["a b".into()],
                ..default()
            },
            "extra_doc_types[0]: `a b` is not a word",
        ),
    ] {
        let error = Families::new(&options).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_module_is_switched_off_and_on_with_its_bindings_and_its_events() {
    let mut families = Families::new(&FamilyOptions::default()).expect("the platform's families");
    let binding = "fax.status.*";
    let rules = families.rules_on("faxes").to_vec();
    for (module, is_on, expected) in [
        ("bh_fax", true, Some(false)),
        ("bh_fax", false, Some(true)),
        ("bh_fax", false, Some(false)),
        ("bh_facts", false, None),
    ] {
        assert_eq!(families.switch_module(module, is_on), expected, "{module}");
    }
    let refused = families.resolve(binding, scope(), rights());
    assert_eq!(refused, Err(BindingError::NoSubscriptions));
    assert!(families.rules_on("faxes").is_empty() && !rules.is_empty());
    assert!(!families.rules_on("configuration").is_empty());
    assert_eq!(families.is_module_on("bh_fax"), Some(false));
    assert_eq!(families.is_module_on("bh_object"), Some(true));
    assert_eq!(families.switch_module("bh_fax", true), Some(true));
    let resolved = families.resolve(binding, scope(), rights());
    assert!(resolved.is_ok_and(|resolved| families.is_on(&resolved)));
    assert_eq!(families.rules_on("faxes"), rules);
}
