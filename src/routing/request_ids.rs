//! The request ids of subscriptions, kept as the text that a frame takes them in: JSON without its quotes.
//!
//! Real clients send a request id of their own with each subscribe, so the ids are packed: a *block* holds up to
//! [`BLOCK_PLACES`] ids of about one length, each in a place of that length and four bytes. There is no table of all
//! ids: an id that many subscriptions have is found among the *recent* ones, and shares their place; at worst, after
//! other ids have pushed it out of there, it is kept a second time.
//!
//! Invariants: an id is freed with the last of its users. A block that holds no id is freed. A block is in the list of
//! its length if it has a vacant place, and in no list if it has none.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use slab::Slab;

use super::table::low_half;
use crate::json::write_text;

/// Ids of one block: one bit of [`Block::used`] each.
const BLOCK_PLACES: usize = 64;

/// Places are as long as a multiple of this.
const STEP_BYTES: usize = 4;

/// Bytes of a place before the text: the number of users in the upper bits, and in the lowest two, how many bytes behind
/// the text are not used.
const HEAD_BYTES: usize = 4;

const ONE_USER: u32 = 1 << 2;
const UNUSED_BYTES: u32 = ONE_USER - 1;

const _: () = assert!(
    STEP_BYTES == ONE_USER as usize,
    "fewer bytes than a step are not used"
);

/// Ids that are remembered for sharing. A power of two.
const RECENT_MAX: usize = 1024;

/// The name of a request id, or of its absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestId(u32);

impl RequestId {
    /// The subscription has no request id.
    pub(super) const NONE: Self = Self(u32::MAX);

    fn new(block: usize, place: usize) -> Self {
        let id = u32::try_from(block * BLOCK_PLACES + place)
            .ok()
            .filter(|id| *id != u32::MAX);
        Self(id.expect("memory ends before 2^32 request ids do"))
    }

    fn block(self) -> usize {
        self.0 as usize / BLOCK_PLACES
    }

    fn place(self) -> usize {
        self.0 as usize % BLOCK_PLACES
    }

    pub(super) fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(super) fn bits(self) -> u32 {
        self.0
    }
}

/// All request ids.
#[derive(Debug)]
pub(super) struct RequestIds {
    blocks: Slab<Block>,
    /// The blocks with a vacant place, by the length of their places in steps.
    vacant: Vec<Vec<u32>>,
    /// The latest id of each of [`RECENT_MAX`] hashes; without memory before the first. What stands there may be gone.
    recent: Vec<u32>,
    /// Users of all ids.
    users: usize,
    seed: RandomState,
    /// The text of the id that is looked for.
    text: Vec<u8>,
}

/// Ids of about one length.
#[derive(Debug)]
struct Block {
    /// As many places as have ever been in use at once.
    places: Vec<u8>,
    /// A bit for each place in use.
    used: u64,
    /// Length of a place, in steps.
    steps: u32,
    /// Where the block stands in the list of those with a vacant place.
    listed_at: u32,
}

impl Block {
    fn place_bytes(&self) -> usize {
        self.steps as usize * STEP_BYTES
    }

    fn head_mut(&mut self, place: usize) -> Option<&mut [u8; HEAD_BYTES]> {
        let at = place * self.place_bytes();
        self.places.get_mut(at..)?.first_chunk_mut()
    }

    /// The text in a place in use.
    fn text(&self, place: usize) -> Option<&[u8]> {
        if self.used >> place & 1 == 0 {
            return None;
        }
        let bytes = self.place_bytes();
        let whole = self.places.get(place * bytes..(place + 1) * bytes)?;
        let (head, text) = whole.split_first_chunk()?;
        let unused = u32::from_le_bytes(*head) & UNUSED_BYTES;
        text.get(..text.len() - unused as usize)
    }

    fn put(&mut self, place: usize, text: &[u8]) {
        let bytes = self.place_bytes();
        let (at, end) = (place * bytes, (place + 1) * bytes);
        if self.places.len() < end {
            if self.places.capacity() < end {
                self.places.reserve_exact(self.places.len().max(bytes));
            }
            self.places.resize(end, 0);
        }
        let unused = to_u32(bytes - HEAD_BYTES - text.len());
        let head = (ONE_USER | unused).to_le_bytes();
        for (to, from) in self.places.iter_mut().skip(at).zip(head.iter().chain(text)) {
            *to = *from;
        }
        self.used |= 1 << place;
    }
}

impl RequestIds {
    pub(super) fn new(seed: RandomState) -> Self {
        Self {
            blocks: Slab::new(),
            vacant: Vec::new(),
            recent: Vec::new(),
            users: 0,
            seed,
            text: Vec::new(),
        }
    }

