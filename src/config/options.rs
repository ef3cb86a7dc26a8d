//! The one list of keys: `Options`. Its fields are the keys of the file, the options of the command line, the lines of
//! `--help` and `--check-config`, and the table in `scripts/README.md`; a field's documentation is the help text.
//! [`super::Config`] is made by destructuring the struct, so a key that is listed and not used does not compile.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::origin::Origin;
use super::values::{
    AuthName, BrokerUrl, FileName, HistoryName, HostName, Issuer, Limit, MaxAge, Network, NodeName,
    Object, Period, PortOrNone, Rate, RealmTemplate, Secret, Setting, SourceName, Word, list,
    list_or_one,
};
use crate::auth::REALM_PLACEHOLDER;
use crate::event::Style;
use crate::logging::LogFormat;
use crate::protocol::proxy::ProxyProtocol;
use crate::routing::families::FamilyOptions;
use crate::session::outbox::SlowConsumerPolicy;

const LISTENING: &str = "Listening";
const EVENTS: &str = "Events";
const CLIENTS: &str = "Clients";
const LIMITS: &str = "Limits";
const FAMILIES: &str = "Binding families";
const PROCESS: &str = "Process";

const fn nonzero_u16(number: u16) -> Setting<NonZeroU16> {
    Setting(NonZeroU16::new(number).expect("a default above zero"))
}

const fn nonzero_u32(number: u32) -> Setting<NonZeroU32> {
    Setting(NonZeroU32::new(number).expect("a default above zero"))
}

fn words(words: &[String]) -> Vec<Setting<Word>> {
    words
        .iter()
        .map(|word| Setting(Word(word.clone())))
        .collect()
}

