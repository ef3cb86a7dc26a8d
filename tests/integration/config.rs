//! The configuration as an operator meets it (PROTOCOL 9): command line and file in, a `Config` or an exit out.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use blackhole::auth::jwt::Rules;
use blackhole::auth::{AuthConfig, CacheTimes, JwtConfig};
use blackhole::config::{
    CODE_REFUSED, Config, Exit, SourceConfig, Startup, Stream, from_args, keys, reread,
};
use blackhole::event::Style;
use blackhole::limits::DESCRIPTORS_RESERVED;
use blackhole::protocol::proxy::ProxyProtocol;
use blackhole::session::outbox::SlowConsumerPolicy;
use blackhole::tls::{CertificateFiles, TlsOptions};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::certificates::{Ca, Certified, LOCAL};
use support::server::{Server, run_to_end};

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
        ("0.0.0.0", Some(5555), false, None)
    );
    assert_eq!(config.amqp, ["amqp://guest:guest@127.0.0.1:5672/%2f"]);
    assert_eq!(config.source, SourceConfig::Amqp);
    assert_eq!(
        config.auth,
        AuthConfig {
            insecure: Some("{account_id}.localhost".to_owned()),
            ..AuthConfig::default()
        }
    );
    assert_eq!((config.crossbar, config.tls_clients), (None, None));
    assert_eq!(
        (config.style, config.log_level),
        (Style::Piston, log::LevelFilter::Info)
    );
    assert!(config.io_uring && config.control);
    let host = blackhole::sys::host_name();
    assert_eq!(config.node_name, format!("blackhole@{host}"));
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
    assert_eq!(
        (config.drain_delay, config.going_away),
        (Duration::ZERO, Duration::from_secs(5))
    );
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
        (Some(1234), Some(5), Style::Kazoo)
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
        (Some(4321), None, Style::Kazoo)
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
    assert_eq!(config.auth.insecure.as_deref(), Some("{account_id}.x"));
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
        AuthConfig {
            tokens: Some(PathBuf::from("/etc/t.json")),
            ..AuthConfig::default()
        }
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
fn several_authenticators_stand_beside_each_other_with_keys_of_their_own() {
    let files = Files::new(&[(
        "config.json",
        r#"{"auth": ["jwt:/etc/keys", "crossbar:https://api.example:8443/v2/", "tokens:/etc/t.json"],
            "accounts": "/etc/accounts.json", "jwt_issuer": "piston", "jwt_require_exp": true,
            "crossbar_token": "hunter2", "crossbar_yes_seconds": 30, "crossbar_no_seconds": 3,
            "crossbar_timeout_ms": 700}"#,
    )]);
    let config = runs(&["--config", &files.path("config.json")]);
    assert_eq!(
        config.auth,
        AuthConfig {
            insecure: None,
            tokens: Some("/etc/t.json".into()),
            jwt: Some(JwtConfig {
                keys: "/etc/keys".into(),
                rules: Rules::new("piston", true),
            }),
            platform: Some(CacheTimes {
                yes: Duration::from_secs(30),
                no: Duration::from_secs(3),
            }),
            accounts: Some("/etc/accounts.json".into()),
        }
    );
    let crossbar = config.crossbar.expect("configured");
    assert_eq!(crossbar.url.as_str(), "https://api.example:8443/v2");
    assert_eq!(crossbar.service_token.as_deref(), Some("hunter2"));
    assert_eq!(crossbar.timeout, Duration::from_millis(700));
    assert!(!format!("{crossbar:?}").contains("hunter2"));

    let config = runs(&["--auth=jwt:k.pem", "--auth=crossbar:http://h:8000"]);
    assert_eq!(
        config.auth.jwt.map(|jwt| jwt.rules),
        Some(Rules::new("kazoo", false))
    );
    assert_eq!((config.auth.tokens, config.auth.accounts), (None, None));
    assert_eq!(
        config.crossbar.map(|crossbar| crossbar.timeout),
        Some(Duration::from_secs(5))
    );
}

