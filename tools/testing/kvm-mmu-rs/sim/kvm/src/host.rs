// SPDX-License-Identifier: GPL-2.0

//! The host's memory, as its own page tables map it: which frame a guest frame lies in, and whose a
//! frame is. A frame that was given away is somebody else's: whoever reads or writes it through a
//! page table of the guest has found a bug.

use machine::fail;

use crate::model::{
    pages,
    HUGE_PAGES, //
};

/// The first frame.
const FIRST_PFN: u64 = 1 << 20;

struct Frame {
    /// Whose page it holds; `None`: somebody else's.
    gfn: Option<u64>,
    /// The number of the write that its contents are of.
    version: u64,
}

/// The memory behind one memslot.
#[derive(Default)]
pub struct Host {
    base_gfn: u64,
    frames: Vec<Frame>,
    /// The frame of each page of the slot, and whether the host maps it writable.
    pages: Vec<(u64, bool)>,
    /// By what the host maps each 2 MiB: level 1 or 2, or 3 for all of a 1 GiB.
    levels: Vec<u8>,
    /// Whether the attributes of each page differ from those of most, as far as memslots know it.
    differ: Vec<bool>,
    /// Whether each page is private.
    private: Vec<bool>,
    /// The frame that guest_memfd has for each page, or 0.
    gmem: Vec<u64>,
    writes: u64,
    /// References to pages that were looked up together.
    references: u64,
}

impl Host {
    /// Memory for `npages` pages from `base_gfn` on; huge pages where `huge` and `giant` say so.
    pub fn new(
        base_gfn: u64,
        npages: u64,
        huge: impl Fn(u64) -> bool,
        giant: impl Fn(u64) -> bool,
    ) -> Self {
        let mut host = Host {
            base_gfn,
            differ: vec![false; npages as usize],
            private: vec![false; npages as usize],
            gmem: vec![0; npages as usize],
            ..Host::default()
        };
        let first = base_gfn / HUGE_PAGES;
        let last = (base_gfn + npages - 1) / HUGE_PAGES;

        host.pages = vec![(0, true); npages as usize];
        host.levels = vec![1; (last - first + 1) as usize];
        for region in first..=last {
            host.replace_region(region * HUGE_PAGES, huge(region - first));
        }
        let first = base_gfn / pages(3);
        let last = (base_gfn + npages - 1) / pages(3);
        for n in (first..=last).filter(|n| giant(n - first)) {
            host.replace_giant(n * pages(3));
        }
        host
    }

    fn page(&mut self, gfn: u64) -> Option<&mut (u64, bool)> {
        let n = gfn.checked_sub(self.base_gfn)?;

        self.pages.get_mut(n as usize)
    }

    fn level_of(&mut self, gfn: u64) -> Option<&mut u8> {
        let n = (gfn / HUGE_PAGES).checked_sub(self.base_gfn / HUGE_PAGES)?;

        self.levels.get_mut(n as usize)
    }

    /// The number of a page.
    fn index(&self, gfn: u64) -> Option<usize> {
        let n = gfn.checked_sub(self.base_gfn)? as usize;

        (n < self.pages.len()).then_some(n)
    }

    /// Whether a page is private.
    pub fn is_private(&self, gfn: u64) -> bool {
        self.index(gfn).is_some_and(|n| self.private[n])
    }

    /// The frame of a page, and whether the guest may write it.
    pub fn lookup(&mut self, gfn: u64) -> (u64, bool) {
        if self.is_private(gfn) {
            return (self.gmem_pfn(gfn), true);
        }
        self.lookup_shared(gfn)
    }

    /// The frame that guest_memfd has for a page.
    pub fn gmem_pfn(&mut self, gfn: u64) -> u64 {
        let Some(n) = self.index(gfn) else {
            fail(format!("gfn {gfn:#x} is not in the slot"));
        };

        if self.gmem[n] == 0 {
            self.gmem[n] = FIRST_PFN + self.new_frame();
        }
        self.gmem[n]
    }

