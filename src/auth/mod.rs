//! Who may do what (PROTOCOL 4 and 7): a token stands for an [`Identity`], and an identity may see accounts.
//!
//! | module | owns |
//! |---|---|
//! | this | the authenticator: which of the others decides on a token |
//! | `identity` | what a token itself says |
//! | `sight` | which accounts an identity may see, by all that decides on it |
//! | `tokens` | the token file: parsing, checking, reloading |
//! | `jwt` | signatures and claims of the platform's own tokens, and the keys |
//! | `accounts` | the account tree |
//! | `grants` | what the platform has allowed (`crossbar`) |
//! | `question` | what a thread must be asked, and its answer |
//! | `inquiries` | questions without an answer, and who waits for each |
//! | `verified`, `denials` | the answers that are kept: JWTs that hold; no, and trouble |
//! | `entry` | what the JSON files of this folder have in common |
//! | `digest` | tokens as the caches know them |
//!
//! Sessions hold an `Arc<Identity>`: one allocation for each token, however many sessions use it.
//!
//! No file is read here: the caller hands in a function that does. A reload has three steps, so that the loop neither
//! reads nor parses a file: [`Authenticator::reread`] says what is to be read, [`Reread::parse`] has it read and parses
//! it on a thread of its own, [`Authenticator::take`] puts it in force.
//!
//! Nobody is asked here either. What is not known is put into a list ([`Authenticator::next_question`]), and the session is
//! told [`Verdict::Asks`] or [`Right::Asks`]. The loop hands the questions to threads and the answers back
//! ([`Authenticator::take_answer`]), which says who is to look again.
//!
//! Invariants: a token is in no log line, no error and no `Debug` output; a reload that fails changes nothing.
//!
//! ```
//! use blackhole::auth::{Asker, AuthConfig, AuthError, Authenticator, Moment, Verdict};
//!
//! let account = "4b8c6fec4b2597882c0390202d195419";
//! let text = format!(r#"{{"a-token": {{"account_id": "{account}"}}}}"#);
//! let config = AuthConfig { tokens: Some("tokens.json".into()), ..AuthConfig::default() };
//! let read = |_file: &_| Ok::<_, AuthError>(text.clone());
//! let mut authenticator = Authenticator::new(&config, read, |_path| unreachable!("there are no keys"))?;
//!
//! let now = Moment { unix: 1_700_000_000, clock: std::time::Duration::ZERO };
//! let asker = Asker { connection: 1, network: [127, 0, 0, 1].into() };
//! let Verdict::Accepted(identity) = authenticator.identify("a-token", asker, now) else {
//!     panic!("the token is in the file")
//! };
//! assert_eq!(identity.account_id().map(|id| id.to_string()).as_deref(), Some(account));
//! assert!(matches!(authenticator.identify("another", asker, now), Verdict::Refused));
//! # Ok::<(), AuthError>(())
//! ```

#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::wildcard_enum_match_arm
    )
)]

pub mod accounts;
mod denials;
mod digest;
mod entry;
mod grants;
mod identity;
mod inquiries;
pub mod jwt;
mod question;
mod sight;
mod tokens;
mod verified;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use accounts::Accounts;
pub use entry::SharedRealm;
pub use grants::CacheTimes;
pub use identity::{Identity, REALM_PLACEHOLDER};
pub use inquiries::Asker;
pub use question::{AccountAnswer, Answer, KeyAnswer, Lane, Question};
pub use sight::Sight;
pub use tokens::AuthError;

use denials::{Denial, Denials};
use digest::Digest;
use grants::{Again, Change, Grants};
use inquiries::Inquiries;
use tokens::{Table, TokenFile};
use verified::Verified;

use crate::account::AccountId;
use crate::limits::{
    ASKED_AGAIN_PER_TURN_MAX, KEY_DENIAL_KEPT, TOKEN_BYTES_MAX, TROUBLE_KEPT, WITHDRAWALS_INTERVAL,
};

