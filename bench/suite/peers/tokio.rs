//! A plain broadcast server on tokio-tungstenite, `bench/tokio_broadcast`: every line on its stdin goes to every
//! session.

use std::io;

use super::{bodies, peer};
use crate::running::{Running, SERVER_CORE};
use crate::subject::{Batch, Candidate, Scenario, Subject};

/// With read buffers of 1 KiB, the smallest that its users would take for density.
pub(crate) const TOKIO: Candidate = Candidate {
    has_bindings: false,
    ..peer("tokio-tungstenite", |_| {
        Ok(Box::new(Tokio::start(&["--read-buffer", "1024"])?))
    })
};

/// With its library's defaults.
pub(crate) const TOKIO_DEFAULTS: Candidate = Candidate {
    has_bindings: false,
    ..peer("tokio-tungstenite-defaults", |_| {
        Ok(Box::new(Tokio::start(&[])?))
    })
};

/// With permessage-deflate, each event deflated for each session by one compressor without a memory, as uWebSockets does with
/// its `SHARED_COMPRESSOR`.
pub(crate) const TOKIO_DEFLATE: Candidate = Candidate {
    has_bindings: false,
    ..peer("tokio-tungstenite-deflate", |_| {
        let options = ["--read-buffer", "1024", "--deflate", "shared"];
        Ok(Box::new(Tokio::start_with_dialect(
            &options,
            "plain-deflate",
        )?))
    })
};

/// The same with a compressor a session, which remembers what it sent: some 300 KB each.
pub(crate) const TOKIO_DEFLATE_OWN: Candidate = Candidate {
    has_bindings: false,
    sessions_max: Some(1_000),
    ..peer("tokio-tungstenite-deflate-own", |_| {
        let options = ["--read-buffer", "1024", "--deflate", "own"];
        Ok(Box::new(Tokio::start_with_dialect(
            &options,
            "plain-deflate",
        )?))
    })
};

struct Tokio {
    running: Running,
    address: String,
    dialect: &'static str,
}

impl Tokio {
    fn start(arguments: &[&str]) -> io::Result<Self> {
        Self::start_with_dialect(arguments, "plain")
    }

    fn start_with_dialect(arguments: &[&str], dialect: &'static str) -> io::Result<Self> {
        let program = shared::programs::beside("tokio_broadcast", "blackhole-bench")?;
        let arguments: Vec<_> = arguments.iter().map(|&text| text.to_owned()).collect();
        let mut running = Running::start(SERVER_CORE, &program, &arguments)?;
        let address = running.listening()?;
        Ok(Self {
            running,
            address,
            dialect,
        })
    }
}

impl Subject for Tokio {
    fn pids(&self) -> Vec<u32> {
        vec![self.running.pid()]
    }

    fn address(&self) -> String {
        self.address.clone()
    }

    fn load_arguments(&self, _: Scenario, _: u32) -> Vec<String> {
        ["--dialect", self.dialect].map(str::to_owned).into()
    }

    fn publish(&mut self, batch: Batch) -> io::Result<()> {
        self.running
            .tell(&bodies(batch).collect::<Vec<_>>().join("\n"))
    }
}
