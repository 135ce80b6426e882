//! One answer per challenge: what was approved, for whom, until when.
//!
//! WHAT IS KEPT. The audit log is the store: an `approval` record is durable before a signature
//! leaves. In memory there are 24 bytes for each answered challenge: 16 of a hash of its id, and
//! the number of its record. Whoever asks again gets the answer read back from the log; the last
//! [`RECENT`] answers are at hand without reading.
//!
//! HOW IT CHANGES. A challenge under way has an [`Entry`]. Its lock makes two requests for the same
//! challenge take turns; its progress says what the second one gets. When the last who holds it is
//! gone (a client may leave at any moment) what it came to moves to the table.
//!
//! WHAT A RESTART DOES. [`Memory::restore`] finds in the log every challenge that may have been
//! answered and is not long expired.
//!
//! CLOCKS. Answers are forgotten in groups, [`GRACE`] after the last challenge of a group expired,
//! by the monotonic clock, so no step of the wall clock makes room for a second answer early. And
//! once forgotten, a challenge stays answered for: [`Memory::turn`] refuses every challenge that
//! expires no later than the newest forgotten one (the horizon), whatever the wall clock says, so
//! setting the clock back revives nothing. A restart takes the horizon from the records it passed
//! over.
//!
//! What a record holds, and how one is read back, is in `trail`.
//!
//! BOUNDS. At most [`MAX_ENTRIES`] answers are kept; past that, new challenges are refused until
//! old ones expire.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Deserialize;

use super::RestoreError;
use super::trail::{ApprovalRecord, DeniedRecord, read};
use crate::audit::read::Records;
use crate::base::encoding::sha256;
use crate::base::ids::Jti;
use crate::base::key::Signature;
use crate::enrol::Installed;
use crate::policy::{Caller, ConsentRule};
use crate::statement::{ApprovalDraft, Challenge, Origin};

/// How long an answer outlives its challenge.
pub const GRACE: Duration = Duration::from_secs(60);

/// Most challenges remembered at once. A table of that size has about 50 MB.
pub const MAX_ENTRIES: usize = 1 << 20;

/// How many of the last answers are kept whole, about 1 KiB each.
const RECENT: usize = 256;

/// Challenges that expire within the same so many seconds are forgotten together.
const GROUP_SECONDS: i64 = 64;

/// What one challenge has come to.
#[derive(Debug, Default)]
pub enum Progress {
    /// Nothing durable came of it yet.
    #[default]
    Fresh,
    /// A person said no: that is final.
    Denied,
    /// It was answered before; what with, the log says.
    Logged(Seq),
    /// It was approved with a certificate that is not here any more.
    Spent(Seq),
    /// The record is durable, and no signature has left.
    Recorded(Recorded),
    /// The approval was made.
    Approved(Recorded, Answer),
}

/// The number of an `approval` record.
pub type Seq = u64;

/// In the table: a person said no. No record has this number.
const DENIED: Seq = 0;

impl Progress {
    /// What of it goes to the table.
    fn place(&self) -> Option<Seq> {
        match self {
            Self::Fresh => None,
            Self::Denied => Some(DENIED),
            Self::Logged(seq) | Self::Spent(seq) => Some(*seq),
            Self::Recorded(recorded) | Self::Approved(recorded, _) => Some(recorded.seq),
        }
    }
}

/// What was decided, so that the same payload can be signed again if the first try was lost.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The number of its record; 0 until that is durable.
    pub seq: Seq,
    /// Who asked; nobody else gets an answer.
    pub owner: Caller,
    /// The page it spoke for, where it is a browser; no other page gets an answer.
    pub origin: Option<Origin>,
    /// SHA-256 of the compact challenge, base64url.
    pub challenge: String,
    /// The approval without its signature.
    pub draft: ApprovalDraft,
    /// The consent that was given.
    pub given: ConsentRule,
    /// The certificate it was made for.
    pub installed: Arc<Installed>,
}

impl Recorded {
    /// Whether it was asked for by `caller`, speaking for `page` where it speaks for one.
    pub fn is_of(&self, caller: &Caller, page: Option<&Origin>) -> bool {
        self.owner == *caller && self.origin.as_ref() == page
    }
}

