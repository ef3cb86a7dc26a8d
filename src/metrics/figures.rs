//! How counters and gauges are declared: one list says the field, the metric and the help.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that the page shows.
pub(crate) trait Figure {
    /// Its value now.
    fn value(&self) -> u64;
}

impl Figure for u64 {
    fn value(&self) -> u64 {
        *self
    }
}

/// A figure that other threads write. It is only read for the page, so no order is needed.
impl Figure for AtomicU64 {
    fn value(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }
}

/// Declares a struct of counters and gauges.
///
/// - `plain`: one field, one metric `blackhole_<field>`, or `blackhole_<name>` with `as "name"`, and one help text each.
/// - `families`: one metric of several fields, each with its values of the labels in square brackets, and with what it
///   counts. A family is the sum of its fields, so no two of them count the same thing.
/// - `beside`: fields of other types, which have `write` and `Default`.
macro_rules! figures {
    (
        $(#[$doc:meta])*
        struct $name:ident of $number:ty;
        plain { $($kind:ident $field:ident $(as $metric:literal)? $help:literal;)* }
        families { $(
            $family_kind:ident $family:ident [$($label:ident),+] $family_help:literal {
                $($member:ident ($($value:literal),+) $meaning:literal;)+
            }
        )* }
        beside { $($(#[$beside_doc:meta])* $beside:ident: $beside_type:ty;)* }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name {
            $(#[doc = $help] pub $field: $number,)*
            $($(#[doc = $meaning] pub $member: $number,)+)*
            $($(#[$beside_doc])* pub $beside: $beside_type,)*
        }

        impl $name {
            $(
                #[doc = concat!("The sum of `", stringify!($family), "`.")]
                #[must_use]
                pub fn $family(&self) -> u64 {
                    use $crate::metrics::figures::Figure;
                    0 $(+ self.$member.value())+
                }
            )*

            /// Appends all of them to `out`, in Prometheus' text format.
            pub fn write(&self, out: &mut String) {
                use $crate::metrics::figures::Figure;
                use $crate::metrics::page::{Name, write_head, write_metric, write_sample};
                $(
                    let name = $crate::metrics::figures::metric_name!($field $($metric)?);
                    write_metric(out, name, stringify!($kind), $help, self.$field.value());
                )*
                $(
                    let name = Name::ours(stringify!($family));
                    write_head(out, name, stringify!($family_kind), $family_help);
                    let labels = [$(stringify!($label)),+];
                    $(
                        let values = [$(&$value as &dyn std::fmt::Display),+];
                        let mut pairs = labels.map(|label| (label, values[0]));
                        for (pair, value) in pairs.iter_mut().zip(values) {
                            pair.1 = value;
                        }
                        write_sample(out, name, "", &pairs, self.$member.value());
                    )+
                )*
                $(self.$beside.write(out);)*
            }
        }
    };
}

macro_rules! metric_name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $metric:literal) => {
        $metric
    };
}

pub(crate) use {figures, metric_name};
