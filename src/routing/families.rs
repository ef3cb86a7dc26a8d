//! To be written.
/// What an operator can change about the families.
#[derive(Clone, Debug, Default)]
pub struct FamilyOptions {}
