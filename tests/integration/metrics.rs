//! The metrics page as Prometheus reads it, what its times tell, and the alerts and the dashboard that use it.
//!
//! What needs promtool (`scripts/setup --promtool`) is left out where it is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::bridge::Host;
use support::client::{Client, Raw, subscribe};
use support::events::{ACCOUNT, call_event};
use support::left_out::leave_out;
use support::project_file;
use support::publisher::Publisher;
use support::server::{Fed, Server, dead_address};

const MONITORING: &str = "scripts/monitoring";

/// The checker of the system, or the one that `scripts/setup` brings.
fn promtool() -> Option<Command> {
    let brought = project_file("target/tools/promtool");
    let program = if brought.is_file() {
        brought
    } else {
        PathBuf::from("promtool")
    };
    let found = Command::new(&program).arg("--version").output();
    match found {
        Ok(output) if output.status.success() => Some(Command::new(program)),
        _ => {
            leave_out(&"promtool is missing: scripts/setup --promtool");
            None
        }
    }
}

/// What promtool says of `input`.
fn told(mut promtool: Command, arguments: &[&str], input: &str) -> Output {
    let mut child = promtool
        .args(arguments)
        .current_dir(project_file(MONITORING))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// A page on which each histogram has something.
fn lively_page() -> String {
    let mut fed = Fed::insecure(&[]);
    let mut client = fed.server.client();
    client.must_subscribe("any", ACCOUNT, "call.*.*");
    publish(&mut fed, 1);
    client.event();
    fed.server.until("all written", |server| {
        server.metric("fan_out_seconds_count") > 0 && server.metric("loop_lag_seconds_count") > 0
    });
    fed.server.page("/metrics").1
}

fn publish(fed: &mut Fed, number: usize) {
    let body = call_event(ACCOUNT, "CHANNEL_CREATE", number);
    fed.publish("callevt", "call.CHANNEL_CREATE.x", &body);
}

#[test]
fn prometheus_has_no_complaint_about_the_page() {
    let Some(promtool) = promtool() else {
        return;
    };
    let output = told(promtool, &["check", "metrics"], &lively_page());
    let said = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&said), "");
}

#[test]
fn every_alert_holds_what_it_promises() {
    let alerts = fs::read_to_string(project_file(MONITORING).join("alerts.yml")).unwrap();
    let tests = fs::read_to_string(project_file(MONITORING).join("alerts_test.yml")).unwrap();
    for name in alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        assert!(
            tests.contains(&format!("alertname=\"{name}\"")),
            "no test shows that {name} fires"
        );
    }
    for (arguments, count) in [("check rules", 1), ("test rules", 1)] {
        let Some(promtool) = promtool() else {
            return;
        };
        let file = if arguments == "test rules" {
            "alerts_test.yml"
        } else {
            "alerts.yml"
        };
        let arguments: Vec<&str> = arguments.split(' ').chain([file]).collect();
        let output = told(promtool, &arguments, "");
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(said.matches("SUCCESS").count(), count, "{output:?}");
    }
}

/// The families of a page: their labels, each with its values, and whether they are histograms.
#[derive(Debug, Default)]
struct Families {
    labels: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
    histograms: BTreeSet<String>,
}

impl Families {
    fn read(page: &str) -> Self {
        let mut families = Self::default();
        let mut family = String::new();
        for line in page.lines() {
            if let Some(described) = line.strip_prefix("# TYPE ") {
                let (name, kind) = described.split_once(' ').unwrap();
                family = name.to_owned();
                families.labels.entry(family.clone()).or_default();
                if kind == "histogram" {
                    families.histograms.insert(family.clone());
                }
            } else if let Some((_, labels)) = line.split_once('{') {
                let (labels, _) = labels.rsplit_once('}').unwrap();
                for label in labels.split(',') {
                    let (name, value) = label.split_once('=').unwrap();
                    let known = families.labels.entry(family.clone()).or_default();
                    let values = known.entry(name.to_owned()).or_default();
                    values.insert(value.trim_matches('"').to_owned());
                }
            }
        }
        // Linux before 6.2 does not tell it.
        families
            .labels
            .entry("process_open_fds".to_owned())
            .or_default();
        families
    }

