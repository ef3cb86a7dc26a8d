//! Every fixed bound: its value, the reason for it, and what happens when it is reached. Bounds that an operator can
//! change are in [`crate::config::Config`]; bounds of one format (the size of a head or a body) stand with that format.

use std::time::Duration;

/// Connections accepted from one listener in one turn; the rest are accepted in the next turn, which does not wait.
pub(crate) const ACCEPTS_PER_TURN_MAX: usize = 256;

/// Length of the kernel's queue of connections not yet accepted (`listen`'s backlog; the kernel cuts it to
/// `net.core.somaxconn`). Beyond it connects are retried by the peers.
pub(crate) const LISTEN_BACKLOG: i32 = 4096;

/// How long the kernel keeps a silent connection to itself before we see it (`TCP_DEFER_ACCEPT`).
pub(crate) const DEFER_ACCEPT: Duration = Duration::from_secs(10);

/// Time between the moment when a shared port's listener takes no new handshake and its close: those under way are
/// finished and accepted meanwhile. Less than the second after which TCP sends a dropped SYN again, so that it
/// finds the listener of another process.
pub(crate) const LISTENER_GRACE: Duration = Duration::from_millis(900);

/// How much longer a listener is kept at most because its queue is not empty; what is left in it then is reset.
pub(crate) const LISTENER_EMPTYING_MAX: Duration = Duration::from_secs(2);

/// How long the start waits for its event source before the service manager is told that it is through nevertheless: a
/// broker that is away at the boot must not make every start fail. What is missing stands in the status.
pub(crate) const READY_PATIENCE: Duration = Duration::from_secs(30);

/// Pause before the service manager is told again what it did not take.
pub(crate) const SERVICE_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Sockets that a service manager may hand over: the websocket port, the admin address, the websocket port with TLS. With
/// more the start is refused.
pub(crate) const HANDED_SOCKETS_MAX: usize = 3;

/// Pause between two walks over all sessions in which the drain found no session to close: those left are in their
/// handshake.
pub(crate) const DRAIN_ROUND_PAUSE: Duration = Duration::from_millis(100);

/// Sessions told in one turn that the process is going away, some 0.2 ms; the rest are told in the next turn, which does
/// not wait. Reached only where `going_away_ms` is a few milliseconds for thousands of sessions, or after a stall.
pub(crate) const GOING_AWAY_TOLD_PER_TURN_MAX: usize = 250;

/// Pause after a failed accept: the process is out of descriptors or memory, or another error may last. A reap ends the
/// pause sooner.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections in a row that may break before they are accepted; one more is taken for an error that lasts.
pub(crate) const BROKEN_IN_A_ROW_MAX: usize = 64;

/// Longest wait of one poll, so that a change of month, for which there is no deadline, is seen early in the hour in
/// which the bindings of both months overlap.
pub const POLL_WAIT_MAX: Duration = Duration::from_secs(30);

/// Places of groups of subscriptions visited in one turn of a roll-over of the months: some 0.1 ms. Each may need some
/// AMQP bindings rendered, acquired and released.
pub const ROLL_OVER_GROUPS_PER_TURN_MAX: usize = 64;

/// Time within which a process begins to move its subscriptions on to other months, at a moment of its own, so that the
/// processes of a cluster do not all begin at once.
pub(crate) const ROLL_OVER_START_WITHIN: Duration = Duration::from_secs(10 * 60);

/// Time over which a process spreads the binds (or unbinds) of a roll-over. Together with [`ROLL_OVER_START_WITHIN`] it
/// is half of the hour that there is.
pub(crate) const ROLL_OVER_SPREAD: Duration = Duration::from_secs(20 * 60);

/// Events of one poll. More wait in the kernel for the next.
pub(crate) const POLL_EVENTS_MAX: usize = 1024;

/// Size of the one buffer that all sockets are read through.
pub(crate) const READ_BUFFER_BYTES: usize = 64 << 10;

/// Bytes read from all sockets in one turn, give or take one read; sockets that are ready beyond that go to the reread
/// list. Each socket is read once a turn and goes there too if it may have more, so neither one peer that sends without
/// pause nor a thousand of them keep events from the others.
pub const READ_BYTES_PER_TURN_MAX: usize = 2 << 20;

/// Frames of clients (fragments included) and reads in one turn, give or take those of one read; the rest waits as
/// beyond [`READ_BYTES_PER_TURN_MAX`]. A frame that is refused costs about a microsecond.
pub const FRAMES_READ_PER_TURN_MAX: usize = 256;

/// As [`FRAMES_READ_PER_TURN_MAX`], while events wait in the hand-off: clients' frames and events each have a share of a
/// turn.
pub const FRAMES_READ_BEFORE_EVENTS_MAX: usize = 32;

/// Bytes of one read of an open session, unless more than that is missing of a frame: one or two usual commands, or as
/// many of the smallest as a quarter of a turn takes. An event waits at most for the commands of one read.
pub const SESSION_READ_BYTES_MAX: usize = 512;

/// The same of a session that agreed on permessage-deflate, whose bytes inflate to a thousand times as many: one or two of the
/// smallest messages. A usual command takes two reads.
pub(crate) const DEFLATED_READ_BYTES_MAX: usize = 128;

/// Bytes of one read of a connection in its handshake: a usual request, head and all, and some commands behind it.
pub(crate) const HANDSHAKE_READ_BYTES_MAX: usize = 4 << 10;