/// Which authenticators there are to be. None at all refuses every token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuthConfig {
    /// `insecure`, alone: any token for any account, with this template of the SIP realm of an account
    /// ([`REALM_PLACEHOLDER`]). Development only.
    pub insecure: Option<String>,
    /// `tokens:FILE`.
    pub tokens: Option<PathBuf>,
    /// `jwt:FILE_OR_FOLDER`.
    pub jwt: Option<JwtConfig>,
    /// `crossbar:URL`: how long its answers are good. Threads ask it.
    pub platform: Option<CacheTimes>,
    /// `accounts`: the file of the account tree.
    pub accounts: Option<PathBuf>,
}

/// How JWTs are verified.
#[derive(Clone, Debug, PartialEq)]
pub struct JwtConfig {
    /// The file or the folder of the keys.
    pub keys: PathBuf,
    /// What the claims must say.
    pub rules: jwt::Rules,
}

/// Decides who a token belongs to, and what that may see.
#[derive(Debug)]
pub struct Authenticator {
    insecure: Option<Arc<Identity>>,
    tokens: Option<TokenFile>,
    jwt: Option<Jwt>,
    grants: Option<Grants>,
    tree: Option<(PathBuf, Arc<Accounts>)>,
    denials: Denials,
    inquiries: Inquiries,
    /// The tree is another than the one by which all sessions were last renewed.
    has_new_tree: bool,
    /// When a pass over all sessions may begin because the platform has taken rights away.
    renewal_due: Duration,
    /// Passes over all sessions because the platform took rights away.
    pub withdrawals: u64,
}

/// JWTs are verified.
#[derive(Debug)]
struct Jwt {
    path: PathBuf,
    keys: Arc<jwt::Keys>,
    /// The keys that the platform sent, by their ids: they outlive a reread.
    fetched: BTreeMap<Box<str>, String>,
    rules: Arc<jwt::Rules>,
    verified: Verified,
}

/// The present moment, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Unix seconds, by which tokens expire.
    pub unix: u64,
    /// The loop's clock, by which answers grow old.
    pub clock: Duration,
}

/// What an authenticator says of a token.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// The token is good now, or only the platform knows ([`Identity::is_proven`]). It may still
    /// [expire](Identity::expires).
    Accepted(Arc<Identity>),
    /// Unknown or expired; the two are not told apart, for the client would learn which tokens once existed.
    Refused,
    /// A thread is asked; whoever asked is told when to look again.
    Asks,
    /// Nobody can say (`authentication unavailable`).
    Unavailable,
}

/// What an identity may do with an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Right {
    /// See its events.
    Yes,
    /// Nothing.
    No,
    /// The platform does not take the token any more.
    TokenRefused,
    /// As [`Verdict::Asks`].
    Asks,
    /// As [`Verdict::Unavailable`].
    Unavailable,
}

/// What became of the identity of a session.
#[derive(Clone, Debug)]
pub enum Renewal {
    /// Nothing.
    Same,
    /// What it may see must be looked at again.
    Changed {
        /// The identity from now on.
        identity: Arc<Identity>,
        /// The tree or the platform changed what it may see.
        by_others: bool,
    },
    /// Its token is no good any more.
    Refused,
}

/// What can change while running, to be read again; where to, and what was known before.
#[derive(Debug)]
pub struct Reread {
    tokens: Option<(PathBuf, Arc<Table>)>,
    keys: Option<(PathBuf, BTreeMap<Box<str>, String>)>,
    tree: Option<(PathBuf, Arc<Accounts>)>,
}

/// What was read again and is not in force yet.
#[derive(Debug, Default)]
pub struct Fresh {
    tokens: Option<Arc<Table>>,
    keys: Option<Arc<jwt::Keys>>,
    tree: Option<Arc<Accounts>>,
}