/// Every key, in its written form.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Options {
    /// Address that websocket clients connect to
    #[arg(long, value_name = "ADDRESS", help_heading = LISTENING)]
    pub(crate) ip: Setting<IpAddr>,
    /// Port that websocket clients connect to; 0 takes a free one, told on the first line of stdout; none (null in the
    /// file) opens no port without TLS
    #[arg(long, value_name = "PORT", help_heading = LISTENING)]
    pub(crate) port: Setting<PortOrNone>,
    /// Take websocket clients with TLS (wss) on ssl_port
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = LISTENING)]
    pub(crate) use_ssl: Setting<bool>,
    /// Port that websocket clients connect to with TLS; 0 takes a free one, told on stdout
    #[arg(long, value_name = "PORT", help_heading = LISTENING)]
    pub(crate) ssl_port: Setting<u16>,
    /// Certificate to show these clients, as a PEM file, with what links it to its CA behind it; several are chosen from by
    /// the name that a client asks for (SNI), the first if none fits. Reread on SIGHUP
    #[arg(long, value_name = "FILE", value_delimiter = ',', help_heading = LISTENING)]
    #[serde(deserialize_with = "list_or_one")]
    pub(crate) ssl_cert: Vec<Setting<FileName>>,
    /// Private key of ssl_cert, as a PEM file; of several in the same order
    #[arg(long, value_name = "FILE", value_delimiter = ',', help_heading = LISTENING)]
    #[serde(deserialize_with = "list_or_one")]
    pub(crate) ssl_key: Vec<Setting<FileName>>,
    /// CAs of clients' certificates, as a PEM file: clients are asked for one, and one of another CA is refused; unset: they
    /// are not asked
    #[arg(long, value_name = "FILE", help_heading = LISTENING)]
    pub(crate) ssl_ca_cert: Option<Setting<FileName>>,
    /// Refuse clients that show no certificate of ssl_ca_cert
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = LISTENING)]
    pub(crate) ssl_client_required: Setting<bool>,
    /// File of at least 32 random bytes that several processes share, so that a client may resume TLS at any of them;
    /// unset: each has a secret of its own
    #[arg(long, value_name = "FILE", help_heading = LISTENING)]
    pub(crate) tls_ticket_key_file: Option<Setting<FileName>>,
    /// Let several processes share the ports (SO_REUSEPORT), one a core
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = LISTENING)]
    pub(crate) reuse_port: Setting<bool>,
    /// PROXY headers (v1, v2) from trusted_proxies: off, accept (if one comes), or required (and nobody else may
    /// connect)
    #[arg(long, value_name = "MODE", help_heading = LISTENING)]
    pub(crate) proxy_protocol: Setting<ProxyProtocol>,
    /// Proxies, as addresses or CIDR networks, whose word on who the client is counts: PROXY header, X-Forwarded-For,
    /// Forwarded
    #[arg(long, value_name = "CIDR", value_delimiter = ',', help_heading = LISTENING)]
    #[serde(deserialize_with = "list")]
    pub(crate) trusted_proxies: Vec<Setting<Network>>,
    /// Address for what an operator asks: pages, listings, trace, actions; not for the public. One that is not loopback
    /// needs admin_token
    #[arg(long, value_name = "IP:PORT", help_heading = LISTENING)]
    pub(crate) admin: Option<Setting<SocketAddr>>,
    /// File whose first line is the token that is asked for there (Authorization: Bearer), but for /healthz, /readyz and
    /// fixed documents such as the console
    #[arg(long, value_name = "FILE", help_heading = LISTENING)]
    pub(crate) admin_token: Option<Setting<FileName>>,
    /// Host names by which that address may be called, besides IP addresses and localhost
    #[arg(long, value_name = "HOST", value_delimiter = ',', help_heading = LISTENING)]
    #[serde(deserialize_with = "list")]
    pub(crate) admin_hosts: Vec<Setting<HostName>>,
    /// Folder for the socket blackhole-PID.sock, by which this process is asked the same without a token: whoever may open
    /// the file
    #[arg(long, value_name = "FOLDER", help_heading = LISTENING)]
    pub(crate) admin_dir: Option<Setting<FileName>>,

    /// Where events come from: amqp, demo (made-up calls), or replay:FILE (JSON lines)
    #[arg(long, value_name = "SOURCE", help_heading = EVENTS)]
    pub(crate) source: Setting<SourceName>,
    /// Broker to take events from, with TLS as amqps://…; give it several times for brokers to try in turn
    #[arg(long, value_name = "URL", help_heading = EVENTS)]
    #[serde(deserialize_with = "list")]
    pub(crate) amqp: Vec<Setting<BrokerUrl>>,
    /// CAs to trust for brokers with TLS (amqps), as a PEM file; unset: those that the system trusts
    #[arg(long, value_name = "FILE", help_heading = EVENTS)]
    pub(crate) amqp_ca_cert: Option<Setting<FileName>>,
    /// Certificate to show a broker that asks for one, as a PEM file, with what links it to its CA behind it
    #[arg(long, value_name = "FILE", help_heading = EVENTS)]
    pub(crate) amqp_client_cert: Option<Setting<FileName>>,
    /// Private key of amqp_client_cert, as a PEM file
    #[arg(long, value_name = "FILE", help_heading = EVENTS)]
    pub(crate) amqp_client_key: Option<Setting<FileName>>,
    /// Deliveries that the broker sends ahead of our acknowledgement
    #[arg(long, value_name = "N", help_heading = EVENTS)]
    pub(crate) prefetch: Setting<NonZeroU16>,
    /// Messages that wait on the broker for this process; beyond it the oldest are lost, and sessions get a notice
    #[arg(long, value_name = "N", help_heading = EVENTS)]
    pub(crate) max_queue_length: Setting<Limit<u32>>,
    /// Time that this process's queue outlives its connection to the broker, and a crash, in seconds: a reconnect within
    /// it loses nothing
    #[arg(long, value_name = "SECONDS", help_heading = EVENTS)]
    pub(crate) queue_expires_seconds: Setting<NonZeroU32>,
    /// Declare that queue as durable, for a broker that allows no other; found out by itself where the broker says so
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = EVENTS)]
    pub(crate) durable_queue: Setting<bool>,
    /// Answer the platform's questions about sessions, and start and stop families for it, over AMQP (exchanges sysconf,
    /// kapps, targeted)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = EVENTS)]
    pub(crate) control: Setting<bool>,
    /// What this process is called in its answers to the platform, and its part of the platform's own document; unset:
    /// blackhole@ and the host's name
    #[arg(long, value_name = "NAME@HOST", help_heading = EVENTS)]
    pub(crate) node_name: Option<Setting<NodeName>>,
    /// Events a second that the demo source makes up
    #[arg(long, value_name = "RATE", help_heading = EVENTS)]
    pub(crate) demo_rate: Setting<Rate>,
    /// Accounts that the demo source spreads them over
    #[arg(long, value_name = "N", help_heading = EVENTS)]
    pub(crate) demo_accounts: Setting<NonZeroU32>,
    /// Shape of events for clients that do not choose one with ?style=: piston or kazoo
    #[arg(long, value_name = "STYLE", help_heading = EVENTS)]
    pub(crate) style: Setting<Style>,
    /// Tell a session when events for it were or may have been lost
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = EVENTS)]
    pub(crate) gap_notices: Setting<bool>,

    /// Agree to compression (permessage-deflate, RFC 7692) with clients that offer it: events for many are sent deflated
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = CLIENTS)]
    pub(crate) compression: Setting<bool>,
    /// Who may do what: tokens:FILE, jwt:FILE_OR_FOLDER (the platform's tokens), crossbar:URL (ask the platform), each at
    /// most once; or insecure alone (development only: any token, any account). Must be set
    #[arg(long, value_name = "KIND", help_heading = CLIENTS)]
    #[serde(deserialize_with = "list_or_one")]
    pub(crate) auth: Vec<Setting<AuthName>>,
    /// JSON file of the account tree: {"ACCOUNT": {"parent": "ACCOUNT", "realm": "sip.example.com"}}; a token may see
    /// what is below its account
    #[arg(long, value_name = "FILE", help_heading = CLIENTS)]
    pub(crate) accounts: Option<Setting<FileName>>,
    /// Issuer (iss) that the tokens of --auth jwt must have
    #[arg(long, value_name = "ISSUER", help_heading = CLIENTS)]
    pub(crate) jwt_issuer: Setting<Issuer>,
    /// Refuse tokens of --auth jwt that never expire
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = CLIENTS)]
    pub(crate) jwt_require_exp: Setting<bool>,
    /// Token to fetch keys from --auth crossbar with, for --auth jwt; better in the file, since others on the machine can
    /// read a command line
    #[arg(long, value_name = "TOKEN", help_heading = CLIENTS)]
    pub(crate) crossbar_token: Option<Setting<Secret>>,
    /// Time that a yes of --auth crossbar is good, in seconds
    #[arg(long, value_name = "SECONDS", help_heading = CLIENTS)]
    pub(crate) crossbar_yes_seconds: Setting<NonZeroU32>,
    /// Time that a no of --auth crossbar is good, in seconds
    #[arg(long, value_name = "SECONDS", help_heading = CLIENTS)]
    pub(crate) crossbar_no_seconds: Setting<NonZeroU32>,
    /// Time for an answer of --auth crossbar, in milliseconds
    #[arg(long, value_name = "MS", help_heading = CLIENTS)]
    pub(crate) crossbar_timeout_ms: Setting<NonZeroU32>,
    /// SIP realm of an account under --auth insecure
    #[arg(long, value_name = "TEMPLATE", help_heading = CLIENTS)]
    pub(crate) insecure_realm: Setting<RealmTemplate>,
    /// Web pages that may connect, by their Origin header: scheme://host or scheme://host:port, or null; none listed:
    /// all
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',', help_heading = CLIENTS)]
    #[serde(deserialize_with = "list")]
    pub(crate) allowed_origins: Vec<Setting<Origin>>,
    /// Time for a handshake, and for the broker's answer to a subscribe, in milliseconds
    #[arg(long, value_name = "MS", help_heading = CLIENTS)]
    pub(crate) request_timeout_ms: Setting<NonZeroU32>,
    /// Time until a session must have authenticated, in milliseconds
    #[arg(long, value_name = "MS", help_heading = CLIENTS)]
    pub(crate) auth_timeout_ms: Setting<NonZeroU32>,
    /// Time without progress while frames wait for a client, in milliseconds
    #[arg(long, value_name = "MS", help_heading = CLIENTS)]
    pub(crate) send_timeout_ms: Setting<NonZeroU32>,
    /// Time for a message from its first byte to its last, in milliseconds; beyond it the session is closed (1008)
    #[arg(long, value_name = "MS", help_heading = CLIENTS)]
    pub(crate) message_timeout_ms: Setting<NonZeroU32>,
    /// Silence of a client after which it is pinged, give or take a fifth, in milliseconds; 0: no pings
    #[arg(long, value_name = "MS", help_heading = CLIENTS)]
    pub(crate) ping_interval_ms: Setting<Period<0>>,
    /// Time for anything to come from a client that was pinged, in milliseconds; beyond it the session is closed (1001)
    #[arg(long, value_name = "MS", help_heading = CLIENTS)]
    pub(crate) pong_timeout_ms: Setting<Period<1>>,
    /// Time without a frame of the client's own (answers to pings are not), in milliseconds, 3600000 on the platform;
    /// beyond it the session is closed (1000); 0: for ever
    #[arg(long, value_name = "MS", help_heading = CLIENTS)]
    pub(crate) idle_timeout_ms: Setting<u32>,
    /// A client that reads too slowly: close its session (4408), or drop new events for it
    #[arg(long, value_name = "POLICY", help_heading = CLIENTS)]
    pub(crate) slow_consumer: Setting<SlowConsumerPolicy>,

    /// Sessions in all; unset: the descriptor limit (ulimit -n) less 96
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub(crate) max_connections: Option<Setting<Limit<u64>>>,
    /// Connections from one IP address, from accept to end
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub(crate) max_connections_per_ip: Setting<Limit<u64>>,
    /// Sessions authenticated as one account, that of their token itself; none is counted under --auth insecure
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub(crate) max_connections_per_account: Setting<Limit<u64>>,
    /// New connections a second; more wait in the kernel's queue. As many may come at once after a quiet second
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub(crate) max_accept_rate: Setting<Limit<u32>>,
    /// Subscriptions of one session
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub(crate) max_subscriptions: Setting<Limit<u64>>,
    /// AMQP bindings of one session, counted for each subscription; call.*.ID alone is nine
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub(crate) max_bindings_per_session: Setting<Limit<u64>>,
    /// AMQP bindings that the subscribes of one account, that of their token itself, have made
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub(crate) max_bindings_per_account: Setting<Limit<u64>>,
    /// AMQP bindings in all; a broker comes to its limits at some 200,000 of all its queues together
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub(crate) max_bindings: Setting<Limit<u64>>,
    /// AMQP bindings that stay in force for history_seconds after their last subscriber; beyond it the oldest go
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub(crate) max_lingering_bindings: Setting<Limit<u64>>,
    /// Those of one account; beyond it its oldest go
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub(crate) max_lingering_bindings_per_account: Setting<Limit<u64>>,
    /// Time for which events are kept for clients that come back, in seconds
    #[arg(long, value_name = "S", help_heading = EVENTS)]
    pub(crate) history_seconds: Setting<NonZeroU32>,
    /// Bytes of the events kept for clients that come back; 0: none, and events carry no cursors
    #[arg(long, value_name = "BYTES", help_heading = EVENTS)]
    pub(crate) history_bytes: Setting<u32>,
    /// How far before the cursor of another process a replay begins, in milliseconds
    #[arg(long, value_name = "MS", help_heading = EVENTS)]
    pub(crate) history_overlap_ms: Setting<u32>,
    /// Where events are kept for clients that come back: memory (of this process alone), or stream:NAME (in a stream of the
    /// broker, too), which is declared if it is not there
    #[arg(long, value_name = "WHERE", help_heading = EVENTS)]
    pub(crate) history: Setting<HistoryName>,
    /// How old the events in that stream become (x-max-age), as RabbitMQ writes it
    #[arg(long, value_name = "AGE", help_heading = EVENTS)]
    pub(crate) history_stream_max_age: Setting<MaxAge>,
    /// Bytes of that stream (x-max-length-bytes)
    #[arg(long, value_name = "BYTES", help_heading = EVENTS)]
    pub(crate) history_stream_max_bytes: Setting<u64>,
    /// Events that one resume may go through
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub(crate) resume_max_events: Setting<Limit<u64>>,
    /// Age of a cursor that a client may resume from, in seconds
    #[arg(long, value_name = "S", help_heading = LIMITS)]
    pub(crate) resume_max_seconds: Setting<Limit<u32>>,
    /// Bytes of one command; beyond it the session is closed (1009)
    #[arg(long, value_name = "BYTES", help_heading = LIMITS)]
    pub(crate) max_message_bytes: Setting<Limit<u64>>,
    /// Bytes of commands and requests that have come in part, of all clients together; beyond it the largest is closed
    /// (1008)
    #[arg(long, value_name = "BYTES", help_heading = LIMITS)]
    pub(crate) max_partials_bytes: Setting<Limit<u64>>,
    /// Bytes of the metadata that a client may attach to its session
    #[arg(long, value_name = "BYTES", help_heading = LIMITS)]
    pub(crate) max_metadata_bytes: Setting<Limit<u64>>,
    /// Events that wait for one session under the policy drop
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub(crate) max_queued_messages: Setting<Limit<u64>>,
    /// Bytes that wait for one session under the policy close
    #[arg(long, value_name = "BYTES", help_heading = LIMITS)]
    pub(crate) max_outbox_bytes: Setting<Limit<u64>>,
    /// Bytes that wait for all sessions together; beyond it the slowest is closed
    #[arg(long, value_name = "BYTES", help_heading = LIMITS)]
    pub(crate) max_outboxes_bytes: Setting<Limit<u64>>,
    /// Commands that a session may send at once
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub(crate) rate_limit_burst: Setting<NonZeroU32>,
    /// Commands that a session may send each second in the long run
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pub(crate) rate_limit_per_second: Setting<NonZeroU32>,

    /// Families on offer; bindings of the others are refused
    #[arg(long, value_name = "MODULE", value_delimiter = ',', help_heading = FAMILIES)]
    #[serde(deserialize_with = "list")]
    pub(crate) autoload_modules: Vec<Setting<Word>>,
    /// Call events that clients may subscribe to
    #[arg(long, value_name = "EVENT", value_delimiter = ',', help_heading = FAMILIES)]
    #[serde(deserialize_with = "list")]
    pub(crate) channel_events: Vec<Setting<Word>>,
    /// Document types that clients may subscribe to beside the platform's
    #[arg(long, value_name = "TYPE", value_delimiter = ',', help_heading = FAMILIES)]
    #[serde(deserialize_with = "list")]
    pub(crate) extra_doc_types: Vec<Setting<Word>>,
    /// A family of your own, as a JSON object; easier in the file, where it is a list of objects
    #[arg(long, value_name = "JSON", help_heading = FAMILIES)]
    #[serde(deserialize_with = "list")]
    pub(crate) families: Vec<Setting<Object>>,

    /// Write to many clients with one system call (io_uring), where the kernel allows it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = PROCESS)]
    pub(crate) io_uring: Setting<bool>,
    /// Lines to log on stderr: error, warn, info or debug
    #[arg(long, value_name = "LEVEL", help_heading = PROCESS)]
    pub(crate) log_level: Setting<log::LevelFilter>,
    /// Form of these lines: text, or json (an object a line)
    #[arg(long, value_name = "FORMAT", help_heading = PROCESS)]
    pub(crate) log_format: Setting<LogFormat>,
    /// Time over which the sessions are told to move, and then closed, at SIGTERM, in seconds
    #[arg(long, value_name = "SECONDS", help_heading = PROCESS)]
    pub(crate) drain_seconds: Setting<u32>,
    /// The part of drain_seconds in which sessions are told to move and none is closed, in milliseconds; unset: half of it,
    /// 0: nobody is told
    #[arg(long, value_name = "MS", help_heading = PROCESS)]
    pub(crate) going_away_ms: Option<Setting<u32>>,
    /// Time from SIGTERM until connections are no longer taken, in seconds: what balancers need to see the 503
    #[arg(long, value_name = "SECONDS", help_heading = PROCESS)]
    pub(crate) drain_delay_seconds: Setting<u32>,
}

