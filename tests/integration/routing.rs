//! The routing folder against plain references: an index that tries every subscription's rendered AMQP keys as
//! strings, counts in a map, and an escaping written the other way round.

use std::collections::{BTreeMap, BTreeSet};

use blackhole::account::{AccountId, Scope};
use blackhole::event::{EventHead, Style};
use blackhole::routing::amqp_binding::{AmqpBinding, Asked, Ticket};
use blackhole::routing::broker_bindings::{Ask, BindingCounts, BrokerBindings};
use blackhole::routing::families::{Families, FamilyOptions, Resolved, Rights};
use blackhole::routing::index::{Subscribed, SubscriptionIndex, SubscriptionList};
use blackhole::routing::month::{ActiveMonths, FollowedMonths};
use blackhole::routing::nearness::{EventKey, Nearness};
use blackhole::routing::words;
use proptest::prelude::*;
use proptest::sample::select;

const DECEMBER: u64 = 1_798_000_000; // 2026-12-23
const NEW_YEAR: u64 = 1_798_761_600; // 2027-01-01T00:00:00Z
const SESSIONS: usize = 6;

fn account(number: u8) -> AccountId {
    AccountId::from_bytes([number; 16])
}

/// Each account has a realm of its own; account 0's has what must be escaped.
fn realm(account: u8) -> String {
    format!("r {account}.example.com")
}

// --- the reference --------------------------------------------------------------------------------------------

/// As a topic exchange matches: `*` is exactly one word.
fn topic_matches(binding_key: &str, routing_key: &str) -> bool {
    let (pattern, words) = (
        binding_key.split('.').collect::<Vec<_>>(),
        routing_key.split('.').collect::<Vec<_>>(),
    );
    pattern.len() == words.len()
        && pattern
            .iter()
            .zip(&words)
            .all(|(pattern, word)| *pattern == "*" || pattern == word)
}

#[derive(Clone, Debug)]
struct Plain {
    scope: Scope,
    binding: String,
    style: Style,
    request_id: Option<String>,
    amqp: Vec<AmqpBinding>,
}

impl Plain {
    /// Whether the key that matched says nothing about the account, so that the body has to.
    fn takes_account_from_the_body(&self, amqp_key: &str) -> bool {
        self.binding.starts_with("call.")
            || (self.binding.starts_with("conference.event.") && amqp_key.split('.').count() == 4)
    }

    fn wants(&self, exchange: &str, routing_key: &str, head: &EventHead) -> bool {
        self.amqp.iter().any(|amqp| {
            *amqp.exchange == *exchange
                && topic_matches(&amqp.key, routing_key)
                && match self.scope {
                    Scope::One(account) if self.takes_account_from_the_body(&amqp.key) => {
                        head.account == Some(account)
                    }
                    Scope::One(_) | Scope::Any => true,
                }
        })
    }
}

// --- what is generated ----------------------------------------------------------------------------------------

fn call_id() -> impl Strategy<Value = String> {
    select(vec!["*", "a", "b", "a@1.2", "x y", "50%"]).prop_map(str::to_owned)
}

fn client_binding() -> impl Strategy<Value = String> {
    let event = || select(vec!["CHANNEL_CREATE", "PARK_PARKED", "*"]);
    let conference_event = || select(vec!["add", "del", "*"]);
    let conference = || select(vec!["C1", "C2"]);
    let action = || select(vec!["doc_created", "doc_edited", "*"]);
    let doc_type = || select(vec!["user", "fax", "mailbox_message", "*"]);
    let presence = || select(vec!["dialog", "update", "mwi_updates"]);
    prop_oneof![
        (event(), call_id()).prop_map(|(event, id)| format!("call.{event}.{id}")),
        (conference(), select(vec!["*", "a", "b"]))
            .prop_map(|(conference, id)| format!("conference.event.{conference}.{id}")),
        (conference_event(), conference(), call_id()).prop_map(|(event, conference, id)| format!(
            "conference.event.{event}.{conference}.{id}"
        )),
        select(vec!["C1", "C2", "x y", "50%", "a*"])
            .prop_map(|conference| format!("conference.command.{conference}")),
        select(vec!["*", "f1", "f 2"]).prop_map(|id| format!("fax.status.{id}")),
        action().prop_map(|action| format!("fax.object.{action}")),
        (action(), doc_type()).prop_map(|(action, kind)| format!("object.{action}.{kind}")),
        (action(), doc_type(), select(vec!["*", "id1"]))
            .prop_map(|(action, kind, id)| format!("{action}.*.{kind}.{id}")),
        (select(vec!["presence.", ""]), presence(), call_id())
            .prop_map(|(prefix, kind, id)| format!("{prefix}{kind}.{id}")),
        Just("registration.success".to_owned()),
    ]
}

