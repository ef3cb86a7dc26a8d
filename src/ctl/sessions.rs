//! `sessions` and `session ID`: who is connected, and what one of them is.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::Context;
use super::groups::By;
use super::http::{Client, Method, Trouble};
use super::modules::first_words;
use super::output::{Failure, Outcome, complain};
use super::processes::Answer;
use super::query::{Query, segment};
use super::table::{BAD, Cell, Column, HEAD, Table};
use super::text::{NOTHING, bytes, count, number, span, text};
use crate::account::AccountId;
use crate::closest::closest;
use crate::limits::CTL_PAGES_MAX;
use crate::printable::printable;
use crate::protocol::admin_request::PAGE_SESSIONS_MAX;

/// List sessions, of all processes together
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  blackhole ctl sessions --account 4b8c6fec4b2597882c0390202d195419
  blackhole ctl sessions --ip 192.0.2.7 --all
  blackhole ctl sessions --slow --sort outbox --limit 10
  blackhole ctl sessions --binding 'call.CHANNEL_CREATE.*' --all --json
  blackhole ctl sessions --by ip --limit 10")]
pub(super) struct SessionsArgs {
    /// Those of this account
    #[arg(long, value_parser = parse_account)]
    account: Option<AccountId>,
    /// Those from this address
    #[arg(long)]
    ip: Option<IpAddr>,
    /// Those that are subscribed to this client binding, as they wrote it
    #[arg(long)]
    binding: Option<String>,
    /// Those whose sockets are full
    #[arg(long)]
    slow: bool,
    /// The largest first
    #[arg(long, value_enum)]
    sort: Option<Sort>,
    /// How many at most
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = parse_limit)]
    limit: usize,
    /// All that there are
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Add them up, all that there are, by account or address; those with most sessions first
    #[arg(long, value_enum, conflicts_with = "sort")]
    by: Option<By>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// How long ago it was opened
    Age,
    /// How long ago its client last sent something
    Idle,
    /// Bytes sent
    Bytes,
    /// Frames sent
    Frames,
    /// Bytes that wait for it
    Outbox,
    /// Events dropped
    Dropped,
}

impl Sort {
    /// Its word in a query, and the member of a session that it looks at.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Age => ("age", "age_seconds"),
            Self::Idle => ("idle", "idle_seconds"),
            Self::Bytes => ("bytes", "bytes"),
            Self::Frames => ("frames", "frames"),
            Self::Outbox => ("outbox", "outbox_bytes"),
            Self::Dropped => ("dropped", "dropped"),
        }
    }
}

pub(super) fn parse_account(text: &str) -> Result<AccountId, &'static str> {
    AccountId::parse(text).ok_or("32 hex characters are expected")
}

pub(super) fn parse_session(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "the id of a session is expected, IP:PORT")
}

fn parse_limit(text: &str) -> Result<usize, &'static str> {
    let limit = text.parse().ok().filter(|limit| *limit > 0);
    limit.ok_or("a number from 1 is expected")
}

/// Sessions of one process.
struct Listed {
    sessions: Vec<Map<String, Value>>,
    has_more: bool,
}