    /// Empties a page of guest_memfd. Its frame is somebody else's.
    pub fn punch_hole(&mut self, gfn: u64) {
        let Some(n) = self.index(gfn) else { return };
        let old = core::mem::take(&mut self.gmem[n]);

        if old != 0 {
            self.frames[(old - FIRST_PFN) as usize].gfn = None;
        }
        if self.is_private(gfn) {
            let new = self.gmem_pfn(gfn) - FIRST_PFN;
            self.frames[new as usize].gfn = Some(gfn);
        }
    }

    /// The frame that the host maps for a page, and whether it maps it writable.
    pub fn lookup_shared(&mut self, gfn: u64) -> (u64, bool) {
        match self.page(gfn) {
            Some(page) => *page,
            None => fail(format!("gfn {gfn:#x} is not in the slot")),
        }
    }

    /// Somebody gets a reference to a page.
    pub fn get_page(&mut self) {
        self.references += 1;
    }

    /// Somebody drops references to pages.
    pub fn put_pages(&mut self, n: u64) {
        match self.references.checked_sub(n) {
            Some(left) => self.references = left,
            None => fail("a reference to a page is dropped twice".into()),
        }
    }

    /// How many references to pages there are.
    pub fn references(&self) -> u64 {
        self.references
    }

    /// By which size the host maps a page: where no root reaches, by huge ones.
    pub fn level(&mut self, gfn: u64) -> u8 {
        self.level_of(gfn).map_or(2, |level| *level)
    }

    /// Whether the pages that an entry of `level` maps around a page have several attributes.
    pub fn is_mixed(&self, gfn: u64, level: u32) -> bool {
        let start = (gfn - gfn % pages(level)).max(self.base_gfn) - self.base_gfn;
        let end = (gfn - gfn % pages(level) + pages(level)).saturating_sub(self.base_gfn);
        let end = end.min(self.differ.len() as u64);
        let around = self.differ.get(start as usize..end as usize);
        let some = |around: &[bool]| around.iter().any(|differs| *differs != around[0]);

        around.is_some_and(some)
    }

    /// Has memslots know a page's attribute.
    pub fn set_mixed(&mut self, gfn: u64, differs: bool) {
        if let Some(n) = self.index(gfn) {
            self.differ[n] = differs;
        }
    }

    /// Makes a page private, or shared. Its contents move along, as if userspace had copied them.
    pub fn set_private(&mut self, gfn: u64, private: bool) {
        let Some(n) = self.index(gfn).filter(|n| self.private[*n] != private) else {
            return;
        };
        let (mut old, mut new) = (self.pages[n].0, self.gmem_pfn(gfn));

        if !private {
            (old, new) = (new, old);
        }
        let old = &mut self.frames[(old - FIRST_PFN) as usize];
        let version = old.version;
        old.gfn = None;
        let new = &mut self.frames[(new - FIRST_PFN) as usize];
        new.gfn = Some(gfn);
        new.version = version;
        self.private[n] = private;
    }

    /// The first page of the 2 MiB around a page.
    pub fn region(gfn: u64) -> u64 {
        gfn - gfn % HUGE_PAGES
    }

    /// The host maps the 1 GiB around a page by 2 MiB at most from now on.
    fn break_giant(&mut self, gfn: u64) {
        let start = gfn - gfn % pages(3);

        for region in (start..start + pages(3)).step_by(HUGE_PAGES as usize) {
            if let Some(level) = self.level_of(region) {
                *level = (*level).min(2);
            }
        }
    }

    /// Gives new frames to all pages of the 1 GiB at `start`: one page of that size. The old ones
    /// belong to somebody else.
    pub fn replace_giant(&mut self, start: u64) {
        // Aligned.
        while self.frames.len() as u64 % pages(3) != 0 {
            self.frames.push(Frame {
                gfn: None,
                version: 0,
            });
        }
        for region in (start..start + pages(3)).step_by(HUGE_PAGES as usize) {
            self.replace_region(region, true);
        }
        for region in (start..start + pages(3)).step_by(HUGE_PAGES as usize) {
            if let Some(level) = self.level_of(region) {
                *level = 3;
            }
        }
    }