fn scope() -> impl Strategy<Value = (Scope, u8)> {
    prop_oneof![5 => (0..3u8).prop_map(|number| (Scope::One(account(number)), number)), 1 => Just((Scope::Any, 0))]
}

fn escape(word: &str) -> String {
    let mut escaped = String::new();
    words::escape_into(word, &mut escaped);
    escaped
}

fn db(number: u8) -> String {
    let mut db = String::new();
    account(number).push_db(&mut db);
    db
}

/// Exchange and routing key of an event, now and then of a foreign exchange, a wrong month, no account.
fn event_key() -> impl Strategy<Value = (String, String)> {
    let id = || select(vec!["a", "b", "a%401%2E2", "x+y", "50%25", "a@1", "", "*"]);
    let owner = || prop_oneof![8 => (0..4u8).prop_map(|number| account(number).to_string()), 1 => Just("junk".to_owned())];
    let realm_word = || prop_oneof![6 => (0..4u8).prop_map(|number| escape(&realm(number))), 1 => Just("*".to_owned())];
    let database = || {
        let suffix = select(vec![
            "", "", "-202611", "-202612", "-202701", "-2026121", "-",
        ]);
        let db = prop_oneof![8 => (0..4u8).prop_map(db), 1 => Just("system_config".to_owned())];
        (db, suffix).prop_map(|(db, suffix)| format!("{db}{suffix}"))
    };
    let key = prop_oneof![
        (
            select(vec![
                "CHANNEL_CREATE",
                "PARK_PARKED",
                "CHANNEL_ANSWER",
                "OTHER"
            ]),
            id()
        )
            .prop_map(|(event, id)| ("callevt", format!("call.{event}.{id}"))),
        (
            select(vec!["add", "del", "C1"]),
            owner(),
            select(vec!["C1", "C2"]),
            id()
        )
            .prop_map(|(event, owner, conference, id)| (
                "conference",
                format!("conference.event.{event}.{owner}.{conference}.{id}")
            )),
        (select(vec!["C1", "C2", "add"]), id()).prop_map(|(conference, id)| (
            "conference",
            format!("conference.event.{conference}.{id}")
        )),
        select(vec!["C1", "C2", "x y", "x+y", "50%", "50%25", "a*", "a%2A"])
            .prop_map(|conference| ("conference", format!("conference.command.{conference}"))),
        (owner(), select(vec!["f1", "f+2"]))
            .prop_map(|(owner, id)| ("faxes", format!("fax.status.{owner}.{id}"))),
        (
            select(vec!["doc_created", "doc_edited", "other"]),
            database(),
            select(vec!["user", "fax", "mailbox_message", "other"]),
            select(vec!["id1", "id2"])
        )
            .prop_map(|(action, db, kind, id)| (
                "configuration",
                format!("{action}.{db}.{kind}.{id}")
            )),
        (
            select(vec!["dialog", "update", "mwi_updates"]),
            realm_word(),
            id()
        )
            .prop_map(|(kind, realm, id)| ("presence", format!("{kind}.{realm}.{id}"))),
        realm_word().prop_map(|realm| ("registrar", format!("registration.success.{realm}.1001"))),
        "[a-c.*#]{0,12}".prop_map(|key| ("callevt", key)),
        Just(("callevt", ["a"; 40].join("."))),
    ];
    (key, 0..20u8).prop_map(|((exchange, key), turn)| match turn {
        0 => ("elsewhere".to_owned(), key),
        1 => ("callevt".to_owned(), key),
        _ => (exchange.to_owned(), key),
    })
}