/// What was signed: all that a payload lacks to be an approval again.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The signature of the JWS.
    pub signature: Signature,
    /// The CMS signature, where one was asked for.
    pub cms: Option<Arc<[u8]>>,
}

impl Answer {
    /// The compact JWS, to the byte as it was given out.
    pub fn approval(&self, recorded: &Recorded) -> String {
        let input = recorded.draft.signing_input(&recorded.installed.header);
        ApprovalDraft::assemble(input, &self.signature)
    }
}

/// One challenge's place: lock it, read its progress, move it on.
#[derive(Debug, Default)]
pub struct Entry(tokio::sync::Mutex<Progress>);

impl Entry {
    fn new(progress: Progress) -> Self {
        Self(tokio::sync::Mutex::new(progress))
    }

    /// Waits for its turn. A holder that goes away leaves the progress as it was.
    pub async fn lock(&self) -> tokio::sync::MutexGuard<'_, Progress> {
        self.0.lock().await
    }
}

/// An entry in somebody's hands. What it came to is kept when the last one lets go.
#[derive(Debug)]
pub struct Turn<'a> {
    memory: &'a Memory,
    jti: Jti,
    entry: Arc<Entry>,
}

impl Deref for Turn<'_> {
    type Target = Entry;
    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.memory.lock().let_go(&self.jti);
    }
}

/// Every challenge that is not long expired.
#[derive(Debug, Default)]
pub struct Memory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    live: HashMap<Jti, Live>,
    /// Those of `live` that nobody holds, kept for whoever asks again soon.
    recent: VecDeque<Jti>,
    /// By the end of the group, in units of [`GROUP_SECONDS`].
    groups: BTreeMap<i64, Group>,
    answers: usize,
    /// The latest expiry of a challenge that was forgotten, Unix seconds.
    horizon: Option<i64>,
}

#[derive(Debug)]
struct Live {
    entry: Arc<Entry>,
    expires: i64,
    end: Instant,
    holders: usize,
}

impl Live {
    fn hold(&mut self) -> Arc<Entry> {
        self.holders += 1;
        self.entry.clone()
    }
}

#[derive(Debug)]
struct Group {
    /// When it is forgotten.
    end: Instant,
    /// The latest expiry of its challenges, Unix seconds.
    expires: i64,
    answers: HashMap<Key, Seq, BuildHasherDefault<FirstBytes>>,
}

/// The beginning of the SHA-256 of a `jti`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key([u8; 16]);

impl Key {
    fn of(jti: &Jti) -> Self {
        let mut key = [0; 16];
        key.copy_from_slice(&sha256(jti.as_str().as_bytes())[..16]);
        Self(key)
    }
}

impl std::hash::Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

/// The keys are hashes already.
#[derive(Debug, Default)]
struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        if let Some((first, _)) = bytes.split_first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Why a challenge gets no turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoTurn {
    /// There is no room for another one.
    Full,
    /// It expires no later than one that was forgotten, so it may have been answered.
    Forgotten,
}

impl Memory {
    /// The turn of a challenge that expires at `expires_at`.
    pub fn turn(
        &self,
        jti: &Jti,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<Turn<'_>, NoTurn> {
        let instant = Instant::now();
        let mut state = self.lock();
        state.forget(instant);
        let entry = match state.live.get_mut(jti) {
            Some(live) => live.hold(),
            None => {
                let progress = match state.answer(jti) {
                    Some(DENIED) => Progress::Denied,
                    Some(seq) => Progress::Logged(seq),
                    None => {
                        let expires = expires_at.as_second();
                        if state.horizon.is_some_and(|horizon| expires <= horizon) {
                            return Err(NoTurn::Forgotten);
                        }
                        if state.answers + state.live.len() >= MAX_ENTRIES {
                            return Err(NoTurn::Full);
                        }
                        Progress::Fresh
                    }
                };
                state.begin(jti, progress, instant, expires_at, now)
            }
        };
        drop(state);
        Ok(Turn {
            memory: self,
            jti: jti.clone(),
            entry,
        })
    }

