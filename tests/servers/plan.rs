//! What a proxy does to which requests: a plan of faults that depends on nothing but its seed and the requests.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;

/// Something that goes wrong between a client and a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An answer with this status in the server's place, which never sees the request.
    Status {
        /// 403, 429, 500, 503, 507, ...
        status: u16,
        /// Seconds to wait, said to the client.
        retry_after: Option<u64>,
    },
    /// The connection is reset before the server has seen the request.
    ResetBefore,
    /// The connection is reset when the server has done what was asked.
    ResetAfter,
    /// The connection is reset after so many bytes of the body.
    ResetBody(usize),
    /// The connection is closed after so many bytes of the body.
    CutBody(usize),
    /// After so many bytes of the body nothing comes for so many milliseconds, then the connection is closed.
    StallBody(usize, u64),
    /// No answer for so many milliseconds, then the connection is closed; the server has done what was asked.
    StallHead(u64),
    /// The same, and the server has not seen the request.
    StallBefore(u64),
    /// The answer to a range names another range.
    WrongRange,
    /// A range is answered with the whole object.
    RangeIgnored,
    /// The server has done what was asked and the answer says 500.
    DoneButFailed,
    /// The server has done what was asked and the connection is closed without an answer.
    DoneButClosed,
}

impl Fault {
    /// Its name in the counts.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Status { status: 403, .. } => "403",
            Self::Status { status: 429, .. } => "429",
            Self::Status { status: 500, .. } => "500",
            Self::Status { status: 503, .. } => "503",
            Self::Status { status: 507, .. } => "507",
            Self::Status { .. } => "status",
            Self::ResetBefore => "reset_before",
            Self::ResetAfter => "reset_after",
            Self::ResetBody(_) => "reset_body",
            Self::CutBody(_) => "cut_body",
            Self::StallBody(..) => "stall_body",
            Self::StallHead(_) => "stall_head",
            Self::StallBefore(_) => "stall_before",
            Self::WrongRange => "wrong_range",
            Self::RangeIgnored => "range_ignored",
            Self::DoneButFailed => "done_but_failed",
            Self::DoneButClosed => "done_but_closed",
        }
    }
}

/// A fault and the requests that it may meet: all, until it is said otherwise.
#[derive(Debug, Clone)]
pub struct Rule {
    fault: Fault,
    methods: &'static [&'static str],
    path: String,
    share: f64,
    skip: u64,
    times: u64,
}

impl Rule {
    /// `fault` for every request.
    pub fn of(fault: Fault) -> Self {
        Self { fault, methods: &[], path: String::new(), share: 1.0, skip: 0, times: u64::MAX }
    }

    /// What it makes.
    pub fn fault(&self) -> Fault {
        self.fault
    }

    /// Requests of these methods alone.
    pub fn on(self, methods: &'static [&'static str]) -> Self {
        Self { methods, ..self }
    }

    /// Requests alone whose target (path and query, percent-encoded) contains this.
    pub fn path(self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    /// This share of the requests, drawn for each request and each time that it is made.
    pub fn share(self, share: f64) -> Self {
        Self { share, ..self }
    }

    /// The first so many of its requests pass.
    pub fn skip(self, skip: u64) -> Self {
        Self { skip, ..self }
    }

    /// So often and no more.
    pub fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }

    fn concerns(&self, method: &str, target: &str) -> bool {
        (self.methods.is_empty() || self.methods.contains(&method)) && target.contains(&self.path)
    }
}

/// Rules in their order: the first that meets a request decides.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    seed: u64,
    rules: Vec<Rule>,
}

impl Plan {
    /// No faults.
    pub fn none() -> Self {
        Self::default()
    }

    /// Shares are drawn from `seed`: the same requests meet the same faults, in whatever order they come.
    pub fn new(seed: u64, rules: impl IntoIterator<Item = Rule>) -> Self {
        Self { seed, rules: rules.into_iter().collect() }
    }
}

/// A plan at work.
#[derive(Debug)]
pub struct Running {
    plan: Plan,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By request (hashed): how often it was made.
    attempts: HashMap<u64, u64>,
    /// By rule: requests that it concerns, and faults.
    counts: Vec<(u64, u64)>,
}

impl Running {
    /// Begins with a plan.
    pub fn new(plan: Plan) -> Self {
        let counts = vec![(0, 0); plan.rules.len()];
        Self { plan, state: Mutex::new(State { counts, ..State::default() }) }
    }

    /// The fault for a request, and the number of its rule.
    pub fn choose(&self, method: &str, target: &str, range: &str) -> Option<(usize, Fault)> {
        let request = hash(&(self.plan.seed, method, target, range));
        let mut state = self.state.lock().expect("no panic before");
        let attempt = state.attempts.entry(request).or_default();
        *attempt += 1;
        let draw = (request, *attempt);
        for (index, rule) in self.plan.rules.iter().enumerate() {
            if !rule.concerns(method, target) {
                continue;
            }
            let (seen, fired) = &mut state.counts[index];
            *seen += 1;
            let drawn = rule.share >= 1.0 || ((hash(&(index, draw)) >> 11) as f64) < rule.share * (1u64 << 53) as f64;
            if *seen > rule.skip && *fired < rule.times && drawn {
                *fired += 1;
                return Some((index, rule.fault));
            }
        }
        None
    }

    /// Takes back a fault that could not be made, because the answer was not of its kind.
    pub fn give_back(&self, index: usize) {
        self.state.lock().expect("no panic before").counts[index].1 -= 1;
    }
}

/// The same on every run of one build, which is all that a test needs.
fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Fault = Fault::Status { status: 503, retry_after: None };

    #[test]
    fn shares_do_not_depend_on_the_order_of_requests() {
        let plan = Plan::new(7, [Rule::of(BUSY).share(0.2), Rule::of(Fault::CutBody(9)).share(0.05)]);
        let requests: Vec<(String, String)> = (0..2_000)
            .flat_map(|key| (0..2).map(move |range| (format!("/{key}"), format!("bytes={range}-"))))
            .collect();
        let (forward, backward) = (Running::new(plan.clone()), Running::new(plan));
        let faults = |running: &Running, (target, range): &(String, String)| running.choose("GET", target, range);
        let one: Vec<_> = requests.iter().map(|request| faults(&forward, request)).collect();
        let mut other: Vec<_> = requests.iter().rev().map(|request| faults(&backward, request)).collect();
        other.reverse();
        assert_eq!(one, other);
        let count = |fault| one.iter().filter(|found| **found == Some(fault)).count();
        let (busy, cut) = (count((0, BUSY)), count((1, Fault::CutBody(9))));
        assert!((700..900).contains(&busy) && (110..210).contains(&cut), "{busy} and {cut} of 4,000");
        let again =
            requests.iter().filter(|request| faults(&forward, request).is_some_and(|(rule, _)| rule == 0)).count();
        assert!((700..900).contains(&again), "{again} of 4,000 the second time");
    }

    #[test]
    fn rules_are_limited_by_method_path_and_number() {
        let rule = Rule::of(BUSY).on(&["PUT", "POST"]).path("captions/").skip(1).times(2);
        let running = Running::new(Plan::new(1, [rule]));
        let put = |target: &str| running.choose("PUT", target, "").is_some();
        assert!(running.choose("GET", "/b/captions/a", "").is_none() && !put("/b/failed/a"));
        assert_eq!([0; 5].map(|_| put("/b/captions/a")), [false, true, true, false, false]);
        running.give_back(0);
        assert!(put("/b/captions/b") && !put("/b/captions/b"));
        assert!(Running::new(Plan::none()).choose("GET", "/", "").is_none());
    }
}
