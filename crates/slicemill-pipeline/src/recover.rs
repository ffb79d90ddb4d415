//! Which rows of a chunk run together, and again, when their device's worker was lost.
//!
//! All rows of a chunk are one group at first. When the worker of a group is lost, its rows that have no outcome yet
//! are put into smaller groups: those of the call that was in progress are suspects and are halved, the others run
//! without them. So a row that kills its worker is soon alone, and when it has been alone and killed its worker again,
//! it fails. Rows that only kill together, or killed once, are done in smaller company.
//!
//! Every loss makes groups smaller, gives a row a second try alone, or ends in a failed row; so this ends.

use std::collections::BTreeMap;

use slicemill_core::{ErrorClass, RowError, Stage};

use crate::{DeviceCall, LostHow, WorkerLost};

/// Longest panic text in the message of a row, in characters.
const PANIC_CHARS_MAX: usize = 400;

/// The groups of a chunk that are still to run.
#[derive(Debug)]
pub(crate) struct Groups {
    /// The last one is the next.
    todo: Vec<Vec<usize>>,
    /// How often a worker was lost over this row.
    losses: BTreeMap<usize, u32>,
}

/// A row that fails because it loses every worker.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Culprit {
    pub(crate) row: usize,
    /// Workers lost over it.
    pub(crate) losses: u32,
}

impl Groups {
    /// All rows of a chunk together.
    pub(crate) fn all(rows: usize) -> Self {
        Self { todo: vec![(0..rows).collect()], losses: BTreeMap::new() }
    }

    pub(crate) fn next(&mut self) -> Option<Vec<usize>> {
        self.todo.pop()
    }

    /// Rows that did not fit on a device beside others: each has one to itself, after all others.
    pub(crate) fn alone(&mut self, rows: &[usize]) {
        self.todo.splice(0..0, rows.iter().rev().map(|&row| vec![row]));
    }

    /// The worker of `group` was lost while `pending` of its rows had no outcome. The row that has to fail, if it has
    /// come to that.
    pub(crate) fn lost(&mut self, group: &[usize], pending: Vec<usize>, lost: &WorkerLost) -> Option<Culprit> {
        let (mut suspects, mut others): (Vec<_>, Vec<_>) = pending.into_iter().partition(|row| lost.rows.contains(row));
        if suspects.is_empty() && others.len() == group.len() {
            std::mem::swap(&mut suspects, &mut others);
        }
        for &row in &suspects {
            *self.losses.entry(row).or_default() += 1;
        }
        if let ([row], [_]) = (&*suspects, group) {
            let losses = self.losses.get(row).copied().unwrap_or_default();
            if losses > 1 {
                return Some(Culprit { row: *row, losses });
            }
        }
        let second = suspects.split_off(suspects.len().div_ceil(2));
        // The others run first: then it shows whether the device works without the suspects.
        self.todo.extend([second, suspects, others].into_iter().filter(|rows| !rows.is_empty()));
        None
    }
}

/// What is said of a row that lost its workers.
pub(crate) fn lost_error(lost: &WorkerLost, losses: u32) -> RowError {
    let WorkerLost { device, call, how, .. } = lost;
    let stage = call.map_or(Stage::Encode, DeviceCall::stage);
    let call = call.map_or("between calls".to_owned(), |call| format!("in {call}"));
    match how {
        LostHow::Died { panic } => {
            let panic: String = panic.chars().take(PANIC_CHARS_MAX).collect();
            let message = format!(
                "workers died {losses} times over this row, the last one, of device {device}, with nothing else on it, \
                 {call}: {panic}; look at this image, or try it on another device with `slicemill retry --class \
                 worker_died`"
            );
            RowError::new(ErrorClass::WorkerDied, stage, message)
        }
        LostHow::Hung { waited } => {
            let message = format!(
                "device {device} gave no sign for {:.1} seconds {call} with nothing but this row on it, and workers \
                 were lost {losses} times over it; if it is only slow, give a larger --device-timeout, else look at \
                 this image",
                waited.as_secs_f64()
            );
            RowError::new(ErrorClass::DeviceHung, stage, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::DeviceId;

    fn died(rows: &[usize]) -> WorkerLost {
        let how = LostHow::Died { panic: "no".into() };
        WorkerLost { device: DeviceId::Cpu(0), call: Some(DeviceCall::Encode), rows: rows.to_vec(), how }
    }

    #[test]
    fn a_row_alone_in_its_call_gets_a_second_try_alone() {
        let mut groups = Groups::all(4);
        let group = groups.next().unwrap();
        assert_eq!(groups.lost(&group, vec![1, 2, 3], &died(&[2])), None);
        assert_eq!(groups.next(), Some(vec![1, 3]));
        assert_eq!(groups.next(), Some(vec![2]));
        assert_eq!(groups.lost(&[2], vec![2], &died(&[2])), Some(Culprit { row: 2, losses: 2 }));
        assert_eq!(groups.next(), None);
    }

    #[test]
    fn a_chunk_of_one_row_gets_a_second_try_too() {
        let mut groups = Groups::all(1);
        let group = groups.next().unwrap();
        assert_eq!(groups.lost(&group, vec![0], &died(&[])), None);
        assert_eq!(groups.next(), Some(vec![0]));
        assert_eq!(groups.lost(&[0], vec![0], &died(&[])), Some(Culprit { row: 0, losses: 2 }));
    }

    #[test]
    fn rows_for_which_there_was_no_room_come_last_and_alone() {
        let mut groups = Groups::all(3);
        let group = groups.next().unwrap();
        groups.alone(&[0, 2]);
        assert_eq!(groups.lost(&group, vec![1], &died(&[0])), None);
        assert_eq!(
            [groups.next(), groups.next(), groups.next(), groups.next()],
            [Some(vec![1]), Some(vec![0]), Some(vec![2]), None]
        );
    }

    proptest! {
        /// Batches of any size with any poison rows in them: exactly those fail, and they are found by halving.
        #[test]
        fn exactly_the_poison_rows_fail(
            rows in 1_usize..60,
            batch in 1_usize..20,
            poison in prop::collection::btree_set(0_usize..60, 0..6),
        ) {
            let poison: BTreeSet<usize> = poison.into_iter().filter(|row| *row < rows).collect();
            let (mut groups, mut deaths) = (Groups::all(rows), 0);
            let (mut done, mut failed) = (BTreeSet::new(), BTreeSet::new());
            while let Some(group) = groups.next() {
                for batch in group.chunks(batch) {
                    if batch.iter().any(|row| poison.contains(row)) {
                        deaths += 1;
                        let pending = group.iter().copied().filter(|row| !done.contains(row)).collect();
                        failed.extend(groups.lost(&group, pending, &died(batch)).map(|culprit| culprit.row));
                        break;
                    }
                    for &row in batch {
                        prop_assert!(done.insert(row), "{row} was run after it was done");
                    }
                }
            }
            prop_assert_eq!(&failed, &poison);
            prop_assert_eq!(done.len() + failed.len(), rows);
            let halvings = batch.min(rows).next_power_of_two().ilog2() as usize;
            prop_assert!(deaths <= poison.len() * (halvings + 2), "{deaths} deaths of {}", poison.len());
        }
    }
}
