//! `sessions --by`: sessions added up by account or address, to see whose they are and who has too many.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::Write;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::Context;
use super::output::Failure;
use super::table::{BAD, Cell, Column, Table};
use super::text::{bytes, count, number, text};

/// What sessions are added up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum By {
    /// The account of their token
    Account,
    /// The address that they come from
    Ip,
}

/// Sessions of one account or address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Group {
    name: String,
    sessions: u64,
    frames: u64,
    bytes: u64,
    outbox: u64,
    dropped: u64,
}

impl By {
    fn member(self) -> &'static str {
        match self {
            Self::Account => "account_id",
            Self::Ip => "ip",
        }
    }

    /// The groups, those with most sessions first. O(n log n).
    pub(super) fn add_up<'s>(
        self,
        sessions: impl Iterator<Item = &'s Map<String, Value>>,
    ) -> Vec<Group> {
        let mut groups: HashMap<&str, Group> = HashMap::new();
        for session in sessions {
            let group = groups.entry(text(session, self.member())).or_default();
            group.sessions += 1;
            // The numbers are what a process says, whatever it is.
            for (sum, member) in [
                (&mut group.frames, "frames"),
                (&mut group.bytes, "bytes"),
                (&mut group.outbox, "outbox_bytes"),
                (&mut group.dropped, "dropped"),
            ] {
                *sum = sum.saturating_add(number(session, member));
            }
        }
        let named = groups.into_iter().map(|(name, group)| Group {
            name: name.to_owned(),
            ..group
        });
        let mut groups: Vec<Group> = named.collect();
        groups.sort_by(|one, other| {
            let order = |group: &Group| (Reverse(group.sessions), Reverse(group.frames));
            let by_size = order(one).cmp(&order(other));
            by_size.then_with(|| one.name.cmp(&other.name))
        });
        groups
    }

    /// Shows the first `shown_max` groups. `has_more`: there are more sessions than could be listed. `of_each`: what each
    /// process answered.
    pub(super) fn write(
        self,
        cx: &mut Context<'_>,
        groups: &[Group],
        shown_max: usize,
        has_more: bool,
        of_each: Vec<Value>,
    ) -> Result<(), Failure> {
        let shown = groups.get(..shown_max).unwrap_or(groups);
        if cx.is_json {
            let rows = shown.iter().map(|group| self.to_json(group));
            let document = json!({
                "groups": rows.collect::<Vec<Value>>(),
                "all_groups": groups.len(),
                "has_more": has_more,
                "processes": of_each,
            });
            cx.screen.document(&document)?;
            return Ok(());
        }
        let name = match self {
            Self::Account => "ACCOUNT",
            Self::Ip => "ADDRESS",
        };
        let mut table = Table::new(vec![
            Column::Left(name),
            Column::Right("SESSIONS"),
            Column::Right("FRAMES"),
            Column::Right("BYTES"),
            Column::Right("OUTBOX"),
            Column::Right("DROPPED"),
        ]);
        for group in shown {
            let dropped = count(group.dropped);
            table.add(vec![
                group.name.as_str().into(),
                count(group.sessions).into(),
                count(group.frames).into(),
                bytes(group.bytes).into(),
                bytes(group.outbox).into(),
                match group.dropped {
                    0 => dropped.into(),
                    _ => Cell::styled(&dropped, BAD),
                },
            ]);
        }
        let screen = &mut cx.screen;
        if !shown.is_empty() {
            table.write(&mut screen.out, screen.width)?;
        }
        let sessions: u64 = groups.iter().map(|group| group.sessions).sum();
        let left_out = match groups.len() - shown.len() {
            0 => String::new(),
            1 => "; 1 more row: --limit N, --all".to_owned(),
            more => format!("; {more} more rows: --limit N, --all"),
        };
        let more = if has_more {
            "; there are more sessions than can be listed"
        } else {
            ""
        };
        let noun = if sessions == 1 { "session" } else { "sessions" };
        writeln!(screen.out, "{} {noun}{left_out}{more}", count(sessions))?;
        Ok(screen.out.flush()?)
    }

    fn to_json(self, group: &Group) -> Value {
        json!({
            self.member(): group.name,
            "sessions": group.sessions,
            "frames": group.frames,
            "bytes": group.bytes,
            "outbox_bytes": group.outbox,
            "dropped": group.dropped,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_added_up_and_those_with_most_come_first() {
        let session = |ip: &str, frames: u64| {
            let value = json!({"ip": ip, "account_id": null, "frames": frames, "bytes": 10, "outbox_bytes": 1});
            let Value::Object(session) = value else {
                unreachable!("it is written as an object")
            };
            session
        };
        let sessions = [
            session("192.0.2.1", 5),
            session("192.0.2.2", 1),
            session("192.0.2.2", 2),
            session("192.0.2.3", 9),
        ];
        let groups = By::Ip.add_up(sessions.iter());
        let told: Vec<_> = groups
            .iter()
            .map(|group| (group.name.as_str(), group.sessions, group.frames))
            .collect();
        assert_eq!(
            told,
            [
                ("192.0.2.2", 2, 3),
                ("192.0.2.3", 1, 9),
                ("192.0.2.1", 1, 5)
            ]
        );
        let absurd = [session("192.0.2.1", u64::MAX), session("192.0.2.1", 1)];
        assert_eq!(By::Ip.add_up(absurd.iter())[0].frames, u64::MAX);
        let of_nobody = By::Account.add_up(sessions.iter());
        assert_eq!(of_nobody.len(), 1);
        assert_eq!((of_nobody[0].sessions, of_nobody[0].bytes), (4, 40));
    }
}
