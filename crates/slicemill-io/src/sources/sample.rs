//! A part of a source: some of it by chance, or the beginning.

use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use sha2::{Digest as _, Sha256};

use crate::{InputEntry, IoError, Source};

/// Those inputs of a source whose keys fall into a share of all. Which ones depends on the key alone: the sample stays
/// the same when inputs are added, and a smaller share is contained in every larger one.
#[derive(Debug, Clone)]
pub struct Sampled<Inner> {
    inner: Inner,
    share: f64,
}

impl<Inner> Sampled<Inner> {
    /// A share between 0 and 1; what is outside is taken to the nearer end.
    pub const fn new(inner: Inner, share: f64) -> Self {
        Self { inner, share: share.clamp(0.0, 1.0) }
    }
}

/// Whether the input with this key belongs to a sample of `share`.
pub fn in_sample(key: &str, share: f64) -> bool {
    /// Set apart from other hashes of keys.
    const SEED: &[u8] = b"slicemill sample 1\0";
    let digest = Sha256::new().chain_update(SEED).chain_update(key).finalize();
    let number = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    // 53 bits, which a float holds exactly; in 0..1, so that a share of 1 is everything.
    ((number >> 11) as f64) / ((1_u64 << 53) as f64) < share
}

impl<Inner: Source> Source for Sampled<Inner> {
    fn list(&self) -> BoxStream<'static, Result<InputEntry, IoError>> {
        let share = self.share;
        let chosen = move |entry: &InputEntry| std::future::ready(in_sample(&entry.key, share));
        self.inner.list().try_filter(chosen).boxed()
    }

    fn describe(&self) -> String {
        format!("{} % of {}", self.share * 100.0, self.inner.describe())
    }
}

/// The first inputs of a source.
#[derive(Debug, Clone)]
pub struct Limited<Inner> {
    inner: Inner,
    rows: u64,
}

impl<Inner> Limited<Inner> {
    /// At most `rows` inputs. What follows is not listed, so counts of the source stay unknown.
    pub const fn new(inner: Inner, rows: u64) -> Self {
        Self { inner, rows }
    }
}

impl<Inner: Source> Source for Limited<Inner> {
    fn list(&self) -> BoxStream<'static, Result<InputEntry, IoError>> {
        self.inner.list().take(usize::try_from(self.rows).unwrap_or(usize::MAX)).boxed()
    }

    fn describe(&self) -> String {
        format!("the first {} of {}", self.rows, self.inner.describe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Numbers(u32);

    impl Source for Numbers {
        fn list(&self) -> BoxStream<'static, Result<InputEntry, IoError>> {
            let entry = |number| Ok(InputEntry::object(format!("{number:06}.jpg"), "", 0, ""));
            futures::stream::iter((0..self.0).map(entry).collect::<Vec<_>>()).boxed()
        }

        fn describe(&self) -> String {
            "numbers".to_owned()
        }
    }

    async fn keys(source: &dyn Source) -> Vec<String> {
        source.list().map_ok(|entry| entry.key).try_collect().await.unwrap()
    }

    #[tokio::test]
    async fn smaller_samples_are_parts_of_larger_ones() {
        let all = keys(&Numbers(10_000)).await;
        let mut last = Vec::new();
        for (share, least, most) in
            [(0.0, 0, 0), (0.01, 70, 130), (0.1, 900, 1100), (0.5, 4800, 5200), (1.0, 10_000, 10_000)]
        {
            let sample = keys(&Sampled::new(Numbers(10_000), share)).await;
            assert!((least..=most).contains(&sample.len()), "{share}: {}", sample.len());
            assert!(last.iter().all(|key| sample.contains(key)) && sample.is_sorted());
            last = sample;
        }
        assert_eq!(last, all);
        let fewer = keys(&Sampled::new(Numbers(5_000), 0.1)).await;
        let more = keys(&Sampled::new(Numbers(10_000), 0.1)).await;
        assert_eq!(fewer, more[..fewer.len()]);
    }

    #[tokio::test]
    async fn a_limit_takes_the_beginning() {
        let limited = Limited::new(Numbers(10), 3);
        assert_eq!(keys(&limited).await, ["000000.jpg", "000001.jpg", "000002.jpg"]);
        assert_eq!(keys(&Limited::new(Numbers(2), 3)).await.len(), 2);
        assert_eq!(limited.describe(), "the first 3 of numbers");
        assert_eq!(Sampled::new(Numbers(1), 0.01).describe(), "1 % of numbers");
    }
}