#[derive(Clone, Debug)]
enum Step {
    Subscribe {
        session: usize,
        scope: (Scope, u8),
        binding: String,
        kazoo: bool,
        request_id: Option<u8>,
    },
    Unsubscribe {
        session: usize,
        scope: Option<Scope>,
        binding: Option<String>,
    },
    Die {
        session: usize,
    },
    Event {
        key: (String, String),
        account: Option<u8>,
        event: Option<String>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let session = || 0..SESSIONS;
    prop_oneof![
        8 => (session(), scope(), client_binding(), any::<bool>(), proptest::option::of(0..2u8)).prop_map(
            |(session, scope, binding, kazoo, request_id)| Step::Subscribe { session, scope, binding, kazoo, request_id }
        ),
        2 => (session(), proptest::option::of(scope()), proptest::option::of(client_binding())).prop_map(
            |(session, scope, binding)| Step::Unsubscribe { session, scope: scope.map(|(scope, _)| scope), binding }
        ),
        1 => session().prop_map(|session| Step::Die { session }),
        8 => (event_key(), proptest::option::of(0..4u8), proptest::option::of(Just("a b".to_owned())))
            .prop_map(|(key, account, event)| Step::Event { key, account, event }),
    ]
}

// --- a roll-over of the months against a plain count ----------------------------------------------------------

#[derive(Clone, Debug)]
enum RollingStep {
    Subscribe {
        session: usize,
        scope: Scope,
        binding: &'static str,
        request_id: Option<u8>,
    },
    Unsubscribe {
        session: usize,
        binding: Option<&'static str>,
    },
    /// The walk goes on.
    Walk { places: usize },
    /// The wall clock says another time; where a walk is under way, only its end begins another.
    Clock { unix: u64 },
}

fn rolling_step() -> impl Strategy<Value = RollingStep> {
    const BINDINGS: [&str; 5] = [
        "object.doc_created.fax",
        "object.*.*",
        "doc_edited.*.mailbox_message.1",
        "fax.object.*",
        "call.*.*",
    ];
    const MONTH: u64 = 31 * 86_400;
    let session = || 0..SESSIONS;
    let scope = select(vec![
        Scope::One(account(1)),
        Scope::One(account(2)),
        Scope::Any,
    ]);
    prop_oneof![
        6 => (session(), scope, select(&BINDINGS), proptest::option::of(0..3u8)).prop_map(
            |(session, scope, binding, request_id)| RollingStep::Subscribe { session, scope, binding, request_id }
        ),
        2 => (session(), proptest::option::of(select(&BINDINGS)))
            .prop_map(|(session, binding)| RollingStep::Unsubscribe { session, binding }),
        4 => (1..5usize).prop_map(|places| RollingStep::Walk { places }),
        2 => select(vec![NEW_YEAR - 7200, NEW_YEAR - 60, NEW_YEAR + 7200, NEW_YEAR + MONTH, NEW_YEAR + 3 * MONTH])
            .prop_map(|unix| RollingStep::Clock { unix }),
    ]
}

/// A subscription as it was made, and the months that it follows.
struct Rolled {
    session: usize,
    scope: Scope,
    binding: &'static str,
    months: ActiveMonths,
}

struct Rolling {
    families: Families,
    months: FollowedMonths,
    index: SubscriptionIndex,
    lists: Vec<SubscriptionList>,
    /// The place at which the walk goes on.
    next: Option<usize>,
    /// What was acquired and not released, through the index.
    counts: BTreeMap<AmqpBinding, u32>,
    subscriptions: Vec<Rolled>,
}

impl Rolling {
    fn new() -> Self {
        Self {
            families: Families::new(&FamilyOptions::default()).unwrap(),
            months: FollowedMonths::new(ActiveMonths::at(NEW_YEAR - 7200)),
            index: SubscriptionIndex::new(),
            lists: (0..SESSIONS).map(|_| SubscriptionList::default()).collect(),
            next: None,
            counts: BTreeMap::new(),
            subscriptions: Vec::new(),
        }
    }

