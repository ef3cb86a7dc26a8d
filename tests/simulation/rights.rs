//! Who may see what, as the token file says and as it changes while sessions live: descendants come and go, tokens are
//! withdrawn, realms move from account to account, and a client may go on under another token.
//!
//! 1. Each state of the file holds for the events that the loop takes after its reread: [`World::rights_at`] says, for
//!    any event, whose realm a realm was then and what a token could see.
//! 2. What a client has that its identity may no longer see, or whose realm is another now, is no longer owed to it; and
//!    where it is no longer possible the notice `subscriptions_ended` must come, with its name, once (PROTOCOL 3).
//! 3. A command that was under way when rights changed may be answered by the old ones or by the new.
//!
//! An identity is that of the last command that was answered, or of one under way.

use blackhole::session::close::CloseReason;
use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::model::{ACCOUNTS, Asked, Key, PRESENCE, REALMS, TOKENS};
use crate::scenes::{token_file, world_of_readers};
use crate::world::World;

/// A state of the token file. The token of each place belongs to the account of that place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    /// The accounts that each token sees beside its own; `None`: the token is withdrawn.
    pub(crate) descendants: [Option<Vec<usize>>; 3],
    /// The realm of each account, as a place in [`REALMS`]: no two have one.
    pub(crate) realms: [Option<usize>; 3],
}

impl Default for Rights {
    fn default() -> Self {
        Self {
            descendants: [Some(vec![]), Some(vec![2]), Some(vec![])],
            realms: [Some(0), Some(1), None],
        }
    }
}

impl Rights {
    /// What to write to the file.
    pub(crate) fn to_file(&self) -> String {
        let mut file = Map::new();
        for (token, name) in TOKENS.iter().enumerate() {
            let Some(descendants) = &self.descendants[token] else {
                continue;
            };
            let descendants: Vec<&str> = descendants.iter().map(|place| ACCOUNTS[*place]).collect();
            let mut entry = json!({"account_id": ACCOUNTS[token], "descendants": descendants});
            if let Some(realm) = self.realms[token] {
                entry["realm"] = REALMS[realm].into();
            }
            file.insert((*name).to_owned(), entry);
        }
        Value::Object(file).to_string()
    }

    fn descendants(&self, token: &str) -> Option<(usize, &[usize])> {
        let place = TOKENS.iter().position(|name| *name == token)?;
        Some((place, self.descendants[place].as_deref()?))
    }

    pub(crate) fn is_good(&self, token: &str) -> bool {
        self.descendants(token).is_some()
    }

    pub(crate) fn sees(&self, token: &str, account: usize) -> bool {
        self.descendants(token)
            .is_some_and(|(own, more)| own == account || more.contains(&account))
    }

    /// The realm of an account. The file tells it in the entry of the account's own token.
    pub(crate) fn realm(&self, account: usize) -> Option<usize> {
        self.realms[account].filter(|_| self.descendants[account].is_some())
    }

    pub(crate) fn owner(&self, realm: usize) -> Option<usize> {
        (0..ACCOUNTS.len()).find(|account| self.realm(*account) == Some(realm))
    }

    /// What a subscribe comes to.
    pub(crate) fn expect(&self, token: &str, key: Key) -> Asked {
        match () {
            () if !self.is_good(token) => Asked::BadToken,
            () if !self.sees(token, key.0) => Asked::Refused,
            () if PRESENCE.contains(&key.1) && self.realm(key.0).is_none() => Asked::NoRealm,
            () => Asked::Subscribe(key),
        }
    }

    fn may_have(&self, token: &str, key: Key) -> bool {
        matches!(self.expect(token, key), Asked::Subscribe(_))
    }
}

impl World {
    /// What was in force when the loop took this event.
    pub(crate) fn rights_at(history: &[(u64, Rights)], number: u64) -> &Rights {
        let later = history.partition_point(|(after, _)| *after < number);
        &history[later.max(1) - 1].1
    }

    pub(crate) fn rights(&self) -> &Rights {
        &self.rights.last().expect("there always are some").1
    }