impl SessionsArgs {
    pub(super) fn run(&self, cx: &mut Context<'_>) -> Result<Outcome, Failure> {
        let processes = cx.processes()?;
        let shown_max = if self.all { usize::MAX } else { self.limit };
        let wanted = if self.by.is_some() {
            usize::MAX
        } else {
            shown_max
        };
        let answers = processes.ask(|client| list(client, &self.query(), wanted))?;
        let is_well = answers.iter().all(|answer| answer.result.is_ok());
        let has_answer = answers.iter().any(|answer| answer.result.is_ok());
        let of_each: Vec<Value> = answers
            .iter()
            .map(|answer| {
                answer.to_json(|listed| {
                    json!({"sessions": listed.sessions.len(), "has_more": listed.has_more})
                })
            })
            .collect();
        let several = answers.len() > 1;
        let (mut rows, mut listed) = (Vec::new(), Vec::new());
        for (process, found) in answers.into_iter().filter_map(Answer::told) {
            listed.push((process.clone(), found.sessions.len(), found.has_more));
            let sessions = found.sessions.into_iter();
            rows.extend(sessions.map(|session| (process.clone(), session)));
        }
        if let Some(by) = self.by {
            if !has_answer && !cx.is_json {
                return Ok(Outcome::Failed);
            }
            let has_more = listed.iter().any(|(_, _, has_more)| *has_more);
            let groups = by.add_up(rows.iter().map(|(_, session)| session));
            by.write(cx, &groups, shown_max, has_more, of_each)?;
            return Ok(Outcome::of(is_well));
        }
        if let Some(sort) = self.sort {
            let (_, member) = sort.names();
            // Stable: equal ones stay in the order of the processes.
            rows.sort_by_key(|(_, session)| std::cmp::Reverse(number(session, member)));
        }
        let has_more = rows.len() > wanted || listed.iter().any(|(_, _, has_more)| *has_more);
        rows.truncate(wanted);
        if cx.is_json {
            let rows: Vec<Value> = rows.into_iter().map(to_json).collect();
            let document = json!({"sessions": rows, "has_more": has_more, "processes": of_each});
            cx.screen.document(&document)?;
            return Ok(Outcome::of(is_well));
        }
        if !has_answer {
            return Ok(Outcome::Failed);
        }
        self.write(cx, &rows, several, has_more, &listed)?;
        if rows.is_empty()
            && let Some(binding) = &self.binding
            && let Some(hint) = hint(&processes.ask(families)?, binding)
        {
            complain(&hint);
        }
        Ok(Outcome::of(is_well))
    }

    fn query(&self) -> Query {
        Query::new("/v2/sessions")
            .with("account", self.account)
            .with("ip", self.ip)
            .with("binding", self.binding.as_ref())
            .with("slow", self.slow.then_some(1))
            .with("sort", self.sort.map(|sort| sort.names().0))
    }

    fn write(
        &self,
        cx: &mut Context<'_>,
        rows: &[(String, Map<String, Value>)],
        several: bool,
        has_more: bool,
        listed: &[(String, usize, bool)],
    ) -> Result<(), Failure> {
        let screen = &mut cx.screen;
        if !rows.is_empty() {
            table(rows, several).write(&mut screen.out, screen.width)?;
        }
        if several && self.all {
            writeln!(screen.out)?;
            let mut sums = Table::new(vec![Column::Left("PROCESS"), Column::Right("SESSIONS")]);
            for (process, found, _) in listed {
                sums.add(vec![process.into(), count(*found as u64).into()]);
            }
            let all = count(rows.len() as u64);
            sums.add(vec![Cell::styled("all", HEAD), Cell::styled(&all, HEAD)]);
            sums.write(&mut screen.out, screen.width)?;
        }
        let shown = count(rows.len() as u64);
        let noun = if rows.len() == 1 {
            "session"
        } else {
            "sessions"
        };
        let more = match (has_more, self.all) {
            (false, _) => "",
            (true, false) => "; there are more: --limit N, --all",
            (true, true) => "; there are more than can be listed",
        };
        writeln!(screen.out, "{shown} {noun}{more}")?;
        Ok(screen.out.flush()?)
    }
}

fn table(rows: &[(String, Map<String, Value>)], several: bool) -> Table {
    let mut columns = vec![
        Column::Left("SESSION"),
        Column::Left("ACCOUNT"),
        Column::Right("AGE"),
        Column::Right("IDLE"),
        Column::Right("BINDINGS"),
        Column::Right("FRAMES"),
        Column::Right("BYTES"),
        Column::Right("OUTBOX"),
        Column::Right("DROPPED"),
    ];
    if several {
        columns.push(Column::Left("PROCESS"));
    }
    columns.push(Column::Left("NAME"));
    let mut table = Table::new(columns);
    for (process, session) in rows {
        let some = |member, write: fn(u64) -> String| -> Cell {
            let figure = session.get(member).and_then(Value::as_u64);
            figure.map_or(NOTHING.to_owned(), write).into()
        };
        let bad = |member, write: fn(u64) -> String| match number(session, member) {
            0 => some(member, write),
            figure => Cell::styled(&write(figure), BAD),
        };
        let bindings = match session.get("bindings") {
            Some(Value::Array(all)) => count(all.len() as u64),
            Some(Value::Number(all)) => all.to_string(),
            _ => NOTHING.to_owned(),
        };
        let mut cells = vec![
            text(session, "id").into(),
            text(session, "account_id").into(),
            some("age_seconds", span),
            some("idle_seconds", span),
            bindings.into(),
            some("frames", count),
            some("bytes", bytes),
            some("outbox_bytes", bytes),
            bad("dropped", count),
        ];
        if several {
            cells.push(process.into());
        }
        cells.push(
            session
                .get("name")
                .and_then(Value::as_str)
                .unwrap_or("")
                .into(),
        );
        table.add(cells);
    }
    table
}