    fn resolve<'a>(&self, scope: Scope, binding: &'a str) -> Resolved<'a> {
        let rights = Rights {
            superduper: true,
            realm: None,
        };
        self.families.resolve(binding, scope, rights).unwrap()
    }

    fn count(&mut self, bindings: Vec<AmqpBinding>, users: i64) {
        for binding in bindings {
            let count = self.counts.entry(binding.clone()).or_default();
            *count =
                u32::try_from(i64::from(*count) + users).expect("more was released than acquired");
            if *count == 0 {
                self.counts.remove(&binding);
            }
        }
    }

    /// What bringing so many subscriptions like `resolved` on comes to.
    fn move_on(&mut self, resolved: &Resolved<'_>, users: u32) {
        let (before, now) = (self.months.before(), self.months.now());
        for (months, by, sign) in [(now, before, 1), (before, now, -1)] {
            let mut bindings = Vec::new();
            self.families
                .monthly_bindings(resolved, months.without(by), &mut bindings);
            self.count(bindings, sign * i64::from(users));
        }
    }

    fn take(&mut self, step: RollingStep) {
        match step {
            RollingStep::Subscribe {
                session,
                scope,
                binding,
                request_id,
            } => {
                let request_id = request_id.map(|id| id.to_string());
                let resolved = self.resolve(scope, binding);
                let slot = u32::try_from(session).unwrap();
                let list = &mut self.lists[session];
                let (families, id) = (&self.families, request_id.as_deref());
                let outcome =
                    self.index
                        .subscribe(families, list, slot, resolved, Style::Piston, id);
                if outcome == Subscribed::AlreadySubscribed {
                    return;
                }
                if let Subscribed::Overtook(others) = outcome {
                    self.move_on(&resolved, others);
                    let months = self.months;
                    let others_there = self
                        .subscriptions
                        .iter_mut()
                        .filter(|one| (one.scope, one.binding) == (scope, binding));
                    let moved = others_there.map(|one| one.months = months.now()).count();
                    assert_eq!(moved, usize::try_from(others).unwrap());
                }
                let mut bindings = Vec::new();
                self.families
                    .amqp_bindings(&resolved, self.months.now(), &mut bindings);
                self.count(bindings, 1);
                let months = self.months.now();
                self.subscriptions.push(Rolled {
                    session,
                    scope,
                    binding,
                    months,
                });
            }
            RollingStep::Unsubscribe { session, binding } => {
                let mut bindings = Vec::new();
                let Self {
                    index,
                    lists,
                    families,
                    months,
                    ..
                } = self;
                index.unsubscribe(&mut lists[session], None, binding, &mut |one| {
                    families.amqp_bindings(&one, one.held(*months), &mut bindings);
                });
                self.count(bindings, -1);
                self.subscriptions.retain(|one| {
                    one.session != session || binding.is_some_and(|binding| one.binding != binding)
                });
            }
            RollingStep::Walk { places } => {
                let Some(next) = self.next else { return };
                let mut seen = Vec::new();
                let Self {
                    index, families, ..
                } = self;
                self.next = index.roll_over(families, next, places, &mut |one, users| {
                    seen.push((one.scope(), one.binding().to_owned(), users));
                });
                assert!(seen.len() <= places);
                for (scope, binding, users) in seen {
                    self.move_on(&self.resolve(scope, &binding), users);
                }
                // Which groups were behind the index says; that their members are all moved, the check.
                for session in 0..SESSIONS {
                    let held = self.index.subscriptions(&self.lists[session]);
                    let own = self
                        .subscriptions
                        .iter_mut()
                        .filter(|one| one.session == session);
                    for (held, own) in held.zip(own) {
                        own.months = held.held(self.months);
                    }
                }
                if self.next.is_none() {
                    self.months = FollowedMonths::new(self.months.now());
                }
            }
            RollingStep::Clock { unix } => {
                let months = ActiveMonths::at(unix);
                if self.next.is_none() && months != self.months.now() {
                    self.months = self.months.moving_to(months);
                    self.index.begin_roll_over();
                    self.next = Some(0);
                }
            }
        }
    }

    /// Every AMQP binding is acquired once for each subscription that needs it in the months that it follows.
    fn check(&self) {
        let mut expected: BTreeMap<AmqpBinding, u32> = BTreeMap::new();
        for one in &self.subscriptions {
            let mut bindings = Vec::new();
            self.families.amqp_bindings(
                &self.resolve(one.scope, one.binding),
                one.months,
                &mut bindings,
            );
            for binding in bindings {
                *expected.entry(binding).or_default() += 1;
            }
        }
        assert_eq!(self.counts, expected);
    }
}

// --- index against reference ----------------------------------------------------------------------------------

/// Session, client binding, style, request id.
type Delivered = (usize, String, String, Option<String>);

struct World {
    families: Families,
    months: ActiveMonths,
    index: SubscriptionIndex,
    lists: Vec<SubscriptionList>,
    plain: Vec<Vec<Plain>>,
}

