//! The effective configuration: one typed value, made once from defaults, `--config FILE` and the command line.
//!
//! Key names are the platform's (PROTOCOL 9). `Option` means "no limit" where the file says `0`.
//!
//! | module | owns |
//! |---|---|
//! | `options` | the one list of keys, with types, defaults and help |
//! | `values` | what a value of each type may be, in both spellings |
//! | `authenticators` | the keys about who may do what, and the reading of their files |
//! | `origin` | an entry of `allowed_origins` |
//! | `tls_clients` | the keys about clients with TLS, and what is told of their files |
//! | `file`, `cli` | the two places that keys come from |
//! | `known` | the keys that a file may hold, and the wording of what is wrong with one |
//! | `document` | the platform's own document in place of such a file |
//! | `modules` | which modules the platform has started and stopped, kept in a file beside the config file |
//! | `error` | why a configuration is refused |
//! | `exit` | how a start ends that does not become a running server |
//!
//! Invariant: a [`Config`] is valid as a whole; nobody checks a value again.

mod authenticators;
mod cli;
mod document;
mod error;
mod exit;
mod file;
mod known;
mod modules;
mod options;
mod origin;
mod session_limits;
mod tls_clients;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

pub use crate::source::SourceConfig;
pub use authenticators::{CrossbarConfig, read_keys, read_tokens};
pub use cli::{Key, command, keys};
pub use error::ConfigError;
pub use exit::{CODE_REFUSED, Exit, Note, Stream};
pub use modules::keep_module;
pub use tls_clients::{TlsClientsConfig, load_tls};

use cidr::IpCidr;

use crate::amqp::{ClientFiles, TlsFileError, TlsFiles};
use crate::auth::jwt::Rules;
use crate::auth::{AuthConfig, Authenticator, CacheTimes};
use crate::event::Style;
use crate::limits::DESCRIPTORS_RESERVED;
use crate::logging::LogFormat;
use crate::protocol::proxy::ProxyProtocol;
use crate::routing::families::{Families, FamilyOptions, FamilySpec};
use crate::session::outbox::SlowConsumerPolicy;
use crate::tls::ServerTls;
use authenticators::AuthKeys;
use cli::{CommandLine, NoCommandLine};
use file::FromFile;
use options::Options;
use tls_clients::TlsClientKeys;
use values::{
    FileName, HistoryName, Limit, Network, NodeName, Object, Setting, SourceName, Text, Word,
};

/// What a valid command line asks for; `--help` and its like are an [`Exit`].
#[derive(Debug)]
pub enum Startup {
    /// Serve with this configuration.
    Run(Config),
}

/// Reads the command line (`args`, the program's name first) and the file that it names. Raises the descriptor
/// limit, which the default of `max_connections` is made from.
///
/// # Errors
/// [`Exit`] with code 0 when `--help`, `--version` or `--check-config` was asked for and is done, with code 2 when
/// the configuration is refused.
pub fn from_args(args: impl Iterator<Item = OsString>) -> Result<Startup, Exit> {
    let descriptors =
        crate::sys::raise_descriptor_limit().unwrap_or_else(|_| crate::sys::descriptor_limit());
    let command_line = match CommandLine::read(args) {
        Ok(command_line) => command_line,
        Err(NoCommandLine::Asked(exit)) => return Err(exit),
        Err(NoCommandLine::Wrong(error)) => return Err(Exit::refused(error)),
    };
    let loaded = load(&command_line, descriptors).map_err(Exit::refused)?;
    if command_line.check_config {
        return Err(match check(&loaded) {
            Ok((text, tls)) => {
                let tls = tls.as_ref().map(Note::of_tls).unwrap_or_default();
                Exit::done(text).with(&[loaded.config.notes, tls].concat())
            }
            Err(error) => Exit::refused(error),
        });
    }
    Ok(Startup::Run(loaded.config))
}

