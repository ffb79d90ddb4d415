//! The allocator of the C library, set up for image buffers: of every size, up to tens of megabytes, coming and going on
//! many threads.
//!
//! By default the GNU C library keeps arenas per thread, each of which holds on to what it freed, and gives large
//! buffers pages of their own, which are faulted in anew every time. With one arena that is never trimmed, buffers are
//! used again and again: the run is as fast, and its memory does not grow with its length. What batches may hold is
//! taken from the system at the start ([`reserve`]), so that the peak is reached then and not by chance at some hour of
//! a long run.

/// Buffers up to this size come from the arena, which is the most that the C library allows.
const ARENA_BUFFER_MAX: i32 = 32 << 20;

/// Bytes of one buffer of the reserve, well below [`ARENA_BUFFER_MAX`].
const BLOCK: usize = 8 << 20;

/// Sets the allocator up. Must be called before any other thread is started.
pub fn configure() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (option, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, ARENA_BUFFER_MAX), (libc::M_TRIM_THRESHOLD, i32::MAX)]
    {
        #[allow(unsafe_code, reason = "the C library's allocator has no other interface")]
        // SAFETY: `mallopt` takes two integers and is called before any other thread is started.
        unsafe {
            libc::mallopt(option, value);
        }
    }
}

/// Takes `bytes` from the system and gives them back to the allocator, where image buffers find them.
pub fn reserve(bytes: u64) {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        return;
    }
    let blocks = usize::try_from(bytes).unwrap_or(0) / BLOCK;
    let mut held: Vec<Vec<u8>> = Vec::new();
    for _ in 0..blocks {
        let mut block = Vec::new();
        if block.try_reserve_exact(BLOCK).is_err() {
            // Less will do: the reserve is not needed for a run to be right.
            break;
        }
        // Written, because the system provides a page when it is first written.
        block.resize(BLOCK, 1_u8);
        held.push(block);
    }
    std::hint::black_box(&held);
}
