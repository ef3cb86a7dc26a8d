//! Texts that many groups share: client bindings and realms.
//!
//! Invariant: each text is kept once, with the number of its users, and is freed with the last of them.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use arcstr::ArcStr;
use hashbrown::HashTable;

use super::arena::{Arena, Place};
use super::table::{low_half, shrink_table, spread};

/// The texts.
#[derive(Debug)]
pub(super) struct Interner {
    texts: Arena<Interned>,
    by_text: HashTable<u32>,
    seed: RandomState,
    /// Sum of the texts' lengths.
    text_bytes: usize,
}

#[derive(Debug)]
struct Interned {
    text: ArcStr,
    /// 0: the place is vacant, and `hash` is the next vacant one.
    users: u32,
    hash: u32,
}

impl Place for Interned {
    fn vacant(next: u32) -> Self {
        Self {
            text: ArcStr::new(),
            users: 0,
            hash: next,
        }
    }

    fn next_vacant(&self) -> Option<u32> {
        (self.users == 0).then_some(self.hash)
    }
}

impl Interner {
    pub(super) fn new(seed: RandomState) -> Self {
        Self {
            texts: Arena::new(),
            by_text: HashTable::new(),
            seed,
            text_bytes: 0,
        }
    }

    pub(super) fn find(&self, text: &str) -> Option<u32> {
        let hash = self.hash(text);
        let is_it = |id: &u32| self.texts[*id].hash == hash && *self.texts[*id].text == *text;
        self.by_text.find(spread(hash), is_it).copied()
    }

    /// The id of `text`, which has one more user now. `shared` is the same text where it is kept already.
    pub(super) fn intern(&mut self, text: &str, shared: Option<&ArcStr>) -> u32 {
        if let Some(id) = self.find(text) {
            self.texts[id].users += 1;
            return id;
        }
        let hash = self.hash(text);
        let id = self.texts.insert(Interned {
            text: shared.map_or_else(|| text.into(), ArcStr::clone),
            users: 1,
            hash,
        });
        self.text_bytes += text.len();
        let texts = &self.texts;
        self.by_text
            .insert_unique(spread(hash), id, |id| spread(texts[*id].hash));
        id
    }

    /// Takes one user back. The text is freed with the last.
    pub(super) fn release(&mut self, id: u32) {
        let interned = &mut self.texts[id];
        if interned.users > 1 {
            interned.users -= 1;
            return;
        }
        let entry = self
            .by_text
            .find_entry(spread(interned.hash), |other| *other == id);
        entry.expect("every text is in the table").remove();
        let interned = self.texts.remove(id);
        self.text_bytes -= interned.text.len();
        let texts = &self.texts;
        shrink_table(&mut self.by_text, |id| spread(texts[*id].hash));
    }

    pub(super) fn text(&self, id: u32) -> &str {
        &self.texts[id].text
    }

    /// A text that outlives its last user here.
    pub(super) fn share(&self, id: u32) -> ArcStr {
        self.texts[id].text.clone()
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// Bytes allocated; each text counts as the allocator's smallest piece that holds it.
    pub(super) fn heap_bytes(&self) -> usize {
        self.texts.heap_bytes()
            + self.by_text.allocation_size()
            + self.text_bytes
            + 16 * self.texts.len()
    }

    fn hash(&self, text: &str) -> u32 {
        low_half(self.seed.hash_one(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_once_and_freed_with_its_last_user() {
        let mut interner = Interner::new(RandomState::new());
        let id = interner.intern("call.CHANNEL_CREATE.*", None);
        assert_eq!(interner.intern("call.CHANNEL_CREATE.*", None), id);
        assert_ne!(interner.intern("call.CHANNEL_ANSWER.*", None), id);
        assert_eq!(
            (interner.len(), interner.text(id)),
            (2, "call.CHANNEL_CREATE.*")
        );
        interner.release(id);
        assert_eq!(interner.find("call.CHANNEL_CREATE.*"), Some(id));
        interner.release(id);
        assert_eq!(interner.find("call.CHANNEL_CREATE.*"), None);
        assert_eq!(interner.len(), 1);
    }

    #[test]
    fn a_storm_of_texts_leaves_no_memory_behind() {
        let mut interner = Interner::new(RandomState::new());
        let ids: Vec<u32> = (0..10_000)
            .map(|number| interner.intern(&format!("text {number}"), None))
            .collect();
        let full = interner.heap_bytes();
        for id in ids {
            interner.release(id);
        }
        assert!(
            interner.heap_bytes() < full / 20,
            "{} of {full}",
            interner.heap_bytes()
        );
    }
}
