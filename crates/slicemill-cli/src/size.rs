//! Sizes as people write them.

/// Bytes of `512M`, `2GiB`, `1000000`: powers of 1,024.
///
/// # Errors
/// What to write instead.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || "give a number of bytes with K, M or G, as 512M".to_owned();
    let (digits, unit) = match text.char_indices().find(|(_, c)| !c.is_ascii_digit()) {
        Some((at, _)) => text.split_at(at),
        None => (text, ""),
    };
    let shift = match unit.to_ascii_uppercase().trim_end_matches('B').trim_end_matches('I') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        let bytes = ["1", "3K", "512M", "2GiB", "2gb", "1T"].map(|text| parse(text).expect("a size"));
        assert_eq!(bytes, [1, 3 << 10, 512 << 20, 2 << 30, 2 << 30, 1 << 40]);
        for text in ["", "M", "0", "1.5G", "-1", "1X", "99999999999T"] {
            assert!(parse(text).expect_err("no size").contains("512M"), "{text}");
        }
    }
}
