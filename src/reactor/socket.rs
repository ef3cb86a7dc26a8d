//! What the loop needs of a client's socket, which is mio's or the script of a test.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};

use mio::net::TcpStream;

use crate::sys;

/// A nonblocking stream socket.
pub trait Socket {
    /// Reads into `buffer`. 0: the peer closed its side.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; anything else but `Interrupted`: the connection is broken.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes as much of `slices` as fits, in order.
    ///
    /// # Errors
    /// `WouldBlock` when nothing fits; anything else but `Interrupted`: the connection is broken.
    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Ends our side of the stream.
    ///
    /// # Errors
    /// The connection is broken.
    fn shutdown_write(&mut self) -> io::Result<()>;

    /// The descriptor; `None`: it is no socket of the kernel.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Whether the peer's kernel still answers, even for a program that reads nothing.
    fn is_peer_answering(&self) -> bool;

    /// Bytes that the peer's system has acknowledged, ever; `None`: ours cannot say. One system call.
    fn acknowledged_bytes(&self) -> Option<u64>;
}

impl Socket for TcpStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Read::read(self, buffer)
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match slices {
            [one] => Write::write(self, one),
            many => Write::write_vectored(self, many),
        }
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }

    fn is_peer_answering(&self) -> bool {
        sys::is_peer_answering(self).unwrap_or(false)
    }

    fn acknowledged_bytes(&self) -> Option<u64> {
        sys::acknowledged_bytes(self).ok()
    }
}
