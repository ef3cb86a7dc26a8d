//! Commands, counted by what they asked for and by what became of them.
//!
//! Invariant: a command is counted once, when what became of it is known.

use super::page::{Name, write_head, write_sample};

/// Declares an enum whose variants are the values of a label.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The value of the label.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }
    };
}

label! {
    /// What a command asks for: never a client's text.
    CommandAction {
        /// A subscribe.
        Subscribe "subscribe",
        /// An unsubscribe.
        Unsubscribe "unsubscribe",
        /// A ping.
        Ping "ping",
        /// Another word, none, or one that was not read: no JSON, or refused by the rate limit.
        Unknown "unknown",
    }
}

label! {
    /// What became of a command.
    CommandResult {
        /// It succeeded.
        Ok "ok",
        /// It was wrong as it was written, or its bindings are none that its session may have.
        Failed "failed",
        /// There was no token, or one that does not hold.
        Unauthenticated "unauthenticated",
        /// It was for an account that its session may not see.
        Unauthorized "unauthorized",
        /// The rate limit refused it.
        RateLimited "rate_limited",
        /// The authenticator could not say, or could not be asked.
        Unavailable "unavailable",
        /// The broker did not confirm its bindings in time (`request_timeout_ms`).
        BrokerTimeout "broker_timeout",
        /// The broker refuses one of its bindings.
        BrokerRefused "broker_refused",
        /// It could not wait, or wait on, because too much was held back.
        GivenUp "given_up",
        /// `max_connections_per_account`.
        TooManySessions "too_many_sessions",
        /// `max_subscriptions`.
        TooManySubscriptions "too_many_subscriptions",
        /// `max_bindings_per_session` or `max_bindings`.
        TooManyBindings "too_many_bindings",
        /// `max_bindings_per_account`.
        TooManyAccountBindings "too_many_account_bindings",
        /// `max_metadata_bytes`.
        MetadataTooLarge "metadata_too_large",
        /// Its session ended before.
        Abandoned "abandoned",
    }
}

const ACTIONS: usize = CommandAction::ALL.len();
const RESULTS: usize = CommandResult::ALL.len();

/// The counts.
///
/// ```
/// use blackhole::metrics::commands::{CommandAction, CommandCounts, CommandResult};
///
/// let mut counts = CommandCounts::default();
/// counts.count(CommandAction::Ping, CommandResult::Ok);
/// assert_eq!(counts.of_result(CommandResult::Ok), 1);
/// assert_eq!(counts.total(), 1);
/// ```
#[derive(Clone, Debug, Default)]
pub struct CommandCounts([[u64; RESULTS]; ACTIONS]);

impl CommandCounts {
    /// Counts a command.
    pub fn count(&mut self, action: CommandAction, result: CommandResult) {
        self.0[action as usize][result as usize] += 1;
    }

    /// Commands of this action with this result.
    #[must_use]
    pub fn of(&self, action: CommandAction, result: CommandResult) -> u64 {
        self.0[action as usize][result as usize]
    }

    /// Commands with this result.
    #[must_use]
    pub fn of_result(&self, result: CommandResult) -> u64 {
        self.0.iter().map(|results| results[result as usize]).sum()
    }

    /// Commands of which it is known what became of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.as_flattened().iter().sum()
    }

    /// Commands that were answered with an error.
    #[must_use]
    pub fn refused(&self) -> u64 {
        let good = [CommandResult::Ok, CommandResult::Abandoned];
        self.total()
            - good
                .into_iter()
                .map(|result| self.of_result(result))
                .sum::<u64>()
    }

    /// Appends all of them to `out`, in Prometheus' text format.
    pub fn write(&self, out: &mut String) {
        let name = Name::ours("commands_total");
        let help = "Commands of clients, by what they asked for and what became of them; those that still wait are not among them.";
        write_head(out, name, "counter", help);
        for action in CommandAction::ALL {
            for result in CommandResult::ALL {
                let labels = [
                    ("action", &action.word() as _),
                    ("result", &result.word() as _),
                ];
                write_sample(out, name, "", &labels, self.of(*action, *result));
            }
        }
    }
}
