//! `kick`: sessions are closed.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use clap::{ArgGroup, Args};
use serde_json::json;

use super::Context;
use super::http::{Client, Method, Trouble};
use super::output::{Failure, Outcome, complain, confirm};
use super::processes::Answer;
use super::query::{Query, segment};
use super::sessions::{parse_account, parse_session};
use super::text::count;
use crate::account::AccountId;
use crate::protocol::admin_request::REASON_BYTES_MAX;

/// Close a session, or all of an account or an address
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("whom").required(true).multiple(true).args(["id", "account", "ip"]),
    after_help = "\
Examples:
  blackhole ctl kick 192.0.2.7:41234
  blackhole ctl kick --account 4b8c6fec4b2597882c0390202d195419
  blackhole ctl kick --ip 192.0.2.7 --code 4000 --reason 'moved to another host'
  blackhole ctl kick --ip 192.0.2.7 --yes"
)]
pub(super) struct KickArgs {
    /// The id of the session, IP:PORT, as `blackhole ctl sessions` lists it
    #[arg(value_name = "ID", value_parser = parse_session, conflicts_with_all = ["account", "ip"])]
    id: Option<SocketAddr>,
    /// Those of this account
    #[arg(long, value_parser = parse_account)]
    account: Option<AccountId>,
    /// Those from this address
    #[arg(long)]
    ip: Option<IpAddr>,
    /// Close code that their clients get: 1008, or 4000 to 4999 [default: 1008]
    #[arg(long, value_parser = parse_code)]
    code: Option<u16>,
    /// Reason that their clients get
    #[arg(long, value_name = "TEXT", value_parser = parse_reason)]
    reason: Option<String>,
    /// Do not ask at the terminal before closing more than one
    #[arg(long)]
    yes: bool,
}

fn parse_code(text: &str) -> Result<u16, &'static str> {
    match text.parse() {
        Ok(code @ (1008 | 4000..=4999)) => Ok(code),
        Ok(_) | Err(_) => Err("1008, or 4000 to 4999, is expected"),
    }
}

fn parse_reason(text: &str) -> Result<String, String> {
    if text.len() > REASON_BYTES_MAX {
        return Err(format!("at most {REASON_BYTES_MAX} bytes fit"));
    }
    Ok(text.to_owned())
}

impl KickArgs {
    pub(super) fn run(&self, cx: &mut Context<'_>) -> Result<Outcome, Failure> {
        let processes = cx.processes()?;
        if self.id.is_none() {
            let question = format!(
                "Close all sessions {} on {} process(es)?",
                self.whose(),
                processes.all.len()
            );
            confirm(&question, self.yes)?;
        }
        let answers = processes.ask(|client| self.close(client))?;
        let is_well = answers.iter().all(|answer| answer.result.is_ok());
        let closed = answers
            .iter()
            .filter_map(|answer| answer.result.as_ref().ok());
        let closed = closed.fold(0, |sum: u64, closed| sum.saturating_add(*closed));
        if cx.is_json {
            let of_each: Vec<_> = answers
                .iter()
                .map(|answer| answer.to_json(|closed| json!({"closed": closed})))
                .collect();
            let document = json!({"closed": closed, "processes": of_each});
            cx.screen.document(&document)?;
            return Ok(Outcome::of(is_well && (closed > 0 || self.id.is_none())));
        }
        for (process, closed) in answers.into_iter().filter_map(Answer::told) {
            if closed > 0 || self.id.is_none() {
                writeln!(cx.screen.out, "{process}: {} closed", count(closed))?;
            }
        }
        cx.screen.out.flush()?;
        match self.id {
            Some(id) if closed == 0 => {
                if is_well {
                    complain(&format!("no session {id} here"));
                }
                Ok(Outcome::Failed)
            }
            Some(_) | None => Ok(Outcome::of(is_well)),
        }
    }

    fn whose(&self) -> String {
        let account = self.account.map(|account| format!("of account {account}"));
        let ip = self.ip.map(|ip| format!("from {ip}"));
        let both: Vec<String> = account.into_iter().chain(ip).collect();
        both.join(" ")
    }

    /// How many were closed there.
    fn close(&self, client: &Client) -> Result<u64, Trouble> {
        let path = match self.id {
            Some(id) => format!("/v2/sessions/{}", segment(&id.to_string())),
            None => "/v2/sessions".to_owned(),
        };
        let query = Query::new(path)
            .with("account", self.account)
            .with("ip", self.ip)
            .with("code", self.code)
            .with("reason", self.reason.as_ref());
        match client.json(Method::Delete, query.as_str()) {
            Ok(envelope) => envelope["data"]["closed"]
                .as_u64()
                .ok_or_else(|| Trouble::Foreign("it does not say how many were closed".to_owned())),
            Err(Trouble::NotFound(_)) if self.id.is_some() => Ok(0),
            Err(trouble) => Err(trouble),
        }
    }
}