/// Events taken from the hand-off by one look at it; the rest are taken in the next turn, which does not wait.
pub(crate) const EVENTS_PER_LOOK_MAX: usize = 256;

/// Control messages taken from the hand-off by one look at it, before the events; the rest are taken by the next look.
pub(crate) const CONTROLS_PER_LOOK_MAX: usize = 64;

/// Looks at the hand-off in one turn, at most: another follows only one that took events and emptied it, when they are
/// for many sessions.
pub(crate) const LOOKS_PER_TURN_MAX: usize = 32;

/// Looks in a row that found nothing, after which the burst is taken to be over.
pub const EMPTY_LOOKS_MAX: usize = 3;

/// Sessions flushed in one turn. Events that arrive meanwhile merge into the outboxes not yet flushed
/// (DESIGN, The turn, 1: 25 to 33 % less CPU, and a ping is answered within milliseconds during a fan-out).
pub(crate) const FLUSHES_PER_TURN_MAX: usize = 250;

/// Sessions on the flush list, after a fan-out, that make another look at the hand-off for more events of the burst
/// worth its cost.
pub(crate) const YIELD_FLUSHES_MIN: usize = 64;

/// Sessions of one flush from which on one system call for all, through io_uring, is worth it; fewer are written to one
/// by one.
pub(crate) const RING_WRITES_MIN: usize = 4;

/// Plain bytes that are sealed for one write to a connection of the TLS port: four records. What its socket does not take of
/// them is kept for it alone, in place of the frames that all share.
pub(crate) const SEALED_BYTES_MAX: usize = 64 << 10;

/// Plain bytes that are sealed in one turn, give or take [`SEALED_BYTES_MAX`]: some 1.3 ms. Sessions beyond that wait for the
/// next turn, which does not wait.
pub(crate) const SEALED_BYTES_PER_TURN_MAX: usize = 4 << 20;

/// What a TLS record has beside its plain bytes, at most (RFC 8446 section 5.2, RFC 5288 section 3), without padding.
pub(crate) const RECORD_OVERHEAD_BYTES_MAX: usize = 5 + 8 + 1 + 16;

/// TLS records opened by one read of a connection: some 0.1 ms where each holds a byte. The rest waits for its next read.
pub(crate) const RECORDS_PER_READ_MAX: usize = 256;

/// Steps of TLS handshakes that threads have done and one turn takes; the rest waits for the next, which does not wait.
pub(crate) const HANDSHAKES_PER_TURN_MAX: usize = 64;

/// Bytes that TLS handshakes hold, of all connections: some 20,000 that are halfway. Beyond it the oldest of the network that
/// has most connections in their handshakes goes.
pub(crate) const HANDSHAKES_BYTES_MAX: usize = 128 << 20;

/// Slices of one vectored write. A session with more frames is listed again.
pub(crate) const WRITE_SLICES_MAX: usize = 64;

/// Length of a frame from which on its body is not copied to put a request id into it.
pub(crate) const LARGE_FRAME_BYTES_MIN: usize = 16 << 10;

/// Bytes of frames with a request id that are put together for one write of one session, give or take one frame; what
/// is beyond waits for its next write.
pub(crate) const GATHERED_BYTES_MAX: usize = 256 << 10;

/// Bytes of frames with a request id that are put together for one system call, give or take one session's: the scratch
/// memory of a burst, given back after it. Calls for fewer sessions each cost more than what the processor's cache wins
/// (10,000 sessions, 8 and 32 events in flight: 0.61 and 0.26 µs a frame with 256 KiB, 0.41 and 0.16 with 4 MiB, 0.38
/// and 0.19 with 16 MiB).
pub(crate) const CALL_BYTES_MAX: usize = 4 << 20;

/// Scratch memory of the flush that is not given back.
pub(crate) const SCRATCH_KEPT_MAX: usize = 16 << 10;

/// Events that may be fanned out while the oldest session on the flush list still waits for its first write;
/// beyond it the hand-off is left alone until the list has moved, which holds the source back.
pub const MERGED_EVENTS_MAX: u64 = 64;

/// Bytes of frames that may be encoded while the oldest session on the flush list still waits; as
/// [`MERGED_EVENTS_MAX`].
pub(crate) const MERGED_BYTES_MAX: u64 = 64 << 20;

/// Bytes of frames that are encoded of one event at a time, give or take one frame. The groups beyond that wait until
/// these frames were written, or their sessions did not take them. So one large event for many groups costs no more
/// memory, and no more of a turn, than this.
pub const EVENT_SLICE_BYTES_MAX: u64 = 16 << 20;

const _: () = assert!(EVENT_SLICE_BYTES_MAX <= MERGED_BYTES_MAX);

/// Bytes of the frames of one run (`reactor::fan_out`); a frame beyond that begins another run. As much memory again is
/// held in one piece until all members of the run have been written to.
pub(crate) const RUN_BYTES_MAX: u64 = 256 << 10;

/// Past events that laps match in one turn: some 0.3 ms.
pub const LAP_EVENTS_PER_TURN_MAX: usize = 256;

/// Sessions that laps visit in one turn, whether they get something or not: some 0.5 ms.
pub const LAP_VISITS_PER_TURN_MAX: usize = 4096;