fn to_json((process, mut session): (String, Map<String, Value>)) -> Value {
    session.insert("process".to_owned(), process.into());
    Value::Object(session)
}

/// The first `wanted` sessions of a listing, or all.
fn list(client: &Client, query: &Query, wanted: usize) -> Result<Listed, Trouble> {
    let mut sessions = Vec::new();
    let has_more = follow(client, query, wanted, |page| {
        sessions.extend(page);
        wanted.saturating_sub(sessions.len())
    })?;
    let has_more = has_more || sessions.len() > wanted;
    sessions.truncate(wanted);
    Ok(Listed { sessions, has_more })
}

/// Follows the pages of a listing, of which the first has `wanted` sessions at most, until `take` wants no more of them: it
/// returns how many. Returns whether there are more pages.
fn follow(
    client: &Client,
    query: &Query,
    mut wanted: usize,
    mut take: impl FnMut(Vec<Map<String, Value>>) -> usize,
) -> Result<bool, Trouble> {
    let mut key: Option<String> = None;
    for _ in 0..CTL_PAGES_MAX {
        let page = query
            .clone()
            .with("limit", Some(PAGE_SESSIONS_MAX.min(wanted)))
            .with("start_key", key.as_ref());
        let mut envelope = client.json(Method::Get, page.as_str())?;
        let Value::Array(found) = envelope["data"].take() else {
            return Err(Trouble::Foreign("no list of sessions".to_owned()));
        };
        let sessions = found.into_iter().filter_map(|session| match session {
            Value::Object(session) => Some(session),
            _ => None,
        });
        wanted = take(sessions.collect());
        let next = envelope["next_start_key"].as_str().map(str::to_owned);
        if next.is_none() || wanted == 0 {
            return Ok(next.is_some());
        }
        if next == key {
            return Err(Trouble::Foreign("a page that leads to itself".to_owned()));
        }
        key = next;
    }
    Ok(true)
}

/// The first words of the client bindings on offer.
fn families(client: &Client) -> Result<Vec<String>, Trouble> {
    let envelope = client.json(Method::Get, "/v2/websockets")?;
    Ok(first_words(&envelope["data"]))
}

/// For a binding that nobody has: its first word may be misspelt.
fn hint(families: &[Answer<Vec<String>>], binding: &str) -> Option<String> {
    let found = families
        .iter()
        .filter_map(|answer| answer.result.as_ref().ok());
    let known: Vec<&String> = found.flatten().collect();
    let first = binding.split('.').next().unwrap_or_default();
    if known.is_empty() || known.iter().any(|word| *word == first) {
        return None;
    }
    let near = closest(first, known.into_iter().map(String::as_str));
    let meant = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
    Some(format!("no binding begins with the word {first}{meant}"))
}

/// Show one session
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  blackhole ctl session 192.0.2.7:41234
  blackhole ctl session '[2001:db8::7]:41234' --json")]
pub(super) struct SessionArgs {
    /// The id of the session, IP:PORT, as `blackhole ctl sessions` lists it
    #[arg(value_name = "ID", value_parser = parse_session)]
    id: SocketAddr,
}

