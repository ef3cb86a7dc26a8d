//! `modules`: what clients may subscribe to, and starting and stopping families.

use std::collections::BTreeMap;
use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Context;
use super::actions::{ordered, told};
use super::http::Method;
use super::output::{Failure, Outcome};
use super::processes::Answer;
use super::query::{Query, segment};
use super::table::{Column, HEAD, Table};

/// List the bindings on offer by family, or start or stop the families of a module
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  blackhole ctl modules
  blackhole ctl modules stop bh_fax
  blackhole ctl modules start bh_fax --persist")]
pub(super) struct ModulesArgs {
    #[command(subcommand)]
    change: Option<Change>,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Start the families of a module
    #[command(after_help = "Example: blackhole ctl modules start bh_fax --persist")]
    Start(ModuleArgs),
    /// Stop the families of a module; their subscriptions end, and their clients are told
    #[command(after_help = "Example: blackhole ctl modules stop bh_fax")]
    Stop(ModuleArgs),
}

#[derive(Debug, Args)]
struct ModuleArgs {
    /// The platform's name of it, such as bh_call
    module: String,
    /// Keep it so over a restart
    #[arg(long)]
    persist: bool,
}

impl ModulesArgs {
    pub(super) fn run(&self, cx: &mut Context<'_>) -> Result<Outcome, Failure> {
        match &self.change {
            None => list(cx),
            Some(Change::Start(module)) => module.run("start", cx),
            Some(Change::Stop(module)) => module.run("stop", cx),
        }
    }
}

fn list(cx: &mut Context<'_>) -> Result<Outcome, Failure> {
    let answers = cx.processes()?.ask(|client| {
        let mut envelope = client.json(Method::Get, "/v2/websockets")?;
        Ok(envelope["data"].take())
    })?;
    let is_well = answers.iter().all(|answer| answer.result.is_ok());
    if cx.is_json {
        let of_each = answers.iter().map(|answer| answer.to_json(Value::clone));
        let document = json!({"processes": of_each.collect::<Vec<_>>()});
        cx.screen.document(&document)?;
        return Ok(Outcome::of(is_well));
    }
    // Those who offer the same are shown once.
    let mut offers: Vec<(Value, Vec<String>)> = Vec::new();
    let several = answers.len() > 1;
    for (process, offer) in answers.into_iter().filter_map(Answer::told) {
        match offers.iter_mut().find(|(known, _)| *known == offer) {
            Some((_, whose)) => whose.push(process),
            None => offers.push((offer, vec![process])),
        }
    }
    let out = &mut cx.screen.out;
    for (index, (offer, whose)) in offers.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        if several {
            writeln!(out, "{HEAD}{}:{HEAD:#}", whose.join(", "))?;
        }
        let mut table = Table::new(vec![Column::Left("FAMILY"), Column::Left("BINDING")]);
        for (family, bindings) in by_family(offer) {
            let mut title = family;
            for binding in bindings {
                table.add(vec![title.into(), binding.into()]);
                title = "";
            }
        }
        table.write(out, cx.screen.width)?;
    }
    out.flush()?;
    Ok(Outcome::of(is_well))
}

/// The bindings of each family.
fn by_family(offer: &Value) -> BTreeMap<&str, Vec<&str>> {
    let families = offer.as_object().into_iter().flatten();
    families
        .map(|(family, bindings)| {
            let bindings = bindings.as_array().into_iter().flatten();
            (&**family, bindings.filter_map(Value::as_str).collect())
        })
        .collect()
}

/// The first words of all bindings on offer, but for words in braces, which stand for any.
pub(super) fn first_words(offer: &Value) -> Vec<String> {
    let bindings = by_family(offer).into_values().flatten();
    let words = bindings.filter_map(|binding| binding.split('.').next());
    let mut words: Vec<String> = words
        .filter(|word| !word.starts_with('{'))
        .map(str::to_owned)
        .collect();
    words.sort_unstable();
    words.dedup();
    words
}

impl ModuleArgs {
    fn run(&self, action: &str, cx: &mut Context<'_>) -> Result<Outcome, Failure> {
        let query = Query::new(format!("/modules/{}", segment(&self.module)))
            .with("action", Some(action))
            .with("persist", Some(self.persist));
        let answers = cx
            .processes()?
            .ask(|client| ordered(client, query.as_str()))?;
        // It may be done and not kept, which the process says.
        let is_done = |reply: &Value| reply["error"].is_null();
        told(cx, answers, is_done, |reply| {
            let state = match reply["started"].as_bool() {
                Some(true) => "started",
                Some(false) => "stopped",
                None => "done",
            };
            let kept = match reply["persisted"].as_bool() {
                Some(true) => ", and stays so over a restart",
                Some(false) | None => "",
            };
            let error = reply["error"].as_str();
            let error = error.map_or(String::new(), |error| format!("; {error}"));
            format!("{} {state}{kept}{error}", self.module)
        })
    }
}