/// Frames that laps put into outboxes in one turn, give or take those of one session: some 0.4 ms.
pub const LAP_FRAMES_PER_TURN_MAX: usize = 4096;

/// Bytes of these frames, give or take those of one session; a frame for several sessions counts for each.
pub const LAP_BYTES_PER_TURN_MAX: usize = 4 << 20;

/// Sessions on the flush list up to which laps add others: half of those that one turn writes to.
pub const LAP_FLUSHES_MAX: usize = FLUSHES_PER_TURN_MAX / 2;

/// Sessions that laps add to a flush list that is longer: a tenth of those that one turn writes to, so that laps come to an
/// end under lasting load and cost the others no more than that.
pub const LAP_FLUSHES_MIN: usize = FLUSHES_PER_TURN_MAX / 10;

/// Bytes of the events of one step of a lap, give or take one event: a session gets all of them at once.
pub(crate) const LAP_STEP_BYTES_MAX: usize = 32 << 10;

/// What an event of a step counts for beside its own bytes: what its frame has more than the event.
pub(crate) const LAP_EVENT_EXTRA_BYTES: usize = 256;

/// Pairs of an event and a group that wants it, of one step, give or take those of one event.
pub(crate) const LAP_MATCHES_MAX: usize = 1024;

/// Bytes in the outbox of a session from which on it leaves a lap, give or take those of one event; it gets on the next
/// one when they are written. So a session that does not read has no more than this of past events in memory.
pub const LAP_OUTBOX_BYTES_MAX: usize = 64 << 10;

/// Sessions whose replays end in one turn, or their subscriptions, which move from one index to the other: some 0.5 ms.
pub const LAP_ENDS_PER_TURN_MAX: usize = 256;

/// How long a replay may take. A session that takes events no faster than they come is told of a gap then, and goes on
/// with live events.
pub const RESUMING_MAX: Duration = Duration::from_secs(600);

/// How often the sessions that resume are looked at for those that are too late.
pub(crate) const RESUMING_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Members of a group that agreed on permessage-deflate from which on an event's frame is deflated for them; fewer get it as
/// it is. To deflate a usual event takes some 11 µs: to send a lone one to so many takes nine times as long, and one of a
/// burst half as much again.
pub const DEFLATE_MEMBERS_MIN: usize = 16;

/// Length of an event's frame from which on it is deflated. Shorter ones fit in one packet anyway.
pub const DEFLATED_FRAME_BYTES_MIN: usize = 512;

/// Length of an event's frame up to which it is deflated, in some 0.5 ms. Longer ones are sent as they are.
pub const DEFLATED_FRAME_BYTES_MAX: usize = 64 << 10;

/// Bytes of frames deflated in one turn, some 1 ms; beyond it frames are sent as they are, and counted.
pub(crate) const DEFLATED_BYTES_PER_TURN_MAX: usize = 128 << 10;

/// What each frame counts for there beside its bytes: to begin anew takes some 4 µs.
pub(crate) const DEFLATE_FRAME_COST_BYTES: usize = 512;

/// Deflated bytes of one message of a client; above it the session is closed with 1009 when the header tells. What each byte
/// costs does not show in what comes of it: a block of 21 bytes can be nothing but tables of codes, which take up to 1.7 µs to
/// make, so a message of this length takes up to 1 ms, and is the whole share of a turn
/// ([`DEFLATED_BYTES_PER_FRAME`]). A subscribe to 256 bindings, each with the id of a call, is 7 KiB.
pub const DEFLATED_MESSAGE_BYTES_MAX: usize = 12 << 10;

/// Bytes that one message of a client may inflate to, where `max_message_bytes` does not say less; above it the session is
/// closed with 1009. A client's thousand bytes can become a million, in some 1 ms.
pub const INFLATED_MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Deflated bytes of a message that count as one frame of a client ([`FRAMES_READ_PER_TURN_MAX`]): some 4 µs at their dearest.
pub const DEFLATED_BYTES_PER_FRAME: usize = 48;

/// Bytes of an inflated message that count as one frame of a client, beside those that came, so that messages that are small
/// only as long as they are deflated take no larger share of a turn than others.
pub const INFLATED_BYTES_PER_FRAME: usize = 1 << 10;

/// Members of a group from which on putting the frames of a run together is worth it; fewer get the frames one by one.
pub(crate) const MERGE_MEMBERS_MIN: usize = 4;

/// Groups of one event for which room is kept until the next event.
pub(crate) const MATCHED_KEPT_MAX: usize = 64;

/// Heap bytes of a session's subscribes that wait for the broker and of the replies behind them; one subscribe of 256
/// bindings to all call events takes some 150 KB. Above it the one that has waited longest is given up (`event source
/// unavailable`), so that the session is read on, its pings are answered, and it grows no further.
pub const HELD_BYTES_MAX: usize = 256 << 10;

/// Subscribes that wait and replies behind them, of one session; as [`HELD_BYTES_MAX`].
pub(crate) const HELD_REPLIES_MAX: usize = 1024;

/// Heap bytes of the commands of a session that wait until its first token is verified, if there are several: more than a
/// web page sends at once, a long token in each. Beyond it a command is refused at once (`authentication unavailable`).
pub const SUSPENDED_BYTES_MAX: usize = 128 << 10;

