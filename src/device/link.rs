//! The daemon's end of the socket to one worker: calls out, replies in.
//!
//! Any task may call. A signature joins its party's line; the writer task sends what the worker is to
//! have now, the parties in turns, in as few packets as keep every signing thread of the worker
//! busy, so that under load one system call and one wake-up serve many signatures. A lone call is
//! sent by its caller at once. Other calls travel in packets of their own, as they may hold a PIN or
//! take long.
//!
//! The worker is given no more signatures than it does within some milliseconds ([`Window`]): what
//! it has, it does in the order in which it came, whoever waits. A signature whose caller went away
//! before it was sent is not sent.
//!
//! Every call has a deadline from when it is sent. The first that passes closes the link for all:
//! threads inside a vendor library cannot be stopped, so the worker has to go. A signature's
//! deadline is put off while a long call (key generation, a PIN typed on the device) occupies the module within its own. One
//! that waits for its turn as long is told that the module is busy.
//!
//! A link ends once and for good, for one reason that everybody waiting is told.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::fair::{Party, Queue};
use super::frames::{
    self, Answer, Call, Failure, FrameError, FromWorker, PACKET_MAX, Reply, SlotNews, ToWorker,
    Verb,
};
use super::pins::guard;
use crate::base::secret::wipe;
use crate::telemetry::metrics::ModuleCells;

/// The most calls that may wait for one module.
pub(super) const CALLS_MAX: usize = 1024;

/// The most signatures in one packet: one thread does them one after the other.
const PACKET_FRAMES: usize = 8;

/// A signature that comes back within this time was not kept waiting in the worker.
const PROMPT: Duration = Duration::from_millis(10);

/// One that takes longer than this was, or the token is slow.
const TARDY: Duration = Duration::from_millis(20);

/// Why a link ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The worker ended; its exit status and last output.
    Died(String),
    /// A deadline passed.
    Expired,
    /// What came from the worker is no frame.
    Protocol(String),
    /// The supervisor wants no more of it.
    Retired,
}

/// Why a call brought nothing.
#[derive(Debug)]
pub(super) enum CallError {
    /// The worker says so.
    Failed(Failure),
    /// The link ended first; the outcome is not known.
    Ended(End),
    /// Nothing was sent: the link takes no calls any more.
    NotSent,
    /// Nothing was sent: too many calls wait.
    Busy,
    /// Nothing was sent: the call fits no packet.
    TooLarge,
}

/// One worker's socket.
pub(super) struct Link {
    socket: UnixDatagram,
    /// How many threads of the worker sign.
    lanes: usize,
    last_id: AtomicU64,
    state: Mutex<State>,
    /// There is something to send.
    outgoing: Notify,
    /// An earlier deadline than the one watched was set.
    sooner: Notify,
    /// Nobody waits any more.
    idle: Notify,
    /// Whether the link takes calls.
    open: watch::Sender<bool>,
    served: AtomicBool,
    begun: Instant,
    /// When each token was last used for somebody, in milliseconds from the begin.
    used: Box<[AtomicU64]>,
    /// Where the module's numbers are kept.
    cells: Arc<ModuleCells>,
    /// Whether the library tells of tokens that come and leave.
    watches_slots: AtomicBool,
    /// It told so, or does not tell any more.
    slots_changed: Notify,
}

struct State {
    end: Option<End>,
    /// No new calls, those under way may finish.
    draining: bool,
    waiting: HashMap<u64, Waiter>,
    /// How many of them are long.
    long: usize,
    /// Signatures that are not sent yet.
    queue: Queue<Frame>,
    window: Window,
    alone: VecDeque<Vec<u8>>,
    /// The deadline that is being watched.
    watched: Option<Instant>,
}

struct Waiter {
    reply: oneshot::Sender<Result<Answer, CallError>>,
    deadline: Instant,
    budget: Duration,
    length: Length,
    place: Place,
}

/// Where a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A signature that waits for its turn.
    Queued(Party),
    /// A signature that the worker has, since then.
    InWorker(Instant),
    /// Anything else.
    Sent,
}