/// Reads the same command line and its file again, for SIGHUP. A running process takes `log_level`,
/// the admin token and the files of `tls_clients` from the result, and the content of the token file by
/// [`Authenticator::reread`] and [`read_tokens`]. Everything else is read at start only.
///
/// # Errors
/// The configuration would be refused at start; the running one stays.
pub fn reread(args: impl Iterator<Item = OsString>) -> Result<Config, ConfigError> {
    match CommandLine::read(args) {
        Ok(command_line) => Ok(load(&command_line, crate::sys::descriptor_limit())?.config),
        Err(NoCommandLine::Wrong(error)) => Err(error),
        // A process with such a command line has ended, so it gets no SIGHUP.
        Err(NoCommandLine::Asked(_)) => {
            Err(ConfigError::CommandLine("nothing to reread".to_owned()))
        }
    }
}

/// A configuration in both forms.
struct Loaded {
    options: Options,
    config: Config,
}

fn load(command_line: &CommandLine, descriptors: u64) -> Result<Loaded, ConfigError> {
    let mut asked = Options::default();
    command_line.lay_over(&mut asked)?;
    let node_name = asked.node_name.map(|name| name.0);
    let mut from_file = match command_line.config.as_deref() {
        Some(file) => file::read(file, node_name.as_ref(), &default_node_name())?,
        None => FromFile::default(),
    };
    let mut options = std::mem::take(&mut from_file.options);
    command_line.lay_over(&mut options)?;
    let default_connections = Limit(
        (descriptors < u64::MAX).then(|| descriptors.saturating_sub(DESCRIPTORS_RESERVED).max(1)),
    );
    options
        .max_connections
        .get_or_insert(Setting(default_connections));
    options
        .node_name
        .get_or_insert_with(|| Setting(default_node_name()));
    let place = |path: &str| place(command_line, &from_file, path);
    let mut config = Config::new(options.clone(), &place)?;
    let is_given = |key: &str| command_line.has(key) || from_file.has(key);
    let idle = Note::of_idle_tls_keys(&options, &is_given);
    let open = Note::of_open_port(config.port, config.tls_clients.as_ref());
    config.notes = [from_file.notes, idle, Vec::from_iter(open)].concat();
    config.modules_file = command_line.config.as_deref().map(modules::beside);
    Ok(Loaded { options, config })
}

/// `blackhole@` and the host's name. A host may be called what no node name can hold, and then is `localhost` here.
fn default_node_name() -> NodeName {
    let name = format!("blackhole@{}", crate::sys::host_name());
    NodeName::read(&name).unwrap_or_else(|| NodeName("blackhole@localhost".to_owned()))
}

/// How messages name a key, or a path below one such as `families[0].keys[1]`: as the operator wrote it.
fn place(command_line: &CommandLine, from_file: &FromFile, path: &str) -> String {
    let key = path.split(['[', '.']).next().unwrap_or_default();
    match &command_line.config {
        Some(file) if !command_line.has(key) => from_file.place(file, path),
        _ => cli::option(path),
    }
}

/// What `--check-config` does beyond loading: opens the files that are named, and prints.
fn check(loaded: &Loaded) -> Result<(String, Option<ServerTls>), ConfigError> {
    loaded.config.authenticator()?;
    loaded.config.modules()?;
    loaded.config.admin_token()?;
    loaded.config.check_tls()?;
    let tls = loaded.config.server_tls()?;
    if let SourceConfig::Replay { file } = &loaded.config.source {
        File::open(file).map_err(|error| ConfigError::File {
            file: file.clone(),
            problem: format!("cannot be read: {error}"),
        })?;
    }
    let text = serde_json::to_string_pretty(&loaded.options)
        .expect("options are JSON: text, numbers, lists, objects");
    Ok((text + "\n", tls))
}

impl Config {
    /// Makes the authenticator that is configured, and reads all its files.
    ///
    /// # Errors
    /// A file cannot be read or holds something else than it should.
    pub fn authenticator(&self) -> Result<Authenticator, ConfigError> {
        Authenticator::new(&self.auth, read_tokens, read_keys)
    }

    /// Reads the admin token: the first line of its file, if there is one.
    ///
    /// # Errors
    /// The file cannot be read or holds something else than it should. What it holds is not told.
    pub fn admin_token(&self) -> Result<Option<Box<str>>, ConfigError> {
        let file = self.admin_token.as_deref();
        file.map(authenticators::read_admin_token).transpose()
    }