    /// The name of `request_id`, which has one more user now. Linear in the text.
    pub(super) fn intern(&mut self, request_id: Option<&str>) -> RequestId {
        let Some(request_id) = request_id else {
            return RequestId::NONE;
        };
        let mut quoted = std::mem::take(&mut self.text);
        quoted.clear();
        write_text(&mut quoted, request_id);
        let id = self.intern_bytes(quoted.get(1..quoted.len() - 1).unwrap_or_default());
        self.text = quoted;
        id
    }

    /// As [`RequestIds::intern`], of what [`RequestIds::text`] returned for another table.
    pub(super) fn intern_text(&mut self, text: Option<&str>) -> RequestId {
        text.map_or(RequestId::NONE, |text| self.intern_bytes(text.as_bytes()))
    }

    fn intern_bytes(&mut self, text: &[u8]) -> RequestId {
        self.users += 1;
        let hash = self.seed.hash_one(text);
        if self.recent.is_empty() {
            self.recent = vec![RequestId::NONE.0; RECENT_MAX];
        }
        let at = low_half(hash) as usize % RECENT_MAX;
        let known = self
            .recent
            .get(at)
            .map_or(RequestId::NONE, |id| RequestId(*id));
        let id = if self.bytes_of(known) == Some(text) {
            self.share(known);
            known
        } else {
            self.put(text)
        };
        if let Some(recent) = self.recent.get_mut(at) {
            *recent = id.0;
        }
        id
    }

    /// Adds one user.
    fn share(&mut self, id: RequestId) {
        if let Some(head) = self.head_mut(id) {
            *head = (u32::from_le_bytes(*head) + ONE_USER).to_le_bytes();
        }
    }

    /// Takes one user back. The id is freed with the last.
    pub(super) fn release(&mut self, id: RequestId) {
        let Some(head) = self.head_mut(id) else {
            return;
        };
        let left = u32::from_le_bytes(*head) - ONE_USER;
        *head = left.to_le_bytes();
        self.users -= 1;
        if left < ONE_USER {
            self.vacate(id);
        }
    }

    /// The text of an id, as it stands between the quotes of a JSON string; `None` for [`RequestId::NONE`].
    #[inline]
    pub(super) fn text(&self, id: RequestId) -> Option<&str> {
        std::str::from_utf8(self.bytes_of(id)?).ok()
    }

    fn bytes_of(&self, id: RequestId) -> Option<&[u8]> {
        self.blocks.get(id.block())?.text(id.place())
    }

    /// Users of all ids.
    pub(super) fn users(&self) -> usize {
        self.users
    }

    /// Places that ids take: as many as there are distinct ids, or a few more.
    #[cfg(test)]
    fn len(&self) -> usize {
        let used = self.blocks.iter().map(|(_, block)| block.used.count_ones());
        used.sum::<u32>() as usize
    }

    /// Bytes allocated. Linear in the blocks.
    pub(super) fn heap_bytes(&self) -> usize {
        let places = self.blocks.iter().map(|(_, block)| block.places.capacity());
        let lists = self.vacant.iter().map(|list| list.capacity() * 4 + 24);
        self.blocks.capacity() * (size_of::<Block>() + 8)
            + places.sum::<usize>()
            + lists.sum::<usize>()
            + self.recent.capacity() * size_of::<u32>()
    }

    fn head_mut(&mut self, id: RequestId) -> Option<&mut [u8; HEAD_BYTES]> {
        self.blocks.get_mut(id.block())?.head_mut(id.place())
    }

    /// Puts a text into a vacant place of its length, for one user.
    fn put(&mut self, text: &[u8]) -> RequestId {
        let steps = (HEAD_BYTES + text.len()).div_ceil(STEP_BYTES);
        if self.vacant.len() <= steps {
            self.vacant.resize_with(steps + 1, Vec::new);
        }
        let Self { blocks, vacant, .. } = self;
        let list = vacant
            .get_mut(steps)
            .expect("there is a list of each length");
        let at = match list.last() {
            Some(at) => *at as usize,
            None => {
                let at = blocks.insert(Block {
                    places: Vec::new(),
                    used: 0,
                    steps: to_u32(steps),
                    listed_at: 0,
                });
                list.push(to_u32(at));
                at
            }
        };
        let block = &mut blocks[at];
        let place = block.used.trailing_ones() as usize;
        block.put(place, text);
        if block.used == u64::MAX {
            list.pop();
        }
        RequestId::new(at, place)
    }