impl Reread {
    /// Parses the files, which `read` and `read_keys` read: on a thread that may wait. Linear in the files.
    ///
    /// # Errors
    /// That of `read` or `read_keys`, or [`AuthError`]: a file holds something else than it should.
    pub fn parse<E: From<AuthError>>(
        self,
        read: impl Fn(&Path) -> Result<String, E>,
        read_keys: impl Fn(&Path) -> Result<jwt::KeyText, E>,
    ) -> Result<Fresh, E> {
        let mut fresh = Fresh::default();
        if let Some((file, old)) = self.tokens {
            let table = Table::parse(&file, &read(&file)?, &old)?;
            fresh.tokens = Some(Arc::new(table));
        }
        if let Some((path, fetched)) = self.keys {
            let keys = jwt::Keys::parse(&path, &read_keys(&path)?).map_err(AuthError::from)?;
            fresh.keys = Some(Arc::new(with_fetched(keys, &fetched)));
        }
        if let Some((file, old)) = self.tree {
            let tree = Accounts::parse(&file, &read(&file)?).map_err(AuthError::from)?;
            fresh.tree = Some(if tree == *old { old } else { Arc::new(tree) });
        }
        Ok(fresh)
    }
}

/// The keys of the files, and those that the platform sent since the start.
fn with_fetched(keys: jwt::Keys, fetched: &BTreeMap<Box<str>, String>) -> jwt::Keys {
    fetched.iter().fold(keys, |keys, (kid, pem)| {
        // A key of the files counts more, and one for which there is no room any more is left out.
        let is_there = keys.has_id(kid);
        let with = (!is_there).then(|| keys.with(kid, pem).ok()).flatten();
        with.unwrap_or(keys)
    })
}

impl Authenticator {
    /// An authenticator that refuses every token.
    #[must_use]
    pub fn none() -> Self {
        Self {
            insecure: None,
            tokens: None,
            jwt: None,
            grants: None,
            tree: None,
            denials: Denials::default(),
            inquiries: Inquiries::default(),
            has_new_tree: false,
            renewal_due: Duration::ZERO,
            withdrawals: 0,
        }
    }

    /// Makes the authenticator that is configured, from the texts that `read` and `read_keys` return for its files.
    ///
    /// # Errors
    /// That of `read` or `read_keys`, or [`AuthError`]: a file holds something else than it should.
    pub fn new<E: From<AuthError>>(
        config: &AuthConfig,
        read: impl Fn(&Path) -> Result<String, E>,
        read_keys: impl Fn(&Path) -> Result<jwt::KeyText, E>,
    ) -> Result<Self, E> {
        let mut all = Self::none();
        if let Some(realm_template) = &config.insecure {
            all.insecure = Some(Arc::new(Identity::insecure(realm_template)));
        }
        if let Some(file) = &config.tokens {
            all.tokens = Some(TokenFile::parse(file.clone(), &read(file)?)?);
        }
        if let Some(JwtConfig { keys: path, rules }) = &config.jwt {
            let keys = jwt::Keys::parse(path, &read_keys(path)?).map_err(AuthError::from)?;
            all.jwt = Some(Jwt {
                path: path.clone(),
                keys: Arc::new(keys),
                fetched: BTreeMap::new(),
                rules: Arc::new(rules.clone()),
                verified: Verified::default(),
            });
        }
        if let Some(times) = config.platform {
            all.grants = Some(Grants::new(times));
        }
        if let Some(file) = &config.accounts {
            let tree = Accounts::parse(file, &read(file)?).map_err(AuthError::from)?;
            all.tree = Some((file.clone(), Arc::new(tree)));
        }
        Ok(all)
    }