/// Heap bytes of the subscribes and commands that wait and the replies behind them, of all sessions. Above it a subscribe
/// that would have to wait for the broker is refused at once (`event source unavailable`), and a command that would have to
/// wait for the authenticator behind another (`authentication unavailable`).
pub const HELD_TOTAL_BYTES_MAX: usize = 64 << 20;

/// The same for the first command of a session that waits for the authenticator: who waits with one command still gets in
/// when those who wait with many fill the room.
pub const FIRST_TOTAL_BYTES_MAX: usize = 2 * HELD_TOTAL_BYTES_MAX;

/// Work that renewing sessions may do in one turn after a reread, counted in sessions and
/// [`RENEWAL_SUBSCRIPTION_COST`]; a session is renewed as a whole. Until all are renewed no event is taken from the
/// hand-off, so that no session sees an event by a right that it has lost.
pub(crate) const RENEWALS_PER_TURN_MAX: usize = 16 << 10;

/// Cost of resolving one subscription again, where a session whose rights stayed the same costs 1.
pub(crate) const RENEWAL_SUBSCRIPTION_COST: usize = 16;

/// Commands refused by the rate limit in a row that close a session (PROTOCOL 3).
pub(crate) const REFUSED_COMMANDS_MAX: u16 = 1000;

/// Connections beyond `max_connections` whose requests are not whole, kept just long enough to be told so; beyond
/// these such a connection is closed without a word. They live on the descriptors that are kept back from the
/// sessions, and must leave most of them for the broker, files and the admin listener.
pub const REFUSALS_MAX: usize = 24;

/// Connections that are one too many of their address (`max_connections_per_ip`) and whose requests are not whole, kept
/// until they can be told so: of all addresses together. Beyond these such a connection is closed without a word.
pub const SURPLUS_MAX: usize = 16;

/// Connections of the admin address, and as many of the socket in `admin_dir`. They take no place of a client, and no
/// client takes theirs, so that a full process can be inspected. Beyond it the oldest of those that wait for a request,
/// or take long to read their answers, is ended; if all wait for answers, the newcomer is refused (503).
pub const ADMIN_CONNECTIONS_MAX: usize = 16;

/// Connections accepted from one of those two listeners in one turn: fewer than there may be, so that each is read before
/// the next ones can take its place.
pub(crate) const ADMIN_ACCEPTS_PER_TURN_MAX: usize = ADMIN_CONNECTIONS_MAX / 2;

/// Requests of the admin address begun in one turn; the rest wait for the next, which does not wait. The most that one
/// costs is a page of metrics.
pub(crate) const ADMIN_REQUESTS_PER_TURN_MAX: usize = 4;

/// Connections of one of those two listeners that have had their last answer, or were refused, and whose askers have not
/// closed. Beyond it the oldest ends at once, and may not have read all of its answer.
pub(crate) const ADMIN_LEAVING_MAX: usize = 4;

/// Bytes in the outbox of a looker of `/trace`, give or take [`TRACE_LINES_BYTES_MAX`], beyond which it is sent nothing:
/// its lines wait, as far as that bound goes.
pub const TRACE_OUTBOX_BYTES_MAX: usize = 256 << 10;

/// Longest file of `admin_token`; a longer one is refused.
pub(crate) const ADMIN_TOKEN_FILE_BYTES_MAX: u64 = 16 << 10;

/// Files of `admin_dir` looked at for sockets that dead processes have left; the others are left alone.
pub(crate) const ADMIN_SOCKETS_MAX: usize = 1024;

/// Descriptors that are not for sessions: the listeners, admin connections, the broker, files, and the headroom
/// in which a connection beyond the limit can still be accepted and told so.
pub const DESCRIPTORS_RESERVED: u64 = 96;

const _: () = assert!(
    (REFUSALS_MAX + 2 * (ADMIN_CONNECTIONS_MAX + ADMIN_LEAVING_MAX) + 32) as u64
        <= DESCRIPTORS_RESERVED
);

/// How long a peer may take to read an HTTP response and close its side.
pub const LINGER: Duration = Duration::from_secs(1);

/// Bytes of names and metadata that are kept of the sessions of one account: 4,000 of the largest.
pub(crate) const LABELS_OF_ACCOUNT_BYTES_MAX: usize = 16 << 20;

/// Bytes of names and metadata that are kept of all sessions. Beyond this bound or that of its account a label is left
/// out of the listings, and counted; its command runs.
pub(crate) const LABELS_BYTES_MAX: usize = 128 << 20;

/// Pings of one read that are answered one by one; of the rest only the newest is answered.
pub const PONGS_PER_READ_MAX: usize = 32;

/// Frames that may wait for a session that is read: with more, its bytes stay in the kernel until the outbox is
/// empty, so that a peer that does not take its answers cannot ask for more of them.
pub(crate) const READ_BEHIND_FRAMES_MAX: usize = WRITE_SLICES_MAX;

/// Sessions visited by one step of the sweep, at least; a whole pass takes at most [`SWEEP_STEPS_MAX`] steps.
pub(crate) const SWEEP_SESSIONS_MIN: usize = 1024;

/// Steps of a whole pass of the sweep.
pub(crate) const SWEEP_STEPS_MAX: usize = 50;

/// Time between two steps of the sweep.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// Longest `ping_interval_ms` and `pong_timeout_ms`. Both together, and a pass of the sweep, are well within the 109
/// minutes that the 16 bits of a session's silence can count.
pub const PERIOD_MAX: Duration = Duration::from_secs(30 * 60);