    /// Gives new frames to all pages of the 2 MiB at `start`: one huge page, or scattered. The old
    /// ones belong to somebody else.
    pub fn replace_region(&mut self, start: u64, huge: bool) {
        let first = self.frames.len() as u64;

        self.break_giant(start);

        for gfn in start..start + HUGE_PAGES {
            self.frames.push(Frame {
                gfn: Some(gfn),
                version: 0,
            });
        }
        for n in 0..HUGE_PAGES {
            // Scattered: the other way round.
            let offset = if huge { n } else { HUGE_PAGES - 1 - n };
            self.place(start + n, first + offset);
        }
        if let Some(level) = self.level_of(start) {
            *level = if huge { 2 } else { 1 };
        }
    }

    /// A frame that is nobody's, and alone, so that the next block is aligned.
    fn new_frame(&mut self) -> u64 {
        let frame = self.frames.len() as u64;

        self.frames.extend((0..HUGE_PAGES).map(|_| Frame {
            gfn: None,
            version: 0,
        }));
        frame
    }

    /// Gives a new frame to one page; the host maps the 2 MiB around by small pages from then on.
    pub fn replace_page(&mut self, gfn: u64) {
        let frame = self.new_frame();

        self.break_giant(gfn);
        self.place(gfn, frame);
        if let Some(level) = self.level_of(gfn) {
            *level = 1;
        }
    }

    /// Says whether the host maps a page writable.
    pub fn set_writable(&mut self, gfn: u64, writable: bool) {
        if let Some(page) = self.page(gfn) {
            page.1 = writable;
        }
    }

    fn place(&mut self, gfn: u64, frame: u64) {
        let is_private = self.is_private(gfn);
        let Some(page) = self.page(gfn) else {
            self.frames[frame as usize].gfn = None;
            return;
        };
        let old = page.0;
        *page = (FIRST_PFN + frame, true);
        if is_private {
            // The guest's page is elsewhere.
            self.frames[frame as usize].gfn = None;
            return;
        }
        if old != 0 {
            let old = &mut self.frames[(old - FIRST_PFN) as usize];
            let version = old.version;
            old.gfn = None;
            self.frames[frame as usize].version = version;
        }
        self.frames[frame as usize].gfn = Some(gfn);
    }

    fn frame(&mut self, pfn: u64, gfn: u64, what: &str) -> &mut Frame {
        let index = pfn.wrapping_sub(FIRST_PFN) as usize;
        let Some(frame) = self.frames.get_mut(index) else {
            fail(format!(
                "{what} of gfn {gfn:#x} goes to {pfn:#x}, which is no frame"
            ));
        };

        if frame.gfn != Some(gfn) {
            let owner = frame
                .gfn
                .map_or("somebody else".into(), |gfn| format!("gfn {gfn:#x}"));
            fail(format!(
                "{what} of gfn {gfn:#x} goes to frame {pfn:#x}, which belongs to {owner}"
            ));
        }
        frame
    }

    /// The guest reads a frame that it takes for that of `gfn`.
    pub fn read(&mut self, pfn: u64, gfn: u64) -> u64 {
        self.frame(pfn, gfn, "a read").version
    }

    /// The guest writes a frame that it takes for that of `gfn`. Returns the number of the write.
    pub fn write(&mut self, pfn: u64, gfn: u64) -> u64 {
        self.writes += 1;
        let write = self.writes;
        self.frame(pfn, gfn, "a write").version = write;
        if !self.lookup(gfn).1 {
            fail(format!(
                "a write of gfn {gfn:#x}, which the host maps read-only"
            ));
        }
        write
    }

    /// What is in a page now.
    pub fn version(&mut self, gfn: u64) -> u64 {
        let (pfn, _) = self.lookup(gfn);

        self.frame(pfn, gfn, "a copy").version
    }
}
