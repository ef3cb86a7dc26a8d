//! The configuration as an operator meets it (PROTOCOL 9): command line and file in, a `Config` or an exit out.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use blackhole::auth::AuthConfig;
use blackhole::config::{
    CODE_REFUSED, Config, Exit, SourceConfig, Startup, Stream, from_args, keys, reread,
};
use blackhole::event::Style;
use blackhole::limits::DESCRIPTORS_RESERVED;
use blackhole::protocol::proxy::ProxyProtocol;
use blackhole::session::outbox::SlowConsumerPolicy;
use serde_json::{Value, json};
use support::server::run_to_end;

fn args(line: &[&str]) -> impl Iterator<Item = OsString> {
    std::iter::once("blackhole")
        .chain(line.iter().copied())
        .map(OsString::from)
        .collect::<Vec<_>>()
        .into_iter()
}

fn start(line: &[&str]) -> Result<Config, Exit> {
    from_args(args(line)).map(|Startup::Run(config)| config)
}

fn runs(line: &[&str]) -> Config {
    start(line)
        .map_err(|exit| format!("{line:?}: {exit:?}"))
        .expect("a good command line")
}

/// What a refused command line says on stderr, without `blackhole: ` and the line end.
fn refusal(line: &[&str]) -> String {
    let exit = start(line)
        .map(|config| format!("{line:?}: {config:?}"))
        .expect_err("a command line to refuse");
    assert_eq!(
        (exit.code, exit.stream),
        (CODE_REFUSED, Stream::Stderr),
        "{line:?}: {exit:?}"
    );
    assert_eq!(CODE_REFUSED, 2);
    let text = exit
        .text
        .strip_prefix("blackhole: ")
        .and_then(|text| text.strip_suffix('\n'));
    text.expect("names the program and ends the line")
        .to_owned()
}

/// What a command line that ends well prints.
fn printed(line: &[&str]) -> String {
    let exit = start(line)
        .map(|config| format!("{line:?}: {config:?}"))
        .expect_err("a command line that prints");
    assert_eq!(
        (exit.code, exit.stream),
        (0, Stream::Stdout),
        "{line:?}: {exit:?}"
    );
    exit.text
}

/// A directory with files in it.
struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            fs::write(directory.path().join(name), text).expect("writable");
        }
        Self(directory)
    }

    fn path(&self, name: &str) -> String {
        self.0
            .path()
            .join(name)
            .to_str()
            .expect("a UTF-8 path")
            .to_owned()
    }
}

#[test]
fn defaults_are_the_platforms() {
    let config = runs(&["--auth", "insecure"]);
    assert_eq!(
        (
            config.ip.to_string().as_str(),
            config.port,
            config.reuse_port,
            config.admin
        ),
        ("0.0.0.0", 5555, false, None)
    );
    assert_eq!(config.amqp, ["amqp://guest:guest@127.0.0.1:5672/%2f"]);
    assert_eq!(config.source, SourceConfig::Amqp);
    assert_eq!(
        config.auth,
        AuthConfig::Insecure {
            realm_template: "{account_id}.localhost".to_owned()
        }
    );
    assert_eq!(
        (config.style, config.log_level),
        (Style::Piston, log::LevelFilter::Info)
    );
    assert!(config.io_uring);
    assert_eq!(
        (config.max_connections_per_ip, config.max_subscriptions),
        (None, Some(256))
    );
    assert_eq!(
        (config.max_message_bytes, config.max_metadata_bytes),
        (Some(65_536), Some(4_096))
    );
    assert_eq!(config.max_queued_messages, Some(50));
    assert_eq!(
        (config.max_outbox_bytes, config.max_outboxes_bytes),
        (Some(1 << 20), Some(256 << 20))
    );
    assert_eq!(
        (config.slow_consumer, config.gap_notices),
        (SlowConsumerPolicy::Close, true)
    );
    assert_eq!(config.request_timeout, Duration::from_secs(10));
    assert_eq!(
        (config.send_timeout, config.auth_timeout),
        (Duration::from_secs(5), Duration::from_secs(30))
    );
    assert_eq!(
        (config.rate_limit_burst, config.rate_limit_per_second),
        (100, 10)
    );
    assert_eq!(
        (config.drain, config.allowed_origins.len()),
        (Duration::from_secs(10), 0)
    );
    assert_eq!(config.drain_delay, Duration::ZERO);
    assert_eq!(
        (config.prefetch, config.max_queue_length),
        (2048, Some(100_000))
    );
    let descriptors = blackhole::sys::descriptor_limit();
    assert_eq!(
        config.max_connections,
        usize::try_from(descriptors - DESCRIPTORS_RESERVED).ok()
    );
}