/// Longest wait for one answer of the broker; then the connection is cut and the next broker tried. Heartbeats are no
/// answer. A batch of binds takes some 70 ms of an idle broker.
pub const BROKER_ANSWER_MAX: Duration = Duration::from_secs(20);

/// Longest time between two turns that counts against silent peers and unfinished messages. In time beyond it the
/// process was stopped or its machine suspended, and no socket was read. Longer than the sweep lets a poll wait.
pub(crate) const STALL_COUNTED_MAX: Duration = Duration::from_millis(200);

/// Unfinished messages of all sessions of one address that have not authenticated, requests before the upgrade
/// included, counted in messages of the largest size (`max_message_bytes`). Beyond it the session with the largest is
/// closed.
pub const PARTIAL_MESSAGES_PER_ADDRESS_MAX: usize = 8;

/// Bytes that are counted for an unfinished message beside its own: the most that it costs.
pub const PARTIAL_OVERHEAD_BYTES_MAX: usize = 256;

/// Largest outboxes gathered by one pass over all sessions when `max_outboxes_bytes` is exceeded, so that one pass
/// serves many closes.
pub(crate) const LARGEST_OUTBOXES_MAX: usize = 64;

/// Places of the flush list that are kept in the quiet after a burst: 64 KiB.
pub(crate) const FLUSH_LIST_KEPT_MAX: usize = 4096;

/// Time of quiet after a burst before its memory is given back to the system.
pub const TRIM_AFTER: Duration = Duration::from_secs(1);

/// Longest time that freed memory is kept when there is no quiet. A trim takes up to some milliseconds, so it costs no
/// more than a thousandth of the loop's time.
pub const TRIM_WITHIN: Duration = Duration::from_secs(10);

/// Outbox queues freed, and sessions come and gone, since the last trim that make a trim worth its while.
pub const TRIM_FREED_MIN: u64 = 256;

/// Bytes that the history has forgotten since the last trim that make a trim worth its while, if they are more than half of
/// what it kept.
pub const TRIM_HISTORY_BYTES_MIN: usize = 1 << 20;

/// Sessions of one `blackhole sub`: its URLs times its tokens, a thread each. More are refused at its start.
pub(crate) const SUB_SESSIONS_MAX: usize = 256;

/// Lines of `blackhole sub` that wait for its output, each as long as the frame that it tells of. Beyond it the sessions
/// wait, their servers take them for slow consumers, and tell what is lost.
pub(crate) const SUB_LINES_MAX: usize = 64;

/// Longest pause of `blackhole sub` between two tries to connect that the server did not ask for.
pub(crate) const SUB_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Longest pause that a server may ask of `blackhole sub` (`Retry-After`); of a longer one so much is kept.
pub(crate) const SUB_RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Longest wait of `blackhole sub` for a connection, for each read of a handshake, and for a write.
pub(crate) const SUB_CONNECT_MAX: Duration = Duration::from_secs(10);

/// Longest wait of `blackhole sub` for the reply to a subscribe, which waits for the server's broker.
pub(crate) const SUB_REPLY_MAX: Duration = Duration::from_secs(30);

/// Time between two pings of `blackhole sub`.
pub(crate) const SUB_PING_INTERVAL: Duration = Duration::from_secs(20);

/// Silence after which `blackhole sub` gives a connection up.
pub(crate) const SUB_SILENCE_MAX: Duration = Duration::from_secs(60);

/// Bytes of one frame from a server that `blackhole sub` takes; at a longer one it connects anew. The bodies of events
/// have at most 8 MiB.
pub(crate) const SUB_FRAME_BYTES_MAX: usize = 32 << 20;

/// Events that `blackhole sub` remembers to know again what another process replays: 2.4 MB. Those before them would be
/// printed twice.
pub(crate) const SUB_HAD_MAX: usize = 100_000;

/// How far apart two processes may take the same event in, for `blackhole sub` to know it again: the largest usual
/// `history_overlap_ms`, and what their clocks differ. An event that is further apart is printed twice.
pub(crate) const SUB_DOUBLE_WITHIN: Duration = Duration::from_secs(10);

/// How far one process is behind another at most, for `blackhole sub` to know a live event again that it has had.
pub(crate) const SUB_BEHIND_MAX: Duration = Duration::from_secs(2);

/// How long `blackhole sub` reads two sessions side by side, when the second could not resume where the first stands: far
/// longer than one process is behind another, and shorter than what is usually left of `going_away_ms`.
pub(crate) const SUB_OVERLAP: Duration = Duration::from_secs(1);

/// Frames that `blackhole sub` reads, and leaves out, of a session that it has moved away from, until its close comes.
pub(crate) const SUB_LEFT_BEHIND_MAX: usize = 1000;

/// Longest file of tokens of `blackhole sub`; a longer one is refused.
pub(crate) const SUB_TOKENS_BYTES_MAX: u64 = 1 << 20;

/// Bytes of lines of the log that wait to be written, a line's own bookkeeping included: some 1,400 lines. Beyond it
/// lines are lost and counted, so that a stderr without a reader costs lines of the log, and the loop nothing.
pub(crate) const LOG_QUEUE_BYTES_MAX: usize = 256 << 10;

/// Longest wait for the log to be written, at the end of the process or of a thread that panicked.
pub(crate) const LOG_FLUSH_MAX: Duration = Duration::from_millis(500);