    /// Decides on `token`. Linear in it. A JWT that is not known, and what follows from it, is asked of a thread.
    pub fn identify(&mut self, token: &str, asker: Asker, now: Moment) -> Verdict {
        if let Some(identity) = &self.insecure {
            return Verdict::Accepted(identity.clone());
        }
        if self.jwt.is_some() && jwt::has_shape(token) {
            return self.identify_jwt(token, asker, now);
        }
        if let Some(identity) = self.tokens.as_ref().and_then(|file| file.find(token)) {
            return match identity.has_expired(now.unix) {
                false => Verdict::Accepted(identity.clone()),
                true => Verdict::Refused,
            };
        }
        match &mut self.grants {
            Some(grants) if token.len() <= TOKEN_BYTES_MAX => {
                grants.forget_others(token);
                let identity = match grants.identity(token) {
                    Some(identity) => identity.clone(),
                    None => Arc::new(Identity::asked(token.into(), None, false)),
                };
                match identity.has_expired(now.unix) {
                    false => Verdict::Accepted(identity),
                    true => Verdict::Refused,
                }
            }
            Some(_) | None => Verdict::Refused,
        }
    }

    fn identify_jwt(&mut self, token: &str, asker: Asker, now: Moment) -> Verdict {
        let Some(jwt) = self.jwt.as_ref().filter(|_| token.len() <= TOKEN_BYTES_MAX) else {
            return Verdict::Refused;
        };
        let digest = Digest::of_token(token);
        if let Some(identity) = jwt.verified.get(&digest, now.unix) {
            return Verdict::Accepted(identity.clone());
        }
        match self.denials.get(&digest, now.clock) {
            Some(Denial::Token | Denial::Account) => return Verdict::Refused,
            Some(Denial::Trouble) => return Verdict::Unavailable,
            None => {}
        }
        let question = || Question::Verify {
            token: token.into(),
            keys: jwt.keys.clone(),
            rules: jwt.rules.clone(),
            unix_now: now.unix,
        };
        match self.inquiries.ask(digest, asker, question) {
            true => Verdict::Asks,
            false => Verdict::Unavailable,
        }
    }

    /// The identity of `token`, if nobody has to be asked for it. Linear in the token.
    #[must_use]
    pub fn known(&self, token: &str, now: Moment) -> Option<Arc<Identity>> {
        match &self.jwt {
            Some(jwt) if jwt::has_shape(token) => jwt
                .verified
                .get(&Digest::of_token(token), now.unix)
                .cloned(),
            Some(_) | None => self.grants.as_ref()?.identity(token).cloned(),
        }
    }

    /// The identity as it is known now: the platform may have authorised its token since. O(1).
    #[must_use]
    pub fn current(&self, identity: &Arc<Identity>) -> Arc<Identity> {
        let known = || self.grants.as_ref()?.identity(identity.token()?);
        match identity.is_asked() {
            true => known().unwrap_or(identity).clone(),
            false => identity.clone(),
        }
    }

    /// The SIP realm of an account by the account tree, if there is one.
    #[must_use]
    pub fn realm_in_tree(&self, account: AccountId) -> Option<Arc<str>> {
        let (_, tree) = self.tree.as_ref()?;
        tree.realm_of(account)
    }

    /// What the identity may see now.
    #[must_use]
    pub fn sight<'a>(&'a self, identity: &'a Identity) -> Sight<'a> {
        Sight {
            identity,
            tree: self.tree.as_ref().map(|(_, tree)| &**tree),
            grants: self.grants.as_ref(),
        }
    }

    /// Whether the platform may have to be asked before this identity can be judged.
    #[must_use]
    pub fn is_asked_for(&self, identity: &Identity) -> bool {
        self.sight(identity).is_asked_for()
    }

