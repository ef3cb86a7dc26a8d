//! What the peer sends: bytes, the frames in them, and the commands in the frames.
//!
//! Invariant: after each read the hub knows how much of an unfinished message or request the session keeps.

use std::net::IpAddr;

use crate::limits::{
    DEFLATED_BYTES_PER_FRAME, INFLATED_BYTES_PER_FRAME, INFLATED_MESSAGE_BYTES_MAX,
    PONGS_PER_READ_MAX, REFUSED_COMMANDS_MAX,
};
use crate::metrics::commands::{CommandAction, CommandResult};
use crate::protocol::admin::AdminRequest;
use crate::protocol::codec::{CodecError, CodecLimits, DataKind, Item};
use crate::protocol::deflate::{InflateError, Inflated};
use crate::protocol::frame::{Frame, Opcode};

use super::close::CloseReason;
use super::hub::Context;
use super::liveness::PING_PAYLOAD;
use super::occupancy::Place;
use super::{Message, PeerSide, Phase, Session};

impl Session {
    /// Takes what the peer sent. The bytes are unmasked in place. Returns what an asker of the admin address asks
    /// for, for [`Session::answer`] or [`Session::begin_stream`].
    pub fn on_bytes(&mut self, input: &mut [u8], cx: &mut Context<'_>) -> Option<AdminRequest> {
        let had_part = self.partial_bytes() > 0;
        let request = self.take_bytes(input, cx);
        if had_part || self.partial_bytes() > 0 {
            self.note_partial(cx);
        }
        request
    }

    fn take_bytes(&mut self, input: &mut [u8], cx: &mut Context<'_>) -> Option<AdminRequest> {
        match &mut self.phase {
            Phase::Admin(_) => self.on_admin_bytes(input, cx),
            Phase::Handshake { preamble, head, .. } => {
                let preamble = *preamble;
                match head.take() {
                    None => self.on_start(preamble, input, cx),
                    Some(mut whole) if whole.awaits_answer => {
                        whole.bytes.extend_from_slice(input);
                        *head = Some(whole);
                    }
                    Some(mut gathered) => {
                        gathered.bytes.extend_from_slice(input);
                        self.on_start(preamble, &mut gathered.bytes, cx);
                    }
                }
                None
            }
            Phase::Open { .. } => {
                self.on_frames(input, self.shape.is_deflated(), cx);
                None
            }
            Phase::Closing { .. } | Phase::Gone { .. } => None,
        }
    }

    pub(super) fn on_frames(
        &mut self,
        input: &mut [u8],
        may_be_deflated: bool,
        cx: &mut Context<'_>,
    ) {
        let tick = cx.hub.waking.tick();
        if let Phase::Open { life, .. } = &mut self.phase {
            life.on_bytes(tick);
        }
        let mut pings = Pings::default();
        let limits = CodecLimits {
            may_be_deflated,
            ..cx.hub.limits.codec
        };
        self.decode(input, &limits, &mut pings, cx);
        if let Some(pong) = pings.newest
            && self.is_open()
        {
            self.push(pong, cx);
        }
        if let Phase::Open {
            rare: Some(rare), ..
        } = &mut self.phase
        {
            rare.codec.mark_once(tick.to_mark());
            self.drop_empty_rare();
        }
    }

    fn decode(
        &mut self,
        mut input: &mut [u8],
        limits: &CodecLimits,
        pings: &mut Pings,
        cx: &mut Context<'_>,
    ) {
        loop {
            let Phase::Open { rare, life } = &mut self.phase else {
                return;
            };
            let kept = rare.as_mut().map(|rare| std::mem::take(&mut rare.codec));
            let mut codec = kept.unwrap_or_default();
            let decoded = codec.decode(input, limits);
            if !codec.is_idle() {
                rare.get_or_insert_default().codec = codec;
            }
            let decoded = match decoded {
                Ok(decoded) => decoded,
                Err(error) => return self.close(error.into(), cx),
            };
            let consumed = decoded.consumed;
            cx.hub.work.frames_read += decoded.frames;
            match &decoded.item {
                None => {}
                Some(Item::Pong(payload)) if **payload == *PING_PAYLOAD => {}
                Some(_) => life.on_own_frame(cx.hub.waking.tick()),
            }
            match decoded.item {
                None => return,
                Some(Item::Text(text)) => {
                    (cx.hub.on_message)(self, Message::Text(&text), cx);
                }
                Some(Item::Binary(bytes)) => {
                    (cx.hub.on_message)(self, Message::Binary(&bytes), cx);
                }
                Some(Item::Deflated(kind, payload)) => self.on_deflated(kind, &payload, cx),
                Some(Item::Ping(payload)) => {
                    let pong = Frame::new(Opcode::Pong, &payload);
                    if let Some(pong) = pings.answer(pong) {
                        self.push(pong, cx);
                    }
                }
                Some(Item::Pong(_)) => {}
                Some(Item::Close { code, .. }) => {
                    let echo = match code {
                        Some(code) => Frame::close(code, ""),
                        None => Frame::close_empty(),
                    };
                    return self.begin_closing(CloseReason::Peer, Some(echo), PeerSide::Done, cx);
                }
            }
            input = input.get_mut(consumed..).unwrap_or_default();
            if input.is_empty() {
                return;
            }
        }
    }