/// A line that could repeat is logged at most once in this time; the next one tells how many were left out.
pub(crate) const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Lines about the connection to a broker, or of its client, that are logged before [`LOG_INTERVAL`] holds.
pub(crate) const FAULTS_LOGGED_FREELY: u32 = 3;

/// Longest token that `jwt` verifies and that `crossbar` asks about; a longer one is refused unread (PROTOCOL 7). The
/// platform's are some 700 bytes.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;

/// JWTs whose signatures wait to be verified, of one network at most half of them. Beyond it the client is told
/// `authentication unavailable`. A thread verifies some 30,000 a second.
pub const VERIFY_QUESTIONS_MAX: usize = 32 << 10;

/// Questions that wait to be put to the platform, of one network at most half of them, and those of live sessions whose
/// answers run out not counted. As [`VERIFY_QUESTIONS_MAX`].
pub const PLATFORM_QUESTIONS_MAX: usize = 4 << 10;

/// Who may wait for answers, each counted once for each question. As [`VERIFY_QUESTIONS_MAX`].
pub(crate) const ASKERS_MAX: usize = 128 << 10;

/// Answers that are no, or trouble, kept so that nobody asks again at once: 2 MiB. The oldest go first.
pub(crate) const DENIALS_MAX: usize = 16 << 10;

/// Verified JWTs that are kept so that a session that comes again costs no signature: 10 MiB. The oldest go first; sessions
/// that are there keep what they have.
pub(crate) const VERIFIED_MAX: usize = 64 << 10;

/// Answers that are yes, each for a token and an account. Beyond it no question about another is put (`authentication
/// unavailable`); those that no session uses go when their time is over.
pub(crate) const GRANTS_MAX: usize = 128 << 10;

/// Answers that are yes of one token, each for another account. Beyond it no question of the token about another account is
/// put (`authentication unavailable`), so that a token that sees thousands of accounts takes no room from others, and the
/// platform is not asked again for more than some 100 of them a second.
pub const GRANTS_OF_TOKEN_MAX: usize = 4 << 10;

/// How long trouble is told without asking again.
pub(crate) const TROUBLE_KEPT: Duration = Duration::from_secs(1);

/// How long it is remembered that the platform has no key of an id.
pub(crate) const KEY_DENIAL_KEPT: Duration = Duration::from_secs(60);

/// Answers of threads that one turn takes.
pub(crate) const ANSWERS_PER_TURN_MAX: usize = 256;

/// Commands, and sessions, that go on in one turn because an answer is there: some 2 ms.
pub(crate) const RESUMED_COMMANDS_PER_TURN_MAX: usize = 128;

/// Commands of one session that go on before the next session has its turn.
pub(crate) const RESUMED_COMMANDS_OF_SESSION_MAX: usize = 16;

/// Shortest time between two passes over all sessions because the platform has taken a right away.
pub(crate) const WITHDRAWALS_INTERVAL: Duration = Duration::from_secs(1);

/// Answers of the platform that one turn asks for again.
pub(crate) const ASKED_AGAIN_PER_TURN_MAX: usize = 256;

/// Questions to the platform's REST API that wait for a thread: few, because those behind them wait in turns
/// ([`PLATFORM_QUESTIONS_MAX`]).
pub const CROSSBAR_QUESTIONS_MAX: usize = 2 * CROSSBAR_THREADS;

/// JWTs that wait for the thread that verifies: some 2 ms of work. Those behind them wait in turns
/// ([`VERIFY_QUESTIONS_MAX`]).
pub const VERIFY_LANE_MAX: usize = 64;

/// Threads that ask the platform's REST API, and connections to it: each has one exchange at a time.
pub const CROSSBAR_THREADS: usize = 8;

/// Longest wait of a question for a thread. After it the answer is trouble, unasked, so that a REST API that is silent
/// keeps nobody waiting for longer than this and one exchange.
pub(crate) const CROSSBAR_WAIT_MAX: Duration = Duration::from_secs(10);

/// Bytes of an answer's body that are read; a longer one is trouble.
pub const CROSSBAR_BODY_BYTES_MAX: usize = 64 << 10;

/// Bytes of an answer's head; a longer one is trouble.
pub(crate) const CROSSBAR_HEAD_BYTES_MAX: usize = 16 << 10;

/// Longest SIP realm that is taken from an answer: no routing key is longer. A longer one is trouble.
pub(crate) const CROSSBAR_REALM_BYTES_MAX: usize = 255;

/// Longest time that a connection to the REST API is kept without use.
pub(crate) const CROSSBAR_IDLE_MAX: Duration = Duration::from_secs(15);

/// How long the addresses of the REST API's host are good.
pub(crate) const CROSSBAR_ADDRESSES_KEPT: Duration = Duration::from_secs(10);

/// Bytes of an error's text that are logged; the peer chooses some of them.
pub(crate) const CROSSBAR_LOGGED_BYTES_MAX: usize = 200;

/// Processes that one `blackhole ctl` asks, each on a thread of its own; more are refused, by number.
pub(crate) const CTL_PROCESSES_MAX: usize = 256;

/// Bytes of an answer that `blackhole ctl` reads; a larger one is an error of that process.
pub(crate) const CTL_PAGE_BYTES_MAX: u64 = 64 << 20;

/// Bytes of a line of a trace that `blackhole ctl` reads; a longer one is cut.
pub(crate) const CTL_LINE_BYTES_MAX: usize = 1 << 20;

