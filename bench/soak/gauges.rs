//! The gauges of the metrics page, and what they must be when nobody is connected.

use std::collections::BTreeMap;

/// What a gauge is when nothing but the reading of the page goes on; a gauge that is not named here is zero. Left out are
/// those whose names end with `_max`, which are bounds, and [`ON_FILE`].
const AT_REST: [(&str, u64); 6] = [
    // The one that reads the page.
    ("admin_connections", 1),
    ("admin_deadlines", 1),
    // States.
    ("source_up", 1),
    ("ready", 1),
    ("amqp_up", 1),
    ("amqp_control_up", 1),
];

/// What the server has read from files.
const ON_FILE: [&str; 3] = ["auth_tokens", "auth_keys", "auth_accounts"];

/// Name, without the prefix `blackhole_`, and value of every gauge of a metrics page.
pub(crate) type Gauges = BTreeMap<String, u64>;

/// The gauges of a page in Prometheus' text format, but for the bounds.
#[must_use]
pub(crate) fn read(page: &str) -> Gauges {
    let mut gauges = Gauges::new();
    let mut gauge = None;
    for line in page.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE blackhole_") {
            gauge = declared.strip_suffix(" gauge");
        } else if let Some((name, value)) = line
            .strip_prefix("blackhole_")
            .and_then(|line| line.split_once(' '))
            && gauge == Some(name)
            && !name.ends_with("_max")
            && !ON_FILE.contains(&name)
            && let Ok(value) = value.parse::<f64>()
        {
            // A part of a second is not nothing.
            gauges.insert(name.to_owned(), value.ceil() as u64);
        }
    }
    gauges
}

/// The gauges that are not what they must be when nobody is connected.
#[must_use]
pub(crate) fn astray(gauges: &Gauges) -> Vec<String> {
    let expected: Gauges = gauges
        .keys()
        .map(|name| {
            let at_rest = AT_REST.iter().find(|(named, _)| named == name);
            (name.clone(), at_rest.map_or(0, |(_, value)| *value))
        })
        .collect();
    differing(gauges, &expected)
}

/// The gauges that differ from `expected`, told in words.
#[must_use]
pub(crate) fn differing(gauges: &Gauges, expected: &Gauges) -> Vec<String> {
    expected
        .iter()
        .filter_map(|(name, expected)| {
            let found = gauges.get(name).copied().unwrap_or(u64::MAX);
            (found != *expected).then(|| format!("{name} is {found} instead of {expected}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"# HELP blackhole_admin_connections Connections.
# TYPE blackhole_admin_connections gauge
blackhole_admin_connections 1
# HELP blackhole_connections_max Bound.
# TYPE blackhole_connections_max gauge
blackhole_connections_max 100
# HELP blackhole_auth_tokens Tokens on file.
# TYPE blackhole_auth_tokens gauge
blackhole_auth_tokens 8
# HELP blackhole_subscriptions Subscriptions.
# TYPE blackhole_subscriptions gauge
blackhole_subscriptions 0
# HELP blackhole_build_info Version.
# TYPE blackhole_build_info gauge
blackhole_build_info{version="1"} 1
# HELP blackhole_handoff_held_seconds Held.
# TYPE blackhole_handoff_held_seconds gauge
blackhole_handoff_held_seconds 0.25
# HELP blackhole_events_total Events.
# TYPE blackhole_events_total counter
blackhole_events_total 7
"#;

    #[test]
    fn gauges_are_read_and_counters_and_bounds_are_not() {
        let gauges = read(PAGE);
        let expected = [
            ("admin_connections".to_owned(), 1),
            ("handoff_held_seconds".to_owned(), 1),
            ("subscriptions".to_owned(), 0),
        ];
        assert_eq!(gauges, Gauges::from(expected));
        assert_eq!(astray(&gauges), ["handoff_held_seconds is 1 instead of 0"]);
    }

    #[test]
    fn a_gauge_that_did_not_come_back_is_named() {
        let page = PAGE.replace("0.25", "0");
        let gauges = read(&page.replace("subscriptions 0", "subscriptions 3"));
        assert_eq!(astray(&gauges), ["subscriptions is 3 instead of 0"]);
        let gauges = read(&page.replace("connections 1", "connections 2"));
        assert_eq!(astray(&gauges), ["admin_connections is 2 instead of 1"]);
    }
}