/// A signature that is not sent yet.
#[derive(Debug)]
struct Frame {
    id: u64,
    bytes: Vec<u8>,
}

/// How many signatures the worker may have: at least one for each of its threads, and so many more
/// as it does in no time that anybody who waits would notice. Fast tokens get full packets, slow
/// ones one signature after the other.
#[derive(Debug)]
struct Window {
    lanes: usize,
    size: usize,
    taken: usize,
}

impl Window {
    fn new(lanes: usize) -> Self {
        let lanes = lanes.max(1);
        Self {
            lanes,
            size: lanes,
            taken: 0,
        }
    }

    fn has_room(&self) -> bool {
        self.taken < self.size
    }

    /// One came back after so long.
    fn give_back(&mut self, after: Duration) {
        self.taken = self.taken.saturating_sub(1);
        if after < PROMPT {
            self.size = (self.size + 1).min(self.lanes * PACKET_FRAMES * 2);
        } else if after > TARDY {
            self.size = (self.size / 2).max(self.lanes);
        }
    }
}

/// A call whose caller waits; dropping it before there is an answer withdraws the call.
struct Waiting<'a> {
    link: &'a Link,
    id: u64,
    is_over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.link.withdraw(self.id);
        }
    }
}

/// Whether a call may hold up others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Short,
    Long,
}

/// Whether a packet's buffer is to be wiped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Plain,
    Secret,
}

