//! Trying store operations again, with jittered pauses and a budget.

use std::future::Future;
use std::time::Duration;

use slicemill_core::Fate;

use crate::stores::IoCounters;
use crate::{IoError, IoErrorKind};

/// How long one object is tried.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Tries, the first one included.
    pub attempts_max: u32,
    /// Pause after the first failure; doubles each time, with jitter that depends on the name of the object only.
    pub pause_first: Duration,
    /// Longest pause.
    pub pause_max: Duration,
    /// All pauses together.
    pub pauses_total: Duration,
    /// Time of one try of an operation on a whole small object, and until the head of an answer is there.
    pub attempt_timeout: Duration,
    /// Time without a byte after which a body counts as broken.
    pub stall_timeout: Duration,
    /// Everything together for one object that is read: tries, pauses, bodies. A second more for every
    /// [`BYTES_PER_SECOND_MIN`](Self::BYTES_PER_SECOND_MIN) that it has.
    pub time_total: Duration,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            // A store that fails one request in four fails an object in sixteen million.
            attempts_max: 12,
            pause_first: Duration::from_millis(100),
            pause_max: Duration::from_secs(10),
            pauses_total: Duration::from_secs(90),
            attempt_timeout: Duration::from_secs(120),
            stall_timeout: Duration::from_secs(30),
            time_total: Duration::from_secs(600),
        }
    }
}

impl RetryBudget {
    /// One try, no pause.
    pub const ONCE: Self = Self {
        attempts_max: 1,
        pause_first: Duration::ZERO,
        pause_max: Duration::ZERO,
        pauses_total: Duration::ZERO,
        attempt_timeout: Duration::from_secs(120),
        stall_timeout: Duration::from_secs(30),
        time_total: Duration::from_secs(600),
    };
    /// The speed below which a large object is given up.
    pub const BYTES_PER_SECOND_MIN: u64 = 256 << 10;

    /// The time that an object of so many bytes may take.
    pub(crate) fn time_for(&self, bytes: u64) -> Duration {
        self.time_total.saturating_add(Duration::from_secs(bytes / Self::BYTES_PER_SECOND_MIN))
    }

    /// The pause after failure number `attempt` (from 1): half of it fixed, half jitter. The jitter comes from the
    /// name, so that many objects spread out and no random number is needed.
    pub(crate) fn pause(&self, name: &str, attempt: u32) -> Duration {
        let doubled = self.pause_first.saturating_mul(1 << attempt.saturating_sub(1).min(20));
        let full = doubled.min(self.pause_max);
        let jitter = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64 ^ u64::from(attempt), |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        full / 2 + (full / 2).mul_f64((jitter >> 32) as f64 / f64::from(u32::MAX))
    }
}

/// Runs `operation` on the object `name` until it succeeds, fails for good, or the budget is spent. Only errors of
/// fate `Transient` are tried again; the error that is returned counts the attempts.
pub(crate) async fn with_retries<T, Op, Answer>(budget: &RetryBudget, name: &str, operation: Op) -> Result<T, IoError>
where
    Op: FnMut() -> Answer,
    Answer: Future<Output = Result<T, IoError>>,
{
    with_counted_retries(budget, name, None, operation).await
}

/// The same with counted retries. A store's `Retry-After` is waited for where the budget allows it; where it does not,
/// the object is given up at once.
pub(crate) async fn with_counted_retries<T, Op, Answer>(
    budget: &RetryBudget,
    name: &str,
    counters: Option<&IoCounters>,
    mut operation: Op,
) -> Result<T, IoError>
where
    Op: FnMut() -> Answer,
    Answer: Future<Output = Result<T, IoError>>,
{
    let mut paused = Duration::ZERO;
    let mut attempt = 1;
    loop {
        let answer = match tokio::time::timeout(budget.attempt_timeout, operation()).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                if let Some(counters) = counters {
                    counters.error("timeout");
                }
                let message = format!("{name}: no answer in {} s", budget.attempt_timeout.as_secs_f32());
                Err(IoError::new(Fate::Transient, IoErrorKind::Failed, message))
            }
        };
        let mut error = match answer {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        error.attempts = attempt;
        let pause = budget.pause(name, attempt).max(error.retry_after().unwrap_or_default());
        if error.fate != Fate::Transient || attempt >= budget.attempts_max || paused + pause > budget.pauses_total {
            return Err(error);
        }
        tracing::debug!(attempt, pause_ms = pause.as_millis(), error = %error, "trying again");
        if let Some(counters) = counters {
            counters.retry();
        }
        tokio::time::sleep(pause).await;
        paused += pause;
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(fate: Fate) -> IoError {
        IoError::new(fate, IoErrorKind::Failed, "x: broken")
    }

    fn quick() -> RetryBudget {
        RetryBudget {
            attempts_max: 4,
            pause_first: Duration::from_millis(1),
            pause_max: Duration::from_millis(2),
            pauses_total: Duration::from_millis(100),
            attempt_timeout: Duration::from_millis(50),
            ..RetryBudget::default()
        }
    }

    #[tokio::test]
    async fn transient_errors_are_tried_until_the_budget_is_spent() {
        let mut calls = 0;
        let error = with_retries(&quick(), "x", || {
            calls += 1;
            async { Err::<(), _>(failing(Fate::Transient)) }
        })
        .await
        .unwrap_err();
        assert_eq!((calls, error.attempts), (4, 4));
    }

    #[tokio::test]
    async fn a_success_after_failures_counts() {
        let mut calls = 0;
        let value = with_retries(&quick(), "x", || {
            calls += 1;
            let answer = if calls < 3 { Err(failing(Fate::Transient)) } else { Ok(7) };
            async move { answer }
        })
        .await
        .unwrap();
        assert_eq!((calls, value), (3, 7));
    }

    #[tokio::test]
    async fn fatal_errors_are_not_tried_again() {
        let mut calls = 0;
        let result = with_retries(&quick(), "x", || {
            calls += 1;
            async { Err::<(), _>(failing(Fate::Fatal)) }
        })
        .await;
        assert!(result.is_err());
        assert_eq!(calls, 1);
    }

    #[tokio::test]
    async fn a_stalled_try_ends() {
        let budget = RetryBudget { attempts_max: 2, ..quick() };
        let error = with_retries(&budget, "x", std::future::pending::<Result<(), IoError>>).await.unwrap_err();
        assert_eq!(error.attempts, 2);
        assert!(error.message.contains("no answer"), "{}", error.message);
    }

    #[test]
    fn pauses_double_with_bounded_jitter() {
        let budget = RetryBudget::default();
        for attempt in 1..12 {
            let full = budget.pause_first.saturating_mul(1 << (attempt - 1)).min(budget.pause_max);
            for name in ["a", "b", "file:///c.jpg"] {
                let pause = budget.pause(name, attempt);
                assert!(pause >= full / 2 && pause <= full, "{name} {attempt}: {pause:?} of {full:?}");
            }
        }
        assert_ne!(budget.pause("a", 3), budget.pause("b", 3));
    }
}