    /// Reads which modules the platform has started (true) and stopped, as was kept; none where there is no file.
    ///
    /// # Errors
    /// The file cannot be read or holds something else than it should.
    pub fn modules(&self) -> Result<BTreeMap<String, bool>, ConfigError> {
        let file = self.modules_file.as_deref();
        file.map_or_else(|| Ok(BTreeMap::new()), modules::read)
    }

    /// Reads the files of TLS with clients; `None`: there is no such TLS. Blocks for as long as the disk does.
    ///
    /// # Errors
    /// A file cannot be read or holds something else than it should.
    pub fn server_tls(&self) -> Result<Option<ServerTls>, ConfigError> {
        let clients = self.tls_clients.as_ref();
        clients
            .map(|clients| load_tls(&clients.options))
            .transpose()
    }

    /// Makes sure that the files for TLS to the broker serve, if there is a broker with TLS or a file is named.
    ///
    /// # Errors
    /// A file cannot be read or holds something else than it should.
    pub fn check_tls(&self) -> Result<(), ConfigError> {
        let is_needed = self.source == SourceConfig::Amqp
            && self.amqp.iter().any(|url| crate::amqp::has_tls(url))
            || self.tls != TlsFiles::default();
        if !is_needed {
            return Ok(());
        }
        self.tls
            .check()
            .map_err(|TlsFileError { file, problem }| ConfigError::File { file, problem })
    }