    /// Decides whether the identity may see `account`, for a command. Linear in the token. `needs_realm`: whether what
    /// the command asks for takes the account's realm, which the platform may have to be asked for; called only where it is
    /// not known.
    pub fn authorise(
        &mut self,
        identity: &Arc<Identity>,
        account: AccountId,
        needs_realm: impl FnOnce() -> bool,
        asker: Asker,
        now: Moment,
    ) -> Right {
        let sight = self.sight(identity);
        let (sees, is_asked_for) = (sight.sees_by_itself(account), sight.is_asked_for());
        let lacks_realm = || is_asked_for && sight.realm_of(account).is_none() && needs_realm();
        if sees && !lacks_realm() {
            return Right::Yes;
        }
        let Some(grants) = self.grants.as_mut().filter(|_| is_asked_for) else {
            return Right::No;
        };
        let Some(token) = identity.token() else {
            return Right::No;
        };
        if grants.is_fresh(token, account, now.clock) {
            grants.attach(token, identity);
            return Right::Yes;
        }
        let digest = Digest::of_account(token, account);
        let denial = self
            .denials
            .get(&Digest::of_token(token), now.clock)
            .or_else(|| self.denials.get(&digest, now.clock));
        match denial {
            // The platform knows no realm, or cannot say: what the token gives is left.
            Some(_) if sees => return Right::Yes,
            Some(Denial::Token) => return Right::TokenRefused,
            Some(Denial::Account) => return Right::No,
            Some(Denial::Trouble) => return Right::Unavailable,
            None => {}
        }
        let question = || Question::Account {
            token: token.into(),
            account,
        };
        if !grants.has_room_for(token) {
            self.inquiries.refused += 1;
            return Right::Unavailable;
        }
        match self.inquiries.ask(digest, asker, question) {
            true => Right::Asks,
            false => Right::Unavailable,
        }
    }

    /// The next question for this lane, if its thread can take one.
    pub fn next_question(&mut self, lane: Lane) -> Option<Question> {
        self.inquiries.next(lane)
    }

    /// Takes back a question that could not be put; it is the next one.
    pub fn put_back(&mut self, question: Question) {
        self.inquiries.put_back(question);
    }

    /// Takes an answer, and returns the connections that are to look again. `random`: any number.
    pub fn take_answer(&mut self, answer: Answer, random: u64, now: Moment) -> Vec<usize> {
        match answer {
            Answer::Verify { token, verdict } => self.take_verified(&token, verdict, now),
            Answer::Account {
                token,
                account,
                answer,
            } => self.take_account(&token, account, answer, random, now),
            Answer::Key { kid, answer } => self.take_key(&kid, answer, now),
        }
    }

    fn take_verified(
        &mut self,
        token: &Arc<str>,
        verdict: Result<jwt::Claims, jwt::Refusal>,
        now: Moment,
    ) -> Vec<usize> {
        let digest = Digest::of_token(token);
        let Some(jwt) = &mut self.jwt else {
            return Vec::new();
        };
        match verdict {
            // Its key may have been taken away meanwhile: then it is asked again, by the keys that are in force.
            Ok(claims) if !jwt.keys.has(claims.key) => {}
            Ok(claims) => {
                let kept = self.grants.is_some().then(|| token.clone());
                let identity =
                    Identity::claimed(digest, kept, claims.account, claims.expires, claims.key);
                jwt.verified.keep(digest, Arc::new(identity));
            }
            Err(jwt::Refusal::UnknownKey { kid }) if self.grants.is_some() => {
                return self.take_unknown_key(digest, &kid, now);
            }
            Err(_) => {
                self.deny(digest, Denial::Token, now);
            }
        }
        self.inquiries.answered(&digest)
    }

    /// A JWT names a key that is not known: the platform is asked for it, and those who wait for the JWT wait for the key.
    fn take_unknown_key(&mut self, digest: Digest, kid: &str, now: Moment) -> Vec<usize> {
        let of_key = Digest::of_key(kid);
        let denial = match self.denials.get(&of_key, now.clock) {
            None if self
                .inquiries
                .move_to(&digest, of_key, || Question::Key { kid: kid.into() }) =>
            {
                return Vec::new();
            }
            Some(Denial::Trouble) | None => Denial::Trouble,
            Some(Denial::Token | Denial::Account) => Denial::Token,
        };
        self.deny(digest, denial, now);
        self.inquiries.answered(&digest)
    }

