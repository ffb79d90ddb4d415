//! Figures as people read them.

/// A count with separators: `1,234,567`.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in binary units: `1.5 MiB`.
pub(crate) fn bytes(value: u64) -> String {
    scaled(value as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

/// Operations in decimal units: `2.1 TFLOP`.
pub(crate) fn flops(value: u128) -> String {
    scaled(value as f64, 1000.0, &["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"])
}

fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let digits = if unit == 0 { 0 } else { 1 };
    format!("{value:.digits$} {}", units[unit])
}

/// A time: `0.42 s`, `3 m 20 s`, `5 h 7 m`, `12 d 3 h`.
pub(crate) fn seconds(value: f64) -> String {
    if value < 60.0 {
        return if value < 10.0 { format!("{value:.2} s") } else { format!("{value:.0} s") };
    }
    let whole = value.round() as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match (days, whole / 3600) {
        (0, 0) => format!("{minutes} m {} s", whole % 60),
        (0, hours) => format!("{hours} h {minutes} m"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0, 1023, 1024, 3 << 19].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 MiB"]);
        assert_eq!([999, 2_100_000_000_000].map(flops), ["999 FLOP", "2.1 TFLOP"]);
        assert_eq!(
            [0.421, 12.3, 200.0, 18_420.0, 1_047_600.0].map(seconds),
            ["0.42 s", "12 s", "3 m 20 s", "5 h 7 m", "12 d 3 h"]
        );
    }
}
