//! What is done to the broker while everything runs.

use std::time::Duration;

use support::broker::Broker;

/// How long the broker is frozen: so that the server must not notice, and so that it must.
const SHORT_FREEZE: Duration = Duration::from_secs(3);
const LONG_FREEZE: Duration = Duration::from_secs(14);

/// What is done to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Harm {
    Stop,
    Kill,
    ShortFreeze,
    LongFreeze,
}

impl Harm {
    /// All of them, in words.
    pub(crate) const ALL: [(Self, &'static str); 4] = [
        (Self::Stop, "stopped and started"),
        (Self::Kill, "killed and started"),
        (Self::ShortFreeze, "frozen for 3 s"),
        (Self::LongFreeze, "frozen for 14 s"),
    ];

    /// In words.
    pub(crate) fn words(self) -> &'static str {
        let row = Self::ALL.iter().find(|(harm, _)| *harm == self);
        row.map_or("", |(_, words)| words)
    }

    /// Does it to `broker`, and returns when the broker serves again.
    pub(crate) fn inflict(self, broker: &Broker) {
        match self {
            Self::Stop => broker.stop(),
            Self::Kill => broker.kill9(),
            Self::ShortFreeze | Self::LongFreeze => broker.pause(),
        }
        match self {
            Self::Stop | Self::Kill => broker.restart(),
            Self::ShortFreeze => std::thread::sleep(SHORT_FREEZE),
            Self::LongFreeze => std::thread::sleep(LONG_FREEZE),
        }
        if matches!(self, Self::ShortFreeze | Self::LongFreeze) {
            broker.resume();
        }
    }
}