impl World {
    fn new() -> Self {
        Self {
            families: Families::new(&FamilyOptions::default()).unwrap(),
            months: ActiveMonths::at(DECEMBER),
            index: SubscriptionIndex::new(),
            lists: (0..SESSIONS).map(|_| SubscriptionList::default()).collect(),
            plain: vec![Vec::new(); SESSIONS],
        }
    }

    fn subscribe(
        &mut self,
        session: usize,
        (scope, number): (Scope, u8),
        binding: &str,
        style: Style,
        request_id: Option<String>,
    ) {
        let realm = realm(number);
        let rights = Rights {
            superduper: scope == Scope::Any,
            realm: Some(&realm),
        };
        let resolved = self.families.resolve(binding, scope, rights).unwrap();
        let mut amqp = Vec::new();
        self.families
            .amqp_bindings(&resolved, self.months, &mut amqp);
        let list = &mut self.lists[session];
        let slot = u32::try_from(session).unwrap();
        let outcome = self.index.subscribe(
            &self.families,
            list,
            slot,
            resolved,
            style,
            request_id.as_deref(),
        );
        let plain = &mut self.plain[session];
        let had = plain
            .iter()
            .any(|had| had.scope == scope && had.binding == binding);
        assert_eq!(
            outcome,
            if had {
                Subscribed::AlreadySubscribed
            } else {
                Subscribed::New
            }
        );
        if !had {
            plain.push(Plain {
                scope,
                binding: binding.to_owned(),
                style,
                request_id,
                amqp,
            });
        }
    }

    fn unsubscribe(&mut self, session: usize, scope: Option<Scope>, binding: Option<&str>) {
        let mut removed = Vec::new();
        self.index
            .unsubscribe(&mut self.lists[session], scope, binding, &mut |resolved| {
                let mut amqp = Vec::new();
                self.families
                    .amqp_bindings(&resolved, self.months, &mut amqp);
                removed.push((resolved.scope(), resolved.binding().to_owned(), amqp));
            });
        let is_meant = |had: &Plain| {
            scope.is_none_or(|scope| had.scope == scope)
                && binding.is_none_or(|binding| had.binding == binding)
        };
        let plain = std::mem::take(&mut self.plain[session]);
        let (gone, kept) = plain.into_iter().partition(is_meant);
        self.plain[session] = kept;
        let gone: Vec<Plain> = gone;
        let expected: Vec<_> = gone
            .into_iter()
            .map(|had| (had.scope, had.binding, had.amqp))
            .collect();
        assert_eq!(removed, expected);
    }

    fn deliver(&mut self, exchange: &str, key: &str, head: &EventHead) {
        let mut matches = Vec::new();
        let mut groups = BTreeSet::new();
        self.index.match_event(
            &self.families,
            exchange,
            key,
            head,
            self.months,
            &mut |matched| {
                let frame = (
                    format!("{:?} {:?} {:?}", matched.rule, matched.scope, matched.style),
                    matched.subscribed_key.to_owned(),
                );
                assert!(groups.insert(frame), "one match a group");
                assert!(
                    topic_matches(matched.subscription_key, matched.routing_key),
                    "{matched:?}"
                );
                matches.push((
                    matched.group,
                    matched.subscribed_key.to_owned(),
                    format!("{:?} {:?}", matched.scope, matched.style),
                ));
            },
        );
        let mut found: Vec<Delivered> = Vec::new();
        for (group, key, frame) in matches {
            for member in self.index.members(group) {
                found.push((
                    member.slot as usize,
                    key.clone(),
                    frame.clone(),
                    member.request_id.map(str::to_owned),
                ));
            }
        }
        let mut expected: Vec<Delivered> = Vec::new();
        for (session, plain) in self.plain.iter().enumerate() {
            for had in plain.iter().filter(|had| had.wants(exchange, key, head)) {
                let frame = format!("{:?} {:?}", had.scope, had.style);
                expected.push((session, had.binding.clone(), frame, had.request_id.clone()));
            }
        }
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{exchange} {key} {head:?}");
        self.check_nearness(exchange, key, head);
    }