    /// The family that a name in a query is of.
    fn of<'n>(&self, name: &'n str) -> Option<&'n str> {
        let part_of = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
            let family = name.strip_suffix(suffix)?;
            self.histograms.contains(family).then_some(family)
        });
        let whole = self.labels.contains_key(name) && !self.histograms.contains(name);
        part_of.or(whole.then_some(name))
    }

    /// What a query says that no page has.
    fn complaints(&self, query: &str) -> Vec<String> {
        let mut complaints = Vec::new();
        for (at, name) in names(query) {
            let Some(family) = self.of(name) else {
                complaints.push(format!("{name} is on no page: {query}"));
                continue;
            };
            let behind = &query[at + name.len()..];
            let selectors = behind
                .strip_prefix('{')
                .and_then(|rest| rest.split_once('}'));
            for selector in selectors.map_or("", |(inside, _)| inside).split(',') {
                let Some((label, value)) = selector.split_once('=') else {
                    continue;
                };
                let label = label.trim_end_matches('!');
                if ["instance", "job", "le"].contains(&label) {
                    continue;
                }
                let known = self.labels[family].get(label);
                for value in value.trim_start_matches('~').trim_matches('"').split('|') {
                    if !known.is_some_and(|values| values.contains(value)) {
                        complaints.push(format!("{name} has no {label}={value}: {query}"));
                    }
                }
            }
        }
        complaints
    }
}

/// The names of metrics in a text, with their places.
fn names(text: &str) -> Vec<(usize, &str)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let begins = |at: &usize| {
        let is_name = ["blackhole_", "process_"]
            .iter()
            .any(|prefix| text[*at..].starts_with(prefix));
        is_name && !text[..*at].ends_with(is_part)
    };
    let places = text.char_indices().map(|(at, _)| at).filter(begins);
    places
        .map(|at| {
            let rest = &text[at..];
            let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            (at, &rest[..end])
        })
        .collect()
}

/// The strings under these keys, wherever they are.
fn strings_under<'v>(value: &'v Value, keys: &[&str], found: &mut Vec<&'v str>) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                match member {
                    Value::String(text) if keys.contains(&&**key) => found.push(text),
                    other => strings_under(other, keys, found),
                }
            }
        }
        Value::Array(elements) => {
            elements
                .iter()
                .for_each(|one| strings_under(one, keys, found));
        }
        _ => {}
    }
}