impl Default for Options {
    fn default() -> Self {
        let families = FamilyOptions::default();
        Self {
            ip: Setting(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            port: Setting(PortOrNone(Some(5555))),
            use_ssl: Setting(false),
            ssl_port: Setting(5556),
            ssl_cert: Vec::new(),
            ssl_key: Vec::new(),
            ssl_ca_cert: None,
            ssl_client_required: Setting(false),
            tls_ticket_key_file: None,
            reuse_port: Setting(false),
            proxy_protocol: Setting(ProxyProtocol::Off),
            trusted_proxies: Vec::new(),
            admin: None,
            admin_token: None,
            admin_hosts: Vec::new(),
            admin_dir: None,
            source: Setting(SourceName::Amqp),
            amqp: vec![Setting(BrokerUrl(
                "amqp://guest:guest@127.0.0.1:5672/%2f".to_owned(),
            ))],
            amqp_ca_cert: None,
            amqp_client_cert: None,
            amqp_client_key: None,
            prefetch: const { nonzero_u16(2048) },
            max_queue_length: Setting(Limit(Some(100_000))),
            queue_expires_seconds: const { nonzero_u32(60) },
            durable_queue: Setting(false),
            control: Setting(true),
            node_name: None,
            demo_rate: Setting(Rate(2.0)),
            demo_accounts: const { nonzero_u32(1) },
            style: Setting(Style::Piston),
            gap_notices: Setting(true),
            compression: Setting(false),
            auth: Vec::new(),
            accounts: None,
            jwt_issuer: Setting(Issuer("kazoo".to_owned())),
            jwt_require_exp: Setting(false),
            crossbar_token: None,
            crossbar_yes_seconds: const { nonzero_u32(60) },
            crossbar_no_seconds: const { nonzero_u32(5) },
            crossbar_timeout_ms: const { nonzero_u32(5_000) },
            insecure_realm: Setting(RealmTemplate(format!("{}.localhost", REALM_PLACEHOLDER))),
            allowed_origins: Vec::new(),
            request_timeout_ms: const { nonzero_u32(10_000) },
            auth_timeout_ms: const { nonzero_u32(30_000) },
            send_timeout_ms: const { nonzero_u32(5_000) },
            message_timeout_ms: const { nonzero_u32(10_000) },
            ping_interval_ms: Setting(Period(25_000)),
            pong_timeout_ms: Setting(Period(10_000)),
            idle_timeout_ms: Setting(0),
            slow_consumer: Setting(SlowConsumerPolicy::Close),
            max_connections: None,
            max_connections_per_ip: Setting(Limit(None)),
            max_connections_per_account: Setting(Limit(None)),
            max_accept_rate: Setting(Limit(None)),
            max_subscriptions: Setting(Limit(Some(256))),
            max_bindings_per_session: Setting(Limit(Some(4096))),
            max_bindings_per_account: Setting(Limit(Some(16_384))),
            max_bindings: Setting(Limit(Some(200_000))),
            max_lingering_bindings: Setting(Limit(Some(4096))),
            max_lingering_bindings_per_account: Setting(Limit(Some(256))),
            history_seconds: const { nonzero_u32(60) },
            history_bytes: Setting(16 << 20),
            history_overlap_ms: Setting(2_000),
            history: Setting(HistoryName::Memory),
            history_stream_max_age: Setting(MaxAge("1h".to_owned())),
            history_stream_max_bytes: Setting(1 << 30),
            resume_max_events: Setting(Limit(Some(100_000))),
            resume_max_seconds: Setting(Limit(Some(3_600))),
            max_message_bytes: Setting(Limit(Some(64 << 10))),
            max_partials_bytes: Setting(Limit(Some(64 << 20))),
            max_metadata_bytes: Setting(Limit(Some(4 << 10))),
            max_queued_messages: Setting(Limit(Some(50))),
            max_outbox_bytes: Setting(Limit(Some(1 << 20))),
            max_outboxes_bytes: Setting(Limit(Some(256 << 20))),
            rate_limit_burst: const { nonzero_u32(100) },
            rate_limit_per_second: const { nonzero_u32(10) },
            autoload_modules: words(&families.autoload_modules),
            channel_events: words(&families.channel_events),
            extra_doc_types: Vec::new(),
            families: Vec::new(),
            io_uring: Setting(true),
            log_level: Setting(log::LevelFilter::Info),
            log_format: Setting(LogFormat::Text),
            drain_seconds: Setting(10),
            going_away_ms: None,
            drain_delay_seconds: Setting(0),
        }
    }
}
