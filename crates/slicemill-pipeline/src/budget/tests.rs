//! Tests of `budget`.

use futures::{FutureExt, future::BoxFuture};
use proptest::prelude::*;

use super::*;

const KIB: u64 = 1024;

#[test]
fn a_large_request_is_let_in_alone() {
    let budget = ByteBudget::new(10 * KIB);
    let small = budget.acquire(1).now_or_never().unwrap();
    let mut large = Box::pin(budget.acquire(1 << 40));
    assert!(large.as_mut().now_or_never().is_none(), "something else is held");
    assert!(budget.acquire(1).now_or_never().is_none(), "requests are served in order of arrival");
    drop(small);
    let large = large.now_or_never().unwrap();
    assert!(budget.acquire(1).now_or_never().is_none(), "the large request is alone");
    drop(large);
    assert!(budget.acquire(10 * KIB).now_or_never().is_some());
    assert_eq!((budget.gauge().held_bytes(), budget.gauge().peak_bytes()), (0, 1 << 40));
}

#[test]
fn an_abandoned_request_frees_its_place() {
    let budget = ByteBudget::new(2 * KIB);
    let held = budget.acquire(KIB).now_or_never().unwrap();
    let mut waiting = Box::pin(budget.acquire(2 * KIB));
    assert!(waiting.as_mut().now_or_never().is_none());
    drop(waiting);
    assert!(budget.acquire(KIB).now_or_never().is_some());
    drop(held);
}

#[test]
fn growing_never_waits_and_is_paid_for_by_those_who_come_later() {
    let budget = ByteBudget::new(10 * KIB);
    let mut first = budget.acquire(KIB).now_or_never().unwrap();
    let second = budget.acquire(8 * KIB).now_or_never().unwrap();
    first.resize(6 * KIB);
    assert_eq!(budget.gauge().held_bytes(), 14 * KIB, "what is held is counted, though it is too much");
    // 4 too many are held. When 8 come back, 4 pay for it.
    assert!(budget.acquire(1).now_or_never().is_none());
    drop(second);
    assert!(budget.acquire(4 * KIB + 1).now_or_never().is_none());
    let rest = budget.acquire(4 * KIB).now_or_never().unwrap();
    assert!(budget.acquire(1).now_or_never().is_none());
    drop((first, rest));
    assert!(budget.acquire(10 * KIB).now_or_never().is_some());
    assert_eq!(budget.gauge().held_bytes(), 0);
}

#[test]
fn what_a_grant_has_too_many_of_goes_back() {
    let budget = ByteBudget::new(10 * KIB);
    let mut grant = budget.acquire(10 * KIB).now_or_never().unwrap();
    grant.resize(3 * KIB);
    assert_eq!(budget.gauge().held_bytes(), 3 * KIB);
    let other = budget.acquire(7 * KIB).now_or_never().unwrap();
    // One that is larger than the budget holds all of it, not more.
    grant.resize(u64::MAX >> 20);
    drop(other);
    assert!(budget.acquire(1).now_or_never().is_none());
    drop(grant);
    assert!(budget.acquire(10 * KIB).now_or_never().is_some());
}

#[test]
fn nothing_and_parts_of_a_unit_are_counted_as_units() {
    assert_eq!([0, 1, 1024, 1025].map(ByteBudget::counted), [1024, 1024, 1024, 2048]);
}

#[derive(Debug, Clone)]
enum Action {
    Acquire(u64),
    Resize(usize, u64),
    Drop(usize),
    /// A request that waits goes away.
    Cancel(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let bytes = prop_oneof![4 => 0_u64..6_000, 1 => 0_u64..40_000];
    prop_oneof![
        4 => bytes.clone().prop_map(Action::Acquire),
        3 => (0_usize..8, bytes).prop_map(|(at, bytes)| Action::Resize(at, bytes)),
        4 => (0_usize..8).prop_map(Action::Drop),
        1 => (0_usize..4).prop_map(Action::Cancel),
    ]
}

proptest! {
    /// Any order of asking, growing, shrinking, giving back and going away: nobody is let in beside too much, and in
    /// the end everything is free again and nobody waits.
    #[test]
    fn nobody_is_let_in_beside_a_debt(actions in prop::collection::vec(action(), 0..60)) {
        const MAX: u64 = 10 * KIB;
        let counted = |bytes: u64| ByteBudget::counted(bytes).min(MAX);
        let budget = ByteBudget::new(MAX);
        let mut held: Vec<ByteGrant> = Vec::new();
        let mut waiting: Vec<(u64, BoxFuture<'_, ByteGrant>)> = Vec::new();
        for action in actions {
            match action {
                Action::Acquire(bytes) => waiting.push((bytes, Box::pin(budget.acquire(bytes)))),
                Action::Resize(at, bytes) => if let Some(grant) = held.get_mut(at) { grant.resize(bytes) },
                Action::Drop(at) => if at < held.len() { drop(held.remove(at)) },
                Action::Cancel(at) => if at < waiting.len() { drop(waiting.remove(at)) },
            }
            let mut still = Vec::new();
            for (bytes, mut request) in std::mem::take(&mut waiting) {
                match request.as_mut().now_or_never() {
                    Some(grant) => {
                        let beside: u64 = held.iter().map(|grant| counted(grant.bytes)).sum();
                        prop_assert!(beside + counted(bytes) <= MAX, "{bytes} let in beside {beside}");
                        prop_assert!(still.is_empty(), "out of turn");
                        held.push(grant);
                    }
                    None => still.push((bytes, request)),
                }
            }
            waiting = still;
            if let Some((bytes, _)) = waiting.first() {
                let beside: u64 = held.iter().map(|grant| counted(grant.bytes)).sum();
                prop_assert!(beside + counted(*bytes) > MAX, "{bytes} wait beside {beside}");
            }
            prop_assert_eq!(budget.gauge().held_bytes(), held.iter().map(|grant| grant.bytes).sum::<u64>());
        }
        held.clear();
        for (_, mut request) in waiting {
            prop_assert!(request.as_mut().now_or_never().is_some(), "it waits for nothing");
        }
        prop_assert!(budget.acquire(MAX).now_or_never().is_some());
        prop_assert_eq!(budget.gauge().held_bytes(), 0);
    }
}
