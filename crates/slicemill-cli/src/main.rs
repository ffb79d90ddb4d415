//! The program `slicemill`.

use std::process::ExitCode;

fn main() -> ExitCode {
    keep_memory_flat();
    slicemill_cli::run(std::env::args_os()).into()
}

/// Image buffers of every size come and go on many threads. By default the GNU C library keeps arenas per thread for
/// them, each of which holds on to what it freed, so that memory grows with the length of a run. One arena grows
/// far less at the same speed: buffers are few and large, and small values are cached per thread.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_memory_flat() {
    #[allow(unsafe_code, reason = "the C library's allocator has no other interface")]
    // SAFETY: `mallopt` takes two integers and is called before any other thread is started.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
const fn keep_memory_flat() {}