    /// Inflates a message and goes on with it.
    fn on_deflated(&mut self, kind: DataKind, payload: &[u8], cx: &mut Context<'_>) {
        let bytes_max = cx.hub.limits.codec.message_bytes_max;
        let bytes_max = bytes_max.min(INFLATED_MESSAGE_BYTES_MAX);
        let mut inflater = std::mem::take(&mut cx.hub.compression.inflater);
        let inflated = inflater.inflate_message(kind, payload, bytes_max);
        let metrics = &mut cx.hub.metrics;
        metrics.inflated_bytes_before_total += payload.len() as u64;
        match inflated {
            Ok(message) => {
                let (message, bytes) = match message {
                    Inflated::Text(text) => (Message::Text(text), text.len()),
                    Inflated::Binary(bytes) => (Message::Binary(bytes), bytes.len()),
                };
                metrics.inflated_messages_total += 1;
                metrics.inflated_bytes_after_total += bytes as u64;
                (cx.hub.on_message)(self, message, cx);
            }
            Err(error) => {
                metrics.inflate_refused_total += 1;
                self.close(error.into(), cx);
            }
        }
        cx.hub.work.frames_read += payload.len() / DEFLATED_BYTES_PER_FRAME
            + inflater.inflated_bytes() / INFLATED_BYTES_PER_FRAME;
        cx.hub.compression.inflater = inflater;
    }

    /// The [`OnMessage`](super::hub::OnMessage) of the server: a text message is a command (PROTOCOL 3), a binary one
    /// closes the session with 1003.
    pub fn on_command(&mut self, message: Message<'_>, cx: &mut Context<'_>) {
        match message {
            Message::Text(text) => self.on_text(text, cx),
            Message::Binary(_) => self.close(CloseReason::Binary, cx),
        }
    }

    fn on_text(&mut self, text: &str, cx: &mut Context<'_>) {
        cx.hub.work.is_busy = true;
        let is_allowed = cx
            .hub
            .limits
            .rate
            .is_none_or(|rule| self.bucket.take(rule, cx.now.clock));
        if is_allowed {
            if let Phase::Open {
                rare: Some(rare), ..
            } = &mut self.phase
            {
                rare.refused_in_a_row = 0;
            }
        } else {
            let Some(rare) = self.rare_mut() else {
                return;
            };
            rare.refused_in_a_row += 1;
            if rare.refused_in_a_row >= REFUSED_COMMANDS_MAX {
                count_unread(CommandResult::RateLimited, cx);
                return self.close(CloseReason::RateLimit, cx);
            }
        }
        if cx.hub.is_renewing {
            self.renew_identity(cx);
            if !self.is_open() {
                return count_unread(CommandResult::Abandoned, cx);
            }
        }
        if cx.hub.is_ending_families {
            self.end_switched_off(usize::MAX, cx);
        }
        self.run(text, is_allowed, cx);
        self.drop_empty_rare();
    }

    /// Tells the hub how much of a message or request the session keeps. An address answers for what it leaves unfinished, and
    /// not for whole requests that wait for us.
    pub(super) fn note_partial(&self, cx: &mut Context<'_>) {
        let address = self.answerable(cx);
        cx.hub.partials.set(cx.id, self.partial_bytes(), address);
    }

    /// Tells the hub how many bytes of the peer are kept beneath the session, of a TLS record.
    pub fn note_beneath(&self, bytes: usize, cx: &mut Context<'_>) {
        let address = self.answerable(cx);
        cx.hub.partials.set_beneath(cx.id, bytes, address);
    }

    /// The address that answers for what the session leaves unfinished.
    fn answerable(&self, cx: &Context<'_>) -> Option<IpAddr> {
        let is_told = self.place != Place::Unknown;
        let is_its_own = is_told && self.has_no_proof() && !self.awaits_answer();
        is_its_own.then(|| self.peer(cx.hub).network())
    }
}

impl From<CodecError> for CloseReason {
    fn from(error: CodecError) -> Self {
        match error.close_code() {
            1007 => Self::InvalidText,
            1009 => Self::TooBig,
            _ => Self::Protocol,
        }
    }
}

impl From<InflateError> for CloseReason {
    fn from(error: InflateError) -> Self {
        match error {
            InflateError::TooBig => Self::TooBig,
            InflateError::Corrupt => Self::Corrupt,
            InflateError::InvalidUtf8 => Self::InvalidText,
        }
    }
}

/// Counts a command that is not read.
fn count_unread(result: CommandResult, cx: &mut Context<'_>) {
    cx.count_command(CommandAction::Unknown, result, cx.now.clock);
}

/// The pings of one read. The first are answered one by one; of the rest only the newest is answered, as RFC 6455 section
/// 5.5.3 allows, so a flood of pings makes no flood of pongs.
#[derive(Debug, Default)]
struct Pings {
    answered: usize,
    /// The pong to the last ping that was not answered at once.
    newest: Option<Frame>,
}

impl Pings {
    /// Returns the pong if it is to be sent at once.
    fn answer(&mut self, pong: Frame) -> Option<Frame> {
        if self.answered == PONGS_PER_READ_MAX {
            self.newest = Some(pong);
            return None;
        }
        self.answered += 1;
        Some(pong)
    }
}