    /// The turn of a challenge that was answered, if it is remembered.
    pub fn find(&self, jti: &Jti, now: Timestamp) -> Option<Turn<'_>> {
        let instant = Instant::now();
        let mut state = self.lock();
        state.forget(instant);
        let entry = match state.live.get_mut(jti) {
            Some(live) => live.hold(),
            None => {
                let progress = match state.answer(jti)? {
                    DENIED => return None,
                    seq => Progress::Logged(seq),
                };
                state.begin(jti, progress, instant, now, now)
            }
        };
        drop(state);
        Some(Turn {
            memory: self,
            jti: jti.clone(),
            entry,
        })
    }

    /// Takes over what the records of the audit log say a restart must not forget. Returns how
    /// many challenges that are.
    pub fn restore(&self, records: &mut Records, now: Timestamp) -> Result<usize, RestoreError> {
        let instant = Instant::now();
        let mut state = self.lock();
        let mut keep = |jti: &Jti, expires: i64, seq| {
            let end = end_of(instant, Timestamp::from_second(expires).unwrap_or(now), now);
            state.keep(Key::of(jti), expires, end, seq);
        };
        for record in records.by_ref() {
            let record = record?;
            match record.kind.as_str() {
                ApprovalRecord::KIND => {
                    let body: Expiring = read(&record)?;
                    keep(&body.challenge_jti, body.expires, record.seq);
                }
                DeniedRecord::KIND => {
                    let body: Expiring = read(&record)?;
                    keep(&body.challenge_jti, body.expires, DENIED);
                }
                _ => {}
            }
        }
        // Challenges of before: none lived longer than this after its record.
        state.horizon = records
            .passed_over()
            .map(|time| time.as_second() + Challenge::LONGEST + Challenge::SKEW);
        Ok(state.answers)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before the lock is given back.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn end_of(instant: Instant, expires_at: Timestamp, now: Timestamp) -> Instant {
    let left = u64::try_from(expires_at.as_second() - now.as_second()).unwrap_or(0);
    instant + Duration::from_secs(left) + GRACE
}

impl State {
    fn answer(&self, jti: &Jti) -> Option<Seq> {
        let key = Key::of(jti);
        let mut groups = self.groups.values();
        groups.find_map(|group| group.answers.get(&key).copied())
    }

    fn begin(
        &mut self,
        jti: &Jti,
        progress: Progress,
        instant: Instant,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Arc<Entry> {
        let entry = Arc::new(Entry::new(progress));
        let live = Live {
            entry: entry.clone(),
            expires: expires_at.as_second(),
            end: end_of(instant, expires_at, now),
            holders: 1,
        };
        self.live.insert(jti.clone(), live);
        entry
    }

    /// Somebody lets go of an entry.
    fn let_go(&mut self, jti: &Jti) {
        let Some(live) = self.live.get_mut(jti) else {
            return;
        };
        live.holders -= 1;
        if live.holders > 0 {
            return;
        }
        // Only holders lock it.
        let Ok(progress) = live.entry.0.try_lock() else {
            return;
        };
        let place = progress.place();
        let is_whole = matches!(*progress, Progress::Recorded(_) | Progress::Approved(..));
        drop(progress);
        let (expires, end) = (live.expires, live.end);
        if let Some(seq) = place {
            self.keep(Key::of(jti), expires, end, seq);
        }
        if is_whole {
            self.recent.push_back(jti.clone());
            if self.recent.len() > RECENT
                && let Some(oldest) = self.recent.pop_front()
                && self.live.get(&oldest).is_some_and(|live| live.holders == 0)
            {
                self.live.remove(&oldest);
            }
        } else {
            self.live.remove(jti);
        }
    }

    /// An answer that is in the table stays in its group: it is forgotten with it.
    fn keep(&mut self, key: Key, expires: i64, end: Instant, seq: Seq) {
        let known = self
            .groups
            .values_mut()
            .find_map(|group| group.answers.get_mut(&key));
        if let Some(known) = known {
            *known = seq;
            return;
        }
        let group = self
            .groups
            .entry(expires.div_euclid(GROUP_SECONDS))
            .or_insert_with(|| Group {
                end,
                expires,
                answers: HashMap::default(),
            });
        group.end = group.end.max(end);
        group.expires = group.expires.max(expires);
        group.answers.insert(key, seq);
        self.answers += 1;
    }

    fn forget(&mut self, instant: Instant) {
        while let Some(group) = self.groups.first_entry() {
            // Later groups end later, but for steps of the clock: then they wait for this one.
            if group.get().end > instant {
                break;
            }
            let group = group.remove();
            self.answers -= group.answers.len();
            self.horizon = self.horizon.max(Some(group.expires));
        }
        while let Some(oldest) = self.recent.front() {
            let is_over = |live: &Live| live.holders == 0 && live.end <= instant;
            match self.live.get(oldest) {
                Some(live) if !is_over(live) => break,
                Some(_) => {
                    self.live.remove(oldest);
                }
                None => {}
            }
            self.recent.pop_front();
        }
    }
}

/// What of a record the memory keeps.
#[derive(Deserialize)]
struct Expiring {
    challenge_jti: Jti,
    expires: i64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn approve(turn: &Turn<'_>, seq: Seq) {
        *turn.entry.0.try_lock().unwrap() = Progress::Spent(seq);
    }

    fn progress(turn: &Turn<'_>) -> String {
        format!("{:?}", turn.entry.0.try_lock().unwrap())
    }

    #[test]
    fn the_same_challenge_has_one_entry_while_it_is_under_way() {
        let memory = Memory::default();
        let jti = Jti::random();
        let first = memory.turn(&jti, at(100), at(0)).unwrap();
        let second = memory.turn(&jti, at(100), at(0)).unwrap();
        assert!(Arc::ptr_eq(&first.entry, &second.entry));
        drop(first);
        approve(&second, 7);
        drop(second);
        assert!(memory.lock().live.is_empty(), "nobody holds it");
        assert_eq!(
            progress(&memory.turn(&jti, at(100), at(0)).unwrap()),
            "Logged(7)"
        );
        assert_eq!(progress(&memory.find(&jti, at(0)).unwrap()), "Logged(7)");
        assert!(memory.find(&Jti::random(), at(0)).is_none());
    }

    #[test]
    fn what_came_to_nothing_is_not_kept() {
        let memory = Memory::default();
        let jti = Jti::random();
        drop(memory.turn(&jti, at(100), at(0)).unwrap());
        assert!(memory.lock().live.is_empty() && memory.lock().groups.is_empty());
        assert_eq!(
            progress(&memory.turn(&jti, at(100), at(0)).unwrap()),
            "Fresh"
        );
    }

    #[test]
    fn an_answer_is_forgotten_only_after_its_grace_and_then_for_good() {
        let memory = Memory::default();
        let (jti, start) = (Jti::random(), Instant::now());
        let turn = memory.turn(&jti, at(10), at(0)).unwrap();
        approve(&turn, 7);
        drop(turn);
        let mut state = memory.lock();
        state.forget(start + Duration::from_secs(69));
        assert_eq!(state.answer(&jti), Some(7));
        state.forget(Instant::now() + Duration::from_secs(70));
        assert_eq!((state.answer(&jti), state.answers), (None, 0));
        drop(state);
        // The wall clock is set back to when the challenge was good.
        let again = memory.turn(&jti, at(10), at(0)).map(|_| ());
        assert_eq!(again, Err(NoTurn::Forgotten));
        assert!(memory.turn(&Jti::random(), at(11), at(0)).is_ok());
    }

    #[test]
    fn an_answer_takes_few_bytes() {
        assert_eq!(size_of::<(Key, Seq)>(), 24);
    }

    proptest! {
        /// Whatever the clocks do, a challenge that was answered is never fresh again.
        #[test]
        fn no_step_of_the_clock_revives_a_challenge(
            steps in proptest::collection::vec((0..4_usize, 0..400_u64, -900..900_i64), 1..60),
        ) {
            let memory = Memory::default();
            let challenges: Vec<(Jti, i64)> =
                (0..4).map(|n| (Jti::random(), 10_000 + 97 * n)).collect();
            let mut answered = [false; 4];
            let (mut instant, mut wall) = (Instant::now(), 9_900_i64);
            for (which, passed, step) in steps {
                instant += Duration::from_secs(passed);
                wall += i64::try_from(passed).unwrap() + step;
                let (jti, expires) = &challenges[which];
                // What the pipeline refuses before it asks for a turn.
                if *expires <= wall || *expires - 630 > wall {
                    continue;
                }
                let mut state = memory.lock();
                state.forget(instant);
                let known = state.answer(jti).is_some();
                let beyond = state.horizon.is_some_and(|horizon| *expires <= horizon);
                prop_assert!(!answered[which] || known || beyond, "{jti:?} is fresh again");
                if !known && !beyond {
                    let end = end_of(instant, at(*expires), at(wall));
                    state.keep(Key::of(jti), *expires, end, 1);
                    answered[which] = true;
                }
            }
        }
    }

    #[test]
    fn a_denial_is_final_and_nothing_to_be_found() {
        let memory = Memory::default();
        let jti = Jti::random();
        let turn = memory.turn(&jti, at(100), at(0)).unwrap();
        *turn.entry.0.try_lock().unwrap() = Progress::Denied;
        drop(turn);
        let again = memory.turn(&jti, at(100), at(0)).unwrap();
        assert_eq!(progress(&again), "Denied");
        drop(again);
        assert!(memory.find(&jti, at(0)).is_none());
    }

    #[test]
    fn a_full_memory_takes_no_new_challenge_and_knows_the_old_ones() {
        let memory = Memory::default();
        let (old, new) = (Jti::random(), Jti::random());
        let turn = memory.turn(&old, at(100), at(0)).unwrap();
        approve(&turn, 7);
        drop(turn);
        memory.lock().answers = MAX_ENTRIES - 1;
        let last = memory.turn(&new, at(100), at(0)).unwrap();
        let full = memory.turn(&Jti::random(), at(100), at(0)).map(|_| ());
        assert_eq!(full, Err(NoTurn::Full));
        assert_eq!(
            progress(&memory.turn(&old, at(100), at(0)).unwrap()),
            "Logged(7)"
        );
        drop(last);
        assert!(memory.turn(&Jti::random(), at(100), at(0)).is_ok());
    }

    #[test]
    fn an_answer_stays_in_its_group_however_often_it_is_asked_for() {
        let memory = Memory::default();
        let jti = Jti::random();
        let turn = memory.turn(&jti, at(100), at(0)).unwrap();
        approve(&turn, 7);
        drop(turn);
        for now in [0, 50, 90] {
            drop(memory.find(&jti, at(now)).unwrap());
        }
        let state = memory.lock();
        assert_eq!((state.answers, state.groups.len()), (1, 1));
        assert_eq!(state.groups.values().next().unwrap().expires, 100);
    }

    #[test]
    fn a_restart_knows_what_was_answered_and_what_may_have_been() {
        let (old, answered, denied) = (Jti::random(), Jti::random(), Jti::random());
        let mut log = crate::audit::tests::Log::new();
        // A second apart, from the first second on.
        for (kind, jti, expires) in [
            (ApprovalRecord::KIND, &old, 100),
            (ApprovalRecord::KIND, &answered, 700),
            (DeniedRecord::KIND, &denied, 700),
            ("other", &Jti::random(), 700),
        ] {
            let body = serde_json::json!({ "challenge_jti": jti, "expires": expires });
            log.add(kind, None, &body);
        }
        let memory = Memory::default();
        let mut records = crate::audit::read::since(log.path(), at(2)).unwrap();
        assert_eq!(memory.restore(&mut records, at(650)).unwrap(), 2);
        let found = memory.find(&answered, at(650)).unwrap();
        assert_eq!(progress(&found), "Logged(2)");
        let refused = memory.turn(&denied, at(700), at(650)).unwrap();
        assert_eq!(progress(&refused), "Denied");
        assert!(memory.find(&old, at(650)).is_none());
        // A challenge of the first second was good for 630 seconds at most.
        let turn = |expires| memory.turn(&Jti::random(), at(expires), at(0)).map(|_| ());
        assert_eq!(turn(631), Err(NoTurn::Forgotten));
        assert_eq!(turn(632), Ok(()));
    }

    #[test]
    fn what_is_over_is_forgotten_by_whoever_comes_next() {
        let memory = Memory::default();
        let jti = Jti::random();
        let keep = || {
            let over = Instant::now();
            memory.lock().keep(Key::of(&jti), 10, over, 7);
        };
        keep();
        drop(memory.turn(&Jti::random(), at(100), at(50)).unwrap());
        assert_eq!(memory.lock().answers, 0);
        keep();
        assert!(memory.find(&jti, at(50)).is_none());
        let now = Instant::now();
        assert_eq!(
            end_of(now, at(110), at(100)),
            now + Duration::from_secs(10) + GRACE
        );
        assert_eq!(end_of(now, at(90), at(100)), now + GRACE);
    }
}