#[test]
fn the_file_wins_over_defaults_and_the_command_line_over_the_file() {
    let files = Files::new(&[(
        "config.json",
        r#"{"port": 1234, "max_connections": 5, "send_timeout_ms": 250, "auth": "insecure", "style": "kazoo",
            "amqp": ["amqp://one", "amqp://two"], "gap_notices": false, "max_outbox_bytes": 0}"#,
    )]);
    let file = files.path("config.json");
    let config = runs(&["--config", &file]);
    assert_eq!(
        (config.port, config.max_connections, config.style),
        (1234, Some(5), Style::Kazoo)
    );
    assert_eq!(
        (config.send_timeout, config.request_timeout),
        (Duration::from_millis(250), Duration::from_secs(10))
    );
    assert_eq!(
        (config.amqp, config.gap_notices),
        (
            vec!["amqp://one".to_owned(), "amqp://two".to_owned()],
            false
        )
    );
    assert_eq!(config.max_outbox_bytes, None, "0 is no limit");

    let config = runs(&[
        "--port",
        "4321",
        "--config",
        &file,
        "--max-connections=0",
        "--amqp",
        "amqp://three",
        "--gap-notices",
        "--reuse-port",
        "--max-outbox-bytes",
        "7",
    ]);
    assert_eq!(
        (config.port, config.max_connections, config.style),
        (4321, None, Style::Kazoo)
    );
    assert_eq!(
        config.amqp,
        ["amqp://three"],
        "a list replaces the whole list"
    );
    assert!(config.gap_notices && config.reuse_port);
    assert_eq!(config.max_outbox_bytes, Some(7));
    assert!(!runs(&["--config", &file, "--reuse-port=false"]).reuse_port);
}

#[test]
fn sources_and_authenticators_take_their_details_from_their_own_keys() {
    let config = runs(&[
        "--auth=insecure",
        "--insecure-realm",
        "{account_id}.x",
        "--source",
        "demo",
        "--demo-rate",
        "0.5",
        "--demo-accounts=3",
    ]);
    assert_eq!(
        config.source,
        SourceConfig::Demo {
            rate: 0.5,
            accounts: 3
        }
    );
    assert_eq!(
        config.auth,
        AuthConfig::Insecure {
            realm_template: "{account_id}.x".to_owned()
        }
    );
    let config = runs(&[
        "--auth",
        "tokens:/etc/t.json",
        "--source",
        "replay:/srv/events.jsonl",
    ]);
    assert_eq!(
        config.source,
        SourceConfig::Replay {
            file: PathBuf::from("/srv/events.jsonl")
        }
    );
    assert_eq!(
        config.auth,
        AuthConfig::Tokens(PathBuf::from("/etc/t.json"))
    );
    let config = runs(&[
        "--auth=insecure",
        "--amqp=amqp://a,b:c@one",
        "--amqp=amqp://two",
        "--allowed-origins=https://A:443,http://b:8080,null",
    ]);
    assert_eq!(config.amqp, ["amqp://a,b:c@one", "amqp://two"]);
    assert_eq!(
        config.allowed_origins,
        ["https://a", "http://b:8080", "null"]
    );
}

#[test]
fn without_an_authenticator_the_server_refuses_to_start_and_says_how_to_set_one() {
    let text = refusal(&["--source", "demo"]);
    assert!(text.starts_with("auth: not set"), "{text}");
    assert!(
        text.contains("--auth tokens:FILE") && text.contains("--auth insecure"),
        "{text}"
    );
    assert_eq!(refusal(&["--check-config"]), text);
}