impl SessionArgs {
    pub(super) fn run(&self, cx: &mut Context<'_>) -> Result<Outcome, Failure> {
        let answers = cx.processes()?.ask(|client| find(client, self.id))?;
        let is_well = answers.iter().all(|answer| answer.result.is_ok());
        let told = answers.into_iter().filter_map(Answer::told);
        let found = told.filter_map(|(process, session)| Some((process, session?)));
        let found: Vec<_> = found.collect();
        if cx.is_json {
            let sessions: Vec<Value> = found.iter().cloned().map(to_json).collect();
            cx.screen.document(&json!({"sessions": sessions}))?;
        } else {
            for (process, session) in &found {
                write_one(cx, process, session)?;
            }
        }
        if found.is_empty() && is_well {
            complain(&format!("no session {} here", self.id));
        }
        Ok(Outcome::of(is_well && !found.is_empty()))
    }
}

/// The figures of a session, and what the platform is told of it.
fn find(client: &Client, id: SocketAddr) -> Result<Option<Map<String, Value>>, Trouble> {
    let query = Query::new("/v2/sessions").with("ip", Some(id.ip()));
    let name = id.to_string();
    let mut found = None;
    follow(client, &query, usize::MAX, |page| {
        let mut sessions = page.into_iter();
        found = sessions.find(|session| text(session, "id") == name);
        if found.is_some() { 0 } else { usize::MAX }
    })?;
    let Some(mut session) = found else {
        return Ok(None);
    };
    if let Some(account) = session.get("account_id").and_then(Value::as_str) {
        let path = format!(
            "/v2/accounts/{}/websockets/{}",
            segment(account),
            segment(&name)
        );
        match client.json(Method::Get, &path) {
            Ok(mut envelope) => {
                if let Value::Object(object) = envelope["data"].take() {
                    for (member, value) in object {
                        session.entry(member).or_insert(value);
                    }
                }
            }
            // It went meanwhile.
            Err(Trouble::NotFound(_)) => {}
            Err(trouble) => return Err(trouble),
        }
    }
    Ok(Some(session))
}

