//! The process's own queue on the broker, which outlives its connection (PROTOCOL 10, "Broker link"): its name, how it
//! is declared, and what its state says when it is found again. Pure but for the name, which is drawn.
//!
//! The queue is not exclusive, since such a queue dies with its connection, and not auto-delete. What keeps others away
//! is its name, which nobody can guess, and that its one consumer is exclusive. A queue that nobody consumes expires
//! (`x-expires`), and one that nobody reads is bounded (`x-max-length`), so a process that crashed leaves little behind
//! and not for long. It is not durable: it goes with its broker's restart, and that way says so by itself. Where a broker
//! allows no such queue it is durable, and a second queue beside it holds a marker ([`super::marker`]).

use std::sync::Arc;
use std::time::Duration;

use amiquip::{AmqpValue, FieldTable, QueueDeclareOptions};

use crate::handoff::Return;

/// Random bytes of a name.
const NAME_BYTES: usize = 16;

/// One queue of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OurQueue {
    pub(super) name: Arc<str>,
    is_durable: bool,
}

/// What every queue of the process is declared with.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueBounds {
    /// Beyond it the broker drops the oldest.
    pub(super) length_max: Option<u32>,
    /// A queue without a consumer is deleted after this.
    pub(super) expires: Duration,
    /// Deliveries that may be under way.
    pub(super) prefetch: u16,
}

/// What a passive declaration of the queue says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Those that wait. Without a consumer: all that are not acknowledged.
    pub(super) messages: u32,
    pub(super) consumers: u32,
    /// The broker has not restarted since the marker was put there. True for a queue that needs none.
    pub(super) has_marker: bool,
}

impl OurQueue {
    /// A queue that does not exist yet.
    ///
    /// # Errors
    /// The system's, when it gives no random numbers.
    pub(super) fn new(is_durable: bool) -> Result<Self, getrandom::Error> {
        let mut bytes = [0; NAME_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self {
            name: format!("blackhole.{:032x}", u128::from_be_bytes(bytes)).into(),
            is_durable,
        })
    }

    /// The queue for the marker, where there has to be one.
    pub(super) fn marker(&self) -> Option<String> {
        self.is_durable.then(|| format!("{}.marker", self.name))
    }

    /// How the queue for the marker is declared: it must not expire before the queue does.
    pub(super) fn marker_declaration(
        &self,
        bounds: &QueueBounds,
        is_pinned: bool,
    ) -> QueueDeclareOptions {
        let bounds = QueueBounds {
            length_max: Some(1),
            expires: bounds.expires.saturating_mul(2),
            ..*bounds
        };
        self.declaration(&bounds, is_pinned)
    }

    /// How it is declared. `is_pinned`: where it is durable, on the node that we are connected to, whatever the broker's
    /// operator has set, so that it and its marker share one fate; not every version takes that.
    pub(super) fn declaration(&self, bounds: &QueueBounds, is_pinned: bool) -> QueueDeclareOptions {
        let mut arguments = FieldTable::new();
        // A virtual host may make another type its default.
        let classic = AmqpValue::LongString("classic".into());
        arguments.insert("x-queue-type".into(), classic);
        if self.is_durable && is_pinned {
            let here = AmqpValue::LongString("client-local".into());
            arguments.insert("x-queue-master-locator".into(), here);
        }
        // The longest that RabbitMQ takes is 2^32 - 1 ms, some seven weeks.
        let expires = u32::try_from(bounds.expires.as_millis()).unwrap_or(u32::MAX);
        let expires = AmqpValue::LongLongInt(expires.max(1).into());
        arguments.insert("x-expires".into(), expires);
        if let Some(length_max) = bounds.length_max {
            let length_max = AmqpValue::LongLongInt(length_max.into());
            arguments.insert("x-max-length".into(), length_max);
        }
        QueueDeclareOptions {
            durable: self.is_durable,
            exclusive: false,
            auto_delete: false,
            arguments,
        }
    }
}

impl QueueBounds {
    /// Whether a queue of this length is at its limit, or so near to it that it may have been a moment ago.
    pub(super) fn is_full(&self, length: u32) -> bool {
        self.length_max
            .is_some_and(|limit| length >= limit - u32::from(self.prefetch).min(limit / 4))
    }
}

impl Found {
    /// What a queue without a consumer says of the time since the last one. `expected`: deliveries that it must have.
    pub(super) fn returned(&self, bounds: &QueueBounds, expected: u64) -> Return {
        if !self.has_marker || bounds.is_full(self.messages) || u64::from(self.messages) < expected
        {
            Return::Anew
        } else {
            Return::Unbroken
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_drawn_anew_and_is_long() {
        let names = [(); 2].map(|()| OurQueue::new(false).expect("random numbers").name);
        assert_ne!(names[0], names[1]);
        for name in names {
            let digits = name.strip_prefix("blackhole.").expect("ours");
            assert!(digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        }
    }

    #[test]
    fn a_queue_that_is_full_or_lacks_what_it_must_have_was_not_whole_all_the_time() {
        let bounds = QueueBounds {
            length_max: Some(1000),
            expires: Duration::from_secs(60),
            prefetch: 100,
        };
        for (messages, expected, is_whole) in [
            (0, 0, true),
            (0, 1, false),
            (5, 5, true),
            (4, 5, false),
            (899, 1, true),
            (900, 1, false),
            (1100, 1, false),
        ] {
            for has_marker in [false, true] {
                let found = Found {
                    messages,
                    consumers: 0,
                    has_marker,
                };
                let returned = found.returned(&bounds, expected);
                let row = (messages, expected, has_marker);
                assert_eq!(
                    returned == Return::Unbroken,
                    is_whole && has_marker,
                    "{row:?}"
                );
            }
        }
        let transient = OurQueue::new(false).expect("random numbers");
        assert_eq!(transient.marker(), None);
        let unbounded = QueueBounds {
            length_max: None,
            ..bounds
        };
        assert!(!unbounded.is_full(u32::MAX));
    }
}
