//! The program `slicemill`.

use std::process::ExitCode;

fn main() -> ExitCode {
    keep_memory_flat();
    slicemill_cli::run(std::env::args_os()).into()
}

/// Image buffers of every size come and go on many threads. By default the GNU C library keeps an arena per thread for
/// them and holds on to what they freed, so that memory grows with the length of a run; two arenas that give large
/// buffers back at once keep it flat.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_memory_flat() {
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 2), (libc::M_MMAP_THRESHOLD, 256 << 10), (libc::M_TRIM_THRESHOLD, 1 << 20)]
    {
        #[allow(unsafe_code, reason = "the C library's allocator has no other interface")]
        // SAFETY: `mallopt` takes two integers and is called before any other thread is started.
        unsafe {
            libc::mallopt(parameter, value);
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
const fn keep_memory_flat() {}
