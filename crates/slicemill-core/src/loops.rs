//! Outputs that go round in circles.

/// Longest period that counts as a loop, in tokens: a sentence or two.
const PERIOD_MAX: usize = 64;
/// Times that the same tokens stand at the end before it is a loop.
const TIMES_MIN: usize = 3;
/// Tokens that a loop has at least: "no, no, no" is an answer.
const TOKENS_MIN: usize = 12;

/// Tokens at the end of an output that repeat the tokens before them: how much shorter the output could have been. 0
/// unless the same tokens, at most 64 of them, stand there three times or more, in 12 tokens or more.
pub fn looped_tokens(ids: &[u32]) -> u32 {
    let longest = (1..=PERIOD_MAX.min(ids.len() / TIMES_MIN))
        .map(|period| (period, repeated(ids, period)))
        .filter(|(period, repeated)| period + repeated >= TOKENS_MIN.max(TIMES_MIN * period))
        .map(|(_, repeated)| repeated)
        .max();
    u32::try_from(longest.unwrap_or(0)).unwrap_or(u32::MAX)
}

/// How many tokens at the end equal the token `period` before them.
fn repeated(ids: &[u32], period: usize) -> usize {
    let (earlier, later) = (&ids[..ids.len() - period], &ids[period..]);
    later.iter().rev().zip(earlier.iter().rev()).take_while(|(later, earlier)| later == earlier).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(head: &[u32], period: &[u32], times: usize, rest: usize) -> Vec<u32> {
        let mut ids = head.to_vec();
        ids.extend(period.repeat(times));
        ids.extend(&period[..rest]);
        ids
    }

    #[test]
    fn loops_at_the_end_are_counted_from_their_second_round_on() {
        assert_eq!(looped_tokens(&tail(&[1, 2, 3], &[7], 12, 0)), 11);
        assert_eq!(looped_tokens(&tail(&[1, 2, 3], &[7, 8, 9, 10], 3, 0)), 8);
        assert_eq!(looped_tokens(&tail(&[1, 2, 3], &[7, 8, 9, 10, 11], 4, 2)), 17);
        let sentence: Vec<u32> = (100..164).collect();
        assert_eq!(looped_tokens(&tail(&[], &sentence, 3, 0)), 128);
    }

    #[test]
    fn other_outputs_have_none() {
        assert_eq!(looped_tokens(&[]), 0);
        assert_eq!(looped_tokens(&(0..200).collect::<Vec<_>>()), 0);
        assert_eq!(looped_tokens(&tail(&[5], &[7], 11, 0)), 0, "too short");
        assert_eq!(looped_tokens(&tail(&[5], &[7, 8, 9, 10, 11, 12, 13], 2, 6)), 0, "twice and a little");
        assert_eq!(looped_tokens(&[tail(&[], &[7], 40, 0), vec![1, 2]].concat()), 0, "it came out of it");
        assert_eq!(looped_tokens(&tail(&[], &(0..65).collect::<Vec<u32>>(), 5, 0)), 0, "a period too long");
    }
}