    /// What those who look are told of each subscription: that it fits exactly when it gets the event; and otherwise what
    /// a change of nothing but its account, or of nothing but event words, would make of it.
    fn check_nearness(&self, exchange: &str, key: &str, head: &EventHead) {
        let event = EventKey::new(exchange, key, head);
        for (list, plain) in self.lists.iter().zip(&self.plain) {
            for (resolved, had) in self.index.subscriptions(list).zip(plain) {
                let found = event.as_ref().map_or(Nearness::Far, |event| {
                    self.families.nearness(&resolved, event, self.months)
                });
                let expected = if had.wants(exchange, key, head) {
                    Nearness::Fits
                } else if self.would_want_for_another(had, exchange, key, head) {
                    Nearness::ButForScope
                } else if self.would_want_another_event(&resolved, exchange, key, head) {
                    Nearness::ButForEventWord
                } else {
                    Nearness::Far
                };
                assert_eq!(found, expected, "{had:?}: {exchange} {key} {head:?}");
            }
        }
    }

    fn would_want(
        &self,
        (scope, realm): (Scope, Option<&str>),
        binding: &str,
        (exchange, key, head): (&str, &str, &EventHead),
    ) -> bool {
        let rights = Rights {
            superduper: true,
            realm,
        };
        let Ok(resolved) = self.families.resolve(binding, scope, rights) else {
            return false;
        };
        let mut amqp = Vec::new();
        self.families
            .amqp_bindings(&resolved, self.months, &mut amqp);
        let plain = Plain {
            scope,
            binding: binding.to_owned(),
            style: Style::Piston,
            request_id: None,
            amqp,
        };
        plain.wants(exchange, key, head)
    }

    fn would_want_for_another(
        &self,
        had: &Plain,
        exchange: &str,
        key: &str,
        head: &EventHead,
    ) -> bool {
        let event = (exchange, key, head);
        let others = (0..4).any(|number| {
            let realm = realm(number);
            let other = (Scope::One(account(number)), Some(&*realm));
            self.would_want(other, &had.binding, event)
        });
        // Nobody's event; but a database of nobody is another thing.
        let nobodys =
            exchange != "configuration" && self.would_want((Scope::Any, None), &had.binding, event);
        others || nobodys
    }

    fn would_want_another_event(
        &self,
        resolved: &Resolved<'_>,
        exchange: &str,
        key: &str,
        head: &EventHead,
    ) -> bool {
        let mut binding: Vec<&str> = resolved.binding().split('.').collect();
        let mut key: Vec<&str> = key.split('.').collect();
        let (places, exchange_of): (&[(usize, usize)], _) = match (binding[0], binding.len()) {
            ("call", _) => (&[(1, 1)], "callevt"),
            ("conference", 5..) => (&[(2, 2)], "conference"),
            ("fax", _) if binding[1] == "object" => (&[(2, 0)], "configuration"),
            ("object", _) => (&[(1, 0), (2, 2)], "configuration"),
            ("doc_created" | "doc_edited" | "*", _) => (&[(0, 0), (2, 2)], "configuration"),
            _ => return false,
        };
        if exchange != exchange_of {
            return false;
        }
        for (in_binding, in_key) in places {
            let Some(word) = key.get_mut(*in_key) else {
                return false;
            };
            // No list has it, so nobody can ask for it.
            match *word {
                "OTHER" => *word = "PARK_PARKED",
                "other" if *in_key == 0 => *word = "doc_created",
                "other" => *word = "user",
                _ => {}
            }
            if binding[*in_binding] != "*" {
                binding[*in_binding] = *word;
            }
        }
        let own = (resolved.scope(), resolved.realm());
        self.would_want(own, &binding.join("."), (exchange, &key.join("."), head))
    }

