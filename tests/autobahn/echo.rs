//! The server that the Autobahn test suite is run against: the product's loop, handshake, codec, outboxes and closing,
//! put together as `main` does it, with one thing exchanged. Where a session of the product takes a message for a
//! command ([`Session::on_command`]), a session here sends it back: deflated where that was agreed on and is shorter, as the
//! product sends events.
//!
//! Never shipped: an example target of the package, and no code of it is in the library. Bounds that the suite's
//! messages of 16 MiB would meet are raised; those of the product have tests of their own.
//!
//! The first line on stdout is `listening on IP:PORT`; SIGTERM ends it. `scripts/autobahn` runs it.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use blackhole::amqp;
use blackhole::config::{self, Config, Exit, Startup};
use blackhole::handoff::{FromSource, Return, handoff};
use blackhole::logging;
use blackhole::protocol::frame::{Frame, Opcode};
use blackhole::reactor::drain::DrainTimes;
use blackhole::reactor::reread;
use blackhole::reactor::server::{Addresses, Server, ServerParts, now_since};
use blackhole::routing::families::Families;
use blackhole::session::hub::{Context, Hub};
use blackhole::session::limits::SessionLimits;
use blackhole::session::{ListenerKind, Message, Session};

/// What differs from the product's configuration, and why.
const OPTIONS: &[&str] = &[
    "--ip=127.0.0.1",
    "--port=0",
    "--log-level=error",
    // The suite does not authenticate, and sends some messages slowly; an hour is longer than any of its cases.
    "--auth=insecure",
    "--auth-timeout-ms=3600000",
    "--message-timeout-ms=3600000",
    // The largest messages of group 9, and room for one to wait behind another.
    "--max-message-bytes=16777216",
    "--max-outbox-bytes=67108864",
    // Groups 12 and 13.
    "--compression",
];

/// Exit code when the system refused something.
const CODE_FAILED: u8 = 1;

fn main() -> ExitCode {
    let args = ["echo"].iter().chain(OPTIONS).map(Into::into);
    let ended = config::from_args(args).and_then(|Startup::Run(config)| run(&config));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => exit.print(),
    }
}

fn run(config: &Config) -> Result<(), Exit> {
    logging::start(config.log_level, config.log_format, amqp::CLIENT_LINES)
        .map_err(|error| Exit::failed(CODE_FAILED, error))?;
    let server = Server::bind(Addresses {
        clients: config.port.map(|port| SocketAddr::new(config.ip, port)),
        tls_clients: None,
        reuse_port: config.reuse_port,
        accept_rate: config.max_accept_rate,
        admin: None,
        admin_dir: None,
        user_timeout: config.user_timeout(),
    })
    .map_err(|error| Exit::failed(CODE_FAILED, error))?;
    let epoch = Instant::now();
    let mut hub = Hub::new(
        SessionLimits::from(config),
        config.authenticator().map_err(Exit::refused)?,
        Families::new(&config.families).map_err(Exit::refused)?,
        now_since(epoch),
        0,
    );
    hub.on_message = echo;
    // Groups 12 and 13 send more than a command ever has.
    hub.limits.codec.deflated_bytes_max = usize::MAX;
    // No events come, but while this end is held the loop has a source.
    let (source, loop_end) = handoff(server.waker());
    source
        .send(FromSource::Up(Return::Anew))
        .map_err(|error| Exit::failed(CODE_FAILED, error))?;
    if let Some(address) = server.address(ListenerKind::Clients) {
        writeln!(std::io::stdout(), "listening on {address}")
            .map_err(|error| Exit::failed(CODE_FAILED, error))?;
    }
    let parts = ServerParts {
        inquiry: None,
        handoff: loop_end,
        connections_max: usize::MAX,
        drain_delay: Duration::ZERO,
        drain: DrainTimes::default(),
        epoch,
        io_uring: config.io_uring,
        more_metrics: Box::new(|_| {}),
        reread: Box::new(|_| reread::nothing()),
    };
    server
        .run(hub, parts)
        .map_err(|error| Exit::failed(CODE_FAILED, error))
}

/// Sends a message back as it came.
fn echo(session: &mut Session, message: Message<'_>, cx: &mut Context<'_>) {
    let (opcode, bytes) = match message {
        Message::Text(text) => (Opcode::Text, text.as_bytes()),
        Message::Binary(bytes) => (Opcode::Binary, bytes),
    };
    let deflater = &mut cx.hub.compression.deflater;
    let takes_deflated = session.takes_deflated(bytes.len());
    let deflated = takes_deflated.then(|| deflater.deflate_whole(opcode, bytes));
    let plain = || Frame::new(opcode, bytes);
    session.push(deflated.flatten().unwrap_or_else(plain), cx);
}
