//! The `blackhole` command: arguments in, wiring, exit status out.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blackhole::amqp::control::ControlOptions;
use blackhole::amqp::stream::{StreamOptions, StreamThreads};
use blackhole::amqp::{self, AmqpCounters, AmqpOptions, AmqpThread};
use blackhole::auth::{Authenticator, Fresh, SharedRealm};
use blackhole::config::{self, Config, ConfigError, Exit, Note, SourceConfig, Startup};
use blackhole::handoff::ask::ask_channels;
use blackhole::handoff::stored::stored_channels;
use blackhole::handoff::{SourceEnd, handoff};
use blackhole::inquiry::{self, Authorities, Crossbar, CrossbarOptions, Inquiry, InquiryCounters};
use blackhole::reactor::admin::about::About;
use blackhole::reactor::drain::DrainTimes;
use blackhole::reactor::handed::HandedSockets;
use blackhole::reactor::modules::{HostParts, KeepModule};
use blackhole::reactor::reread::{Reread, RereadJob};
use blackhole::reactor::server::{Addresses, Server, ServerParts, now_since};
use blackhole::reactor::service::Service;
use blackhole::routing::families::{Exchange, Families};
use blackhole::session::ListenerKind;
use blackhole::session::hub::Hub;
use blackhole::session::limits::SessionLimits;
use blackhole::tls::{self, ServerTls, TlsOptions};
use blackhole::{ctl, limits, logging, source, sub, sys};
use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

/// Exit code when the system refused something: an address in use, a thread that cannot be started.
const CODE_FAILED: u8 = 1;

/// How long the AMQP thread may take to say goodbye to the broker: at most this, and at most a quarter of the drain
/// time, which it is taken from.
const AMQP_STOP_PATIENCE: Duration = Duration::from_secs(1);

/// What the end may take beyond the times of the configuration: the listener emptied, the threads ended.
const STOP_MARGIN: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    sys::share_heaps();
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(command) = args.get(1).and_then(|name| find_command(name)) {
        return command.run(&args[1..]);
    }
    if let Some(meant) = args.get(1).and_then(|name| likely_command(name)) {
        let problem = format!("there is no such command; did you mean {meant}?");
        return Exit::refused(ConfigError::CommandLine(problem)).print();
    }
    let ended = config::from_args(args.iter().cloned()).and_then(|startup| {
        let Startup::Run(config) = startup;
        run(config, args)
    });
    // Before the log is started there is nothing to wait for.
    let is_stderr_taken = logging::flush();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) if is_stderr_taken && logging::is_for_programs() => {
            log::error!("{}", exit.why());
            let _in_time = logging::flush();
            ExitCode::from(exit.code)
        }
        Err(exit) if is_stderr_taken => exit.print(),
        Err(exit) => ExitCode::from(exit.code),
    }
}

/// What the program does beside being the server, when its first argument says so. Nothing of the server's
/// configuration is read then.
struct OtherCommand {
    command: fn() -> Command,
    run: fn(&ArgMatches) -> ExitCode,
}

const OTHER_COMMANDS: [OtherCommand; 4] = [
    OtherCommand {
        command: ctl::command,
        run: ctl::run,
    },
    OtherCommand {
        command: sub::command,
        run: sub::run,
    },
    OtherCommand {
        command: completions_command,
        run: print_completions,
    },
    OtherCommand {
        command: man_pages_command,
        run: write_man_pages,
    },
];

fn find_command(name: &OsStr) -> Option<&'static OtherCommand> {
    if name.as_encoded_bytes().starts_with(b"-") {
        return None;
    }
    OTHER_COMMANDS
        .iter()
        .find(|other| name == (other.command)().get_name())
}

/// The command that is likely meant by a first argument that is neither a command nor an option.
fn likely_command(name: &OsStr) -> Option<String> {
    const SLIPS_MAX: usize = 2;
    let name = name.to_str().filter(|name| !name.starts_with('-'))?;
    let commands = OTHER_COMMANDS.iter().map(|other| (other.command)());
    let slips = commands.map(|command| {
        let known = command.get_name().to_owned();
        (strsim::damerau_levenshtein(name, &known), known)
    });
    let (slips, meant) = slips.min()?;
    (slips <= SLIPS_MAX).then_some(meant)
}

