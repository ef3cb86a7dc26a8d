//! A way to a broker that lets only some of the AMQP frames through, so that a real broker beats its heart and answers
//! nothing.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;

const PROTOCOL_HEADER_BYTES: usize = 8;
const FRAME_HEADER_BYTES: usize = 7;
const HEARTBEAT: u8 = 8;

/// What passes, both ways, of connections that stand and of new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Passing {
    Everything,
    /// Frames of channel 0: the login, heartbeats, and no channel is ever opened.
    Login,
    /// What asks and answers nothing.
    Heartbeats,
}

impl Passing {
    fn lets_through(passing: u8, kind: u8, channel: [u8; 2]) -> bool {
        match passing {
            passing if passing == Self::Everything as u8 => true,
            passing if passing == Self::Login as u8 => channel == [0, 0],
            _ => kind == HEARTBEAT,
        }
    }
}

/// A running sieve. Connections end with either side.
pub(crate) struct FrameSieve {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    passing: AtomicU8,
    is_over: AtomicBool,
}

impl FrameSieve {
    /// Takes connections for a broker at this port of 127.0.0.1, on a free port there.
    pub(crate) fn to_port(port: u16, passing: Passing) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            passing: AtomicU8::new(passing as u8),
            is_over: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let broker = TcpStream::connect(("127.0.0.1", port)).unwrap();
                accepting.join(client, broker);
            }
        });
        Self { address, shared }
    }

    pub(crate) fn set(&self, passing: Passing) {
        self.shared.passing.store(passing as u8, Ordering::SeqCst);
    }

    /// The URL of the broker behind it, as user `guest`.
    pub(crate) fn amqp_url(&self) -> String {
        format!("amqp://guest:guest@{}/%2f", self.address)
    }
}

impl Drop for FrameSieve {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        // The listener sees the end with its next connection.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn join(self: &Arc<Self>, client: TcpStream, broker: TcpStream) {
        for socket in [&client, &broker] {
            socket.set_nodelay(true).unwrap();
        }
        let (client, broker) = (Arc::new(client), Arc::new(broker));
        for (from, to, begins_bare) in [
            (client.clone(), broker.clone(), true),
            (broker, client, false),
        ] {
            let shared = self.clone();
            thread::spawn(move || {
                let _ended = shared.pass(&from, &to, begins_bare);
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
    }

    /// Passes frames on until one side ends.
    fn pass(&self, mut from: &TcpStream, mut to: &TcpStream, begins_bare: bool) -> io::Result<()> {
        if begins_bare {
            let mut header = [0; PROTOCOL_HEADER_BYTES];
            from.read_exact(&mut header)?;
            to.write_all(&header)?;
        }
        loop {
            let mut header = [0; FRAME_HEADER_BYTES];
            from.read_exact(&mut header)?;
            let [kind, high, low, size @ ..] = header;
            let mut frame = header.to_vec();
            // And the byte that ends it.
            frame.resize(
                FRAME_HEADER_BYTES + u32::from_be_bytes(size) as usize + 1,
                0,
            );
            from.read_exact(&mut frame[FRAME_HEADER_BYTES..])?;
            let passing = self.passing.load(Ordering::SeqCst);
            if Passing::lets_through(passing, kind, [high, low]) {
                to.write_all(&frame)?;
            }
        }
    }
}
