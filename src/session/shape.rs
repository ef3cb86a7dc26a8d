//! How the messages of one session are written: the style of its events, and whether permessage-deflate was agreed on. One
//! byte of a session.

use crate::event::Style;
use crate::protocol::extension::Deflate;

/// See the module's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape(u8);

/// Base-2 logarithm of the client's window, 8 to 15; 0: nothing was agreed on.
const WINDOW_BITS: u8 = 0b1111;

/// That of our deflater's window.
const OUR_WINDOW_BITS: u8 = 15;

const IS_KAZOO: u8 = 1 << 4;

impl Shape {
    pub(super) fn new(style: Style, deflate: Option<Deflate>) -> Self {
        let style = match style {
            Style::Piston => 0,
            Style::Kazoo => IS_KAZOO,
        };
        Self(style | deflate.map_or(0, Deflate::window_bits) & WINDOW_BITS)
    }

    pub(super) fn style(self) -> Style {
        if self.0 & IS_KAZOO == 0 {
            Style::Piston
        } else {
            Style::Kazoo
        }
    }

    /// Whether permessage-deflate was agreed on.
    pub(super) fn is_deflated(self) -> bool {
        self.0 & WINDOW_BITS != 0
    }

    /// Whether so many bytes may be sent deflated: no reference in them can reach back further than the client's window.
    #[inline]
    pub(super) fn takes_deflated(self, bytes: usize) -> bool {
        match self.0 & WINDOW_BITS {
            0 => false,
            bits => bits >= OUR_WINDOW_BITS || bytes <= 1 << bits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::extension::{Offer, read};

    #[test]
    fn a_byte_keeps_the_style_and_the_window() {
        for style in [Style::Piston, Style::Kazoo] {
            let plain = Shape::new(style, None);
            assert_eq!(plain.style(), style);
            assert!(!plain.is_deflated() && !plain.takes_deflated(0));
            for bits in 8..=15 {
                let field = format!("permessage-deflate; server_max_window_bits={bits}");
                let Offer::Good(deflate) = read([field.as_bytes()]) else {
                    panic!("{field}")
                };
                let shape = Shape::new(style, Some(deflate));
                assert_eq!(shape.style(), style);
                assert!(shape.is_deflated());
                assert!(shape.takes_deflated(1 << bits));
                // The largest window is that of the deflater.
                assert_eq!(shape.takes_deflated((1 << bits) + 1), bits == 15);
            }
        }
    }
}