    fn check_lists(&self) {
        for (list, plain) in self.lists.iter().zip(&self.plain) {
            let listed: Vec<_> = self
                .index
                .subscriptions(list)
                .map(|it| (it.scope(), it.binding().to_owned()))
                .collect();
            assert_eq!(
                listed,
                plain
                    .iter()
                    .map(|had| (had.scope, had.binding.clone()))
                    .collect::<Vec<_>>()
            );
            assert_eq!(self.index.len(list), plain.len());
        }
        let total: usize = self.plain.iter().map(Vec::len).sum();
        assert_eq!(self.index.counts().subscriptions, total);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_delivers_what_a_plain_matcher_of_amqp_keys_delivers(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Subscribe { session, scope, binding, kazoo, request_id } => {
                    let style = if kazoo { Style::Kazoo } else { Style::Piston };
                    world.subscribe(session, scope, &binding, style, request_id.map(|id| id.to_string()));
                }
                Step::Unsubscribe { session, scope, binding } => {
                    world.unsubscribe(session, scope, binding.as_deref());
                }
                Step::Die { session } => world.unsubscribe(session, None, None),
                Step::Event { key: (exchange, key), account: owner, event } => {
                    let head = EventHead {
                        account: owner.map(account),
                        event: event.map(Into::into),
                        ..EventHead::default()
                    };
                    world.deliver(&exchange, &key, &head);
                }
            }
            world.check_lists();
        }
        for session in 0..SESSIONS {
            world.unsubscribe(session, None, None);
        }
        prop_assert_eq!(world.index.counts(), Default::default());
    }

    /// Whatever else is subscribed, an event reaches no subscription of an account that is not its own.
    #[test]
    fn no_event_reaches_another_account(
        subscriptions in prop::collection::vec((scope(), client_binding()), 1..40),
        events in prop::collection::vec((event_key(), proptest::option::of(0..4u8)), 1..60),
    ) {
        let mut world = World::new();
        for (turn, (scope, binding)) in subscriptions.into_iter().enumerate() {
            world.subscribe(turn % SESSIONS, scope, &binding, Style::Piston, None);
        }
        for ((exchange, key), body_account) in events {
            let head = EventHead { account: body_account.map(account), ..EventHead::default() };
            let mut named: BTreeSet<u8> = BTreeSet::new();
            for number in 0..4 {
                let is_named = key.split('.').any(|word| {
                    word == account(number).to_string() || word.starts_with(&db(number)) || word == escape(&realm(number))
                });
                if is_named {
                    named.insert(number);
                }
            }
            if named.is_empty() {
                named.extend(body_account);
            }
            world.index.match_event(&world.families, &exchange, &key, &head, world.months, &mut |matched| {
                let is_open = matched.subscribed_key.starts_with("conference.command.");
                if let Scope::One(id) = matched.scope && !is_open {
                    assert!(named.iter().any(|number| account(*number) == id), "{key} {head:?} reached {id}");
                }
            });
        }
    }

    #[test]
    fn a_roll_over_keeps_every_subscriptions_amqp_bindings_at_every_step_of_its_walk(
        steps in prop::collection::vec(rolling_step(), 1..120),
    ) {
        let mut world = Rolling::new();
        for step in steps {
            world.take(step);
            world.check();
        }
        while world.next.is_some() {
            world.take(RollingStep::Walk { places: 3 });
            world.check();
        }
        prop_assert!(world.subscriptions.iter().all(|one| one.months == world.months.now()));
        for session in 0..SESSIONS {
            world.take(RollingStep::Unsubscribe { session, binding: None });
            world.check();
        }
        prop_assert!(world.counts.is_empty());
    }

    #[test]
    fn escaping_is_undone_by_percent_decoding_and_equal_to_itself_only(word in "\\PC{0,12}|[*# +%.a]{0,3}", other in "[*# +%.a-c]{0,3}") {
        let escaped = escape(&word);
        prop_assert!(words::is_escaped_form(&word, &escaped));
        prop_assert_eq!(words::is_escaped_form(&other, &escaped), word == other);
        prop_assert!(!escaped.contains('.'));
        prop_assert_eq!(escaped.contains(['*', '#']), word == "*" || word == "#");
        let mut bytes = Vec::new();
        let mut rest = escaped.as_bytes();
        while let [first, after @ ..] = rest {
            rest = after;
            bytes.push(match first {
                b'+' => b' ',
                b'%' => {
                    let (digits, after) = rest.split_at(2);
                    rest = after;
                    u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
                }
                plain => *plain,
            });
        }
        prop_assert_eq!(String::from_utf8(bytes).unwrap(), word);
    }

    /// Bytes of a client never panic, and what is taken fits AMQP.
    #[test]
    fn any_client_binding_is_refused_or_has_keys_of_at_most_255_bytes(
        binding in "(call|conference|fax|object|presence|dialog|registration|doc_created|\\*)?[.]?(event|command|status|dialog)?[.]?\\PC{0,120}",
        superduper in any::<bool>(),
        number in 0..2u8,
    ) {
        let families = Families::new(&FamilyOptions::default()).unwrap();
        let realm = realm(number);
        let scope = if superduper { Scope::Any } else { Scope::One(account(number)) };
        if let Ok(resolved) = families.resolve(&binding, scope, Rights { superduper, realm: Some(&realm) }) {
            let mut amqp = Vec::new();
            families.amqp_bindings(&resolved, ActiveMonths::at(NEW_YEAR), &mut amqp);
            prop_assert!(!amqp.is_empty());
            prop_assert!(families.amqp_binding_count(&resolved, ActiveMonths::at(NEW_YEAR)) >= amqp.len());
            // Ids of conferences are not escaped; as a wildcard AMQP takes whole words only.
            let is_escaped = !binding.starts_with("conference.command.");
            for AmqpBinding { key, .. } in amqp {
                prop_assert!(key.len() <= 255 && key.split('.').all(|word| word != "#"), "{}", key);
                prop_assert!(!(is_escaped && key.contains('#')), "{}", key);
            }
        }
    }

    #[test]
    fn broker_bindings_count_as_a_map_does(steps in prop::collection::vec((0..7u8, 0..4usize, 0..3u8), 1..200)) {
        let keys: Vec<AmqpBinding> = (0..4).map(|number| AmqpBinding {
            exchange: ["a", "b"][number % 2].into(),
            key: format!("key.{}", number / 2).into(),
        }).collect();
        let mut bindings = BrokerBindings::new();
        let mut users = [0u32; 4];
        let mut owner = [0; 4];
        let mut state = [' '; 4]; // what the source last said: confirmed, lost
        let mut tickets: [Vec<Ticket>; 4] = Default::default();
        let mut is_up = false;
        for (step, at, by) in steps {
            let key = &keys[at];
            let asked = |ticket: Option<&Ticket>| ticket.map(|ticket| Asked { binding: key.clone(), ticket: *ticket });
            match step {
                0 | 1 => {
                    let acquired = bindings.acquire(key, 1, Some(account(by)));
                    match acquired.ask {
                        Some(Ask::Bind(ticket, _)) => {
                            prop_assert_eq!(users[at], 0);
                            prop_assert!(!tickets.iter().flatten().any(|old| *old == ticket));
                            tickets[at].push(ticket);
                            (state[at], owner[at]) = (' ', by);
                        }
                        Some(Ask::Join(_)) => prop_assert!(users[at] > 0 && state[at] == ' ' && owner[at] != by),
                        None => prop_assert!(users[at] > 0 && (state[at] != ' ' || owner[at] == by)),
                    }
                    users[at] += 1;
                    prop_assert_eq!(acquired.is_in_force, is_up && state[at] == 'c');
                    prop_assert_eq!(bindings.is_in_force(acquired.id), acquired.is_in_force);
                }
                2 if users[at] > 0 => {
                    users[at] -= 1;
                    prop_assert_eq!(bindings.release(key, 1), users[at] == 0);
                    if users[at] == 0 {
                        state[at] = ' ';
                    }
                }
                3 => if let Some(bound) = asked(tickets[at].last()) {
                    bindings.on_bound(&bound);
                    if users[at] > 0 { state[at] = 'c'; }
                },
                4 => if let Some(lost) = asked(tickets[at].last()) {
                    bindings.on_lost(&lost);
                    if users[at] > 0 { state[at] = 'l'; }
                },
                // An answer of an older ticket comes only before the one that is waited for.
                5 if state[at] == ' ' => if let Some(old) = asked(tickets[at].iter().rev().nth(1)) {
                    bindings.on_bound(&old);
                    bindings.on_lost(&old);
                },
                6 => {
                    is_up = !is_up;
                    if is_up { bindings.on_up(); } else { bindings.on_down(); }
                }
                _ => {}
            }
            let count = |what| (0..4).filter(|at| users[*at] > 0 && state[*at] == what).count();
            let expected = BindingCounts {
                wanted: users.iter().filter(|users| **users > 0).count(),
                confirmed: count('c'),
                lost: count('l'),
            };
            prop_assert_eq!(bindings.counts(), expected);
            prop_assert_eq!(bindings.in_force(), if is_up { expected.confirmed } else { 0 });
            for by in 0..3 {
                let owned = (0..4).filter(|at| users[*at] > 0 && owner[*at] == by).count();
                prop_assert_eq!(bindings.load(account(by)), owned);
            }
        }
    }
}