/// Frames in one buffer, and where each ends.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Link {
    /// Takes over a non-blocking socket whose worker has said hello.
    pub fn new(socket: UnixDatagram, lanes: usize, cells: Arc<ModuleCells>) -> Arc<Self> {
        Arc::new(Self {
            socket,
            lanes,
            last_id: AtomicU64::new(1),
            state: Mutex::new(State::new(lanes)),
            outgoing: Notify::new(),
            sooner: Notify::new(),
            idle: Notify::new(),
            open: watch::Sender::new(true),
            served: AtomicBool::new(false),
            begun: Instant::now(),
            used: (0..frames::TOKENS_MAX).map(|_| AtomicU64::new(0)).collect(),
            cells,
            watches_slots: AtomicBool::new(false),
            slots_changed: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the worker do something within `budget`, on our own account.
    pub async fn call(&self, verb: Verb, budget: Duration) -> Result<Answer, CallError> {
        self.call_for(Party::default(), verb, budget).await
    }

    /// Has the worker do something for `party` within `budget`.
    pub async fn call_for(
        &self,
        party: Party,
        verb: Verb,
        budget: Duration,
    ) -> Result<Answer, CallError> {
        let cell = self.cells.calls.of(verb.function());
        let _waiting = self.cells.waiting.enter();
        let begun = Instant::now();
        let result = self.send_and_wait(party, verb, budget).await;
        if let Ok(_) | Err(CallError::Failed(_) | CallError::Ended(_)) = result {
            cell.seconds.observe(begun.elapsed());
        }
        if let Err(CallError::Failed(_) | CallError::Ended(_)) = result {
            cell.failures.increment();
        }
        result
    }

    async fn send_and_wait(
        &self,
        party: Party,
        verb: Verb,
        budget: Duration,
    ) -> Result<Answer, CallError> {
        let is_signature = matches!(verb, Verb::Sign { .. });
        let length = match &verb {
            // A person types on the device.
            Verb::Generate { .. } | Verb::WithPin { pin: None, .. } => Length::Long,
            Verb::WithPin { verb, .. } if matches!(**verb, Verb::Generate { .. }) => Length::Long,
            Verb::Login { pin, .. } if pin.expose().is_empty() => Length::Long,
            _ => Length::Short,
        };
        let (sender, receiver) = oneshot::channel();
        let now = Instant::now();
        let deadline = now + budget;
        let id = self.last_id.fetch_add(1, Ordering::Relaxed);
        // Large enough for what holds PINs from the start: growing would leave pieces of a PIN behind.
        let mut frame = Vec::with_capacity(1024);
        frames::append(&mut frame, &ToWorker::Call(Call { id, verb }))
            .map_err(|_| CallError::TooLarge)?;
        let lone = {
            let mut state = self.state();
            let refusal = if state.end.is_some() || state.draining {
                Some(CallError::NotSent)
            } else if state.waiting.len() >= CALLS_MAX && !state.make_place(party) {
                Some(CallError::Busy)
            } else {
                None
            };
            if let Some(refusal) = refusal {
                guard::wipe(frame);
                return Err(refusal);
            }
            let is_lone = state.waiting.is_empty() && is_signature;
            let place = match (is_signature, is_lone) {
                (false, _) => Place::Sent,
                (true, true) => Place::InWorker(now),
                (true, false) => Place::Queued(party),
            };
            let waiter = Waiter {
                reply: sender,
                deadline,
                budget,
                length,
                place,
            };
            state.waiting.insert(id, waiter);
            state.long += usize::from(length == Length::Long);
            if state.watched.is_none_or(|watched| deadline < watched) {
                self.sooner.notify_one();
            }
            match place {
                Place::Sent => {
                    state.alone.push_back(frame);
                    None
                }
                Place::Queued(party) => {
                    state.queue.push(party, Frame { id, bytes: frame });
                    None
                }
                Place::InWorker(_) => {
                    state.window.taken += 1;
                    Some(frame)
                }
            }
        };
        let mut waiting = Waiting {
            link: self,
            id,
            is_over: false,
        };
        match lone {
            Some(frame) if send(&self.socket, &frame, SendFlags::NOSIGNAL).is_ok() => {}
            Some(bytes) => {
                self.state().queue_again(party, Frame { id, bytes });
                self.outgoing.notify_one();
            }
            None => self.outgoing.notify_one(),
        }
        let result = receiver.await;
        waiting.is_over = true;
        result.unwrap_or(Err(CallError::Ended(End::Retired)))
    }

    /// Its caller went away. What the worker has it does all the same.
    fn withdraw(&self, id: u64) {
        let mut state = self.state();
        let place = state.waiting.get(&id).map(|waiter| waiter.place);
        if let Some(Place::Queued(party)) = place {
            state.queue.remove(party, |frame| frame.id == id);
            state.waiting.remove(&id);
            if state.waiting.is_empty() {
                self.idle.notify_one();
            }
        }
    }

    /// Sends what waits; for a task of its own.
    pub async fn write(self: Arc<Self>) {
        loop {
            self.outgoing.notified().await;
            loop {
                let (batch, alone) = {
                    let mut state = self.state();
                    (state.next_batch(), std::mem::take(&mut state.alone))
                };
                if batch.ends.is_empty() && alone.is_empty() {
                    break;
                }
                for frame in alone {
                    let sent = self.send(&frame).await;
                    guard::wipe(frame);
                    if sent.is_err() {
                        return self.stop_taking_calls();
                    }
                }
                for packet in batch.packets(self.lanes) {
                    if self.send(packet).await.is_err() {
                        return self.stop_taking_calls();
                    }
                }
            }
        }
    }

    async fn send(&self, packet: &[u8]) -> std::io::Result<()> {
        self.socket
            .async_io(Interest::WRITABLE, || {
                send(&self.socket, packet, SendFlags::NOSIGNAL).map_err(std::io::Error::from)
            })
            .await
            .map(drop)
    }

    /// Hands replies to those who wait; for a task of its own. Ends when the worker hangs up.
    pub async fn read(self: Arc<Self>) {
        let mut buffer = vec![0; PACKET_MAX];
        loop {
            match receive(&self.socket, &mut buffer).await {
                Ok(Some(length)) => match self.deliver(&buffer[..length]) {
                    Ok(Content::Plain) => {}
                    Ok(Content::Secret) => wipe(&mut buffer[..length]),
                    Err(error) => return self.close(End::Protocol(error)),
                },
                Ok(None) => return self.stop_taking_calls(),
                Err(error) => return self.close(End::Protocol(error.to_string())),
            }
        }
    }

    fn deliver(&self, packet: &[u8]) -> Result<Content, String> {
        let mut ready = Vec::with_capacity(PACKET_FRAMES);
        for frame in frames::split(packet) {
            match frame.and_then(frames::decode).map_err(|e| e.to_string())? {
                FromWorker::Reply(reply) => ready.push(reply),
                FromWorker::Slots(news) => self.note_slots(news),
                FromWorker::Hello { .. }
                | FromWorker::LoadFailed { .. }
                | FromWorker::Confined(_) => {
                    return Err("a second hello".into());
                }
            }
        }
        let is_secret = |reply: &Reply| matches!(reply.result, Ok(Answer::Plaintext(_)));
        let content = if ready.iter().any(is_secret) {
            Content::Secret
        } else {
            Content::Plain
        };
        let mut woken = Vec::with_capacity(ready.len());
        {
            let mut state = self.state();
            for reply in ready {
                let Some(waiter) = state.waiting.remove(&reply.id) else {
                    if state.end.is_some() {
                        return Ok(content);
                    }
                    return Err("a reply to no call".into());
                };
                state.long -= usize::from(waiter.length == Length::Long);
                if let Place::InWorker(since) = waiter.place {
                    state.window.give_back(since.elapsed());
                }
                woken.push((waiter.reply, reply.result));
            }
            if state.waiting.is_empty() {
                self.idle.notify_one();
            }
            if !state.queue.is_empty() && state.window.has_room() {
                self.outgoing.notify_one();
            }
        }
        if woken.iter().any(|(_, result)| result.is_ok()) {
            self.served.store(true, Ordering::Relaxed);
        }
        for (waiter, result) in woken {
            // Whoever asked may have gone away.
            let _gone = waiter.send(result.map_err(CallError::Failed));
        }
        Ok(content)
    }

    fn note_slots(&self, news: SlotNews) {
        match news {
            SlotNews::Watched => self.watches_slots.store(true, Ordering::Relaxed),
            SlotNews::Changed => self.slots_changed.notify_one(),
            SlotNews::Unwatched(reason) => {
                tracing::debug!(reason, "the library does not tell of its slots");
                if self.watches_slots.swap(false, Ordering::Relaxed) {
                    self.slots_changed.notify_one();
                }
            }
        }
    }

    /// Whether the library tells of tokens that come and leave.
    pub fn watches_slots(&self) -> bool {
        self.watches_slots.load(Ordering::Relaxed)
    }

    /// Returns once the library told that a token came or left.
    pub async fn slots_changed(&self) {
        self.slots_changed.notified().await;
    }

    /// Watches the deadlines; for a task of its own. Ends at the first that passes.
    pub async fn watch_deadlines(self: Arc<Self>) {
        loop {
            let next = {
                let mut state = self.state();
                let now = Instant::now();
                let long_under_way = state
                    .waiting
                    .values()
                    .any(|waiter| waiter.length == Length::Long && waiter.deadline > now);
                let mut expired = false;
                let mut tired = Vec::new();
                for (id, waiter) in &mut state.waiting {
                    if waiter.deadline <= now {
                        if waiter.length == Length::Short && long_under_way {
                            waiter.deadline = now + waiter.budget;
                        } else if let Place::Queued(party) = waiter.place {
                            tired.push((*id, party));
                        } else {
                            expired = true;
                        }
                    }
                }
                if expired {
                    drop(state);
                    return self.close(End::Expired);
                }
                for (id, party) in tired {
                    state.queue.remove(party, |frame| frame.id == id);
                    state.turn_away(id);
                }
                state.watched = state.waiting.values().map(|waiter| waiter.deadline).min();
                state.watched
            };
            match next {
                Some(deadline) => {
                    tokio::select! {
                        // The first deadline: what is waited for is the absence of an answer.
                        () = tokio::time::sleep_until(deadline) => {}
                        () = self.sooner.notified() => {}
                    }
                }
                None => self.sooner.notified().await,
            }
        }
    }

    /// Whether a call is under way that may take long, so that others wait for it.
    pub fn is_occupied(&self) -> bool {
        self.state().long > 0
    }

    /// Somebody uses a token.
    pub fn note_use(&self, token: u16) {
        if let Some(used) = self.used.get(usize::from(token)) {
            let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            used.store(now, Ordering::Relaxed);
        }
    }

    /// For how long nobody has used a token.
    pub fn idle_for(&self, token: u16) -> Duration {
        let used = self.used.get(usize::from(token));
        let used = used.map_or(0, |used| used.load(Ordering::Relaxed));
        self.begun
            .elapsed()
            .saturating_sub(Duration::from_millis(used))
    }

    /// Whether any call succeeded since [`Link::count_from_here`].
    pub fn served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    /// Forgets that calls succeeded.
    pub fn count_from_here(&self) {
        self.served.store(false, Ordering::Relaxed);
    }

    /// Takes no more calls and waits for those under way, which their deadlines bound.
    pub async fn drain(&self) {
        loop {
            {
                let mut state = self.state();
                state.draining = true;
                if state.waiting.is_empty() || state.end.is_some() {
                    return;
                }
            }
            self.idle.notified().await;
        }
    }

    /// Takes no more calls. Those under way are told by [`Link::close`], which follows once the
    /// worker's exit status is known.
    fn stop_taking_calls(&self) {
        self.state().draining = true;
        self.open.send_replace(false);
    }

    /// Ends the link; everybody waiting is told why. Only the first reason counts.
    pub fn close(&self, end: End) {
        let waiting = {
            let mut state = self.state();
            if state.end.is_some() {
                return;
            }
            state.end = Some(end.clone());
            state.long = 0;
            for frame in state.alone.drain(..) {
                guard::wipe(frame);
            }
            state.queue = Queue::default();
            std::mem::take(&mut state.waiting)
        };
        self.idle.notify_one();
        self.open.send_replace(false);
        for waiter in waiting.into_values() {
            let error = match waiter.place {
                Place::Queued(_) => CallError::NotSent,
                Place::InWorker(_) | Place::Sent => CallError::Ended(end.clone()),
            };
            let _gone = waiter.reply.send(Err(error));
        }
    }

    /// Why it ended, if it has.
    pub fn end(&self) -> Option<End> {
        self.state().end.clone()
    }

    /// Whether it takes calls.
    pub fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Returns when the link takes no more calls because of the worker or a deadline.
    pub async fn closed(&self) {
        let mut open = self.open.subscribe();
        // An error would mean that the sender is gone, which `self` holds.
        let _open = open.wait_for(|open| !open).await;
    }

    /// Returns when the link has ended and [`Link::end`] says why.
    pub async fn ended(&self) -> End {
        let mut open = self.open.subscribe();
        loop {
            open.mark_unchanged();
            if let Some(end) = self.end() {
                return end;
            }
            if open.changed().await.is_err() {
                return End::Retired;
            }
        }
    }
}

impl State {
    fn new(lanes: usize) -> Self {
        Self {
            end: None,
            draining: false,
            waiting: HashMap::new(),
            long: 0,
            queue: Queue::default(),
            window: Window::new(lanes),
            alone: VecDeque::new(),
            watched: None,
        }
    }

    /// Makes a place for one more call of `party`, if somebody who waits has taken more.
    fn make_place(&mut self, party: Party) -> bool {
        match self.queue.give_way(party) {
            Some(frame) => {
                self.turn_away(frame.id);
                true
            }
            None => false,
        }
    }

    /// Tells a caller whose call was not sent that there is too much to do.
    fn turn_away(&mut self, id: u64) {
        if let Some(waiter) = self.waiting.remove(&id) {
            let _gone = waiter.reply.send(Err(CallError::Busy));
        }
    }

    /// What could not be sent at once waits after all.
    fn queue_again(&mut self, party: Party, frame: Frame) {
        self.window.taken = self.window.taken.saturating_sub(1);
        if let Some(waiter) = self.waiting.get_mut(&frame.id) {
            waiter.place = Place::Queued(party);
            self.queue.push(party, frame);
        }
    }

    /// The signatures that the worker is to have now. Their time begins.
    fn next_batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        let now = Instant::now();
        while self.window.has_room()
            && let Some(Frame { id, bytes }) = self.queue.pop()
        {
            let Some(waiter) = self.waiting.get_mut(&id) else {
                continue;
            };
            waiter.place = Place::InWorker(now);
            waiter.deadline = now + waiter.budget;
            self.window.taken += 1;
            batch.bytes.extend_from_slice(&bytes);
            batch.ends.push(batch.bytes.len());
        }
        batch
    }
}

impl Batch {
    /// Spreads the frames over `lanes` packets, with at most [`PACKET_FRAMES`] in each.
    fn packets(&self, lanes: usize) -> impl Iterator<Item = &[u8]> {
        let share = self
            .ends
            .len()
            .div_ceil(lanes.max(1))
            .clamp(1, PACKET_FRAMES);
        let (mut next, mut start) = (0, 0);
        std::iter::from_fn(move || {
            let mut end = *self.ends.get(next)?;
            next += 1;
            let mut count = 1;
            while let Some(&further) = self.ends.get(next)
                && count < share
                && further - start <= PACKET_MAX
            {
                end = further;
                next += 1;
                count += 1;
            }
            let packet = self.bytes.get(start..end);
            start = end;
            packet
        })
    }
}

/// One packet, or `None` when the worker hung up.
pub(super) async fn receive(
    socket: &UnixDatagram,
    buffer: &mut [u8],
) -> std::io::Result<Option<usize>> {
    socket
        .async_io(Interest::READABLE, || {
            match recv(socket, &mut *buffer, RecvFlags::TRUNC) {
                Ok((0, _)) | Err(Errno::CONNRESET) => Ok(None),
                Ok((length, whole)) if whole <= length => Ok(Some(length)),
                Ok((_, whole)) => Err(std::io::Error::other(FrameError::TooLarge {
                    length: whole,
                    limit: PACKET_MAX,
                })),
                Err(errno) => Err(errno.into()),
            }
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(sizes: &[usize]) -> Batch {
        let mut batch = Batch::default();
        for &size in sizes {
            batch.bytes.extend(vec![0; size]);
            batch.ends.push(batch.bytes.len());
        }
        batch
    }

    #[test]
    fn a_slow_token_gets_one_signature_for_each_thread_and_a_fast_one_full_packets() {
        let mut window = Window::new(2);
        let fill = |window: &mut Window| {
            while window.has_room() {
                window.taken += 1;
            }
            window.taken
        };
        assert_eq!(fill(&mut window), 2);
        for _ in 0..100 {
            window.give_back(Duration::from_micros(60));
            fill(&mut window);
        }
        assert_eq!(window.taken, 32);
        for _ in 0..40 {
            window.give_back(Duration::from_millis(700));
        }
        assert_eq!((window.size, window.taken), (2, 0));
        window.give_back(Duration::from_millis(15));
        assert_eq!(window.size, 2);
    }

    fn lengths(batch: &Batch, lanes: usize) -> Vec<usize> {
        batch.packets(lanes).map(<[u8]>::len).collect()
    }

    #[test]
    fn a_batch_keeps_all_lanes_busy() {
        assert_eq!(lengths(&batch(&[10]), 2), [10]);
        assert_eq!(lengths(&batch(&[10, 10]), 2), [10, 10]);
        assert_eq!(lengths(&batch(&[10; 5]), 2), [30, 20]);
        assert_eq!(lengths(&batch(&[10; 40]), 2), [80; 5]);
        assert_eq!(lengths(&batch(&[10; 3]), 1), [30]);
    }

    #[test]
    fn no_packet_is_too_large() {
        let large = 30 * 1024;
        assert_eq!(
            lengths(&batch(&[large; 5]), 1),
            [2 * large, 2 * large, large]
        );
    }
}
