//! The known name that is likely meant by one that is not known, for the messages to people.

/// Of the names that are `known`, the one that is likely meant by `name`: dashes for underscores, or a typing error. Cost:
/// the product of the lengths, for each.
pub(crate) fn closest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let meant = name.replace('-', "_").to_ascii_lowercase();
    let (steps, closest) = known
        .map(|name| (strsim::levenshtein(&meant, name), name))
        .min()?;
    is_near(steps, closest).then_some(closest)
}

/// Whether a name that is so many typing errors away from `known` is likely to mean it.
pub(crate) fn is_near(steps: usize, known: &str) -> bool {
    steps <= 2.max(known.len() / 4)
}
