//! Windows: the runs of rows that are read before their batches are planned.

use std::ops::Range;

/// Cuts rows with these listed sizes into maximal runs of at most `bytes_max` each, in order. A row that is larger
/// stands alone. A pure function of the sizes.
pub fn windows(sizes: impl IntoIterator<Item = u64>, bytes_max: u64) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut held: u64 = 0;
    for (index, bytes) in sizes.into_iter().enumerate() {
        let together = held.saturating_add(bytes);
        match runs.last_mut() {
            Some(run) if together <= bytes_max => {
                run.end = index + 1;
                held = together;
            }
            _ => {
                runs.push(index..index + 1);
                held = bytes;
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_are_maximal_and_large_rows_stand_alone() {
        let check = |sizes: &[u64], expected: &[Range<usize>]| assert_eq!(windows(sizes.iter().copied(), 10), expected);
        check(&[], &[]);
        check(&[5, 5, 5], &[0..2, 2..3]);
        check(&[11, 1, 11, 0, 10], &[0..1, 1..2, 2..3, 3..5]);
        assert_eq!(windows([0, 0, 10, 0].into_iter(), 10), std::slice::from_ref(&(0..4)));
        check(&[u64::MAX, u64::MAX, 3], &[0..1, 1..2, 2..3]);
    }

    proptest! {
        #[test]
        fn runs_cover_all_rows_once_and_fit(sizes in prop::collection::vec(0_u64..40, 0..60), max in 0_u64..60) {
            let runs = windows(sizes.iter().copied(), max);
            let covered: Vec<usize> = runs.iter().cloned().flatten().collect();
            prop_assert_eq!(covered, (0..sizes.len()).collect::<Vec<_>>());
            for (run, next) in runs.iter().zip(runs.iter().skip(1).map(Some).chain([None])) {
                let bytes: u64 = sizes[run.clone()].iter().sum();
                prop_assert!(run.len() == 1 || bytes <= max);
                prop_assert!(next.is_none_or(|next| bytes + sizes[next.start] > max), "not maximal");
            }
        }
    }
}
