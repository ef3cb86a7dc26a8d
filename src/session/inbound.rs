//! What the peer sends: bytes, the frames in them, and the commands in those.

use crate::limits::{PONGS_PER_READ, REFUSED_COMMANDS_MAX};
use crate::protocol::codec::Item;
use crate::protocol::frame::{Frame, Opcode};

use super::admin::AdminRequest;
use super::close::CloseReason;
use super::hub::Context;
use super::liveness::PING_PAYLOAD;
use super::occupancy::Place;
use super::{Message, PeerSide, Phase, Session};

impl Session {
    /// Takes what the peer sent. The bytes may be changed (they are unmasked in place). Returns the admin page
    /// asked for, which the loop answers with [`Session::respond`].
    pub fn on_bytes(&mut self, input: &mut [u8], cx: &mut Context<'_>) -> Option<AdminRequest> {
        let had_part = self.partial_bytes() > 0;
        let page = self.take_bytes(input, cx);
        if had_part || self.partial_bytes() > 0 {
            self.note_partial(cx);
        }
        page
    }

    fn take_bytes(&mut self, input: &mut [u8], cx: &mut Context<'_>) -> Option<AdminRequest> {
        match &mut self.phase {
            Phase::Handshake {
                door,
                preamble,
                head,
            } => {
                let (door, preamble) = (*door, *preamble);
                match head.take() {
                    None => self.on_start(door, preamble, input, cx),
                    Some(mut gathered) => {
                        gathered.0.extend_from_slice(input);
                        self.on_start(door, preamble, &mut gathered.0, cx)
                    }
                }
            }
            Phase::Open { .. } => {
                self.on_frames(input, cx);
                None
            }
            Phase::Closing { .. } | Phase::Gone { .. } => None,
        }
    }

    pub(super) fn on_frames(&mut self, input: &mut [u8], cx: &mut Context<'_>) {
        let tick = cx.hub.waking.tick();
        if let Phase::Open { life, .. } = &mut self.phase {
            life.on_bytes(tick);
        }
        let mut pings = Pings::default();
        self.decode(input, &mut pings, cx);
        if let Some(pong) = pings.newest
            && self.is_open()
        {
            self.push(pong, cx);
        }
        if let Phase::Open {
            extra: Some(extra), ..
        } = &mut self.phase
        {
            extra.codec.mark_once(tick.to_mark());
            self.drop_needless_extra();
        }
    }

    fn decode(&mut self, mut input: &mut [u8], pings: &mut Pings, cx: &mut Context<'_>) {
        loop {
            let Phase::Open { extra, life } = &mut self.phase else {
                return;
            };
            let kept = extra.as_mut().map(|extra| std::mem::take(&mut extra.codec));
            let mut codec = kept.unwrap_or_default();
            let decoded = codec.decode(input, &cx.hub.limits.codec);
            if !codec.is_idle() {
                extra.get_or_insert_default().codec = codec;
            }
            let decoded = match decoded {
                Ok(decoded) => decoded,
                Err(error) => {
                    let reason = match error.close_code() {
                        1007 => CloseReason::InvalidText,
                        1009 => CloseReason::TooBig,
                        _ => CloseReason::Protocol,
                    };
                    return self.close(reason, cx);
                }
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

    /// The [`OnMessage`] of the server: text is a command (PROTOCOL 3), binary closes the session with 1003.
    pub fn on_command(&mut self, message: Message<'_>, cx: &mut Context<'_>) {
        match message {
            Message::Text(text) => self.on_text(text, cx),
            Message::Binary(_) => self.close(CloseReason::Binary, cx),
        }
    }

    fn on_text(&mut self, text: &str, cx: &mut Context<'_>) {
        cx.hub.metrics.commands_total += 1;
        cx.hub.work.is_busy = true;
        let is_allowed = cx
            .hub
            .limits
            .rate
            .is_none_or(|rule| self.bucket.take(rule, cx.now.clock));
        if is_allowed {
            if let Phase::Open {
                extra: Some(extra), ..
            } = &mut self.phase
            {
                extra.refused_in_a_row = 0;
            }
        } else {
            cx.hub.metrics.commands_rate_limited_total += 1;
            let Some(extra) = self.extra_mut() else {
                return;
            };
            extra.refused_in_a_row += 1;
            if extra.refused_in_a_row >= REFUSED_COMMANDS_MAX {
                return self.close(CloseReason::RateLimit, cx);
            }
        }
        if cx.hub.is_renewing {
            self.renew_identity(cx);
            if !self.is_open() {
                return;
            }
        }
        self.run(text, is_allowed, cx);
        self.drop_needless_extra();
    }

    /// Tells the hub what of it has arrived in part.
    pub(super) fn note_partial(&self, cx: &mut Context<'_>) {
        let is_told = self.place != Place::Unknown;
        let address = (is_told && self.identity.is_none()).then(|| self.peer(cx.hub).network());
        cx.hub.partials.set(cx.id, self.partial_bytes(), address);
    }
}

/// The pings of one read. The first are answered one by one; of more only the newest is, as RFC 6455 section 5.5.3
/// allows, so that a flood of pings is not a flood of pongs.
#[derive(Debug, Default)]
struct Pings {
    answered: usize,
    /// The pong to the last ping that was not answered at once.
    newest: Option<Frame>,
}

impl Pings {
    /// The pong if it is to be sent at once.
    fn answer(&mut self, pong: Frame) -> Option<Frame> {
        if self.answered == PONGS_PER_READ {
            self.newest = Some(pong);
            return None;
        }
        self.answered += 1;
        Some(pong)
    }
}