    fn vacate(&mut self, id: RequestId) {
        let Self { blocks, vacant, .. } = self;
        let at = id.block();
        let block = &mut blocks[at];
        let list = vacant
            .get_mut(block.steps as usize)
            .expect("there is a list of each length");
        if block.used == u64::MAX {
            block.listed_at = to_u32(list.len());
            list.push(to_u32(at));
        }
        block.used &= !(1 << id.place());
        if block.used == 0 {
            let listed_at = block.listed_at as usize;
            list.swap_remove(listed_at);
            if let Some(moved) = list.get(listed_at) {
                blocks[*moved as usize].listed_at = to_u32(listed_at);
            }
            blocks.remove(at);
            if blocks.is_empty() {
                *blocks = Slab::new();
                *vacant = Vec::new();
                self.recent = Vec::new();
            }
        }
    }
}

fn to_u32(number: usize) -> u32 {
    u32::try_from(number).expect("fewer blocks than ids, which have 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ids: &RequestIds, id: RequestId) -> &str {
        ids.text(id).expect("an id")
    }

    #[test]
    fn an_id_is_kept_once_as_a_frame_takes_it_and_freed_with_its_last_user() {
        let mut ids = RequestIds::new(RandomState::new());
        assert_eq!(ids.intern(None), RequestId::NONE);
        let id = ids.intern(Some("r\"1\u{7}é"));
        assert_eq!(ids.intern(Some("r\"1\u{7}é")), id);
        let other = ids.intern(Some("r1"));
        assert_ne!(other, id);
        assert_eq!(
            (text(&ids, id), text(&ids, other)),
            (r#"r\"1\u0007é"#, "r1")
        );
        assert_eq!(ids.intern(Some("r\"1\u{7}é")), id);
        assert_eq!(ids.len(), 2);
        for left in [2, 2, 1] {
            ids.release(id);
            assert_eq!(ids.len(), left);
        }
        ids.release(RequestId::NONE);
        assert_eq!(text(&ids, other), "r1");
        ids.release(other);
        assert_eq!((ids.len(), ids.heap_bytes()), (0, 0));
    }

    #[test]
    fn ids_of_all_lengths_come_and_go_at_random_and_none_is_mistaken_for_another() {
        let mut rng = fastrand::Rng::with_seed(11);
        let mut ids = RequestIds::new(RandomState::new());
        let mut kept: Vec<(String, RequestId)> = Vec::new();
        for step in 0..50_000 {
            // It grows, then shrinks to little, again and again.
            if rng.usize(..10_000) < step % 10_000 && !kept.is_empty() {
                let (expected, id) = kept.swap_remove(rng.usize(..kept.len()));
                assert_eq!(text(&ids, id), expected);
                ids.release(id);
            } else {
                let new = format!("{:0width$}", rng.u32(..5_000), width = rng.usize(1..130));
                let id = ids.intern(Some(&new));
                kept.push((new, id));
            }
            let by_name = |list: &Vec<(String, RequestId)>| {
                list.iter()
                    .all(|(expected, id)| text(&ids, *id) == *expected)
            };
            assert!(step % 1_000 != 0 || by_name(&kept), "step {step}");
        }
        let distinct: std::collections::HashSet<&str> =
            kept.iter().map(|(text, _)| text.as_str()).collect();
        assert!((distinct.len()..=kept.len()).contains(&ids.len()));
        for (_, id) in kept {
            ids.release(id);
        }
        assert_eq!((ids.len(), ids.heap_bytes()), (0, 0));
    }

    #[test]
    fn a_guid_each_costs_little_more_than_its_characters_and_a_storm_leaves_nothing_behind() {
        let mut ids = RequestIds::new(RandomState::new());
        let names: Vec<RequestId> = (0..19_000)
            .map(|n| ids.intern(Some(&format!("{n:08x}-0000-4000-8000-000000000000"))))
            .collect();
        let each = ids.heap_bytes() / names.len();
        assert!(each <= 36 + 4 + 1, "{each} bytes each");
        for id in &names[10..] {
            ids.release(*id);
        }
        assert!(ids.heap_bytes() < 100_000, "{}", ids.heap_bytes());
        assert_eq!(text(&ids, names[9]), "00000009-0000-4000-8000-000000000000");
    }

    #[test]
    fn an_id_that_many_have_is_shared_though_others_come_between() {
        let mut ids = RequestIds::new(RandomState::new());
        let mut names = Vec::new();
        for n in 0..20_000 {
            names.push(ids.intern(Some("the same for all")));
            names.push(ids.intern(Some(&format!("{n}"))));
        }
        assert!((20_001..20_200).contains(&ids.len()), "{}", ids.len());
        for id in names {
            ids.release(id);
        }
        assert_eq!((ids.len(), ids.heap_bytes()), (0, 0));
    }
}
