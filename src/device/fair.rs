//! Whose turn it is, where several clients wait for the same thing.
//!
//! Clients take turns, however much each of them asks for: one that asks a thousand times delays
//! one that asks once by one turn. Where there is no place left, the one that takes the most gives
//! way.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::policy::Caller;

/// One of those who take turns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Party(u64);

impl Party {
    /// Our own looking whether a token works, which is no use of it.
    pub const SELF_TEST: Self = Self(1);
}

/// Gives callers their party. Which callers share one by chance cannot be guessed from outside.
#[derive(Default)]
pub(super) struct Parties(std::hash::RandomState);

impl Parties {
    /// The party of a caller.
    pub fn of(&self, caller: &Caller) -> Party {
        Party(self.0.hash_one(caller))
    }
}

/// Things that wait, a line for each party.
#[derive(Debug)]
pub(super) struct Queue<T> {
    lines: HashMap<Party, VecDeque<T>>,
    /// Those with a line, the next first.
    round: VecDeque<Party>,
    length: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            lines: HashMap::new(),
            round: VecDeque::new(),
            length: 0,
        }
    }
}

impl<T> Queue<T> {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Waits at the end of the party's own line.
    pub fn push(&mut self, party: Party, item: T) {
        let line = self.lines.entry(party).or_default();
        if line.is_empty() {
            self.round.push_back(party);
        }
        line.push_back(item);
        self.length += 1;
    }

    /// The first of the party whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let party = self.round.pop_front()?;
        let line = self.lines.get_mut(&party)?;
        let item = line.pop_front()?;
        if line.is_empty() {
            self.lines.remove(&party);
        } else {
            self.round.push_back(party);
        }
        self.length -= 1;
        Some(item)
    }

    /// Takes out what waits no more.
    pub fn remove(&mut self, party: Party, is_it: impl Fn(&T) -> bool) -> Option<T> {
        let line = self.lines.get_mut(&party)?;
        let item = line.remove(line.iter().position(is_it)?)?;
        self.length -= 1;
        self.forget_if_empty(party);
        Some(item)
    }

    /// Makes a place for one more of `party`: takes out the last of the longest line, if that
    /// stays as long as the party's own.
    pub fn give_way(&mut self, party: Party) -> Option<T> {
        let own = self.lines.get(&party).map_or(0, VecDeque::len);
        // It has two or more, so none of them is the last of its line.
        let longest = self
            .lines
            .values_mut()
            .max_by_key(|line| line.len())
            .filter(|line| line.len() > own + 1)?;
        let item = longest.pop_back()?;
        self.length -= 1;
        Some(item)
    }

    fn forget_if_empty(&mut self, party: Party) {
        if self.lines.get(&party).is_some_and(VecDeque::is_empty) {
            self.lines.remove(&party);
            self.round.retain(|other| *other != party);
        }
    }
}

/// Lets one in at a time, the parties in turns.
#[derive(Default)]
pub(super) struct Gate(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    is_taken: bool,
    queue: Queue<oneshot::Sender<Pass>>,
}

/// Leave to be inside; dropping it lets the next in.
pub(super) struct Pass(Option<Arc<Gate>>);

/// The most that may wait at one gate.
const GATE_MAX: usize = 1024;