/// Lines of the traces of all processes that wait to be printed; then no more are read, and the processes tell what they
/// leave out.
pub(crate) const CTL_LINES_MAX: usize = 1024;

/// Pages of a listing that `blackhole ctl` asks one process for: of 1,000 sessions each, four million. Beyond it the rest
/// is left out, and it says so.
pub(crate) const CTL_PAGES_MAX: usize = 4096;

/// Answers that wait for the loop. Beyond it the threads wait, which makes their questions wait in turn.
pub(crate) const ANSWERS_MAX: usize = 1024;

/// Bytes of a key id; a token that names a longer one is refused. The platform's are 32.
pub const JWT_KID_BYTES_MAX: usize = 256;

/// How far the platform's clock and ours may be apart: added to a token's `exp`, taken from its `nbf` (PROTOCOL 7).
pub const JWT_LEEWAY: Duration = Duration::from_secs(30);

/// Public keys for JWTs, of files and fetched ones together; a file or folder with more is refused, and a key that is
/// fetched beyond them is not kept.
pub const JWT_KEYS_MAX: usize = 1000;

/// Accounts of the account tree; a file with more is refused. Each takes some 100 bytes.
pub const ACCOUNTS_MAX: usize = 1_000_000;

/// Bytes of a file of keys for JWTs, PEM or JWKS; a larger one is refused.
pub const KEY_FILE_BYTES_MAX: u64 = 1 << 20;

/// Bytes of all files of a folder of keys; a folder with more is refused.
pub const KEY_FOLDER_BYTES_MAX: u64 = 16 << 20;

/// Bytes of a token file or an account tree; a larger one is refused. A million accounts are some 120 MB.
pub const AUTH_FILE_BYTES_MAX: u64 = 256 << 20;

/// Requests of the platform over AMQP that wait for the loop. Beyond it a request is dropped without an answer, and
/// counted.
pub const CONTROL_REQUESTS_MAX: usize = 64;

/// Answers to the platform that wait for the broker; with so many the loop takes no further request.
pub const CONTROL_ANSWERS_MAX: usize = 4;

/// Requests of the platform that the loop begins to answer a second, and as many at once after a quiet second; beyond it
/// they wait.
pub(crate) const CONTROL_REQUESTS_PER_SECOND_MAX: u32 = 50;

/// Bytes of a request of the platform; a larger one is never kept, gets no answer, and is counted.
pub(crate) const CONTROL_REQUEST_BYTES_MAX: u64 = 64 << 10;

/// Bytes of the sessions in one answer, give or take one session: some 12,000 of the usual size. Sessions beyond it are left
/// out, counted and told in the log.
pub const CONTROL_ANSWER_BYTES_MAX: usize = 4 << 20;

/// Sessions looked at in one turn for an answer to the platform, or to end what a stopped family leaves.
pub(crate) const CONTROL_SESSIONS_PER_TURN_MAX: usize = 1024;

/// Bytes of sessions written in one turn for an answer, give or take one session; some 0.2 ms.
pub(crate) const CONTROL_BYTES_PER_TURN_MAX: usize = 64 << 10;

/// Cost of ending one subscription of a stopped family, where a session or subscription that is looked at costs 1. So a turn
/// ends some 64, in some 0.3 ms.
pub(crate) const ENDING_COST: usize = 16;

/// Subscriptions of a stopped family that a session ends in one turn, each of up to nine AMQP bindings or more; the others
/// follow in the next. A session that sends a command meanwhile ends all of its own.
pub(crate) const ENDED_AT_ONCE_MAX: usize = 64;

/// Listings and orders of the admin address that take more than one turn and are under way; who asks beyond is told
/// `busy` (503). They take turns, so each more makes the others slower, and no turn longer.
pub const ADMIN_JOBS_MAX: usize = 8;

/// Bytes of one page of a listing on the admin address, give or take one session; the page then ends, and says where the
/// next one begins.
pub const ADMIN_PAGE_BYTES_MAX: usize = 512 << 10;

/// Cost of asking the kernel what a peer has acknowledged, where a session that is looked at costs 1: a turn asks about
/// some 200 sockets.
pub(crate) const KERNEL_ASKED_COST: usize = 4;

/// Marks by which connections are dated: 64 KiB. Beyond it the older ones are dated less exactly.
pub(crate) const ARRIVAL_MARKS_MAX: usize = 4096;

/// Missing permissions that the log and `/readyz` name; of more only the number is told (`amqp_permissions_missing`).
pub(crate) const PERMISSIONS_TOLD_MAX: usize = 16;

/// Longest file of CAs, certificates or keys for TLS to brokers, or of `blackhole sub`; a longer one is refused. A system's
/// whole store of CAs has some 200 KiB.
pub(crate) const TLS_FILE_BYTES_MAX: u64 = 4 << 20;

/// Bytes that a TLS handshake may take of a peer, its records' headers included; beyond it the handshake fails. A client
/// needs some 600, with a certificate of its own some thousands.
pub const TLS_HANDSHAKE_BYTES_MAX: usize = 64 << 10;

/// Bytes of records that one message of a TLS handshake may be cut into; beyond it the handshake fails.
pub(crate) const TLS_MESSAGE_BYTES_MAX: usize = 17 << 10;

