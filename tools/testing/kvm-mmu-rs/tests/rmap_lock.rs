// SPDX-License-Identifier: GPL-2.0

//! The lock bit of a reverse-map list, in every interleaving of a few threads (loom).
//!
//! What the lock has to give: a reader without `mmu_lock` sees a chain that does not change, and
//! whose contents were written before it was published; and a writer frees a descriptor only when
//! no reader can be in it. The chain is one loom cell, which reports any unordered access.

use kvm_mmu_rs::encoding::{
    lock,
    unlock,
    Cell,
    Word, //
};
use loom::{
    cell::UnsafeCell,
    sync::{
        atomic::{
            AtomicU64,
            Ordering, //
        },
        Arc, //
    },
    thread, //
};

struct List {
    word: AtomicU64,
    /// The chain's contents: a number of which all words of the test are a function.
    chain: UnsafeCell<u64>,
}

impl Cell for List {
    fn load(&self) -> Word {
        Word(self.word.load(Ordering::Relaxed))
    }

    fn try_acquire(&self, old: Word, new: Word) -> Result<(), Word> {
        self.word
            .compare_exchange(old.0, new.0, Ordering::Acquire, Ordering::Relaxed)
            .map(drop)
            .map_err(Word)
    }

    fn release(&self, new: Word) {
        self.word.store(new.0, Ordering::Release);
    }

    fn relax(&self) {
        thread::yield_now();
    }
}

impl List {
    fn new(word: Word, chain: u64) -> Arc<Self> {
        Arc::new(List {
            word: AtomicU64::new(word.0),
            chain: UnsafeCell::new(chain),
        })
    }

    /// A reader without `mmu_lock`: looks at the chain, and gives back the word that it found.
    fn read(&self) -> Option<u64> {
        let word = lock(self);

        if word.is_empty() {
            return None;
        }
        // SAFETY: None is needed: loom panics if the access races.
        let seen = self.chain.with(|chain| unsafe { *chain });
        assert_eq!(Word::many(seen), word, "the chain is that of the word");
        unlock(self, word);
        Some(seen)
    }

    /// The holder of `mmu_lock`: replaces the chain; 0 empties the list.
    fn write(&self, new: u64) {
        let word = lock(self);

        assert!(!word.is_locked());
        // SAFETY: As above.
        self.chain.with_mut(|chain| unsafe { *chain = new });
        unlock(
            self,
            if new == 0 {
                Word::EMPTY
            } else {
                Word::many(new)
            },
        );
    }
}

#[test]
fn readers_and_a_writer() {
    loom::model(|| {
        let list = List::new(Word::many(0x40), 0x40);
        let other = list.clone();
        let reader = thread::spawn(move || {
            let seen = other.read();
            assert!(matches!(seen, Some(0x40 | 0x80)));
        });

        list.write(0x80);
        reader.join().unwrap();
        assert_eq!(list.read(), Some(0x80));
    });
}

#[test]
fn two_readers_do_not_lose_the_word() {
    loom::model(|| {
        let list = List::new(Word::many(0x40), 0x40);
        let other = list.clone();
        let reader = thread::spawn(move || assert_eq!(other.read(), Some(0x40)));

        assert_eq!(list.read(), Some(0x40));
        reader.join().unwrap();
        assert_eq!(Word(list.word.load(Ordering::Relaxed)), Word::many(0x40));
    });
}

#[test]
fn a_list_that_is_emptied_is_not_read_any_more() {
    loom::model(|| {
        let list = List::new(Word::many(0x40), 0x40);
        let other = list.clone();
        let reader = thread::spawn(move || {
            let seen = other.read();
            assert!(matches!(seen, None | Some(0x40)));
        });

        list.write(0);
        // The descriptor is free; it may become anything.
        // SAFETY: As above.
        list.chain.with_mut(|chain| unsafe { *chain = 7 });
        reader.join().unwrap();
        assert_eq!(list.read(), None);
    });
}

/// The writer adds to an empty list without taking the lock.
#[test]
fn the_first_entry_is_seen_whole_or_not() {
    loom::model(|| {
        let list = List::new(Word::EMPTY, 0);
        let other = list.clone();
        let reader = thread::spawn(move || {
            let seen = other.read();
            assert!(matches!(seen, None | Some(0x40)));
        });

        list.write(0x40);
        reader.join().unwrap();
        assert_eq!(list.read(), Some(0x40));
    });
}
