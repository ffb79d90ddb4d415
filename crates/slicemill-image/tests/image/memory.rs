//! An allocator that counts: what a decoder holds at once is part of what is tested.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread holds, from when the counting began.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    /// The most it held at once.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// What a closure gives, and the most bytes that it held at once. (Decoding does not leave its thread.)
pub fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    LIVE.set(0);
    PEAK.set(0);
    let made = work();
    (made, usize::try_from(PEAK.get()).unwrap())
}

struct Counting;

#[allow(unsafe_code, reason = "an allocator that counts bytes and otherwise passes everything on to the system's")]
// SAFETY: every call is passed on unchanged to `System`, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 0);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 0);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size, layout.size());
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note(0, layout.size());
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn note(more: usize, less: usize) {
    let _ = LIVE.try_with(|live| {
        let now = live.get() + more as isize - less as isize;
        live.set(now);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now)));
    });
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_allocator_counts_what_is_held_at_once() {
    let (_, one_after_the_other) = peak_of(|| [1, 2].map(|n| drop(std::hint::black_box(vec![n; 1 << 20]))));
    assert!((1 << 20..2 << 20).contains(&(one_after_the_other / size_of::<i32>())), "{one_after_the_other}");
    let (_, together) = peak_of(|| [1u8, 2].map(|n| std::hint::black_box(vec![n; 1 << 20])));
    assert!((2 << 20..3 << 20).contains(&together), "{together}");
}