    /// Makes the typed form of `options`; `place` names a key as the operator wrote it.
    fn new(options: Options, place: &dyn Fn(&str) -> String) -> Result<Self, ConfigError> {
        let Options {
            ip,
            port,
            use_ssl,
            ssl_port,
            ssl_cert,
            ssl_key,
            ssl_ca_cert,
            ssl_client_required,
            tls_ticket_key_file,
            reuse_port,
            proxy_protocol,
            trusted_proxies,
            admin,
            admin_token,
            admin_hosts,
            admin_dir,
            source,
            amqp,
            amqp_ca_cert,
            amqp_client_cert,
            amqp_client_key,
            prefetch,
            max_queue_length,
            queue_expires_seconds,
            durable_queue,
            control,
            node_name,
            demo_rate,
            demo_accounts,
            style,
            gap_notices,
            compression,
            auth,
            accounts,
            jwt_issuer,
            jwt_require_exp,
            crossbar_token,
            crossbar_yes_seconds,
            crossbar_no_seconds,
            crossbar_timeout_ms,
            insecure_realm,
            allowed_origins,
            request_timeout_ms,
            auth_timeout_ms,
            send_timeout_ms,
            message_timeout_ms,
            ping_interval_ms,
            pong_timeout_ms,
            idle_timeout_ms,
            slow_consumer,
            max_connections,
            max_connections_per_ip,
            max_connections_per_account,
            max_accept_rate,
            max_subscriptions,
            max_bindings_per_session,
            max_bindings_per_account,
            max_bindings,
            max_lingering_bindings,
            max_lingering_bindings_per_account,
            history_seconds,
            history_bytes,
            history_overlap_ms,
            history,
            history_stream_max_age,
            history_stream_max_bytes,
            resume_max_events,
            resume_max_seconds,
            max_message_bytes,
            max_partials_bytes,
            max_metadata_bytes,
            max_queued_messages,
            max_outbox_bytes,
            max_outboxes_bytes,
            rate_limit_burst,
            rate_limit_per_second,
            autoload_modules,
            channel_events,
            extra_doc_types,
            families,
            io_uring,
            log_level,
            log_format,
            drain_seconds,
            going_away_ms,
            drain_delay_seconds,
        } = options;
        let source = match source.0 {
            SourceName::Amqp => SourceConfig::Amqp,
            SourceName::Demo => SourceConfig::Demo {
                rate: demo_rate.0.0,
                accounts: demo_accounts.0.get(),
            },
            SourceName::Replay(file) => SourceConfig::Replay { file },
        };
        if source == SourceConfig::Amqp && amqp.is_empty() {
            return Err(ConfigError::Value {
                place: place("amqp"),
                problem: "expected at least one broker URL".to_owned(),
            });
        }
        let history_stream = match history.0 {
            HistoryName::Memory => None,
            HistoryName::Stream(name) => Some(HistoryStream {
                name,
                max_age: history_stream_max_age.0.0,
                max_bytes: history_stream_max_bytes.0,
            }),
        };
        if history_stream.is_some() && (source != SourceConfig::Amqp || history_bytes.0 == 0) {
            return Err(ConfigError::Value {
                place: place("history"),
                problem:
                    "expected memory, since a stream needs source amqp and history_bytes above 0"
                        .to_owned(),
            });
        }
        let admin = admin.map(|admin| admin.0);
        let admin_token = admin_token.map(|file| file.0.0);
        if let Some(address) = admin
            && !address.ip().to_canonical().is_loopback()
            && admin_token.is_none()
        {
            return Err(ConfigError::Value {
                place: place("admin"),
                problem: format!(
                    "expected admin_token beside it, since others than this machine reach {address}; or an address \
                     such as 127.0.0.1:{}",
                    address.port()
                ),
            });
        }
        let tls_clients = TlsClientKeys {
            port: port.0.0,
            use_ssl: use_ssl.0,
            ssl_port: ssl_port.0,
            cert: ssl_cert,
            key: ssl_key,
            ca_cert: ssl_ca_cert,
            client_required: ssl_client_required.0,
            ticket_key_file: tls_ticket_key_file,
        }
        .read(place)?;
        let tls = tls_files(amqp_ca_cert, amqp_client_cert, amqp_client_key, place)?;
        if proxy_protocol.0 != ProxyProtocol::Off && trusted_proxies.is_empty() {
            return Err(ConfigError::Value {
                place: place("trusted_proxies"),
                problem: format!(
                    "expected at least one {}, since proxy_protocol is not off",
                    Network::WHAT
                ),
            });
        }
        let drain = Duration::from_secs(drain_seconds.0.into());
        let going_away = going_away_ms.map(|time| Duration::from_millis(time.0.into()));
        let going_away = going_away.unwrap_or(drain / 2);
        if going_away > drain {
            return Err(ConfigError::Value {
                place: place("going_away_ms"),
                problem: format!(
                    "expected at most {}, since it is a part of drain_seconds",
                    drain.as_millis()
                ),
            });
        }
        let (auth, crossbar) = AuthKeys {
            kinds: auth.into_iter().map(|kind| kind.0).collect(),
            insecure_realm: insecure_realm.0.0,
            rules: Rules::new(&jwt_issuer.0.0, jwt_require_exp.0),
            times: CacheTimes {
                yes: seconds(crossbar_yes_seconds),
                no: seconds(crossbar_no_seconds),
            },
            service_token: crossbar_token.map(|token| token.0.0),
            timeout: milliseconds(crossbar_timeout_ms),
            accounts: accounts.map(|file| file.0.0),
        }
        .read(&place("auth"))?;
        Ok(Self {
            ip: ip.0,
            port: port.0.0,
            tls_clients,
            reuse_port: reuse_port.0,
            proxy_protocol: proxy_protocol.0,
            trusted_proxies: trusted_proxies
                .into_iter()
                .map(|network| network.0.0)
                .collect(),
            admin,
            admin_token,
            admin_hosts: admin_hosts.into_iter().map(|host| host.0.0).collect(),
            admin_dir: admin_dir.map(|folder| folder.0.0),
            amqp: amqp.into_iter().map(|url| url.0.0).collect(),
            tls,
            source,
            notes: Vec::new(),
            control: control.0,
            modules_file: None,
            node_name: node_name.map_or_else(default_node_name, |name| name.0).0,
            auth,
            crossbar,
            style: style.0,
            io_uring: io_uring.0,
            log_level: log_level.0,
            log_format: log_format.0,
            max_connections: max_connections.and_then(limit),
            max_connections_per_ip: limit(max_connections_per_ip),
            max_connections_per_account: limit(max_connections_per_account),
            max_accept_rate: max_accept_rate.0.0,
            max_subscriptions: limit(max_subscriptions),
            max_bindings_per_session: limit(max_bindings_per_session),
            max_bindings_per_account: limit(max_bindings_per_account),
            max_bindings: limit(max_bindings),
            max_lingering_bindings: limit(max_lingering_bindings),
            max_lingering_bindings_per_account: limit(max_lingering_bindings_per_account),
            history: Duration::from_secs(history_seconds.0.get().into()),
            history_bytes: usize::try_from(history_bytes.0).unwrap_or(usize::MAX),
            history_overlap: Duration::from_millis(history_overlap_ms.0.into()),
            history_stream,
            resume_max_events: resume_max_events.0.0,
            resume_max_age: resume_max_seconds
                .0
                .0
                .map(|age| Duration::from_secs(age.into())),
            max_message_bytes: limit(max_message_bytes),
            max_partials_bytes: limit(max_partials_bytes),
            max_metadata_bytes: limit(max_metadata_bytes),
            max_queued_messages: limit(max_queued_messages),
            max_outbox_bytes: limit(max_outbox_bytes),
            max_outboxes_bytes: limit(max_outboxes_bytes),
            slow_consumer: slow_consumer.0,
            gap_notices: gap_notices.0,
            compression: compression.0,
            request_timeout: milliseconds(request_timeout_ms),
            send_timeout: milliseconds(send_timeout_ms),
            auth_timeout: milliseconds(auth_timeout_ms),
            message_timeout: milliseconds(message_timeout_ms),
            ping_interval: unless_off(ping_interval_ms.0.0),
            pong_timeout: Duration::from_millis(pong_timeout_ms.0.0.into()),
            idle_timeout: unless_off(idle_timeout_ms.0),
            rate_limit_burst: rate_limit_burst.0.get(),
            rate_limit_per_second: rate_limit_per_second.0.get(),
            drain,
            going_away,
            drain_delay: Duration::from_secs(drain_delay_seconds.0.into()),
            allowed_origins: allowed_origins
                .into_iter()
                .map(|origin| origin.0.0)
                .collect(),
            families: family_options(
                families,
                words(autoload_modules),
                words(channel_events),
                words(extra_doc_types),
                place,
            )?,
            prefetch: prefetch.0.get(),
            max_queue_length: max_queue_length.0.0,
            queue_expires: seconds(queue_expires_seconds),
            durable_queue: durable_queue.0,
        })
    }
}