impl OtherCommand {
    /// `args`: the command's name first. What clap says of wrong ones goes to stderr, with exit code 2; help and version
    /// go to stdout.
    fn run(&self, args: &[OsString]) -> ExitCode {
        let command = (self.command)();
        let name = format!("blackhole {}", command.get_name());
        match command.bin_name(name).try_get_matches_from(args) {
            Ok(matches) => (self.run)(&matches),
            Err(error) => {
                // Nobody may be reading; the exit code tells it too.
                let _closed = error.print();
                ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(CODE_FAILED))
            }
        }
    }
}

fn completions_command() -> Command {
    Command::new("completions")
        .about("Print completions of the command line for a shell")
        .after_help(
            "Examples:\n  blackhole completions bash > /etc/bash_completion.d/blackhole\n  \
             blackhole completions zsh > ~/.zfunc/_blackhole",
        )
        .arg(
            Arg::new("SHELL")
                .required(true)
                .value_parser(value_parser!(Shell)),
        )
}

fn print_completions(matches: &ArgMatches) -> ExitCode {
    let Some(shell) = matches.get_one::<Shell>("SHELL") else {
        return ExitCode::from(CODE_FAILED);
    };
    // Made whole first, because the generator panics when it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(*shell, &mut all_commands(), "blackhole", &mut script);
    let mut stdout = io::stdout();
    match stdout.write_all(&script).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Exit::failed(CODE_FAILED, format!("stdout: {error}")).print()
        }
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
}

/// The whole command line: the server's own, and the other commands below it.
fn all_commands() -> Command {
    config::command().subcommands(OTHER_COMMANDS.iter().map(|other| (other.command)()))
}

fn man_pages_command() -> Command {
    Command::new("man-pages")
        .about("Write the manual pages of all commands into a folder")
        .after_help("Example:\n  blackhole man-pages /usr/local/share/man/man1")
        .arg(
            Arg::new("FOLDER")
                .required(true)
                .help("Is made if it is not there; pages of the same names are overwritten")
                .value_parser(value_parser!(PathBuf)),
        )
}

fn write_man_pages(matches: &ArgMatches) -> ExitCode {
    let Some(folder) = matches.get_one::<PathBuf>("FOLDER") else {
        return ExitCode::from(CODE_FAILED);
    };
    // The page of `help` would repeat the others.
    let mut all = all_commands().disable_help_subcommand(true);
    all.build();
    let written = std::fs::create_dir_all(folder).and_then(|()| write_man_page(&all, folder));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let problem = format!("{}: {error}", folder.display());
            Exit::failed(CODE_FAILED, problem).print()
        }
    }
}