#[test]
fn a_command_line_that_does_not_fit_is_refused_with_option_and_expectation() {
    for (line, expected) in [
        (
            &["--port", "abc"][..],
            "--port: expected a whole number from 0 to 65535, found \"abc\"",
        ),
        (
            &["--port=65536"],
            "--port: expected a whole number from 0 to 65535, found \"65536\"",
        ),
        (
            &["--max-outbox-bytes=-1"],
            "--max-outbox-bytes: expected a whole number, 0 for no limit, found \"-1\"",
        ),
        (
            &["--send-timeout-ms", "0"],
            "--send-timeout-ms: expected a whole number from 1 to 4294967295, found \"0\"",
        ),
        (
            &["--reuse-port=maybe"],
            "--reuse-port: expected true or false, found \"maybe\"",
        ),
        (
            &["--ip", "localhost"],
            "--ip: expected an IP address such as 127.0.0.1 or ::1, found \"localhost\"",
        ),
        (
            &["--admin", "5559"],
            "--admin: expected IP:PORT such as 127.0.0.1:5559, found \"5559\"",
        ),
        (
            &["--source", "kafka"],
            "--source: expected amqp, demo or replay:FILE, found \"kafka\"",
        ),
        (
            &["--style", "xml"],
            "--style: expected piston or kazoo, found \"xml\"",
        ),
        (
            &["--allowed-origins", "https://ui.example.com/"],
            "--allowed-origins: expected an origin as browsers send it, scheme://host or scheme://host:port and nothing behind it, or null, found \"https://ui.example.com/\"",
        ),
        (
            &["--allowed-origins", "https://a.example,ui.example.com"],
            "--allowed-origins: expected an origin as browsers send it, scheme://host or scheme://host:port and nothing behind it, or null, found \"ui.example.com\"",
        ),
        (
            &["--allowed-origins", "*"],
            "--allowed-origins: an empty list allows every page; expected an origin as browsers send it, scheme://host or scheme://host:port and nothing behind it, or null, found \"*\"",
        ),
        (
            &["--slow-consumer", "wait"],
            "--slow-consumer: expected close or drop, found \"wait\"",
        ),
        (
            &["--log-level", "loud"],
            "--log-level: expected error, warn, info or debug, found \"loud\"",
        ),
        (
            &["--auth", "jwt:keys.pem"],
            "--auth: the authenticator jwt is not built into this version yet; expected tokens:FILE or insecure",
        ),
        (
            &["--auth", "crossbar:http://127.0.0.1:8000/v2"],
            "--auth: the authenticator crossbar is not built into this version yet; expected tokens:FILE or insecure",
        ),
        (
            &["--amqp", "amqpz://broker"],
            "--amqp: the scheme is neither amqp nor amqps; expected a broker URL such as amqp://user:password@127.0.0.1:5672/%2f",
        ),
        (
            &["--amqp", "amqp://user:hunter2@broker:99999"],
            "--amqp: the port is not a number from 1 to 65535; in user and password `/`, `?`, `#` and `@` are written %2F, %3F, %23 and %40; expected a broker URL such as amqp://user:password@127.0.0.1:5672/%2f",
        ),
        (
            &["--families", "[]"],
            "--families: expected a JSON object, found []",
        ),
        (
            &["--prot", "1"],
            "unknown option --prot; did you mean --port?",
        ),
        (
            &["--max_connections=5"],
            "unknown option --max_connections; did you mean --max-connections?",
        ),
        (&["--xyzzy"], "unknown option --xyzzy; --help lists them"),
        (&["--port"], "--port <PORT> needs a value"),
        (&["--port", "1", "--port", "2"], "--port was given twice"),
    ] {
        assert_eq!(refusal(line), expected, "{line:?}");
    }
}

