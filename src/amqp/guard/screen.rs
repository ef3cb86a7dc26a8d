//! The screen: where a frame begins, which bytes are passed on, which bodies are swallowed. Pure.
//!
//! Invariant: bytes are shown to it once, but for those that it neither passed nor swallowed, which are shown again.

use super::bounds::{
    CONTENTS_MAX, FRAME_BYTES_MAX, FRAME_END_BYTES, FRAME_HEADER_BYTES, METHOD_BYTES_MAX, Violation,
};
use super::fields::{content_bytes_screened_max, screen_content, screen_method};
use super::vitals::Vitals;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// The first byte of what TLS answers to anything else.
const TLS_ALERT: u8 = 21;
/// The header of a heartbeat, which has no payload.
const HEARTBEAT_HEADER: [u8; FRAME_HEADER_BYTES] = [HEARTBEAT, 0, 0, 0, 0, 0, 0];

/// Where the next byte stands in the stream of frames.
#[derive(Debug, Default)]
pub(super) struct Screen {
    rest: Rest,
    /// The channels in the middle of a delivery, at most [`CONTENTS_MAX`].
    contents: Vec<(u16, Content)>,
}

/// Bytes of the present frame that are still to come and need no screening.
#[derive(Clone, Copy, Debug)]
enum Rest {
    /// To be passed on, the end octet included.
    Passing(usize),
    /// The payload of a heartbeat that was a body; the end octet comes behind it.
    Swallowing(usize),
}

impl Default for Rest {
    fn default() -> Self {
        Self::Passing(0)
    }
}

/// A delivery whose frames have not all come.
#[derive(Clone, Copy, Debug)]
enum Content {
    /// Its content header is to come.
    Announced { tag: u64 },
    /// So many bytes of its body are to come, and are swallowed.
    Swallowed { left: u64 },
}

/// What [`Screen::clear`] did with the bytes, from the front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Screened {
    /// So many may be passed on.
    pub(super) passed: usize,
    /// So many behind them are to be thrown away, and the bytes that follow are to be shown again at once. Zero when
    /// the screen has done all that it can.
    pub(super) swallowed: usize,
}

impl Screen {
    /// Screens `bytes`, which begin where the bytes of the last result ended. Bytes that it neither passes nor swallows
    /// are to be shown again, with more behind them. Linear in the bytes that it passes and swallows.
    pub(super) fn clear(
        &mut self,
        bytes: &mut [u8],
        vitals: &Vitals,
    ) -> Result<Screened, Violation> {
        let mut cleared = 0;
        let passed = |passed| Screened {
            passed,
            swallowed: 0,
        };
        loop {
            let rest = bytes.get_mut(cleared..).unwrap_or_default();
            match self.rest {
                Rest::Passing(0) => {}
                Rest::Passing(left) => {
                    let pass = left.min(rest.len());
                    self.rest = Rest::Passing(left - pass);
                    cleared += pass;
                    if pass < left {
                        return Ok(passed(cleared));
                    }
                    continue;
                }
                Rest::Swallowing(0) => {
                    self.rest = Rest::Passing(FRAME_END_BYTES);
                    continue;
                }
                Rest::Swallowing(left) => {
                    let swallowed = left.min(rest.len());
                    self.rest = Rest::Swallowing(left - swallowed);
                    return Ok(Screened {
                        passed: cleared,
                        swallowed,
                    });
                }
            }
            let Some(&[kind, channel_high, channel_low, size @ ..]) =
                rest.first_chunk::<FRAME_HEADER_BYTES>()
            else {
                // A peer that speaks another protocol may stop after a few bytes, so the first of them is checked.
                return match rest.first() {
                    Some(&kind) if !is_frame(kind) => Err(not_a_frame(kind)),
                    _ => Ok(passed(cleared)),
                };
            };
            let size = u32::from_be_bytes(size);
            if size > FRAME_BYTES_MAX - 8 {
                return Err(if is_frame(kind) {
                    Violation::FrameTooLarge(size)
                } else {
                    not_a_frame(kind)
                });
            }
            let channel = u16::from_be_bytes([channel_high, channel_low]);
            let size = size as usize;
            let looked_at = match kind {
                METHOD if size > METHOD_BYTES_MAX => return Err(Violation::MethodTooLarge(size)),
                METHOD => size,
                HEADER => size.min(content_bytes_screened_max(vitals)),
                BODY | HEARTBEAT => 0,
                other => return Err(not_a_frame(other)),
            };
            let Some((header, payload)) = rest
                .get_mut(..FRAME_HEADER_BYTES + looked_at)
                .and_then(|piece| piece.split_at_mut_checked(FRAME_HEADER_BYTES))
            else {
                return Ok(passed(cleared));
            };
            cleared += FRAME_HEADER_BYTES + looked_at;
            self.rest = Rest::Passing(size - looked_at + FRAME_END_BYTES);
            match kind {
                METHOD => {
                    let tag = screen_method(payload)?;
                    self.begin(channel, tag.map(|tag| Content::Announced { tag }))?;
                }
                HEADER => {
                    let tag = match self.end(channel) {
                        Some(Content::Announced { tag }) => Some(tag),
                        Some(Content::Swallowed { .. }) | None => None,
                    };
                    let left = screen_content(payload, tag, vitals)?;
                    self.begin(channel, left.map(|left| Content::Swallowed { left }))?;
                }
                BODY if self.swallows(channel, size as u64)? => {
                    header.copy_from_slice(&HEARTBEAT_HEADER);
                    self.rest = Rest::Swallowing(size);
                }
                _ => {}
            }
        }
    }

    /// Ends what was under way on `channel`, for "any non-content frame explicitly marks the end of the content" (AMQP
    /// 0-9-1, 4.2.6), and begins `content`, if there is one.
    fn begin(&mut self, channel: u16, content: Option<Content>) -> Result<(), Violation> {
        self.end(channel);
        if let Some(content) = content {
            if self.contents.len() >= CONTENTS_MAX {
                return Err(Violation::TooManyContents);
            }
            self.contents.push((channel, content));
        }
        Ok(())
    }

    fn end(&mut self, channel: u16) -> Option<Content> {
        let at = self
            .contents
            .iter()
            .position(|(its_channel, _)| *its_channel == channel)?;
        Some(self.contents.swap_remove(at).1)
    }

    /// Whether a body frame of this size is part of a body that is swallowed.
    fn swallows(&mut self, channel: u16, bytes: u64) -> Result<bool, Violation> {
        let content = self
            .contents
            .iter_mut()
            .find(|(its_channel, _)| *its_channel == channel);
        let Some((_, Content::Swallowed { left })) = content else {
            return Ok(false);
        };
        if bytes > *left {
            return Err(Violation::BodyTooLong(bytes - *left));
        }
        *left -= bytes;
        if *left == 0 {
            self.end(channel);
        }
        Ok(true)
    }
}

fn not_a_frame(kind: u8) -> Violation {
    if kind == TLS_ALERT {
        Violation::Tls
    } else {
        Violation::NotAFrame(kind)
    }
}

fn is_frame(kind: u8) -> bool {
    matches!(kind, METHOD | HEADER | BODY | HEARTBEAT)
}
