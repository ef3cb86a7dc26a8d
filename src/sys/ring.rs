//! Writes to many sockets with one system call, through io_uring; where the kernel refuses that, there is no [`Ring`]
//! and each socket is written to by itself.
//!
//! Invariant: [`Ring::write`] returns only when the kernel is through with every write that it was given, so nothing
//! that the writes borrow is touched by the kernel later. The writes never wait (`MSG_DONTWAIT`): each is over, done or
//! refused, by the time that the call that submits it returns.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, types};

/// Writes of one call, at most. The kernel keeps 96 bytes for each.
pub const WRITES_MAX: usize = 256;

const _: () = assert!(crate::limits::FLUSHES_PER_TURN <= WRITES_MAX);

/// One vectored write.
#[derive(Clone, Copy, Debug)]
pub struct RingWrite<'a> {
    /// Where to.
    pub socket: BorrowedFd<'a>,
    /// What, in order; at least one slice.
    pub slices: &'a [IoSlice<'a>],
}

/// An io_uring of the thread that made it.
pub struct Ring {
    ring: IoUring,
    /// One for each write of several slices; the kernel reads them during the call.
    headers: Vec<libc::msghdr>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring for the calling thread; no other may use it.
    ///
    /// # Errors
    /// The kernel is older than 6.0, has no io_uring, or does not let this process use it (containers often do not).
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_submit_all()
            .build(WRITES_MAX as u32)?;
        Ok(Self {
            ring,
            headers: Vec::with_capacity(WRITES_MAX),
        })
    }

    /// Carries all of `writes`, at most [`WRITES_MAX`], out in order, and puts the outcome of each into `outcomes`,
    /// which it empties first: the number of bytes taken, or an error as of `sendmsg(2)`; `Interrupted` for a write
    /// that was not begun. One system call.
    ///
    /// # Errors
    /// The ring is of no use any more. `outcomes` holds then too; what was not begun can be written otherwise.
    pub fn write(
        &mut self,
        writes: &[RingWrite<'_>],
        outcomes: &mut Vec<io::Result<usize>>,
    ) -> io::Result<()> {
        outcomes.clear();
        outcomes.extend(
            writes
                .iter()
                .map(|_| Err(io::ErrorKind::Interrupted.into())),
        );
        self.headers.clear();
        self.headers.reserve(writes.len());
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let mut begun = 0;
        for (index, write) in writes.iter().enumerate() {
            let socket = types::Fd(write.socket.as_raw_fd());
            let entry = if let [one] = write.slices {
                let length = u32::try_from(one.len()).unwrap_or(u32::MAX);
                opcode::Send::new(socket, one.as_ptr(), length)
                    .flags(flags)
                    .build()
            } else {
                self.headers.push(header(write.slices));
                let header = self.headers.last().map_or(std::ptr::null(), |last| last);
                opcode::SendMsg::new(socket, header)
                    .flags(flags as u32)
                    .build()
            };
            let entry = entry.user_data(index as u64);
            #[allow(
                unsafe_code,
                reason = "the kernel takes the slices as addresses, which carry no lifetime"
            )]
            // SAFETY: the slices and their bytes are borrowed until this function returns; the headers are not moved,
            // for their memory was reserved, and are not emptied before the next call. The writes are over before the
            // wait below ends (see the module), and one that was never submitted goes with its ring: the caller is
            // told that the ring is of no use.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_err() {
                break;
            }
            begun += 1;
        }
        let mut over = 0;
        loop {
            let submitted = self.ring.submit_and_wait(begun - over);
            for entry in self.ring.completion() {
                over += 1;
                let outcome = match entry.result() {
                    error @ ..0 => Err(io::Error::from_raw_os_error(-error)),
                    count => Ok(count as usize),
                };
                if let Some(place) = usize::try_from(entry.user_data())
                    .ok()
                    .and_then(|index| outcomes.get_mut(index))
                {
                    *place = outcome;
                }
            }
            match submitted {
                _ if over >= begun => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn header(slices: &[IoSlice<'_>]) -> libc::msghdr {
    libc::msghdr {
        msg_name: std::ptr::null_mut(),
        msg_namelen: 0,
        // An IoSlice is laid out as an iovec, which the standard library promises.
        msg_iov: slices.as_ptr().cast_mut().cast(),
        msg_iovlen: slices.len(),
        msg_control: std::ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    /// The machine that the tests run on must have io_uring, or nothing here is shown.
    fn ring() -> Ring {
        Ring::new().expect("io_uring")
    }

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("an own socket");
        theirs.set_nonblocking(true).expect("an own socket");
        (ours, theirs)
    }

    fn received(theirs: &mut UnixStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _would_block = theirs.read_to_end(&mut bytes);
        bytes
    }

    #[test]
    fn each_socket_gets_its_slices_in_order_call_after_call() {
        let mut ring = ring();
        let mut pairs: Vec<_> = (0..WRITES_MAX).map(|_| pair()).collect();
        let mut outcomes = Vec::new();
        for round in 0..3 {
            let texts: Vec<Vec<String>> = (0..WRITES_MAX)
                .map(|index| {
                    (0..=index % 5)
                        .map(|part| format!("{round}/{index}/{part};"))
                        .collect()
                })
                .collect();
            let slices: Vec<Vec<IoSlice<'_>>> = texts
                .iter()
                .map(|parts| {
                    parts
                        .iter()
                        .map(|part| IoSlice::new(part.as_bytes()))
                        .collect()
                })
                .collect();
            let writes: Vec<_> = pairs
                .iter()
                .zip(&slices)
                .map(|((ours, _), slices)| RingWrite {
                    socket: ours.as_fd(),
                    slices,
                })
                .collect();
            ring.write(&writes, &mut outcomes).expect("a ring");
            let told: Vec<usize> = outcomes
                .iter()
                .map(|outcome| *outcome.as_ref().expect("taken"))
                .collect();
            for (((_, theirs), parts), told) in pairs.iter_mut().zip(&texts).zip(told) {
                let all = parts.concat();
                assert_eq!(received(theirs), all.as_bytes());
                assert_eq!(told, all.len());
            }
        }
    }

    #[test]
    fn a_full_a_closed_and_a_bad_socket_leave_the_others_alone() {
        let mut ring = ring();
        let (mut full, _reader) = pair();
        while full.write(&[0; 65_536]).is_ok() {}
        let (closed, peer) = pair();
        drop(peer);
        let file = std::fs::File::open("/dev/null").expect("it is there");
        let (good, mut theirs) = pair();
        let slices = [IoSlice::new(b"x")];
        let mut outcomes = Vec::new();
        for _ in 0..2 {
            let sockets = [full.as_fd(), closed.as_fd(), file.as_fd(), good.as_fd()];
            let writes = sockets.map(|socket| RingWrite {
                socket,
                slices: &slices,
            });
            ring.write(&writes, &mut outcomes).expect("a ring");
            let kinds: Vec<_> = outcomes
                .iter()
                .map(|outcome| outcome.as_ref().map_err(io::Error::raw_os_error))
                .collect();
            assert_eq!(
                kinds,
                [
                    Err(Some(libc::EAGAIN)),
                    Err(Some(libc::EPIPE)),
                    Err(Some(libc::ENOTSOCK)),
                    Ok(&1)
                ]
            );
            assert_eq!(received(&mut theirs), b"x");
        }
        assert!(ring.write(&[], &mut outcomes).is_ok());
        assert!(outcomes.is_empty());
    }
}