    /// Changes one thing in the token file, and has it reread.
    pub(crate) fn change_rights(&mut self) {
        let mut rights = self.rights().clone();
        let token = self.rng.usize(0..TOKENS.len());
        match self.rng.u32(0..4) {
            0 => {
                let more = (0..ACCOUNTS.len()).filter(|other| *other != token);
                let more = more.filter(|_| self.rng.bool()).collect();
                rights.descendants[token] = Some(more);
            }
            1 if self.rng.u32(0..3) == 0 => rights.descendants[token] = None,
            1 => rights.descendants[token] = Some(vec![]),
            _ => self.rng.shuffle(&mut rights.realms),
        }
        self.reread(rights);
    }

    /// Has the loop reread a token file that says so.
    pub(crate) fn reread(&mut self, rights: Rights) {
        std::fs::write(&self.tokens, rights.to_file()).expect("the token file is written");
        let reloaded = self
            .reactor
            .hub
            .authenticator
            .reload(blackhole::config::read_tokens, blackhole::config::read_keys);
        reloaded.expect("a valid token file");
        self.reactor.renew_identities();
        let before = self.rights.last().map(|(_, before)| before);
        for client in &mut self.clients {
            client.rights_change(before, &rights);
        }
        self.rights.push((self.last_taken, rights));
    }
}

impl Client {
    /// The tokens of the identities that the session may run as.
    fn identities(&self) -> impl Iterator<Item = &'static str> {
        let (number, known) = self.identity.unzip();
        let asked = self.asked.iter();
        let under_way = asked.filter(move |question| Some(question.number) > number);
        known
            .into_iter()
            .chain(under_way.map(|question| question.token))
    }

    /// Whether one of the identities that it may run as sees this account.
    pub(crate) fn may_see(&self, account: usize, rights: &Rights) -> bool {
        self.identities().any(|token| rights.sees(token, account))
    }

    /// The token file was reread.
    fn rights_change(&mut self, before: Option<&Rights>, now: &Rights) {
        if before == Some(now) {
            return;
        }
        let stays = self.stays();
        for question in &mut self.asked {
            question.is_certain = false;
        }
        let tokens: Vec<&str> = self.identities().collect();
        if tokens.iter().any(|token| !now.is_good(token)) {
            // Its session ends, or refuses what comes.
            self.expects.push(CloseReason::Expired);
        }
        if !stays {
            // It may be told as long as it is there.
            self.may_end
                .extend(self.ever.iter().map(|key| ("rights", key.1)));
            return;
        }
        let realm_before = |account| before.and_then(|before| before.realm(account));
        let is_certain = tokens.iter().all(|token| *token == tokens[0]);
        let may_have = |key: &Key| tokens.iter().all(|token| now.may_have(token, *key));
        let has_moved =
            |key: &Key| PRESENCE.contains(&key.1) && realm_before(key.0) != now.realm(key.0);
        let lost: Vec<Key> = self
            .live
            .iter()
            .filter(|key| !may_have(key))
            .copied()
            .collect();
        for key in &lost {
            let told = if is_certain {
                &mut self.ending
            } else {
                &mut self.may_end
            };
            told.push(("rights", key.1));
        }
        // What was given up may be there still, and what is asked for, already.
        let ever = self.ever.iter().filter(|key| !self.live.contains(key));
        self.may_end.extend(ever.map(|key| ("rights", key.1)));
        self.give_up(|key| lost.contains(key) || has_moved(key));
    }

    /// Goes on under another token, from the next command on.
    pub(crate) fn switch(&mut self, token: &'static str, rights: &Rights) {
        self.token = token;
        if !rights.is_good(token) {
            return;
        }
        let lost: Vec<Key> = self
            .live
            .iter()
            .filter(|key| !rights.sees(token, key.0))
            .copied()
            .collect();
        self.ending
            .extend(lost.iter().map(|key| ("identity", key.1)));
        let ever = self.ever.iter().filter(|key| !self.live.contains(key));
        self.may_end.extend(ever.map(|key| ("identity", key.1)));
        for question in &mut self.asked {
            question.is_certain = false;
        }
        self.give_up(|key| lost.contains(key));
    }

    /// Takes the notice of subscriptions that ended: each must be one that was to end, or may have been.
    pub(crate) fn on_ended(&mut self, data: &Value) {
        let reason = data["reason"].as_str().expect("a string");
        let bindings = data["bindings"].as_array().expect("a list");
        assert!(!bindings.is_empty(), "nothing has ended: {data}");
        for binding in bindings {
            let binding = binding.as_str().expect("a string");
            let is_it = |(why, what): &(&str, &str)| *why == reason && *what == binding;
            let due = self.ending.iter().position(is_it);
            if let Some(due) = due {
                self.ending.remove(due);
                continue;
            }
            let may = self.may_end.iter().position(is_it);
            let may = may.unwrap_or_else(|| panic!("{binding} ended unasked: {data} {self:?}"));
            self.may_end.remove(may);
        }
    }
}