    fn take_key(&mut self, kid: &str, answer: KeyAnswer, now: Moment) -> Vec<usize> {
        let digest = Digest::of_key(kid);
        let denial = match answer {
            KeyAnswer::Pem(pem) => match self.jwt.as_mut().map(|jwt| jwt.keys.with(kid, &pem)) {
                Some(Ok(keys)) => {
                    if let Some(jwt) = &mut self.jwt {
                        jwt.keys = Arc::new(keys);
                        jwt.fetched.insert(kid.into(), pem);
                    }
                    None
                }
                Some(Err(_)) | None => Some(Denial::Trouble),
            },
            KeyAnswer::Unknown => Some(Denial::Account),
            KeyAnswer::Trouble => Some(Denial::Trouble),
        };
        match denial {
            None => {}
            Some(Denial::Trouble) => {
                self.denials
                    .note(digest, Denial::Trouble, now.clock + TROUBLE_KEPT);
            }
            Some(denial) => {
                self.denials
                    .note(digest, denial, now.clock + KEY_DENIAL_KEPT);
            }
        }
        self.inquiries.answered(&digest)
    }

    fn take_account(
        &mut self,
        token: &Arc<str>,
        account: AccountId,
        answer: AccountAnswer,
        random: u64,
        now: Moment,
    ) -> Vec<usize> {
        let (digest, of_token) = (Digest::of_account(token, account), Digest::of_token(token));
        let Some(grants) = &mut self.grants else {
            return Vec::new();
        };
        let denial = match answer {
            AccountAnswer::Yes { realm, superduper } => {
                let is_jwt = self.jwt.is_some() && jwt::has_shape(token);
                let on_file = self.tokens.as_ref().and_then(|file| file.find(token));
                let is_asked = !is_jwt && on_file.is_none();
                let answer = (realm, superduper);
                grants.allow(token, account, answer, is_asked, now.clock, random);
                self.denials.forget(&digest);
                None
            }
            AccountAnswer::TokenRefused => {
                grants.refuse(token);
                Some((of_token, Denial::Token))
            }
            AccountAnswer::AccountRefused => {
                grants.withdraw(token, account);
                Some((digest, Denial::Account))
            }
            AccountAnswer::Trouble => {
                grants.trouble(token, account, now.clock, random);
                Some((digest, Denial::Trouble))
            }
        };
        if let Some((digest, denial)) = denial {
            self.deny(digest, denial, now);
        }
        self.inquiries.answered(&digest)
    }

    fn deny(&mut self, digest: Digest, denial: Denial, now: Moment) {
        let no = self
            .grants
            .as_ref()
            .map_or(TROUBLE_KEPT, |grants| grants.times.no);
        let kept = match denial {
            Denial::Token | Denial::Account => no.max(TROUBLE_KEPT),
            Denial::Trouble => TROUBLE_KEPT,
        };
        self.denials.note(digest, denial, now.clock + kept);
    }

    /// Asks again for what sessions use and whose time runs out, at most so much in a turn. O(log n) each.
    pub fn ask_again(&mut self, now: Moment) {
        let Some(grants) = &mut self.grants else {
            return;
        };
        for _ in 0..ASKED_AGAIN_PER_TURN_MAX {
            let (jwt, tokens) = (self.jwt.as_ref(), self.tokens.as_ref());
            let held_elsewhere = |identity: &Arc<Identity>| {
                let of_jwt = || jwt?.verified.get(identity.digest()?, now.unix);
                let of_file = || tokens?.find(identity.token()?);
                let keeper = of_jwt().or_else(of_file);
                usize::from(keeper.is_some_and(|keeper| Arc::ptr_eq(keeper, identity)))
            };
            let Some(Again { token, account }) = grants.pop_due(now.clock, held_elsewhere) else {
                return;
            };
            let digest = Digest::of_account(&token, account);
            self.inquiries
                .ask_again(digest, Question::Account { token, account });
        }
    }

