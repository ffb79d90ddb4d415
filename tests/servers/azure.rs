//! Requests to an emulator of Azure's blobs, signed with the account and the key that all emulators have.

use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::client::{Answer, send};

/// The account of emulators.
pub const ACCOUNT: &str = "devstoreaccount1";
/// Its key, which is no secret: it is in the documentation.
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
const VERSION: &str = "2021-08-06";

/// Sends one request with a signature ("Shared Key"). `target` is the path, percent-encoded, with at most one parameter.
pub fn signed(endpoint: &str, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let date = http_date();
    let mut all: Vec<(&str, &str)> = headers.to_vec();
    all.extend([("x-ms-date", date.as_str()), ("x-ms-version", VERSION)]);
    all.sort_unstable();
    let (path, parameters) = target.split_once('?').unwrap_or((target, ""));
    let length = if body.is_empty() { String::new() } else { body.len().to_string() };
    // The method, eleven headers of which only the length is ever given, those of the service, and the resource.
    let mut text = format!("{method}\n\n\n{length}\n\n\n\n\n\n\n\n\n");
    for (name, value) in &all {
        text.push_str(&format!("{name}:{value}\n"));
    }
    text.push_str(&format!("/{ACCOUNT}{path}"));
    if let Some((name, value)) = parameters.split_once('=') {
        text.push_str(&format!("\n{name}:{value}"));
    }
    let signature = encode(&hmac(&decode(KEY), text.as_bytes()));
    let authorization = format!("SharedKey {ACCOUNT}:{signature}");
    all.push(("authorization", &authorization));
    send(endpoint, method, target, &all, body)
}

/// HMAC with SHA-256 and a key of at most 64 bytes.
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let padded = |with: u8| -> Vec<u8> { (0..64).map(|index| key.get(index).copied().unwrap_or(0) ^ with).collect() };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().to_vec()
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64.
fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, index| bits << 8 | u32::from(group.get(index).copied().unwrap_or(0)));
        for index in 0..4 {
            let letter = ALPHABET[(bits >> (18 - 6 * index)) as usize & 63];
            text.push(if index <= group.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

/// Bytes of Base64.
fn decode(text: &str) -> Vec<u8> {
    let digits = text.bytes().filter_map(|letter| ALPHABET.iter().position(|known| *known == letter));
    let digits: Vec<u32> = digits.map(|digit| digit as u32).collect();
    let mut bytes = Vec::new();
    for group in digits.chunks(4) {
        let bits = (0..4).fold(0, |bits, index| bits << 6 | group.get(index).copied().unwrap_or(0));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    bytes
}

#[allow(clippy::disallowed_methods, reason = "signatures say when they were made")]
fn http_date() -> String {
    date_of(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` for seconds since 1970.
fn date_of(seconds: u64) -> String {
    let (mut days, time) = (seconds / 86_400, seconds % 86_400);
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][(days % 7) as usize];
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let month = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"][month];
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{weekday}, {:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT", days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_examples() {
        for (seconds, date) in [
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
        ] {
            assert_eq!(date_of(seconds), date);
        }
        let hex: String = hmac(b"Jefe", b"what do ya want for nothing?").iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!((encode(bytes.as_bytes()).as_str(), decode(text).as_slice()), (text, bytes.as_bytes()));
        }
        assert_eq!(decode(KEY).len(), 64);
    }
}