#[test]
fn without_an_authenticator_the_server_refuses_to_start_and_says_how_to_set_one() {
    let text = refusal(&["--source", "demo"]);
    assert!(text.starts_with("--auth: not set"), "{text}");
    for way in [
        "--auth tokens:FILE",
        "\"auth\": \"tokens:FILE\"",
        "\n  insecure ",
    ] {
        assert!(text.contains(way), "{way}: {text}");
    }
    assert_eq!(refusal(&["--check-config"]), text);
}

#[test]
fn a_command_line_that_does_not_fit_is_refused_with_option_and_expectation() {
    for (line, expected) in [
        (
            &["--port", "abc"][..],
            "--port: expected a whole number from 0 to 65535, or none, found \"abc\"",
        ),
        (
            &["--port=65536"],
            "--port: expected a whole number from 0 to 65535, or none, found \"65536\"",
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
            &["--node-name", "blackhole"],
            "--node-name: expected a node name such as blackhole@host, at most 255 bytes, found \"blackhole\"",
        ),
        (
            &["--node-name", "blackhole@a b"],
            "--node-name: expected a node name such as blackhole@host, at most 255 bytes",
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
            &["--admin", "0.0.0.0:5559"],
            "--admin: expected admin_token beside it, since others than this machine reach 0.0.0.0:5559; or an address such as 127.0.0.1:5559",
        ),
        (
            &["--admin-hosts", "bridge.example:5559"],
            "--admin-hosts: expected a host name without a port, such as bridge.example, found \"bridge.example:5559\"",
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
            &["--auth", "crossbar:ftp://127.0.0.1"],
            "--auth: the scheme of crossbar's URL is neither http nor https; expected tokens:FILE, jwt:FILE_OR_FOLDER, crossbar:URL or insecure",
        ),
        (
            &["--auth", "jwt:"],
            "--auth: expected tokens:FILE, jwt:FILE_OR_FOLDER, crossbar:URL or insecure",
        ),
        (
            &[
                "--auth", "tokens:a", "--auth", "jwt:b", "--auth", "tokens:c",
            ],
            "--auth: tokens is given twice; expected each kind at most once",
        ),
        (
            &["--auth", "tokens:a", "--auth", "insecure"],
            "--auth: insecure takes any token, so it stands alone",
        ),
        (
            &["--auth", "tokens:a", "--crossbar-no-seconds", "0"],
            "--crossbar-no-seconds: expected a whole number from 1 to 4294967295, found \"0\"",
        ),
        (
            &["--auth", "tokens:a", "--accounts="],
            "--accounts: expected the name of a file",
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
            ": port: expected a whole number from 0 to 65535, or null, found \"abc\"",
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
        &["--auth", "crossbar:http://user:hunter2@host"],
        &["--auth=insecure", "--crossbar-token", "hunter2 "],
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
        "--crossbar-token=hunter2",
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
        ("auth", json!([auth])),
        ("crossbar_token", json!("***")),
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
    let keys = Files::new(&[("a.pem", "hunter2")]);
    let folder = keys.path("");
    let refused = refusal(&["--auth", &format!("jwt:{folder}"), "--check-config"]);
    assert_eq!(
        refused,
        format!(
            "{}: expected one PEM block, RSA PUBLIC KEY or PUBLIC KEY",
            keys.path("a.pem")
        )
    );
    let account = "1".repeat(32);
    let accounts = format!("{{\n\"{account}\": {{\"parent\": \"{account}\"}}}}");
    let files = Files::new(&[("accounts.json", &accounts)]);
    let accounts = files.path("accounts.json");
    let line = [
        "--auth=crossbar:http://h",
        "--accounts",
        &accounts,
        "--check-config",
    ];
    assert_eq!(
        refusal(&line),
        format!(
            "{accounts}: line 2: account {account}: parent: a cycle, the account is its own ancestor"
        )
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
    let files = Files::new(&[
        ("config.json", "{}"),
        ("config.json.modules.json", r#"{"bh_call": "off"}"#),
    ]);
    let file = files.path("config.json");
    let refused = refusal(&["--auth=insecure", "--config", &file, "--check-config"]);
    assert!(
        refused.starts_with(&format!("{file}.modules.json: line 1 column ")),
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

/// The keys of clients' TLS as a line of options.
fn tls_line(certified: &Certified) -> [String; 3] {
    let file = |name: &str| certified.dir().join(name).display().to_string();
    [
        "--use-ssl".to_owned(),
        format!("--ssl-cert={}", file("cert.pem")),
        format!("--ssl-key={}", file("key.pem")),
    ]
}

#[test]
fn keys_of_clients_tls_belong_together() {
    for (args, expected) in [
        (
            &["--port=none"][..],
            "--port: no port would be open to clients: expected use_ssl beside it",
        ),
        (
            &["--use-ssl"],
            "--use-ssl: expected ssl_cert and ssl_key beside it",
        ),
        (
            &["--use-ssl", "--ssl-cert=a"],
            "--ssl-cert: expected ssl_key beside it",
        ),
        (
            &["--use-ssl", "--ssl-key=a"],
            "--ssl-key: expected ssl_cert beside it",
        ),
        (
            &["--use-ssl", "--ssl-cert=a", "--ssl-cert=b", "--ssl-key=a"],
            "--ssl-key: expected 2 files, one for each of ssl_cert, found 1",
        ),
        (
            &[
                "--use-ssl",
                "--ssl-cert=a",
                "--ssl-key=a",
                "--ssl-port=5555",
            ],
            "--ssl-port: expected another port than port, which is for clients without TLS",
        ),
        (
            &[
                "--use-ssl",
                "--ssl-cert=a",
                "--ssl-key=a",
                "--ssl-client-required",
            ],
            "--ssl-client-required: expected ssl_ca_cert beside it",
        ),
    ] {
        let line = [&["--auth=insecure"], args].concat();
        assert_eq!(refusal(&line), expected, "{args:?}");
        let output = run_to_end(&line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert_eq!(said, format!("blackhole: {expected}\n"));
    }
    // Both may ask for a free one.
    runs(&[
        "--auth=insecure",
        "--port=0",
        "--use-ssl",
        "--ssl-port=0",
        "--ssl-cert=a",
        "--ssl-key=a",
    ]);
}

#[test]
fn keys_of_tls_without_use_ssl_are_warned_of_and_files_of_theirs_that_are_not_there() {
    let text = r#"{"auth": "insecure", "ssl_cert": "/nowhere/a.pem", "ssl_key": "/dev/null"}"#;
    let on_purpose = text.replace('}', r#", "use_ssl": false}"#);
    let files = Files::new(&[("a.json", text), ("b.json", &on_purpose), ("own.key", "")]);
    let [file, on_purpose, own] = ["a.json", "b.json", "own.key"].map(|name| files.path(name));
    let missing = "/nowhere/a.pem: cannot be read: No such file or directory (os error 2)";
    let no_file = "/dev/null: is not a regular file";
    let idle =
        |keys: &str| format!("{keys}: no effect without use_ssl; clients are served without TLS");
    let line = [
        "--auth=insecure",
        "--ssl-port=0",
        "--ssl-cert=/nowhere/a.pem",
        "--ssl-key",
        &own,
        "--ssl-ca-cert=/dev/null",
        "--ssl-client-required",
        "--tls-ticket-key-file",
        &own,
    ];
    let all = "ssl_port, ssl_cert, ssl_key, ssl_ca_cert, ssl_client_required, tls_ticket_key_file";
    let told = |keys: &str| vec![idle(keys), missing.to_owned(), no_file.to_owned()];
    for (line, expected) in [
        (&line[..], told(all)),
        (&["--config", &*file], told("ssl_cert, ssl_key")),
        (&["--config", &on_purpose], vec![]),
        (&["--config", &file, "--use-ssl=false"], vec![]),
        (&["--auth=insecure", "--port=1"], vec![]),
    ] {
        let notes = runs(line).notes;
        assert!(notes.iter().all(|note| note.level == log::Level::Warn));
        let texts: Vec<_> = notes.into_iter().map(|note| note.text).collect();
        assert_eq!(texts, expected, "{line:?}");
        let output = run_to_end(&[line, &["--check-config"]].concat());
        let said: String = expected
            .iter()
            .map(|text| format!("blackhole: {text}\n"))
            .collect();
        assert_eq!(String::from_utf8_lossy(&output.stderr), said, "{line:?}");
        assert_eq!(output.status.code(), Some(0), "{line:?}");
    }
    let server = Server::demo(&["--ssl-cert=/nowhere/a.pem"]);
    for text in [&*idle("ssl_cert"), missing] {
        let line = server.wait_for_log(text);
        assert!(line.contains("WARN"), "{line}");
    }
}

#[test]
fn a_tls_file_that_is_no_regular_file_is_refused_without_a_wait() {
    let certified = Ca::new().certify(LOCAL, 90);
    let files = Files::new(&[]);
    let pipe = files.path("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("coreutils").success());
    let (folder, device) = (files.path(""), "/dev/zero".to_owned());
    let [use_ssl, cert, key] = tls_line(&certified);
    let (own_cert, own_key) = (
        cert.replace("--ssl", "--amqp-client"),
        key.replace("--ssl", "--amqp-client"),
    );
    let amqps = "--amqp=amqps://broker.example";
    for file in [&pipe, &folder, &device] {
        for (name, beside) in [
            ("--ssl-cert", &[&*use_ssl, &key][..]),
            ("--ssl-key", &[&use_ssl, &cert]),
            ("--ssl-ca-cert", &[&use_ssl, &cert, &key]),
            ("--tls-ticket-key-file", &[&use_ssl, &cert, &key]),
            ("--amqp-ca-cert", &[amqps]),
            ("--amqp-client-cert", &[amqps, &own_key]),
            ("--amqp-client-key", &[amqps, &own_cert]),
        ] {
            let option = format!("{name}={file}");
            let line = [&["--auth=insecure", &*option], beside].concat();
            let output = run_to_end(&[&line[..], &["--check-config"]].concat());
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                said,
                format!("blackhole: {file}: is not a regular file\n"),
                "{line:?}"
            );
            assert_eq!(output.status.code(), Some(2), "{line:?}");
        }
    }
}

#[test]
fn clients_tls_is_read_from_file_document_and_command_line() {
    let text = r#"{"auth": "insecure", "port": null, "use_ssl": true, "ssl_cert": ["a", "b"], "ssl_key": ["c", "d"],
        "ssl_ca_cert": "e", "ssl_client_required": true, "tls_ticket_key_file": "f"}"#;
    let document = r#"{"_id": "blackhole", "default": {"auth": "insecure", "use_plaintext": false, "use_ssl": true,
        "ssl_port": 7443, "ssl_cert": "a", "ssl_key": "c", "ssl_password": "hunter2"}}"#;
    let files = Files::new(&[("config.json", text), ("blackhole.json", document)]);
    let of = |cert: &str, key: &str| CertificateFiles {
        cert: cert.into(),
        key: key.into(),
    };
    let whole = TlsOptions {
        certificates: vec![of("a", "c"), of("b", "d")],
        client_ca: Some("e".into()),
        client_required: true,
        ticket_key_file: Some("f".into()),
    };
    let one = TlsOptions {
        certificates: vec![of("a", "c")],
        ..TlsOptions::default()
    };
    let [file, document] = ["config.json", "blackhole.json"].map(|name| files.path(name));
    let line = [
        "--auth=insecure",
        "--port=none",
        "--use-ssl",
        "--ssl-cert=a",
        "--ssl-cert=b",
        "--ssl-key=c",
        "--ssl-key=d",
        "--ssl-ca-cert=e",
        "--ssl-client-required",
        "--tls-ticket-key-file=f",
    ];
    for (line, port, ssl_port, options) in [
        (&["--config", &*file][..], None, 5556, &whole),
        (&["--config", &document], None, 7443, &one),
        (&line, None, 5556, &whole),
        (
            &["--config", &document, "--port=1", "--ssl-port=2"],
            Some(1),
            2,
            &one,
        ),
    ] {
        let config = runs(line);
        let tls = config.tls_clients.expect("use_ssl");
        assert_eq!((config.port, tls.port), (port, ssl_port), "{line:?}");
        assert_eq!(tls.options, *options, "{line:?}");
    }
    // A proxy in front goes on taking TLS off, as scripts/README.md says.
    let line = ["--config", &*document, "--use-ssl=false", "--port", "5555"];
    assert_eq!(runs(&line).tls_clients, None);
    assert!(operators_page().contains(&format!("start with `{}`", line[2..].join(" "))));
}

#[test]
fn a_check_reads_the_files_of_clients_tls_and_tells_what_they_are_good_for() {
    let ca = Ca::new();
    let good = ca.certify("DNS:a.example.com,DNS:*.b.example.com", 90);
    let soon = ca.certify("DNS:c.example.com", 20);
    let other = ca.certify(LOCAL, 90);
    let key = |certified: &Certified| certified.dir().join("key.pem");
    let open_to = |certified: &Certified, mode| {
        fs::set_permissions(key(certified), Permissions::from_mode(mode)).expect("its owner");
    };
    open_to(&good, 0o640);
    open_to(&soon, 0o640);
    let check = |certified: &Certified| {
        let line = [
            &["--auth=insecure".to_owned(), "--check-config".to_owned()],
            &tls_line(certified)[..],
        ]
        .concat();
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let output = run_to_end(&line);
        (
            output.status.code(),
            String::from_utf8(output.stderr).expect("text"),
        )
    };
    let cert = |certified: &Certified| certified.dir().join("cert.pem").display().to_string();
    let (code, said) = check(&good);
    let names = "a certificate for a.example.com, *.b.example.com, good until 20";
    assert!(
        said.starts_with(&format!("blackhole: {}: {names}", cert(&good))),
        "{said}"
    );
    assert_eq!((code, said.lines().count()), (Some(0), 1), "{said}");
    let (code, said) = check(&soon);
    assert_eq!((code, said.lines().count()), (Some(0), 2), "{said}");
    assert!(said.contains("expires on "), "{said}");
    let required = |port: &str| {
        let ca = ca.pem().display().to_string();
        let line = tls_line(&good);
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let demanding = ["--check-config", "--auth=insecure", "--ssl-client-required"];
        let output = run_to_end(&[&demanding[..], &["--ssl-ca-cert", &ca, port], &line].concat());
        String::from_utf8(output.stderr).expect("text")
    };
    let open = "ssl_client_required: port 5555 is open to clients without certificates";
    assert!(required("--port=5555").contains(open));
    assert!(!required("--port=none").contains("ssl_client_required"));
    open_to(&good, 0o644);
    let (code, said) = check(&good);
    let exposed = format!(
        "{}: holds a secret and can be read by all users",
        key(&good).display()
    );
    assert!(code == Some(0) && said.contains(&exposed), "{said}");
    // The key of another.
    fs::copy(key(&other), key(&good)).expect("writable");
    let (code, said) = check(&good);
    assert_eq!((code, said.lines().count()), (Some(2), 1), "{said}");
    assert!(
        said.starts_with(&format!("blackhole: {}", good.dir().display())),
        "{said}"
    );
    fs::remove_file(good.dir().join("cert.pem")).expect("there");
    let (code, said) = check(&good);
    assert_eq!(code, Some(2));
    assert!(
        said.starts_with(&format!("blackhole: {}: cannot be read: ", cert(&good))),
        "{said}"
    );
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

/// The platform's document as its database holds it.
const DOCUMENT: &str = r#"{
    "_id": "blackhole", "_rev": "12-5a1", "pvt_type": "config", "pvt_created": 63700000000, "pvt_document_hash": "00ff",
    "default": {
        "port": 5555, "ip": "10.0.0.1", "max_connections_per_ip": 40, "request_timeout_ms": 10000,
        "compress_response_body": true, "acceptors": 100, "use_plaintext": true, "use_ssl": false,
        "ssl_port": 5556, "ssl_cert": "priv/ssl/blackhole.crt", "ssl_password": "hunter2",
        "autoload_modules": ["bh_token_auth", "bh_call", "bh_object", "bh_fax", "bh_conference", "bh_events",
                             "bh_authz_subscribe", "bh_acme"],
        "bindings": {"call": ["call.CHANNEL_CREATE.{CALL_ID}"], "fax": ["fax.status.{FAX_ID}"]},
        "auth": "insecure", "max_queued_messages": 50
    },
    "kazoo_apps@one.example.com": {"port": 6666, "max_connections_per_ip": 7, "acceptors": 10},
    "kazoo_apps@two.example.com": {"port": 7777, "autoload_modules": ["bh_fax", "bh_ping"]},
    "zone-1": {"port": 8888}
}"#;

#[test]
fn the_platforms_own_document_is_taken_as_it_is() {
    let files = Files::new(&[("blackhole.json", DOCUMENT)]);
    let file = files.path("blackhole.json");
    let families = ["bh_call", "bh_object", "bh_fax", "bh_conference"];
    let modules = "modules bh_acme, bh_authz_subscribe, bh_events, bh_token_auth";
    let keys = "keys acceptors, bindings, compress_response_body, ssl_password";
    for (node, port, per_ip, families, in_force, modules, parts) in [
        (
            "kazoo_apps@one.example.com",
            6666,
            7,
            &families[..],
            "default, and over it kazoo_apps@one.example.com",
            modules,
            "kazoo_apps@two.example.com, zone-1",
        ),
        (
            "kazoo_apps@two.example.com",
            7777,
            40,
            &["bh_fax"],
            "default, and over it kazoo_apps@two.example.com",
            "modules bh_ping",
            "kazoo_apps@one.example.com, zone-1",
        ),
        (
            "kazoo_apps@three",
            5555,
            40,
            &families[..],
            "default alone; it has no part kazoo_apps@three (node_name)",
            modules,
            "kazoo_apps@one.example.com, kazoo_apps@two.example.com, zone-1",
        ),
    ] {
        let config = runs(&["--config", &file, "--node-name", node]);
        assert_eq!(
            (config.port, config.ip.to_string()),
            (Some(port), "10.0.0.1".to_owned())
        );
        assert_eq!(config.max_connections_per_ip, Some(per_ip));
        assert_eq!(config.families.autoload_modules, families, "{node}");
        assert_eq!((&*config.node_name, config.tls_clients), (node, None));
        let notes: Vec<_> = config.notes.iter().map(|note| note.text.clone()).collect();
        let expected = [
            format!("{file}: the platform's own document; in force: {in_force}"),
            format!(
                "{file}: passed over, since it means nothing here: {keys}; {modules}; parts {parts}"
            ),
        ];
        assert_eq!(notes, expected, "{node}");
    }
    // The command line wins over both parts, and a name in the document over the host's.
    let line = [
        "--config",
        &file,
        "--node-name",
        "kazoo_apps@one.example.com",
        "--port",
        "0",
    ];
    assert_eq!(runs(&line).port, Some(0));
    let named = DOCUMENT.replace(
        r#""auth": "#,
        r#""node_name": "kazoo_apps@two.example.com", "auth": "#,
    );
    let files = Files::new(&[("blackhole.json", &named)]);
    let config = runs(&["--config", &files.path("blackhole.json")]);
    assert_eq!(
        (config.port, &*config.node_name),
        (Some(7777), "kazoo_apps@two.example.com")
    );
}

#[test]
fn a_check_says_what_is_passed_over_beside_what_is_in_force_and_a_start_logs_it_once() {
    let files = Files::new(&[("blackhole.json", DOCUMENT)]);
    let file = files.path("blackhole.json");
    let output = run_to_end(&["--check-config", "--config", &file]);
    let (stdout, stderr) = (
        String::from_utf8(output.stdout).expect("text"),
        String::from_utf8(output.stderr).expect("text"),
    );
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let in_force: Value = serde_json::from_str(&stdout).expect("JSON alone");
    assert_eq!(
        (&in_force["port"], &in_force["ssl_port"]),
        (&json!(5555), &json!(5556))
    );
    assert!(!(stdout + &stderr).contains("hunter2"));
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{stderr}");

    let mut server = Server::start(&["--source", "demo", "--config", &file]);
    server.signal(Signal::HUP);
    server.wait_for_metric("config_reloads_total", 1);
    server.stop();
    let log = server.log();
    for line in lines {
        let text = line.trim_start_matches("blackhole: ");
        assert_eq!(log.matches(text).count(), 1, "{text}\n{log}");
    }
    assert!(!log.contains("hunter2"));
}

#[test]
fn what_the_platforms_document_may_not_hold_is_named_with_its_part() {
    let node = r#""blackhole@one": "#;
    for (members, expected) in [
        (
            r#""default": {"prot": 1}"#,
            "default.prot: unknown key; did you mean port?",
        ),
        (
            r#""default": {"alowed_origins": []}"#,
            "default.alowed_origins: unknown key; did you mean allowed_origins?",
        ),
        (
            r#""default": {"hunter2_x": {"a": 1}}"#,
            "default.key 1: unknown key; blackhole --help lists them, with dashes for underscores",
        ),
        (
            r#""default": {"port": "5555"}"#,
            "default.port: expected a whole number from 0 to 65535, or null, found \"5555\"",
        ),
        (
            &format!(r#"{node}{{"port": -1}}"#),
            "blackhole@one.port: expected a whole number from 0 to 65535, or null, found -1",
        ),
        (
            r#""default": {"use_plaintext": "no"}"#,
            "default.use_plaintext: expected true or false, found \"no\"",
        ),
        (
            r#""default": {"auth": "insecure", "port": 5555, "use_plaintext": false}"#,
            "default.use_plaintext: no port would be open to clients: expected use_ssl beside it",
        ),
        (
            r#""default": {"auth": "insecure", "use_ssl": true}"#,
            "default.use_ssl: expected ssl_cert and ssl_key beside it",
        ),
        (
            &format!(r#"{node}{{"port": 1, "port": 2}}"#),
            "blackhole@one.port: given twice",
        ),
        (
            &format!(r#"{node}[]"#),
            "blackhole@one: expected a JSON object of keys and values",
        ),
        (
            &format!(r#""default": {{}}, {node}{{"families": [{{}}]}}"#),
            "blackhole@one.families[0]: missing field `name`",
        ),
        (r#""default": {}, "default": {}"#, "key 3: given twice"),
        (
            r#""defualt": {"port": 1}"#,
            "defualt: unknown; did you mean default?",
        ),
        (
            r#""port": 5555"#,
            "port: expected in the part default, or in that of a node",
        ),
        (
            r#""hunter2 \u0007": {}"#,
            "key 2: expected in the part default, or in that of a node",
        ),
        (
            r#""default": {"autoload_modules": ["bh_events", "bh_cal"]}"#,
            "default.autoload_modules[1]: unknown module; did you mean bh_call?",
        ),
        (
            r#""default": {"autoload_modules": ["call"]}"#,
            "default.autoload_modules[0]: no module is called call; known: \
             bh_call, bh_conference, bh_fax, bh_object, bh_presence, bh_registration",
        ),
        (
            r#""default": {"autoload_modules": ["bh_call", 5]}"#,
            "default.autoload_modules: item 2: expected a text without white space, found 5",
        ),
    ] {
        let text = format!(r#"{{"_id": "blackhole", {members}}}"#);
        let files = Files::new(&[("c.json", &text)]);
        let file = files.path("c.json");
        let line = [
            "--auth=insecure",
            "--node-name=blackhole@one",
            "--config",
            &file,
        ];
        assert_eq!(refusal(&line), format!("{file}: {expected}"), "{text}");
    }
    for id in [r#""crossbar""#, "5", r#"{"hunter2": 1}"#] {
        let files = Files::new(&[(
            "c.json",
            &format!(r#"{{"_id": {id}, "default": {{"port": 1}}}}"#),
        )]);
        let file = files.path("c.json");
        let expected = format!("{file}: _id: expected \"blackhole\", the document of this app");
        assert_eq!(refusal(&["--auth=insecure", "--config", &file]), expected);
    }
    // A family of the operator's own has a module that is known.
    let text = r#"{"_id": "blackhole", "default": {"auth": "insecure", "autoload_modules": ["bh_queue", "bh_fax", "bh_ping"],
        "families": [{"name": "queue", "module": "bh_queue", "binding": "queue.{id}", "exchange": "queues", "keys": ["q.{account}.{id}"]}]}}"#;
    let files = Files::new(&[("c.json", text)]);
    let config = runs(&["--config", &files.path("c.json")]);
    assert_eq!(config.families.autoload_modules, ["bh_queue", "bh_fax"]);
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

fn operators_page() -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/README.md");
    fs::read_to_string(page).expect("the page about operating it")
}

#[test]
fn the_table_of_keys_lists_the_keys_that_exist() {
    let page = operators_page();
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