    /// When [`Authenticator::ask_again`] or a pass over all sessions is due next, on the loop's clock.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        let grants = self.grants.as_ref()?;
        let renewal = grants.has_changed().then_some(self.renewal_due);
        grants.next_due().into_iter().chain(renewal).min()
    }

    /// Whether all sessions must be renewed at `now`, because the platform has taken rights away.
    pub fn must_renew(&mut self, now: Moment) -> bool {
        let is_due = now.clock >= self.renewal_due;
        let must = is_due && self.grants.as_ref().is_some_and(Grants::has_changed);
        if must {
            self.renewal_due = now.clock + WITHDRAWALS_INTERVAL;
            self.withdrawals += 1;
        }
        must
    }

    /// A pass over all sessions begins.
    pub fn on_renewal(&mut self) {
        if let Some(grants) = &mut self.grants {
            grants.begin_pass();
        }
    }

    /// All sessions have been renewed since the pass began.
    pub fn on_renewed(&mut self) {
        self.has_new_tree = false;
        if let Some(grants) = &mut self.grants {
            grants.end_pass();
        }
    }

    /// Decides anew on a session's identity, after a [reload](Self::reload) or when the platform has taken rights away.
    pub fn renew(&mut self, identity: &Arc<Identity>, unix_now: u64) -> Renewal {
        let token = identity.token();
        let change = token.and_then(|token| self.grants.as_ref()?.change(token));
        if change == Some(Change::Refused) {
            return Renewal::Refused;
        }
        let renewed = match (identity.key(), token) {
            (Some(key), _) => {
                let holds = self.jwt.as_ref().is_some_and(|jwt| jwt.keys.has(key));
                holds.then_some(identity)
            }
            (None, Some(token)) if identity.is_asked() => {
                let grants = self.grants.as_ref();
                Some(
                    grants
                        .and_then(|grants| grants.identity(token))
                        .unwrap_or(identity),
                )
            }
            (None, Some(token)) => self.tokens.as_ref().and_then(|file| file.find(token)),
            (None, None) => Some(identity),
        };
        let by_others = change.is_some() || self.has_new_tree;
        match renewed.filter(|identity| !identity.has_expired(unix_now)) {
            None => Renewal::Refused,
            Some(same) if Arc::ptr_eq(same, identity) && !by_others => Renewal::Same,
            Some(renewed) => {
                let identity = renewed.clone();
                if let (Some(grants), Some(token)) = (&mut self.grants, identity.token()) {
                    grants.attach(token, &identity);
                }
                Renewal::Changed {
                    identity,
                    by_others,
                }
            }
        }
    }

    /// What is to be read again (SIGHUP). Linear in the keys that were fetched.
    #[must_use]
    pub fn reread(&self) -> Reread {
        let keys = self.jwt.as_ref();
        Reread {
            tokens: self.tokens.as_ref().map(TokenFile::reread),
            keys: keys.map(|jwt| (jwt.path.clone(), jwt.fetched.clone())),
            tree: self.tree.clone(),
        }
    }

    /// Puts in force what was read again. Sessions keep the identities they hold until they are
    /// [renewed](Self::renew), which is to be done before any of them sees another event. Linear in the JWTs that are
    /// kept, where keys were read. What it returns is what was in force before, and takes time to be dropped.
    pub fn take(&mut self, fresh: Fresh) -> Fresh {
        let mut before = Fresh::default();
        if let (Some(file), Some(table)) = (&mut self.tokens, fresh.tokens) {
            before.tokens = Some(file.replace(table));
        }
        if let (Some(jwt), Some(keys)) = (&mut self.jwt, fresh.keys) {
            before.keys = Some(std::mem::replace(&mut jwt.keys, keys));
            let keys = &jwt.keys;
            jwt.verified
                .retain(|identity| identity.key().is_some_and(|key| keys.has(key)));
            // A token that was refused may hold by the new keys.
            self.denials.clear();
        }
        if let (Some((_, tree)), Some(fresh)) = (&mut self.tree, fresh.tree) {
            self.has_new_tree |= !Arc::ptr_eq(tree, &fresh);
            before.tree = Some(std::mem::replace(tree, fresh));
        }
        before
    }

    /// All steps of a reload at once, on the calling thread.
    ///
    /// # Errors
    /// That of [`Reread::parse`], and what was in force stays.
    pub fn reload<E: From<AuthError>>(
        &mut self,
        read: impl Fn(&Path) -> Result<String, E>,
        read_keys: impl Fn(&Path) -> Result<jwt::KeyText, E>,
    ) -> Result<(), E> {
        let fresh = self.reread().parse(read, read_keys)?;
        self.take(fresh);
        Ok(())
    }

    /// Accounts that share a realm, and so see each other's events where only the realm tells accounts apart: to be
    /// warned of. Those of the token file, then those of the account tree.
    pub fn shared_realms(&self) -> impl Iterator<Item = &SharedRealm> + Clone {
        let of_file = self
            .tokens
            .as_ref()
            .map_or(&[][..], TokenFile::shared_realms);
        let of_tree = self
            .tree
            .as_ref()
            .map_or(&[][..], |(_, tree)| tree.shared_realms());
        of_file.iter().chain(of_tree)
    }

    /// Whether JWTs are verified, which takes a thread.
    #[must_use]
    pub fn verifies(&self) -> bool {
        self.jwt.is_some()
    }

    /// Whether anybody may do anything: to be warned of at every start (PROTOCOL 7).
    #[must_use]
    pub fn is_insecure(&self) -> bool {
        self.insecure.is_some()
    }

    /// What is kept (gauges).
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let (questions, askers) = self.inquiries.counts();
        Sizes {
            tokens: self.tokens.as_ref().map_or(0, TokenFile::len),
            keys: self.jwt.as_ref().map_or(0, |jwt| jwt.keys.len()),
            accounts: self.tree.as_ref().map_or(0, |(_, tree)| tree.len()),
            verified: self.jwt.as_ref().map_or(0, |jwt| jwt.verified.len()),
            grants: self.grants.as_ref().map_or(0, Grants::len),
            denials: self.denials.len(),
            questions,
            askers,
            not_asked: self.inquiries.refused,
        }
    }
}