/// A bound as a size. One that no address space reaches is no bound, so the conversion may saturate.
fn limit(limit: Setting<Limit<u64>>) -> Option<usize> {
    limit
        .0
        .0
        .map(|limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

fn milliseconds(milliseconds: Setting<NonZeroU32>) -> Duration {
    Duration::from_millis(milliseconds.0.get().into())
}

fn seconds(seconds: Setting<NonZeroU32>) -> Duration {
    Duration::from_secs(seconds.0.get().into())
}

/// A time of zero milliseconds switches off what it is the time of.
fn unless_off(milliseconds: u32) -> Option<Duration> {
    (milliseconds > 0).then(|| Duration::from_millis(milliseconds.into()))
}

fn words(words: Vec<Setting<Word>>) -> Vec<String> {
    words.into_iter().map(|word| word.0.0).collect()
}

/// The three keys about TLS to a broker.
fn tls_files(
    ca_cert: Option<Setting<FileName>>,
    client_cert: Option<Setting<FileName>>,
    client_key: Option<Setting<FileName>>,
    place: &dyn Fn(&str) -> String,
) -> Result<TlsFiles, ConfigError> {
    let needs = |key, other| ConfigError::Value {
        place: place(key),
        problem: format!("expected {other} beside it"),
    };
    let client = match (client_cert, client_key) {
        (Some(cert), Some(key)) => Some(ClientFiles {
            cert: cert.0.0,
            key: key.0.0,
        }),
        (None, None) => None,
        (Some(_), None) => return Err(needs("amqp_client_cert", "amqp_client_key")),
        (None, Some(_)) => return Err(needs("amqp_client_key", "amqp_client_cert")),
    };
    Ok(TlsFiles {
        ca_cert: ca_cert.map(|file| file.0.0),
        client,
    })
}

/// Checks the four keys about binding families; `place` names a key as the operator wrote it.
fn family_options(
    families: Vec<Setting<Object>>,
    autoload_modules: Vec<String>,
    channel_events: Vec<String>,
    extra_doc_types: Vec<String>,
    place: &dyn Fn(&str) -> String,
) -> Result<FamilyOptions, ConfigError> {
    let families = families
        .into_iter()
        .enumerate()
        .map(|(index, object)| {
            serde_json::from_value::<FamilySpec>(object.0.0).map_err(|error| ConfigError::Value {
                place: place(&format!("families[{index}]")),
                problem: error.to_string(),
            })
        })
        .collect::<Result<_, _>>()?;
    let options = FamilyOptions {
        autoload_modules,
        channel_events,
        extra_doc_types,
        families,
    };
    // Made here only to be checked: the loop makes its own.
    match Families::new(&options) {
        Ok(_) => Ok(options),
        Err(error) => Err(ConfigError::Value {
            place: place(&error.path),
            problem: error.problem.to_string(),
        }),
    }
}

/// The stream that events are kept in beside the history of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryStream {
    /// Its name.
    pub name: String,
    /// `history_stream_max_age`, as RabbitMQ writes it: `1h`.
    pub max_age: String,
    /// `history_stream_max_bytes`: 1 GiB.
    pub max_bytes: u64,
}

/// Everything an operator can set.
#[derive(Clone)]
pub struct Config {
    /// `ip`: address of the websocket listener. Default `0.0.0.0`.
    pub ip: IpAddr,
    /// `port`: of clients without TLS, 5555; 0 takes a free one. `None`: there is no such port, and `tls_clients` is there.
    pub port: Option<u16>,
    /// `use_ssl` and what belongs to it: how clients with TLS are served; none by default.
    pub tls_clients: Option<TlsClientsConfig>,
    /// `reuse_port`: several processes share the ports.
    pub reuse_port: bool,
    /// `proxy_protocol`. Unless off, `trusted_proxies` is not empty.
    pub proxy_protocol: ProxyProtocol,
    /// `trusted_proxies`: none by default. IPv4 networks are never written within IPv6.
    pub trusted_proxies: Vec<IpCidr>,
    /// `admin`: the admin address; none by default. If it is not loopback, `admin_token` is there.
    pub admin: Option<SocketAddr>,
    /// `admin_token`: the file of the token that is asked for there; none by default.
    pub admin_token: Option<PathBuf>,
    /// `admin_hosts`: the names by which it may be called.
    pub admin_hosts: Vec<String>,
    /// `admin_dir`: the folder of the admin sockets; none by default.
    pub admin_dir: Option<PathBuf>,
    /// `amqp`: broker URLs, tried in turn. Contain passwords: never logged.
    pub amqp: Vec<String>,
    /// `amqp_ca_cert`, `amqp_client_cert` and `amqp_client_key`: for brokers whose URLs are `amqps`.
    pub tls: TlsFiles,
    /// `source`: where events come from.
    pub source: SourceConfig,
    /// What the operator is to be told at the start about the config file.
    pub notes: Vec<Note>,
    /// `control`: whether the platform's questions over AMQP are answered. True; without effect where events come from
    /// elsewhere.
    pub control: bool,
    /// `node_name`: what this process is called there. Default: `blackhole@` and the host's name.
    pub node_name: String,
    /// Where changes of modules are kept over a restart: beside the config file, if there is one.
    pub modules_file: Option<PathBuf>,
    /// `auth` and what belongs to it: who decides who may do what; without one there is no `Config`. What their files hold
    /// can change while running ([`crate::auth::Authenticator::reload`]), kinds and paths cannot.
    pub auth: AuthConfig,
    /// `auth` with `crossbar:URL`: whom its threads ask. There exactly when `auth.platform` is.
    pub crossbar: Option<CrossbarConfig>,
    /// `style`: event style of sessions that do not choose one.
    pub style: Style,
    /// `io_uring`: whether to try it.
    pub io_uring: bool,
    /// `log_level`: error, warn, info, debug. Can change while running ([`reread`]).
    pub log_level: log::LevelFilter,
    /// `log_format`: text, json.
    pub log_format: LogFormat,
    /// `max_connections`: sessions in all. Default: RLIMIT_NOFILE less [`DESCRIPTORS_RESERVED`].
    pub max_connections: Option<usize>,
    /// `max_connections_per_ip`: of connections, from the moment when their address is known to their end.
    pub max_connections_per_ip: Option<usize>,
    /// `max_connections_per_account`: of the account that a session's token belongs to; none by default.
    pub max_connections_per_account: Option<usize>,
    /// `max_accept_rate`: connections a second on the websocket port; none by default.
    pub max_accept_rate: Option<u32>,
    /// `max_subscriptions`: of one session, 256.
    pub max_subscriptions: Option<usize>,
    /// `max_bindings_per_session`: AMQP bindings of one session, counted for each subscription, 4096.
    pub max_bindings_per_session: Option<usize>,
    /// `max_bindings_per_account`: AMQP bindings that one account has asked for first, 16384.
    pub max_bindings_per_account: Option<usize>,
    /// `max_bindings`: AMQP bindings of all sessions, 200000.
    pub max_bindings: Option<usize>,
    /// `max_lingering_bindings`: AMQP bindings that outlive their last user, 4096; beyond it the oldest go.
    pub max_lingering_bindings: Option<usize>,
    /// `max_lingering_bindings_per_account`: those of one account, 256; beyond it its oldest go.
    pub max_lingering_bindings_per_account: Option<usize>,
    /// `history_seconds`: how long events are kept, and AMQP bindings outlive their last user, 60.
    pub history: Duration,
    /// `history_bytes`: of the events that are kept, 16 MiB; 0: there is no history, and no cursor.
    pub history_bytes: usize,
    /// `history_overlap_ms`: how far before the cursor of another process a replay begins, 2,000.
    pub history_overlap: Duration,
    /// `history`: the stream that events are kept in beside; none by default.
    pub history_stream: Option<HistoryStream>,
    /// `resume_max_events`: that one resume may walk through, 100,000.
    pub resume_max_events: Option<u64>,
    /// `resume_max_seconds`: how old a cursor may be, 3,600.
    pub resume_max_age: Option<Duration>,
    /// `max_message_bytes`: of one command, 65536; above it the session is closed with 1009.
    pub max_message_bytes: Option<usize>,
    /// `max_partials_bytes`: of all messages and requests that have arrived in part, 64 MiB; above it the largest is
    /// closed with 1008.
    pub max_partials_bytes: Option<usize>,
    /// `max_metadata_bytes`: of `data.metadata`, 4096.
    pub max_metadata_bytes: Option<usize>,
    /// `max_queued_messages`: events waiting for one session under policy `drop`, 50.
    pub max_queued_messages: Option<usize>,
    /// `max_outbox_bytes`: waiting for one session under policy `close`, 1 MiB.
    pub max_outbox_bytes: Option<usize>,
    /// `max_outboxes_bytes`: waiting for all sessions, 256 MiB.
    pub max_outboxes_bytes: Option<usize>,
    /// `slow_consumer`: `close` or `drop`.
    pub slow_consumer: SlowConsumerPolicy,
    /// `gap_notices`: whether losses are announced to the sessions. Default true.
    pub gap_notices: bool,
    /// `compression`: whether permessage-deflate is agreed on with clients that offer it. Default false.
    pub compression: bool,
    /// `request_timeout_ms`: for a handshake, and for the broker's answer to a subscribe. 10,000.
    pub request_timeout: Duration,
    /// `send_timeout_ms`: without progress while frames wait. 5,000.
    pub send_timeout: Duration,
    /// `auth_timeout_ms`: until a session must have authenticated. 30,000.
    pub auth_timeout: Duration,
    /// `message_timeout_ms`: from a message's first byte to its last. 10,000.
    pub message_timeout: Duration,
    /// `ping_interval_ms`: of silence before a ping, 25,000; `None`: no pings. At most
    /// [`crate::limits::PERIOD_MAX`].
    pub ping_interval: Option<Duration>,
    /// `pong_timeout_ms`: of silence behind a ping, 10,000. At most [`crate::limits::PERIOD_MAX`].
    pub pong_timeout: Duration,
    /// `idle_timeout_ms`: without a frame of the client's own; `None`, the default: for ever.
    pub idle_timeout: Option<Duration>,
    /// `rate_limit_burst`: commands a session may send at once, 100.
    pub rate_limit_burst: u32,
    /// `rate_limit_per_second`: commands a session gets back each second, 10.
    pub rate_limit_per_second: u32,
    /// `drain_seconds`: over which the sessions are told to move, and closed, at SIGTERM, 10.
    pub drain: Duration,
    /// `going_away_ms`: the part of it in which none is closed; default: half. Zero: nobody is told.
    pub going_away: Duration,
    /// `drain_delay_seconds`: from SIGTERM until connections are no longer taken, 0.
    pub drain_delay: Duration,
    /// `allowed_origins`: `Origin` values that may connect, as browsers write them; empty: all.
    pub allowed_origins: Vec<String>,
    /// `families` and what switches them: see [`crate::routing::families`].
    pub families: FamilyOptions,
    /// `prefetch`: unacknowledged deliveries, 2048.
    pub prefetch: u16,
    /// `max_queue_length`: `x-max-length` of our queue on the broker, 100,000.
    pub max_queue_length: Option<u32>,
    /// `queue_expires_seconds`: `x-expires` of our queue, which outlives its connection so long, 60.
    pub queue_expires: Duration,
    /// `durable_queue`: our queue is durable, false.
    pub durable_queue: bool,
}

impl Config {
    /// TCP_USER_TIMEOUT of the clients' sockets: the kernel ends a connection whose peer acknowledges nothing for as
    /// long as a peer may leave a ping unanswered. By itself the kernel retransmits for a quarter of an hour, to open
    /// and to closed sessions alike.
    ///
    /// `None` without pings, because the operator then wants silent peers kept. `None` under the policy `drop`, because
    /// the kernel would also end a peer that acknowledges everything and has no room; there the sweep asks the kernel
    /// before it takes a peer for dead.
    #[must_use]
    pub fn user_timeout(&self) -> Option<Duration> {
        self.ping_interval
            .filter(|_| self.slow_consumer == SlowConsumerPolicy::Close)
            .map(|interval| interval + self.pong_timeout)
    }
}

impl fmt::Debug for Config {
    /// Nothing of it: broker URLs hold passwords. `--check-config` prints it masked.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Asker, Moment, Verdict};
    use std::fs;

    #[test]
    fn a_key_or_a_path_below_it_is_named_as_the_operator_wrote_it() {
        let line = ["blackhole", "--config", "config.json", "--families", "{}"].map(OsString::from);
        let command_line = CommandLine::read(line.into_iter())
            .ok()
            .expect("a good command line");
        for (path, expected) in [
            ("families", "--families"),
            ("families[0].keys[1]", "--families[0].keys[1]"),
            ("channel_events", "config.json: channel_events"),
            ("channel_events[2]", "config.json: channel_events[2]"),
        ] {
            assert_eq!(place(&command_line, &FromFile::default(), path), expected);
        }
    }

    #[test]
    fn a_token_file_that_is_gone_is_told_at_the_start_and_changes_nothing_later() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("tokens.json");
        let args = || {
            let auth = format!("tokens:{}", file.display());
            ["blackhole".to_owned(), "--auth".to_owned(), auth].map(OsString::from)
        };
        let config = reread(args().into_iter()).expect("valid options");
        let gone = format!("{}: cannot be read: ", file.display());
        let error = config.authenticator().err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.starts_with(&gone)));

        let account = "1".repeat(32);
        let text = format!(r#"{{"secret": {{"account_id": "{account}"}}}}"#);
        fs::write(&file, text).expect("writable");
        let mut authenticator = config.authenticator().expect("a token file");
        fs::remove_file(&file).expect("there");
        let error = authenticator.reload(read_tokens, read_keys).err();
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(
            error.starts_with(&gone) && !error.contains("secret"),
            "{error}"
        );
        assert_eq!(authenticator.sizes().tokens, 1);
        let asker = Asker {
            connection: 1,
            network: [127, 0, 0, 1].into(),
        };
        let now = Moment {
            unix: 0,
            clock: Duration::ZERO,
        };
        assert!(matches!(
            authenticator.identify("secret", asker, now),
            Verdict::Accepted(_)
        ));
    }
}
