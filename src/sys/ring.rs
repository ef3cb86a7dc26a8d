//! Writes to many sockets with one system call, through io_uring. Where the kernel refuses that, there is no [`Ring`],
//! and the loop writes to each socket by itself.
//!
//! Invariant: [`Ring::write`] returns only when the kernel has finished every write that it was given, so the kernel
//! touches nothing later that the writes borrow. The writes never wait (`MSG_DONTWAIT`): each is over, done or refused,
//! when the call that submits it returns. Writes that were never submitted stay in memory that the kernel would read at
//! the next call, with addresses that are no longer borrowed. So a call that does not come to its end, because of an
//! error or a panic, drops the `io_uring`, and there is no next call.

use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, types};

/// Writes of one call, at most. The kernel keeps 96 bytes for each.
pub(crate) const WRITES_MAX: usize = 256;

/// Calls in a row that finish no write, because the kernel is out of memory or too much is under way, at most; then the
/// ring is given up.
const EMPTY_CALLS_MAX: usize = 64;

/// One vectored write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingWrite<'a> {
    /// The socket that is written to.
    pub socket: BorrowedFd<'a>,
    /// The bytes, in order; at least one slice.
    pub slices: &'a [IoSlice<'a>],
}

/// An io_uring of the thread that made it.
///
/// Not `Send`: the kernel was told that only one thread submits (`IORING_SETUP_SINGLE_ISSUER`), for which it takes
/// fewer locks. It refuses all other threads, so a ring that moved would break at its first write.
pub struct Ring {
    /// `None`: broken. Taken out for as long as it holds addresses that are borrowed from a call of [`Ring::write`].
    ring: Option<IoUring>,
    /// One header for each write of several slices. The kernel reads them during the call.
    headers: Vec<libc::msghdr>,
    /// The system call: it submits what is queued and waits until so many writes are over.
    enter: fn(&IoUring, usize) -> io::Result<usize>,
    not_send: PhantomData<*const ()>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

impl Ring {
    /// Returns a ring for the calling thread; no other thread may use it.
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
            ring: Some(ring),
            headers: Vec::with_capacity(WRITES_MAX),
            enter: |ring, count| ring.submit_and_wait(count),
            not_send: PhantomData,
        })
    }

    /// Carries out all of `writes`, at most [`WRITES_MAX`], in order. Empties `outcomes` and puts the outcome of each
    /// write into it: the number of bytes taken, or an error as of `sendmsg(2)`; `Interrupted` for a write that was not
    /// begun. One system call, unless it is interrupted or the kernel is short of something.
    ///
    /// # Errors
    /// The ring broke, in this call or in an earlier one ([`io::ErrorKind::NotConnected`]), and writes nothing from now
    /// on. `outcomes` is valid then too; the writes that were not begun can be done without the ring.
    pub(crate) fn write(
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
        let mut ring = self.ring.take().ok_or(io::ErrorKind::NotConnected)?;
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
            // for their memory was reserved, and are not emptied before the next call. What was submitted is over
            // before this function returns (see the module). What was not goes with the ring, which is owned here, by a
            // local variable, and is given back only when all of it is over.
            let pushed = unsafe { ring.submission().push(&entry) };
            if pushed.is_err() {
                break;
            }
            begun += 1;
        }
        let mut over = 0;
        let mut empty_calls = 0;
        loop {
            let entered = (self.enter)(&ring, begun - over);
            let before = over;
            for entry in ring.completion() {
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
            if over >= begun {
                self.ring = Some(ring);
                return Ok(());
            }
            empty_calls = if over > before { 0 } else { empty_calls + 1 };
            match entered {
                Ok(_) => {}
                Err(error) if goes_on(&error) && empty_calls < EMPTY_CALLS_MAX => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether another call may succeed where this one did not.
fn goes_on(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        // A signal; no memory for a write; results that must be taken first.
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
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
    use std::cell::RefCell;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// If [`Ring`] were `Send`, this would be ambiguous.
    const _: fn() = || {
        trait NotSend<Why> {
            fn check() {}
        }
        struct IsSend;
        impl<T> NotSend<()> for T {}
        impl<T: Send> NotSend<IsSend> for T {}
        <Ring as NotSend<_>>::check();
    };

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

    thread_local! {
        /// Errors that the next system calls come back with, the last first; nothing is carried out by those.
        static FAULTS: RefCell<Vec<i32>> = const { RefCell::new(Vec::new()) };
    }

    /// The system call, if there is no fault left.
    fn enter_with_faults(ring: &IoUring, count: usize) -> io::Result<usize> {
        match FAULTS.with_borrow_mut(Vec::pop) {
            Some(error) => Err(io::Error::from_raw_os_error(error)),
            None => ring.submit_and_wait(count),
        }
    }

    #[test]
    fn a_call_that_may_be_repeated_is_and_another_error_ends_the_ring_and_whatever_is_queued_in_it()
    {
        let (passing, lasting) = (EMPTY_CALLS_MAX - 1, EMPTY_CALLS_MAX);
        let rows = [
            (vec![], true),
            (vec![libc::EINTR; passing], true),
            (vec![libc::EAGAIN; passing], true),
            (vec![libc::EBUSY; passing], true),
            (vec![libc::EBUSY, libc::EINTR, libc::EAGAIN], true),
            (vec![libc::EAGAIN; lasting], false),
            (vec![libc::EBADF], false),
            (vec![libc::ENOMEM], false),
            (vec![libc::EEXIST], false),
            (vec![libc::EFAULT, libc::EINTR], false),
        ];
        for (faults, lives) in rows {
            let mut ring = Ring {
                enter: enter_with_faults,
                ..ring()
            };
            let what = format!("{faults:?}");
            let (ours, mut theirs) = pair();
            let mut outcomes = Vec::new();
            FAULTS.set(faults);
            let first = {
                let (one, two) = (b"on".to_vec(), b"e".to_vec());
                let slices = [IoSlice::new(&one), IoSlice::new(&two)];
                let write = RingWrite {
                    socket: ours.as_fd(),
                    slices: &slices,
                };
                ring.write(&[write], &mut outcomes)
            };
            assert_eq!(first.is_ok(), lives, "{what}: {first:?}");
            assert!(FAULTS.take().is_empty(), "{what}");
            let first: Vec<_> = outcomes.iter().map(|one| one.as_ref().ok()).collect();
            assert_eq!(first, [lives.then_some(&3)], "{what}");
            let slices = [IoSlice::new(b"two")];
            let write = RingWrite {
                socket: ours.as_fd(),
                slices: &slices,
            };
            let second = ring.write(&[write], &mut outcomes);
            let expected: &[u8] = if lives { b"onetwo" } else { b"" };
            assert_eq!(received(&mut theirs), expected, "{what}");
            match second {
                Ok(()) => assert!(lives, "{what}"),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotConnected, "{what}"),
            }
        }
    }

    #[test]
    fn a_panic_in_the_call_ends_the_ring_too() {
        let mut ring = Ring {
            enter: |_, _| panic!("in the middle"),
            ..ring()
        };
        let (ours, mut theirs) = pair();
        let slices = [IoSlice::new(b"x")];
        let writes = [RingWrite {
            socket: ours.as_fd(),
            slices: &slices,
        }];
        let mut outcomes = Vec::new();
        let panicked = catch_unwind(AssertUnwindSafe(|| ring.write(&writes, &mut outcomes)));
        assert!(panicked.is_err());
        ring.enter = enter_with_faults;
        let second = ring.write(&writes, &mut outcomes);
        assert_eq!(
            second.map_err(|error| error.kind()),
            Err(io::ErrorKind::NotConnected)
        );
        assert_eq!(received(&mut theirs), b"");
    }
}