/// TLS handshakes that wait for a thread to begin; beyond it a connection waits in the loop. Some 50 ms of one thread.
pub const TLS_HANDSHAKES_WAITING_MAX: usize = 64;

/// TLS handshakes that wait for a thread to go on; beyond it a connection waits in the loop.
pub const TLS_STEPS_WAITING_MAX: usize = 1024;

/// Results of threads that wait for the loop; beyond it the threads wait.
pub(crate) const TLS_RESULTS_MAX: usize = 1024;

/// Threads for TLS handshakes; fewer where there are fewer cores.
pub(crate) const TLS_THREADS_MAX: usize = 4;

/// How much lower the priority of these threads is than the loop's, as nice(2) counts: they get some four tenths of what the loop
/// does where both want a core. With 10 it is a tenth, also beside other programs: 7,301 of 19,000 that came back at once were
/// not served in time on two cores with three busy loops.
pub(crate) const TLS_THREADS_NICE: i32 = 4;

/// KeyUpdates that a peer may send on one connection; one more ends it.
pub(crate) const TLS_KEY_UPDATES_MAX: u16 = 255;

/// Records in a row that bring no data, without end of the connection; one more ends it. OpenSSL has the same bound.
pub(crate) const TLS_EMPTY_RECORDS_MAX: u8 = 32;

/// Certificates of the TLS port, each with its chain and key; with more the configuration is refused.
pub(crate) const TLS_CERTIFICATES_MAX: usize = 256;

/// Certificates of one chain; a longer one is refused.
pub(crate) const TLS_CHAIN_MAX: usize = 10;

/// How long before its end a certificate is warned of.
pub const TLS_EXPIRY_WARNED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How often the log says so.
pub(crate) const TLS_EXPIRY_TOLD_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long one key seals TLS tickets. A ticket is taken for that long at least, and for twice as long at most.
pub(crate) const TLS_TICKET_PERIOD: Duration = Duration::from_secs(12 * 60 * 60);

/// Looks at once (`GET /trace`). Beyond it the looker is told 503. They leave half of the admin address to others.
pub const TRACE_LOOKS_MAX: usize = ADMIN_CONNECTIONS_MAX / 2;

/// AMQP bindings that are held for one look. Those beyond it are not bound, and the first line tells how many.
pub const TRACE_KEYS_MAX: usize = 64;

/// AMQP bindings that are held for all looks; as [`TRACE_KEYS_MAX`].
pub const TRACE_KEYS_TOTAL_MAX: usize = 4 * TRACE_KEYS_MAX;

/// Bytes of lines that wait until a looker's outbox has room, give or take the first line. Beyond it lines are left out,
/// and the looker is told how many.
pub const TRACE_LINES_BYTES_MAX: usize = 64 << 10;

/// Share of a turn that goes into looks, of which all have equal parts: one step for each event and look, one for each
/// subscription that is judged, and [`TRACE_LINE_COST`] for each line; some 1 ms. Beyond it events and lines are left out,
/// and told as [`TRACE_LINES_BYTES_MAX`]; so are all events of a session that has more subscriptions than its look has
/// steps.
pub(crate) const TRACE_STEPS_PER_TURN_MAX: usize = 4096;

/// Cost of a line, where a subscription that is judged costs 1.
pub(crate) const TRACE_LINE_COST: usize = 16;

/// Groups of equal subscriptions that are told of one event, where no session is asked about. The others are left out, and
/// told as [`TRACE_LINES_BYTES_MAX`].
pub(crate) const TRACE_GROUPS_TOLD_MAX: usize = 16;

/// Entries of a list in a line of a trace; the line tells how many more there are.
pub(crate) const TRACE_LISTED_MAX: usize = 64;

/// Bytes of a text in a line of a trace; what is longer is cut.
pub(crate) const TRACE_TEXT_BYTES_MAX: usize = 256;

/// Time without a line after which a comment shows whether a looker is still there.
pub(crate) const TRACE_COMMENT_INTERVAL: Duration = Duration::from_secs(15);

/// How far the time of a cursor may be ahead of the clock. Events that come faster than one a millisecond for longer than
/// that share times.
pub const TIME_AHEAD_MAX: Duration = Duration::from_secs(1);

/// How long no event must have come after a source came back to a queue that outlived its connection, before what waited in
/// that queue counts as taken in (PROTOCOL 10). Until then the times of cursors stand still.
pub const BACKLOG_QUIET: Duration = Duration::from_secs(1);

/// Events of the history dropped at once, some 0.1 ms. Until the next turn, or the next event, so many more are kept than
/// may be.
pub(crate) const EVICTIONS_AT_ONCE_MAX: usize = 1024;

/// AMQP bindings of which it is known exactly when they came into force: 4 MiB. Beyond it the oldest are taken for as old
/// as the oldest of those that are known, so that a cursor from before that is not good.
pub(crate) const YOUNG_BINDINGS_MAX: usize = 1 << 16;

/// Time in force after which an AMQP binding lingers when its last user goes.
pub(crate) const LINGERING_AFTER: Duration = Duration::from_secs(5);

/// Lingering AMQP bindings let go in one turn because their time is over.
pub(crate) const LINGERING_ENDS_PER_TURN_MAX: usize = 256;

/// Time after an outage was told in which what the source holds has come to the hand-off.
pub(crate) const OUTAGE_SETTLES_AFTER: Duration = Duration::from_secs(2);