#[test]
fn alerts_and_dashboard_name_only_what_a_page_has() {
    let families = Families::read(&lively_page());
    assert!(
        !families
            .complaints("rate(blackhole_nothing_total[5m])")
            .is_empty()
    );
    assert!(
        !families
            .complaints(r#"blackhole_closes_total{reason=~"peer|nobody"}"#)
            .is_empty()
    );
    assert!(
        !families
            .complaints(r#"blackhole_closes_total{why="peer"}"#)
            .is_empty()
    );
    assert!(
        !families.complaints("blackhole_turn_seconds").is_empty(),
        "no sample"
    );
    assert!(
        families
            .complaints("rate(blackhole_turn_seconds_bucket[5m])")
            .is_empty()
    );

    let alerts = fs::read_to_string(project_file(MONITORING).join("alerts.yml")).unwrap();
    let queries: Vec<&str> = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: '")?.strip_suffix('\''))
        .collect();
    assert_eq!(queries.len(), alerts.matches("- alert: ").count());
    let dashboard = fs::read_to_string(project_file(MONITORING).join("dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let mut shown = Vec::new();
    strings_under(&dashboard, &["expr", "query", "definition"], &mut shown);
    assert!(shown.len() > 40, "{shown:?}");
    let complaints: Vec<String> = queries
        .iter()
        .chain(&shown)
        .flat_map(|query| families.complaints(query))
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    // What the texts name besides.
    for line in alerts.lines().filter(|line| !line.contains("expr:")) {
        for (_, name) in names(line) {
            let is_there = families.labels.contains_key(name);
            assert!(is_there, "{name} is on no page: {line}");
        }
    }
}

#[test]
fn the_dashboard_is_ready_to_be_imported() {
    let text = fs::read_to_string(project_file(MONITORING).join("dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let variables: Vec<&str> = dashboard["templating"]["list"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|variable| variable["name"].as_str())
        .collect();
    assert_eq!(variables, ["datasource", "instance"]);
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    let mut rows = Vec::new();
    for panel in panels {
        assert!(
            ids.insert(panel["id"].as_u64().unwrap()),
            "an id twice: {panel}"
        );
        let right = &panel["gridPos"];
        assert!(
            right["x"].as_u64().unwrap() + right["w"].as_u64().unwrap() <= 24,
            "{panel}"
        );
        if panel["type"] == "row" {
            rows.push(panel["title"].as_str().unwrap());
            continue;
        }
        assert!(
            !panel["description"].as_str().unwrap().is_empty(),
            "{panel}"
        );
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{panel}");
        for target in targets {
            let expr = target["expr"].as_str().unwrap();
            assert!(expr.contains(r#"instance=~"$instance""#), "{expr}");
        }
    }
    assert_eq!(
        rows,
        [
            "Health",
            "Load",
            "Latency",
            "Broker",
            "Clients that come back",
            "Limits",
            "TLS",
            "Process"
        ]
    );
}

#[test]
fn what_happens_is_timed_once() {
    let mut fed = Fed::insecure(&[]);
    let mut client = fed.server.client();
    client.must_subscribe("any", ACCOUNT, "call.*.*");
    let before = fed.server.metrics();
    assert_eq!(
        before["handshake_seconds_count"], 1,
        "pages are no handshakes"
    );
    assert_eq!(before["subscribe_seconds_count"], 1);
    assert_eq!(before["event_age_seconds_count"], 0);
    for number in 0..5 {
        publish(&mut fed, number);
        assert_eq!(client.event()["args"]["Number"], number);
    }
    // One that nobody wants has no age and no fan-out.
    fed.publish(
        "callevt",
        "call.CHANNEL_CREATE.x",
        &json!({"Event-Name": "CHANNEL_CREATE"}),
    );
    fed.server.wait_for_metric("events_total", 6);
    fed.server.wait_for_metric("fan_out_seconds_count", 5);
    let after = fed.server.metrics();
    assert_eq!(after["event_age_seconds_count"], 5);
    assert_eq!(after[r#"event_age_seconds_bucket{le="60"}"#], 5);
    assert!(after["turn_seconds_count"] > before["turn_seconds_count"]);
    fed.server
        .until("the walk over all sessions goes on", |server| {
            server.metric("loop_lag_seconds_count") > after["loop_lag_seconds_count"]
        });
    assert!(fed.server.metric_seconds("turn_seconds_sum") > 0.0);
    // A refused upgrade is answered too.
    let mut refused = Raw::connect(fed.server.address());
    refused.send(b"GET /ws HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(refused.last_response().status, 404);
    fed.server
        .wait_for_metric(r#"handshakes_refused_total{reason="request"}"#, 1);
}

#[test]
fn a_subscribe_that_waits_for_the_broker_is_timed_to_its_answer() {
    let args = ["--request-timeout-ms", "700"];
    let (_socket, dead) = dead_address();
    let url = format!("amqp://guest:guest@{dead}/%2f");
    let server = Server::start(&[&["--amqp", &url, "--auth", "insecure"], &args[..]].concat());
    let mut client = server.client();
    let reply = client.subscribe("any", ACCOUNT, "call.*.*");
    assert_eq!(reply["status"], "error", "{reply}");
    let metrics = server.metrics();
    let is_unanswered = |le: &str| metrics[&format!("subscribe_seconds_bucket{{le=\"{le}\"}}")];
    assert_eq!((is_unanswered("0.5"), is_unanswered("+Inf")), (0, 1));
    assert_eq!(
        metrics[r#"commands_total{action="subscribe",result="broker_timeout"}"#],
        1
    );
    // A command whose session ends before its answer is counted too, and not timed.
    let mut leaver: Client = server.client();
    leaver.send_text(&subscribe("any", ACCOUNT, "call.*.*").to_string());
    server.until("it waits", |server| {
        server.metric("subscribes_waited_total") == 2
    });
    drop(leaver);
    server.wait_for_metric(
        r#"commands_total{action="subscribe",result="abandoned"}"#,
        1,
    );
    assert_eq!(server.metric("subscribe_seconds_count"), 1);
}

#[test]
fn the_process_tells_of_itself_what_the_system_does() {
    let server = Server::demo(&[]);
    let metrics = server.metrics();
    let resident = metrics["process_resident_memory_bytes"];
    let by_the_system = server.resident_bytes();
    assert!(
        resident.abs_diff(by_the_system) < 8 << 20,
        "{resident} {by_the_system}"
    );
    assert!(metrics["process_virtual_memory_bytes"] >= resident);
    let heap = metrics["process_heap_bytes"];
    assert!((1 << 18..resident).contains(&heap), "{heap} {resident}");
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    assert_eq!(metrics["process_threads"], tasks.count() as u64);
    let folder = format!("/proc/{}/fd", server.pid());
    if fs::metadata(&folder).unwrap().len() > 0 {
        let open = fs::read_dir(&folder).unwrap().count() as u64;
        // The connection that asked has gone since.
        assert!(metrics["process_open_fds"].abs_diff(open) <= 2);
        assert!(metrics["process_open_fds"] < metrics["process_max_fds"]);
    }
    let started = server.metric_seconds("process_start_time_seconds");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert!((now.as_secs_f64() - started).abs() < 60.0);
    assert_eq!(started, server.metric_seconds("process_start_time_seconds"));
    server.until("some CPU is used", |server| {
        server.metric_seconds("process_cpu_seconds_total") > 0.0
    });
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(metrics[&format!("build_info{{version=\"{version}\"}}")], 1);
}

#[test]
fn an_event_is_as_old_as_its_publishers_timestamp_says_in_whatever_unit() {
    let Some(host) = Host::take() else {
        return;
    };
    let server = Server::bridge(&host.url, &[]);
    let publisher = Publisher::connect(&host.url);
    let mut client = server.client();
    client.must_subscribe("any", ACCOUNT, "call.*.*");
    let mut publish = |stamp: u64| {
        let body = call_event(ACCOUNT, "CHANNEL_CREATE", 0).to_string();
        publisher.publish_stamped("callevt", "call.CHANNEL_CREATE.x", body.as_bytes(), stamp);
        client.event();
    };
    let old = SystemTime::now() - Duration::from_secs(1000);
    let old = old.duration_since(UNIX_EPOCH).unwrap();
    let gregorian = Duration::from_secs(62_167_219_200);
    for stamp in [
        old.as_secs().into(),
        old.as_millis(),
        old.as_micros(),
        (old + gregorian).as_secs().into(),
        (old + gregorian).as_micros(),
    ] {
        publish(stamp.try_into().unwrap());
    }
    // What nobody can believe counts from the arrival.
    for stamp in [0, 1, u64::MAX] {
        publish(stamp);
    }
    server.wait_for_metric("event_age_seconds_count", 8);
    let young = server.metric(r#"event_age_seconds_bucket{le="60"}"#);
    assert_eq!(young, 3);
    let sum = server.metric_seconds("event_age_seconds_sum");
    assert!((5000.0..5600.0).contains(&sum), "{sum}");
}
