//! What the system says about the memory of this process.

/// Resident memory now, bytes; nothing where the system does not say it.
pub fn resident_bytes() -> Option<u64> {
    status("VmRSS:")
}

/// The most resident memory so far, bytes; nothing where the system does not say it.
pub fn resident_bytes_peak() -> Option<u64> {
    status("VmHWM:")
}

fn status(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_has_memory() {
        let (now, peak) = (resident_bytes().unwrap(), resident_bytes_peak().unwrap());
        assert!(now > 1 << 20 && peak >= now / 2, "{now} {peak}");
    }
}