impl Gate {
    /// Waits for its turn. `None` where too many wait already, or this one had to give way.
    /// Whoever drops the future waits no more.
    pub async fn enter(self: Arc<Self>, party: Party) -> Option<Pass> {
        let waiting = {
            let mut state = self.state();
            if !state.is_taken {
                state.is_taken = true;
                drop(state);
                return Some(Pass(Some(self)));
            }
            if state.queue.len() >= GATE_MAX {
                // Dropping its sender tells it.
                state.queue.give_way(party)?;
            }
            let (pass, waiting) = oneshot::channel();
            state.queue.push(party, pass);
            waiting
        };
        waiting.await.ok()
    }

    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let Some(gate) = self.0.take() else { return };
        loop {
            let next = {
                let mut state = gate.state();
                match state.queue.pop() {
                    Some(next) => next,
                    None => {
                        state.is_taken = false;
                        return;
                    }
                }
            };
            match next.send(Self(Some(gate.clone()))) {
                Ok(()) => return,
                // It waits no more. What comes back must not let anybody in by itself.
                Err(mut back) => back.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Party = Party(1);
    const TWO: Party = Party(2);
    const THREE: Party = Party(3);

    fn queue(items: &[(Party, u32)]) -> Queue<u32> {
        let mut queue = Queue::default();
        for (party, item) in items {
            queue.push(*party, *item);
        }
        queue
    }

    fn rest(queue: &mut Queue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn parties_take_turns_and_each_keeps_its_order() {
        let mut queue = queue(&[(ONE, 11), (ONE, 12), (ONE, 13), (TWO, 21), (THREE, 31)]);
        assert_eq!(queue.pop(), Some(11));
        queue.push(TWO, 22);
        assert_eq!(rest(&mut queue), [21, 31, 12, 22, 13]);
        assert!(queue.is_empty() && queue.round.is_empty() && queue.lines.is_empty());
    }

    #[test]
    fn what_waits_no_more_leaves_no_gap() {
        let mut queue = queue(&[(ONE, 11), (TWO, 21), (TWO, 22)]);
        assert_eq!(queue.remove(ONE, |item| *item == 11), Some(11));
        assert_eq!(queue.remove(ONE, |item| *item == 11), None);
        assert!(!queue.lines.contains_key(&ONE) && !queue.is_empty());
        assert_eq!(queue.remove(TWO, |item| *item == 21), Some(21));
        queue.push(ONE, 12);
        assert_eq!(queue.len(), 2);
        assert_eq!(rest(&mut queue), [22, 12]);
    }

    #[test]
    fn who_takes_the_most_gives_way_but_not_to_its_own_like() {
        let mut queue = queue(&[(ONE, 11), (ONE, 12), (ONE, 13), (TWO, 21), (TWO, 22)]);
        assert_eq!(queue.give_way(ONE), None);
        assert_eq!(queue.give_way(TWO), None);
        assert_eq!(queue.give_way(THREE), Some(13));
        queue.push(THREE, 31);
        assert_eq!(queue.give_way(THREE), None);
        assert_eq!(rest(&mut queue), [11, 21, 31, 12, 22]);
    }

    #[tokio::test]
    async fn a_gate_lets_parties_in_by_turns_and_forgets_who_left() {
        let gate = Arc::new(Gate::default());
        let inside = gate.clone().enter(ONE).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (party, name) in [(ONE, 11), (ONE, 12), (ONE, 13), (TWO, 21)] {
            let (waiting, order) = (gate.clone(), order.clone());
            let before = gate.state().queue.len();
            tasks.push(tokio::spawn(async move {
                let pass = waiting.enter(party).await;
                order.lock().unwrap().push(name);
                drop(pass);
            }));
            while gate.state().queue.len() == before {
                tokio::task::yield_now().await;
            }
        }
        let left = tasks.remove(1);
        left.abort();
        assert!(left.await.unwrap_err().is_cancelled());
        drop(inside);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [11, 21, 13]);
        assert!(!gate.state().is_taken);
    }

    #[tokio::test]
    async fn a_full_gate_turns_away_who_takes_the_most() {
        let gate = Arc::new(Gate::default());
        let _inside = gate.clone().enter(ONE).await.unwrap();
        let wait = |party| {
            let mut waiting = Box::pin(gate.clone().enter(party));
            async move {
                let first = std::future::poll_fn(|cx| {
                    std::task::Poll::Ready(match waiting.as_mut().poll(cx) {
                        std::task::Poll::Ready(pass) => Some(pass.is_some()),
                        std::task::Poll::Pending => None,
                    })
                });
                (first.await, waiting)
            }
        };
        let mut crowd = Vec::new();
        for _ in 0..GATE_MAX {
            let (first, waiting) = wait(ONE).await;
            assert_eq!(first, None);
            crowd.push(waiting);
        }
        assert_eq!(wait(ONE).await.0, Some(false), "no place for one more");
        let (first, other) = wait(TWO).await;
        assert_eq!(first, None);
        assert!(crowd.pop().unwrap().await.is_none(), "it gave way");
        assert_eq!(gate.state().queue.len(), GATE_MAX);
        drop((crowd, other));
    }
}
