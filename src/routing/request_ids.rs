//! The request ids of subscriptions, kept as the text that a frame takes them in: JSON without its quotes.
//!
//! Real clients send a request id of their own with each subscribe, so the ids are packed: a *block* holds up to
//! [`BLOCK_PLACES`] ids of about one length, each in a place of that length and six bytes. Beside it an id costs a
//! 4-byte entry of a hash table, which lets equal ids share a place.
//!
//! Invariants: each id is kept once, with the number of its users, and is freed with the last of them. A block that
//! holds no id is freed. A block is in the list of its length if it has a vacant place, and in no list if it has none.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use hashbrown::HashTable;
use slab::Slab;

use super::table::shrink_table;
use crate::json::write_text;

/// Ids of one block: one bit of [`Block::used`] each.
const BLOCK_PLACES: usize = 64;

/// Places are as long as a multiple of this.
const STEP_BYTES: usize = 4;

/// Bytes of a place before the text: the number of users, and the length of the text.
const HEAD_BYTES: usize = 6;

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
    by_text: HashTable<u32>,
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

    /// The number of users, and the bytes behind it: the length of the text, and the text.
    fn place(&self, place: usize) -> Option<(&[u8; 4], &[u8])> {
        let bytes = self.place_bytes();
        self.places
            .get(place * bytes..(place + 1) * bytes)?
            .split_first_chunk()
    }

    fn users_mut(&mut self, place: usize) -> Option<&mut [u8; 4]> {
        let at = place * self.place_bytes();
        self.places.get_mut(at..)?.first_chunk_mut()
    }

    fn text(&self, place: usize) -> &[u8] {
        let text = || {
            let (_, rest) = self.place(place)?;
            let (length, rest) = rest.split_first_chunk()?;
            rest.get(..usize::from(u16::from_le_bytes(*length)))
        };
        text().unwrap_or_default()
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
        let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
        let head = [&1u32.to_le_bytes()[..], &length.to_le_bytes()[..]];
        let bytes = head.into_iter().chain([text]).flatten();
        for (to, from) in self.places.iter_mut().skip(at).zip(bytes) {
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
            by_text: HashTable::new(),
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
        let text = quoted.get(1..quoted.len() - 1).unwrap_or_default();
        let hash = self.seed.hash_one(text);
        let is_it = |id: &u32| text_in(&self.blocks, *id) == text;
        let id = match self.by_text.find(hash, is_it) {
            Some(id) => {
                let id = RequestId(*id);
                self.share(id);
                id
            }
            None => {
                let id = self.put(text);
                let (blocks, seed) = (&self.blocks, &self.seed);
                self.by_text
                    .insert_unique(hash, id.0, |id| seed.hash_one(text_in(blocks, *id)));
                id
            }
        };
        self.text = quoted;
        id
    }

    /// Adds one user.
    pub(super) fn share(&mut self, id: RequestId) {
        if let Some(users) = self.users_mut(id) {
            *users = (u32::from_le_bytes(*users) + 1).to_le_bytes();
        }
    }

    /// Takes one user back. The id is freed with the last.
    pub(super) fn release(&mut self, id: RequestId) {
        let Some(users) = self.users_mut(id) else {
            return;
        };
        let left = u32::from_le_bytes(*users) - 1;
        *users = left.to_le_bytes();
        if left > 0 {
            return;
        }
        let hash = self.seed.hash_one(text_in(&self.blocks, id.0));
        let entry = self.by_text.find_entry(hash, |other| *other == id.0);
        entry.expect("every id is in the table").remove();
        let (blocks, seed) = (&self.blocks, &self.seed);
        shrink_table(&mut self.by_text, |id| seed.hash_one(text_in(blocks, *id)));
        self.vacate(id);
    }

    /// The text of an id, as it stands between the quotes of a JSON string; `None` for [`RequestId::NONE`].
    #[inline]
    pub(super) fn text(&self, id: RequestId) -> Option<&str> {
        if id == RequestId::NONE {
            return None;
        }
        std::str::from_utf8(text_in(&self.blocks, id.0)).ok()
    }

    pub(super) fn len(&self) -> usize {
        self.by_text.len()
    }

    /// Bytes allocated. Linear in the blocks.
    pub(super) fn heap_bytes(&self) -> usize {
        let places = self.blocks.iter().map(|(_, block)| block.places.capacity());
        let lists = self.vacant.iter().map(|list| list.capacity() * 4 + 24);
        self.blocks.capacity() * (size_of::<Block>() + 8)
            + places.sum::<usize>()
            + lists.sum::<usize>()
            + self.by_text.allocation_size()
    }

    fn users_mut(&mut self, id: RequestId) -> Option<&mut [u8; 4]> {
        self.blocks.get_mut(id.block())?.users_mut(id.place())
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
            }
        }
    }
}

fn text_in(blocks: &Slab<Block>, id: u32) -> &[u8] {
    let id = RequestId(id);
    let block = blocks.get(id.block());
    block.map_or(&[], |block| block.text(id.place()))
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
        ids.share(id);
        assert_eq!(ids.len(), 2);
        for left in [2, 2, 1] {
            ids.release(id);
            assert_eq!(ids.len(), left);
        }
        ids.release(RequestId::NONE);
        assert_eq!(text(&ids, other), "r1");
        ids.release(other);
        let left = ids.heap_bytes() - ids.by_text.allocation_size();
        assert_eq!((ids.len(), left), (0, 0));
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
        assert_eq!(ids.len(), distinct.len());
        for (_, id) in kept {
            ids.release(id);
        }
        assert_eq!(
            (ids.len(), ids.heap_bytes()),
            (0, ids.by_text.allocation_size())
        );
    }

    #[test]
    fn a_guid_each_costs_little_more_than_its_characters_and_a_storm_leaves_nothing_behind() {
        let mut ids = RequestIds::new(RandomState::new());
        let names: Vec<RequestId> = (0..19_000)
            .map(|n| ids.intern(Some(&format!("{n:08x}-0000-4000-8000-000000000000"))))
            .collect();
        let each = ids.heap_bytes() / names.len();
        assert!(each <= 36 + 6 + 2 + 9 + 1, "{each} bytes each");
        for id in &names[10..] {
            ids.release(*id);
        }
        assert!(ids.heap_bytes() < 100_000, "{}", ids.heap_bytes());
        assert_eq!(text(&ids, names[9]), "00000009-0000-4000-8000-000000000000");
    }
}