#[test]
fn a_file_that_does_not_fit_is_refused_with_file_key_and_expectation() {
    let files = Files::new(&[
        ("port.json", r#"{"port": "abc"}"#),
        ("key.json", r#"{"max_conections": 5}"#),
        ("broken.json", "{\"port\": 1"),
        ("brokers.json", r#"{"auth": "insecure", "amqp": []}"#),
    ]);
    for (name, expected) in [
        (
            "port.json",
            ": port: expected a whole number from 0 to 65535, found \"abc\"",
        ),
        (
            "key.json",
            ": max_conections: unknown key; did you mean max_connections?",
        ),
        (
            "broken.json",
            ": not JSON: EOF while parsing an object at line 1 column 10",
        ),
        ("brokers.json", ": amqp: expected at least one broker URL"),
        (
            "missing.json",
            ": cannot be read: No such file or directory (os error 2)",
        ),
    ] {
        let file = files.path(name);
        assert_eq!(refusal(&["--config", &file]), format!("{file}{expected}"));
    }
    assert!(
        runs(&["--config", &files.path("brokers.json"), "--source=demo"])
            .amqp
            .is_empty(),
        "no broker is needed"
    );
}

#[test]
fn no_refusal_repeats_a_password_or_a_token() {
    for line in [
        &[
            "--amqp",
            "amqp://user:hunter2@one",
            "amqp://user:hunter2@two",
        ][..],
        &["--amqp", "amqpz://user:hunter2@one"],
        &["--amqp", "amqp://user:hunter2@one/a/b"],
        &["--ampq=amqp://user:hunter2@one"],
        &["--auth", "hunter2"],
        &["--auth", "token:hunter2"],
        &["hunter2"],
    ] {
        let text = refusal(line);
        assert!(!text.contains("hunter2"), "{line:?}: {text}");
    }
}

#[test]
fn check_config_prints_a_configuration_that_can_be_read_again_with_passwords_masked() {
    let tokens = format!(r#"{{"hunter2": {{"account_id": "{}"}}}}"#, "1".repeat(32));
    let files = Files::new(&[
        ("tokens.json", &tokens),
        ("config.json", r#"{"style": "kazoo", "port": 1}"#),
    ]);
    let auth = format!("tokens:{}", files.path("tokens.json"));
    let file = files.path("config.json");
    let line = [
        "--config",
        &file,
        "--port=2",
        "--auth",
        &auth,
        "--amqp",
        "amqp://user:hunter2@broker/x",
        "--max-connections=9",
    ];
    let checked = [&line[..], &["--check-config"]].concat();
    let text = printed(&checked);
    assert!(!text.contains("hunter2"), "{text}");
    let effective: Value = serde_json::from_str(&text).expect("JSON");
    for (key, value) in [
        ("port", json!(2)),
        ("style", json!("kazoo")),
        ("amqp", json!(["amqp://user:***@broker/x"])),
        ("auth", json!(auth)),
        ("admin", json!(null)),
        ("max_connections", json!(9)),
    ] {
        assert_eq!(effective[key], value, "{key}");
    }
    let again = Files::new(&[("config.json", &text)]);
    assert_eq!(
        printed(&["--config", &again.path("config.json"), "--check-config"]),
        text
    );
}

#[test]
fn check_config_reads_the_files_that_are_named() {
    let files = Files::new(&[("tokens.json", r#"{"hunter2": {"account": "x"}}"#)]);
    let tokens = files.path("tokens.json");
    let refused = refusal(&["--auth", &format!("tokens:{tokens}"), "--check-config"]);
    assert!(
        refused.starts_with(&format!("{tokens}: entry 1: key 1 is none of account_id")),
        "{refused}"
    );
    let replay = files.path("missing.jsonl");
    let refused = refusal(&[
        "--auth",
        "insecure",
        "--source",
        &format!("replay:{replay}"),
        "--check-config",
    ]);
    assert!(
        refused.starts_with(&format!("{replay}: cannot be read: ")),
        "{refused}"
    );
}

#[test]
fn files_for_tls_are_checked_at_the_start_and_belong_together() {
    for (args, expected) in [
        (
            &["--amqp-ca-cert", "/nowhere.pem"][..],
            "/nowhere.pem: cannot be read: ",
        ),
        (
            &["--amqp-client-cert", "a.pem"],
            "--amqp-client-cert: expected amqp_client_key beside it",
        ),
        (
            &["--amqp-client-key", "a.pem"],
            "--amqp-client-key: expected amqp_client_cert beside it",
        ),
    ] {
        let line = [&["--auth=insecure", "--amqp=amqps://broker"], args].concat();
        let refused = refusal(&[&line[..], &["--check-config"]].concat());
        assert!(refused.starts_with(expected), "{refused}");
        let output = run_to_end(&line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.starts_with(&format!("blackhole: {refused}")), "{said}");
    }
}

#[test]
fn every_key_is_an_option_a_file_key_a_line_of_check_config_and_of_help() {
    let text = printed(&["--auth=insecure", "--check-config"]);
    let effective: serde_json::Map<String, Value> = serde_json::from_str(&text).expect("JSON");
    let help = printed(&["--help"]);
    let keys = keys();
    assert_eq!(keys.len(), effective.len());
    for key in &keys {
        let value = effective.get(&key.name).expect(&key.name);
        assert!(
            help.contains(&format!("--{}", key.name.replace('_', "-"))),
            "{} in --help",
            key.name
        );
        assert!(!key.help.is_empty(), "{} has a help text", key.name);
        let file = json!({ "auth": "insecure", key.name.as_str(): value }).to_string();
        let files = Files::new(&[("config.json", &file)]);
        runs(&["--config", &files.path("config.json")]);
        let option = |value: &Value| {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            format!("--{}={text}", key.name.replace('_', "-"))
        };
        let options: Vec<String> = match value {
            Value::Null => continue,
            Value::Array(items) => items.iter().map(option).collect(),
            value => vec![option(value)],
        };
        let mut line: Vec<&str> = options.iter().map(String::as_str).collect();
        if key.name != "auth" {
            line.push("--auth=insecure");
        }
        runs(&line);
    }
}

#[test]
fn help_and_version_go_to_stdout_with_exit_code_0() {
    let help = printed(&["--help"]);
    for part in [
        "Bridges platform events",
        "Usage: blackhole",
        "Examples:",
        "--auth tokens:",
        "[default: 5555]",
        "--check-config",
        "SIGHUP",
    ] {
        assert!(help.contains(part), "{part}\n{help}");
    }
    assert!(
        !help.contains("[default: null]") && !help.contains("[default: ]"),
        "{help}"
    );
    assert_eq!(
        printed(&["--version"]),
        format!("blackhole {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn a_reread_sees_the_changed_file_and_reports_a_broken_one() {
    let files = Files::new(&[(
        "config.json",
        r#"{"auth": "insecure", "log_level": "info"}"#,
    )]);
    let file = files.path("config.json");
    assert_eq!(runs(&["--config", &file]).log_level, log::LevelFilter::Info);
    fs::write(&file, r#"{"auth": "insecure", "log_level": "debug"}"#).expect("writable");
    let config = reread(args(&["--config", &file])).expect("a good file");
    assert_eq!(config.log_level, log::LevelFilter::Debug);
    fs::write(&file, r#"{"auth": "insecure", "log_level": 1}"#).expect("writable");
    let error = reread(args(&["--config", &file]))
        .expect_err("a wrong value")
        .to_string();
    assert_eq!(
        error,
        format!("{file}: log_level: expected error, warn, info or debug, found 1")
    );
}

#[test]
fn proxies_are_networks_or_addresses_and_a_proxy_protocol_needs_some() {
    let config = runs(&["--auth=insecure"]);
    assert_eq!(
        (config.proxy_protocol, config.trusted_proxies.len()),
        (ProxyProtocol::Off, 0)
    );
    let config = runs(&[
        "--auth=insecure",
        "--proxy-protocol=accept",
        "--trusted-proxies=10.0.0.0/8,192.0.2.1",
        "--trusted-proxies=2001:db8::/32",
    ]);
    assert_eq!(config.proxy_protocol, ProxyProtocol::Accept);
    let networks: Vec<String> = config
        .trusted_proxies
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(networks, ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32"]);

    let what = "an address or network such as 10.0.0.1, 10.0.0.0/8 or 2001:db8::/32";
    for (line, expected) in [
        (
            &["--proxy-protocol", "v2"][..],
            "--proxy-protocol: expected off, accept or required, found \"v2\"".to_owned(),
        ),
        (
            &["--auth=insecure", "--proxy-protocol=required"],
            "--trusted-proxies: expected at least one address or network such as 10.0.0.1 or 10.0.0.0/8, \
             since proxy_protocol is not off"
                .to_owned(),
        ),
        (
            &["--trusted-proxies", "proxy.example"],
            format!("--trusted-proxies: expected {what}, found \"proxy.example\""),
        ),
        (
            &["--trusted-proxies", "10.0.0.0/33"],
            format!("--trusted-proxies: expected {what}, found \"10.0.0.0/33\""),
        ),
        (
            &["--trusted-proxies", "10.0.0.1/8"],
            format!(
                "--trusted-proxies: the address has bits beyond the length of its network; expected {what}, \
                 found \"10.0.0.1/8\""
            ),
        ),
        (
            &["--trusted-proxies", "::ffff:10.0.0.0/104"],
            format!(
                "--trusted-proxies: IPv4 is to be written as IPv4; expected {what}, found \"::ffff:10.0.0.0/104\""
            ),
        ),
    ] {
        assert_eq!(refusal(line), expected, "{line:?}");
    }
}

#[test]
fn the_table_of_keys_lists_the_keys_that_exist() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/README.md");
    let page = fs::read_to_string(page).expect("the page about operating it");
    let row = |key: &blackhole::config::Key| {
        let default = key
            .default
            .as_ref()
            .map_or("–".to_owned(), |default| format!("`{default}`"));
        format!("| `{}` | {default} | {} |", key.name, key.help)
    };
    let expected: Vec<String> = keys().iter().map(row).collect();
    let (_, table) = page
        .split_once("| key | default | what it does |\n|---|---|---|\n")
        .expect("the table of keys");
    let table: Vec<&str> = table
        .lines()
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert!(
        table == expected,
        "the table should be\n{}",
        expected.join("\n")
    );
}