/// A world of two clients, of the first account and of the second, each with the presence of its own realm.
fn world_of_realms(tokens: &std::path::Path) -> World {
    let mut world = world_of_readers(2, &[], tokens);
    world.clients[1].token = TOKENS[1];
    for account in 0..2 {
        world.clients[account].subscribe((account, PRESENCE[0]));
    }
    world.settle();
    assert!(world.clients.iter().all(|client| client.live.len() == 1));
    world
}

/// The realm of the first account is the second's, and the second's nobody's.
fn moved() -> Rights {
    Rights {
        realms: [None, Some(0), None],
        ..Rights::default()
    }
}

#[test]
fn a_realm_that_moves_takes_its_live_subscriptions_with_it_and_those_who_lose_it_are_told() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_realms(&tokens);
    world.publish_presence("dialog", "c1", 0);
    world.settle();
    assert_eq!(world.tally.events, 1);
    world.reread(moved());
    world.settle();
    world.check_debts();
    // The second account's subscription follows to its realm of now.
    world.publish_presence("dialog", "c1", 0);
    world.settle();
    assert_eq!(world.tally.events, 2);
    assert_eq!(world.clients[1].last.get(&(1, PRESENCE[0])), Some(&2));
    let keys: Vec<&str> = world.in_force.iter().map(|binding| &*binding.key).collect();
    assert_eq!(keys, ["dialog.one%2Esip.*"]);
    world.end();
}

#[test]
fn an_event_that_waits_in_the_hand_off_while_its_realm_moves_is_the_new_owners() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_realms(&tokens);
    world.publish_presence("dialog", "c1", 0);
    world.reread(moved());
    world.settle();
    assert_eq!(world.clients[0].last.get(&(0, PRESENCE[0])), None);
    world.end();
}

#[test]
fn a_subscribe_that_waits_while_its_realm_moves_is_not_answered_with_the_old_one() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(1, &[], &tokens);
    world.clients[0].subscribe((0, PRESENCE[0]));
    world.turn();
    assert_eq!(world.clients[0].asked.len(), 1, "it waits");
    world.reread(moved());
    world.settle();
    assert!(world.clients[0].asked.is_empty());
    let hub = &world.reactor.hub;
    assert_eq!(hub.subscriptions.index().counts().subscriptions, 0);
    assert!(world.wanted.is_empty(), "{:?}", world.wanted);
    world.end();
}

#[test]
fn a_descendant_that_is_taken_away_ends_its_subscriptions_and_the_others_stay() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(1, &[], &tokens);
    world.clients[0].token = TOKENS[1];
    for account in [1, 2] {
        world.clients[0].subscribe((account, "call.*.*"));
    }
    world.settle();
    let mut rights = Rights::default();
    rights.descendants[1] = Some(vec![]);
    world.reread(rights);
    world.settle();
    for account in [1, 2] {
        world.publish_one("CHANNEL_CREATE", "c1", account);
    }
    world.settle();
    world.check_debts();
    assert_eq!(world.tally.events, 1);
    world.end();
}
