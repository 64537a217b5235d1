//! Runs a target and counts the memory it takes: whoever is given a few bytes must not ask for many.
//!
//! Part of each fuzz target and, by `#[path]`, of crates/model-cache-cli/tests/hostile_input.rs.

use model_cache_cli::fuzz::{TARGETS, Target};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

thread_local! {
    /// Bytes this thread has taken and not given back, and the most there were of them since the last [`run`] began.
    static TAKEN: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

struct Counting;

fn count(bytes: isize) {
    // A thread that ends has no counters any more, and runs no target either.
    let _ = TAKEN.try_with(|taken| {
        let (now, most) = taken.get();
        taken.set((now + bytes, most.max(now + bytes)));
    });
}

// SAFETY: every call goes to the system's allocator as it came; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // Both are there for a moment, unless it grows in place.
        count(bytes as isize);
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs the target `name` on `input`.
///
/// # Panics
/// Where something does not hold of the input, or the target took more memory than one of so many bytes may.
pub(crate) fn run(name: &str, input: &[u8]) {
    let Target { body, peak_bytes, .. } = TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
    TAKEN.with(|taken| taken.set((0, 0)));
    body(input);
    let (_, most) = TAKEN.with(Cell::get);
    let allowed = peak_bytes(input.len());
    assert!(most <= allowed as isize, "{name}: {most} bytes of memory for an input of {}; {allowed} are allowed", input.len());
}