fn write_one(
    cx: &mut Context<'_>,
    process: &str,
    session: &Map<String, Value>,
) -> Result<(), Failure> {
    let figure = |member, write: fn(u64) -> String| {
        let figure = session.get(member).and_then(Value::as_u64);
        figure.map_or(NOTHING.to_owned(), write)
    };
    let mut lines = vec![
        ("session", text(session, "id").to_owned()),
        ("process", process.to_owned()),
        ("account", text(session, "account_id").to_owned()),
        ("name", text(session, "name").to_owned()),
        ("age", figure("age_seconds", span)),
        ("idle", figure("idle_seconds", span)),
        ("frames", figure("frames", count)),
        ("bytes", figure("bytes", bytes)),
        ("outbox", figure("outbox_bytes", bytes)),
        ("dropped", figure("dropped", count)),
        (
            "tls",
            session
                .get("tls")
                .and_then(Value::as_str)
                .unwrap_or("no")
                .to_owned(),
        ),
    ];
    if let Some(Value::Bool(is_compressed)) = session.get("compression") {
        lines.push((
            "deflate",
            if *is_compressed { "yes" } else { "no" }.to_owned(),
        ));
    }
    if let Some(metadata) = session.get("metadata") {
        lines.push(("metadata", metadata.to_string()));
    }
    let bindings = session.get("bindings").and_then(Value::as_array);
    let bindings = bindings.map(Vec::as_slice).unwrap_or_default();
    let mut title = "bindings";
    for binding in bindings.iter().filter_map(Value::as_str) {
        lines.push((title, binding.to_owned()));
        title = "";
    }
    if bindings.is_empty() {
        lines.push((title, NOTHING.to_owned()));
    }
    let out = &mut cx.screen.out;
    for (title, value) in lines {
        writeln!(out, "{HEAD}{title:9}{HEAD:#} {}", printable(&value))?;
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::scripted::{Scripted, answer};
    use super::*;

    fn listed(pages: &[&str], wanted: usize) -> (Result<Listed, Trouble>, Vec<String>) {
        let pages = pages.iter();
        let pages = pages.map(|page| answer("200 OK", "application/json", page));
        let server = Scripted::answering(pages.collect());
        let client = Client::new(server.place.clone(), None, Duration::from_secs(20));
        let listed = list(&client, &Query::new("/v2/sessions"), wanted);
        let lines = server.requests().into_iter();
        let line = |head: String| head.lines().next().unwrap_or_default().to_owned();
        (listed, lines.map(line).collect())
    }

    #[test]
    fn pages_are_followed_as_far_as_is_wanted() {
        let pages = [
            r#"{"data":[{"id":"a"},7,{"id":"b"}],"next_start_key":"x/1 &"}"#,
            r#"{"data":[{"id":"c"}],"page_size":1}"#,
        ];
        for (wanted, sessions, has_more, asked) in [
            (
                usize::MAX,
                3,
                false,
                &["limit=1000", "limit=1000&start_key=x%2F1%20%26"][..],
            ),
            (2, 2, true, &["limit=2"]),
            (1, 1, true, &["limit=1"]),
            (3, 3, false, &["limit=3", "limit=1&start_key=x%2F1%20%26"]),
        ] {
            let (found, requests) = listed(&pages, wanted);
            let found = found.unwrap_or_else(|trouble| panic!("{wanted}: {trouble}"));
            assert_eq!(found.sessions.len(), sessions, "{wanted}");
            assert_eq!(found.has_more, has_more, "{wanted}");
            let of = |query: &&str| format!("GET /v2/sessions?{query} HTTP/1.1");
            assert_eq!(requests, asked.iter().map(of).collect::<Vec<_>>());
        }
    }

    #[test]
    fn one_session_is_looked_for_no_further_than_it_is() {
        let pages = [
            r#"{"data":[{"id":"192.0.2.7:4"}],"next_start_key":"2"}"#,
            r#"{"data":[{"id":"192.0.2.7:5","account_id":"a/b"}],"next_start_key":"3"}"#,
            r#"{"data":{"id":"other","metadata":{"seat":7}}}"#,
        ];
        let server = Scripted::answering(
            pages
                .iter()
                .map(|page| answer("200 OK", "application/json", page))
                .collect(),
        );
        let client = Client::new(server.place.clone(), None, Duration::from_secs(20));
        let id = "192.0.2.7:5".parse().expect("an id");
        let session = find(&client, id).expect("answers").expect("a session");
        assert_eq!(session["id"], "192.0.2.7:5", "the row comes first");
        assert_eq!(session["metadata"]["seat"], 7);
        let lines = server.requests();
        let paths: Vec<&str> = lines
            .iter()
            .filter_map(|head| head.split(' ').nth(1))
            .collect();
        let expected = [
            "/v2/sessions?ip=192.0.2.7&limit=1000",
            "/v2/sessions?ip=192.0.2.7&limit=1000&start_key=2",
            "/v2/accounts/a%2Fb/websockets/192.0.2.7:5",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn a_listing_that_cannot_be_is_an_error_and_ends() {
        let same = r#"{"data":[],"next_start_key":"x"}"#;
        for pages in [
            &[same, same][..],
            &[r#"{"data":{}}"#],
            &["{}"],
            &["nonsense"],
        ] {
            let (found, _) = listed(pages, usize::MAX);
            assert!(matches!(found, Err(Trouble::Foreign(_))), "{pages:?}");
        }
    }

    #[test]
    fn a_misspelt_first_word_gets_the_nearest() {
        let of = |words: &[&str]| Answer {
            process: "p".to_owned(),
            result: Ok(words.iter().map(|word| (*word).to_owned()).collect()),
        };
        let known = [of(&["call", "conference"]), of(&["fax"])];
        for (binding, expected) in [
            ("call.X.*", None),
            ("fax", None),
            (
                "clal.X.*",
                Some("no binding begins with the word clal; did you mean call?"),
            ),
            (
                "registration",
                Some("no binding begins with the word registration"),
            ),
        ] {
            assert_eq!(hint(&known, binding).as_deref(), expected);
        }
        assert_eq!(hint(&[], "call.X"), None);
    }
}