/// What an authenticator keeps, and how much it has asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Tokens on file; 0 where there is no file.
    pub tokens: usize,
    /// Keys of JWTs, those that the platform sent included.
    pub keys: usize,
    /// Accounts of the account tree; 0 where there is none.
    pub accounts: usize,
    /// Verified JWTs.
    pub verified: usize,
    /// Answers of the platform that are yes.
    pub grants: usize,
    /// Answers that are no, or trouble.
    pub denials: usize,
    /// Questions without an answer.
    pub questions: usize,
    /// Those who wait for them.
    pub askers: usize,
    /// Questions that were not taken because of a bound, ever.
    pub not_asked: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::AccountId;

    fn nothing_to_read<T>(path: &Path) -> Result<T, AuthError> {
        panic!("{} is not to be read", path.display())
    }

    #[test]
    fn insecure_takes_any_token_for_any_account_with_the_templates_realm() {
        let config = AuthConfig {
            insecure: Some("{account_id}.sip.example".to_owned()),
            ..AuthConfig::default()
        };
        let mut authenticator =
            Authenticator::new(&config, nothing_to_read, nothing_to_read).expect("reads nothing");
        let (asker, now) = (
            Asker {
                connection: 1,
                network: [127, 0, 0, 1].into(),
            },
            Moment {
                unix: u64::MAX,
                clock: Duration::ZERO,
            },
        );
        let Verdict::Accepted(identity) = authenticator.identify("anything", asker, now) else {
            panic!("refused");
        };
        let account = AccountId::parse("00112233445566778899aabbccddeeff").expect("an account id");
        let sight = authenticator.sight(&identity);
        assert!(sight.may_see(account) && sight.is_superduper() && identity.is_token("another"));
        assert_eq!(identity.account_id(), None);
        assert_eq!(identity.expires(), None);
        assert_eq!(
            sight.realm_of(account).as_deref(),
            Some("00112233445566778899aabbccddeeff.sip.example")
        );
        assert!(authenticator.is_insecure());
        assert!(matches!(authenticator.renew(&identity, 0), Renewal::Same));
    }
}
