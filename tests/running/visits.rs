//! Clients that come and go all the time, while what is behind a port is replaced.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use support::server::PATIENCE;
use support::wire::UPGRADE_REQUEST;

/// Connects and upgrades again and again; how often. The error is of the first connection that was refused, reset or left
/// without an answer.
pub(crate) fn visits(address: SocketAddr, is_over: &AtomicBool) -> io::Result<usize> {
    let mut served = 0;
    while !is_over.load(Ordering::Relaxed) {
        visit(TcpStream::connect(address)?)?;
        served += 1;
    }
    Ok(served)
}

/// Says that it is over when it is dropped: by a test that fails, too, or its clients would never end.
pub(crate) struct Over<'a>(pub(crate) &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Upgrades, and goes.
pub(crate) fn visit(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(UPGRADE_REQUEST.as_bytes())?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    assert_eq!(&head, b"HTTP/1.1 101");
    Ok(())
}