/// Writes the page of `command`, and those of the commands below it.
fn write_man_page(command: &Command, folder: &Path) -> io::Result<()> {
    for below in command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
    {
        write_man_page(below, folder)?;
    }
    let man = Man::new(command.clone()).source(concat!("blackhole ", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.get_arguments().next().is_some() {
        man.render_options_section(&mut page)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(notes) = command.get_after_help() {
        // As it is laid out for a terminal: it holds tables, commands and JSON.
        let mut section = Roff::new();
        section.control("SH", ["NOTES"]).control("nf", []);
        for line in notes.to_string().lines() {
            section.text([roman(line)]);
        }
        section.control("fi", []);
        section.to_writer(&mut page)?;
    }
    std::fs::write(folder.join(man.get_filename()), page)
}

/// The thread that events come from.
enum Source {
    Amqp(AmqpThread),
    Embedded(JoinHandle<()>),
}

fn run(config: Config, args: Vec<OsString>) -> Result<(), Exit> {
    // Before any other descriptor is opened.
    let handed = HandedSockets::take().map_err(|error| Exit::failed(CODE_FAILED, error))?;
    logging::start(config.log_level, config.log_format, amqp::CLIENT_LINES)
        .map_err(|error| Exit::failed(CODE_FAILED, error))?;
    for note in &config.notes {
        log::log!(note.level, "{}", note.text);
    }
    let authenticator = config.authenticator().map_err(Exit::refused)?;
    config.check_tls().map_err(Exit::refused)?;
    if authenticator.is_insecure() {
        log::warn!("--auth insecure: ANY token is taken for ANY account; for development only");
    }
    let admin_token = config.admin_token().map_err(Exit::refused)?;
    warn_of_shared_realms(&authenticator);
    let verifies = authenticator.verifies();
    let mut families = Families::new(&config.families).map_err(Exit::refused)?;
    switch_as_kept(&mut families, &config.modules().map_err(Exit::refused)?);
    warn_of_open_families(&families);
    let exchanges: Vec<Exchange> = families.exchanges().cloned().collect();
    let stream_exchanges = exchanges.clone();
    let admin_address = handed.address(ListenerKind::Admin);
    if let Some(address) = admin_address
        && !address.ip().to_canonical().is_loopback()
        && admin_token.is_none()
    {
        let why = format!(
            "the admin socket that was handed over is on {address}: admin_token must be set"
        );
        return Err(Exit::failed(CODE_FAILED, why));
    }
    let served_tls = config.server_tls().map_err(Exit::refused)?;
    if served_tls.is_none() && handed.address(ListenerKind::TlsClients).is_some() {
        let why = "a socket was handed over as websocket-tls: use_ssl must be set";
        return Err(Exit::failed(CODE_FAILED, why));
    }
    let on_our_address = |port| SocketAddr::new(config.ip, port);
    let tls_port = config.tls_clients.as_ref().map(|tls| tls.port);
    let addresses = Addresses {
        clients: config.port.map(on_our_address),
        tls_clients: tls_port.map(on_our_address),
        reuse_port: config.reuse_port,
        accept_rate: config.max_accept_rate,
        admin: config.admin,
        admin_dir: config.admin_dir.clone(),
        user_timeout: config.user_timeout(),
    };
    let mut server = Server::bind_or_take(addresses, handed)
        .map_err(|error| Exit::failed(CODE_FAILED, error))?;

    let epoch = Instant::now();
    start_service(&config, &mut server, epoch);
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| Exit::failed(CODE_FAILED, error))?;
    let mut limits = SessionLimits::from(&config);
    limits.admin.set_token(admin_token);
    let hub = Hub::new(
        limits,
        authenticator,
        families,
        now_since(epoch),
        u64::from_le_bytes(seed),
    );
    let (source_end, loop_end) = handoff(server.waker());
    let counters = Arc::new(AmqpCounters::default());
    let source = start_source(&config, exchanges, source_end, &counters)?;
    let (inquiry, inquiry_counters) = start_inquiry(&config, verifies, &server)?;
    start_tls(served_tls, &mut server)?;
    let control = start_control(&config, &mut server, &counters)?;
    let stream = start_stream(&config, stream_exchanges, &mut server, &counters)?;
    server.take_host(HostParts {
        name: sys::host_name(),
        keep: config.modules_file.clone().map(|file| {
            let keep = move |module: &str, is_on| config::keep_module(&file, module, is_on);
            Arc::new(keep) as KeepModule
        }),
    });

    blackhole::documents::prepare();
    server.take_about(about(&config));
    announce(&server);
    let patience = AMQP_STOP_PATIENCE.min(config.drain / 4);
    let tls_options = config.tls_clients.clone().map(|tls| tls.options);
    let tls_options = tls_options.map(|options| Arc::new(Mutex::new(options)));
    let parts = ServerParts {
        handoff: loop_end,
        inquiry,
        connections_max: config.max_connections.unwrap_or(usize::MAX),
        drain_delay: config.drain_delay,
        drain: DrainTimes {
            going_away: config.going_away,
            whole: config.drain - patience,
        },
        epoch,
        io_uring: config.io_uring,
        more_metrics: Box::new(move |out| {
            counters.write(out);
            inquiry_counters.write(out);
            logging::write_metrics(out);
        }),
        reread: Box::new(move |hub| reread(hub, args.clone(), tls_options.clone())),
    };
    let ended = server.run(hub, parts);
    // The loop's ends of the channels are gone, so the threads end; one that hangs on its broker is aborted.
    let patience = patience / (1 + u32::from(control.is_some()) + u32::from(stream.is_some()));
    match source {
        Source::Amqp(thread) => thread.stop(patience),
        Source::Embedded(thread) => drop(thread),
    }
    if let Some(thread) = control {
        thread.stop(patience);
    }
    if let Some(threads) = stream {
        threads.stop(patience);
    }
    ended.map_err(|error| Exit::failed(CODE_FAILED, error))
}

/// Lets the loop tell the service manager of itself, if one has started this process.
fn start_service(config: &Config, server: &mut Server, epoch: Instant) {
    let stop_time = config.drain_delay + config.drain + STOP_MARGIN;
    match Service::from_environment(stop_time, now_since(epoch).clock) {
        Ok(Some(service)) => server.take_service(service),
        Ok(None) => {}
        Err(error) => log::warn!("the service manager is not told (NOTIFY_SOCKET): {error}"),
    }
}

fn start_source(
    config: &Config,
    exchanges: Vec<Exchange>,
    source_end: SourceEnd,
    counters: &Arc<AmqpCounters>,
) -> Result<Source, Exit> {
    if config.source != SourceConfig::Amqp {
        return source::spawn(&config.source, source_end)
            .map(Source::Embedded)
            .map_err(|error| Exit::failed(CODE_FAILED, error));
    }
    let options = AmqpOptions {
        urls: config.amqp.clone(),
        tls: config.tls.clone(),
        prefetch: config.prefetch,
        max_queue_length: config.max_queue_length,
        queue_expires: config.queue_expires,
        durable_queue: config.durable_queue,
        exchanges,
        pause_max: amqp::RECONNECT_PAUSE_MAX,
        answer_max: limits::BROKER_ANSWER_MAX,
    };
    amqp::spawn(options, source_end, counters.clone())
        .map(Source::Amqp)
        .map_err(|error| Exit::failed(CODE_FAILED, error))
}

/// Starts the threads that answer the authenticator's questions, if it has any.
fn start_inquiry(
    config: &Config,
    verifies: bool,
    server: &Server,
) -> Result<(Option<Inquiry>, Arc<InquiryCounters>), Exit> {
    let counters = Arc::new(InquiryCounters::default());
    if !verifies && config.crossbar.is_none() {
        return Ok((None, counters));
    }
    let crossbar = config.crossbar.as_ref().map(|asked| {
        if asked.url.is_exposed() {
            log::warn!("--auth crossbar: tokens go to the platform unencrypted; use https");
        }
        let options = CrossbarOptions {
            url: asked.url.clone(),
            timeout: asked.timeout,
            service_token: asked.service_token.clone().map(Into::into),
            authorities: Authorities::System,
        };
        Crossbar::new(options, counters.clone())
    });
    let crossbar = crossbar
        .transpose()
        .map_err(|error| Exit::failed(CODE_FAILED, format!("crossbar: {error}")))?;
    let (inquiry, answering) = inquiry::channels(server.waker(), counters.clone());
    // They end with the loop.
    let _threads = answering
        .start(verifies, crossbar)
        .map_err(|error| Exit::failed(CODE_FAILED, error))?;
    Ok((Some(inquiry), counters))
}

/// Starts the threads that do TLS handshakes with clients, if there is a port for them.
fn start_tls(served: Option<ServerTls>, server: &mut Server) -> Result<(), Exit> {
    let Some(served) = served else {
        return Ok(());
    };
    for note in Note::of_tls(&served) {
        log::log!(note.level, "{}", note.text);
    }
    let (lane, threads) = tls::channels(server.waker());
    // They end with the loop.
    let _threads = threads
        .start()
        .map_err(|error| Exit::failed(CODE_FAILED, error))?;
    server.take_tls(lane, served);
    Ok(())
}

/// What this process is, as the admin address tells it.
fn about(config: &Config) -> About {
    let kinds = [
        ("insecure", config.auth.insecure.is_some()),
        ("tokens", config.auth.tokens.is_some()),
        ("jwt", config.auth.jwt.is_some()),
        ("crossbar", config.auth.platform.is_some()),
    ];
    let auth = kinds.into_iter().filter(|(_, is_there)| *is_there);
    let (source, demo_account) = match &config.source {
        SourceConfig::Amqp => ("amqp", None),
        SourceConfig::Demo { .. } => ("demo", Some(source::demo_account(1).to_string())),
        SourceConfig::Replay { .. } => ("replay", None),
    };
    About {
        node: config.node_name.clone(),
        websocket: None,
        websocket_tls: None,
        auth: auth.map(|(kind, _)| kind).collect(),
        source,
        demo_account,
        has_stream: config.history_stream.is_some(),
        drain: config.drain,
    }
}

/// Answers the platform over AMQP from now on, unless events come from elsewhere or it is switched off.
fn start_control(
    config: &Config,
    server: &mut Server,
    counters: &Arc<AmqpCounters>,
) -> Result<Option<AmqpThread>, Exit> {
    if !config.control || config.source != SourceConfig::Amqp {
        return Ok(None);
    }
    let (asker, requests) = ask_channels(
        server.waker(),
        limits::CONTROL_REQUESTS_MAX,
        limits::CONTROL_ANSWERS_MAX,
    );
    server.take_control(requests);
    let options = ControlOptions {
        urls: config.amqp.clone(),
        tls: config.tls.clone(),
        node: config.node_name.clone(),
        answer_max: limits::BROKER_ANSWER_MAX,
    };
    amqp::control::spawn(options, asker, counters.clone())
        .map(Some)
        .map_err(|error| Exit::failed(CODE_FAILED, error))
}

/// Keeps events in a stream of the broker, and reads it, if the operator wants that.
fn start_stream(
    config: &Config,
    exchanges: Vec<Exchange>,
    server: &mut Server,
    counters: &Arc<AmqpCounters>,
) -> Result<Option<StreamThreads>, Exit> {
    let Some(stream) = &config.history_stream else {
        return Ok(None);
    };
    let (end, keeper, reader) = stored_channels(server.waker());
    server.take_store(end);
    let options = StreamOptions {
        urls: config.amqp.clone(),
        tls: config.tls.clone(),
        name: stream.name.clone(),
        max_age: stream.max_age.clone(),
        max_bytes: stream.max_bytes,
        exchanges,
        answer_max: limits::BROKER_ANSWER_MAX,
    };
    amqp::stream::spawn(options, keeper, reader, counters.clone())
        .map(Some)
        .map_err(|error| Exit::failed(CODE_FAILED, error))
}

/// What was kept of families that the platform has started and stopped comes over `autoload_modules`.
fn switch_as_kept(families: &mut Families, modules: &BTreeMap<String, bool>) {
    for (module, is_on) in modules {
        match families.switch_module(module, *is_on) {
            Some(true) => {
                let state = if *is_on { "on" } else { "off" };
                log::info!("module {module} is {state}, as was kept");
            }
            Some(false) => {}
            None => log::warn!("module {module}: its state was kept, and it is not there any more"),
        }
    }
}

/// Tells scripts and operators where to connect (PROTOCOL 9).
fn announce(server: &Server) {
    for (kind, how) in [
        (ListenerKind::Clients, "listening on"),
        (ListenerKind::TlsClients, "listening with TLS on"),
    ] {
        if let Some(address) = server.address(kind) {
            // Nobody may be reading; that is no reason not to serve.
            let _closed = writeln!(io::stdout(), "{how} {address}");
            log::info!("{how} {address}");
        }
    }
    if let Some(address) = server.address(ListenerKind::Admin) {
        log::info!("admin pages on http://{address}/metrics, /healthz, /readyz");
        log::info!("console: http://{address}/");
    }
    if let Some(path) = server.admin_socket() {
        log::info!("admin socket: {}", path.display());
    }
}

/// SIGHUP: what can change while running is read again; what is wrong is reported and changes nothing.
///
/// `tls_options`: which files the TLS port is served with; `None`: there is no such port.
fn reread(
    hub: &Hub,
    args: Vec<OsString>,
    tls_options: Option<Arc<Mutex<TlsOptions>>>,
) -> RereadJob {
    let authenticator = hub.authenticator.reread();
    Box::new(move || {
        let config = config::reread(args.into_iter());
        let tls = tls_options.and_then(|known| reread_tls(config.as_ref().ok(), &known));
        let tokens = authenticator.parse(config::read_tokens, config::read_keys);
        let admin_token = config.as_ref().map(Config::admin_token);
        let admin_token = admin_token.unwrap_or(Ok(None));
        Box::new(move |hub| {
            // What is wrong with the whole configuration is told below.
            match admin_token {
                Ok(token) if config.is_ok() => hub.limits.admin.set_token(token),
                Ok(_) => {}
                Err(error) => log::error!("SIGHUP: admin token not reread: {error}"),
            }
            Reread {
                tls,
                ..put_in_force(hub, config, tokens)
            }
        })
    })
}

/// Reads the files of the TLS port: those of `config`, or while that is wrong those that were `known` before, so that a
/// renewed certificate does not wait for it. `None`: they do not serve.
fn reread_tls(config: Option<&Config>, known: &Mutex<TlsOptions>) -> Option<ServerTls> {
    // Locked by the thread of a reread alone, of which there is one at a time.
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let options = match config.map(|config| &config.tls_clients) {
        Some(Some(tls)) => tls.options.clone(),
        Some(None) => {
            log::warn!("SIGHUP: use_ssl is off now, which takes a restart");
            known.clone()
        }
        None => known.clone(),
    };
    match config::load_tls(&options) {
        Ok(tls) => {
            for note in Note::of_tls(&tls) {
                log::log!(note.level, "SIGHUP: {}", note.text);
            }
            *known = options;
            Some(tls)
        }
        Err(error) => {
            log::error!("SIGHUP: TLS files not reread: {error}");
            None
        }
    }
}

fn put_in_force(
    hub: &mut Hub,
    config: Result<Config, ConfigError>,
    tokens: Result<Fresh, ConfigError>,
) -> Reread {
    match config {
        Ok(config) => logging::set_level(config.log_level),
        Err(error) => log::error!("SIGHUP: configuration not reread: {error}"),
    }
    match tokens {
        Ok(fresh) => {
            let before = hub.authenticator.take(fresh);
            let sizes = hub.authenticator.sizes();
            log::info!(
                "SIGHUP: tokens on file: {}; keys: {}; accounts in the tree: {}",
                sizes.tokens,
                sizes.keys,
                sizes.accounts
            );
            warn_of_shared_realms(&hub.authenticator);
            Reread {
                has_changed_identities: true,
                tls: None,
                leftover: Box::new(before),
            }
        }
        Err(error) => {
            log::error!("SIGHUP: keys, accounts and tokens not reread: {error}");
            Reread {
                has_changed_identities: false,
                tls: None,
                leftover: Box::new(()),
            }
        }
    }
}

/// Accounts with one realm that are named; of more only the number is told.
const SHARED_REALMS_LOGGED: usize = 8;

fn warn_of_shared_realms(authenticator: &Authenticator) {
    let shared = authenticator.shared_realms();
    for SharedRealm { one, other } in shared.clone().take(SHARED_REALMS_LOGGED) {
        log::warn!(
            "accounts {one} and {other} have one realm: each sees the other's presence and registration events"
        );
    }
    if let Some(more @ 1..) = shared.count().checked_sub(SHARED_REALMS_LOGGED) {
        log::warn!("{more} more accounts share a realm with another");
    }
}

fn warn_of_open_families(families: &Families) {
    for family in families.open_to_all() {
        log::warn!(
            "{family}: with account `none`, and no id that must be named (`required`), every account sees all its events"
        );
    }
}
