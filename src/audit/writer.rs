//! The thread that owns the files, and the queue in front of it.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::copy::Copier;
use super::directory::{head_line, segment_path};
use super::open::{Files, sync_directory};
use super::record::{RecordRef, write_line};
use super::{AuditError, Config, Event, RETRY_DELAY};
use crate::telemetry::metrics::metrics;

type Answer = Result<RecordRef, AuditError>;

/// So long the thread looks out after a commit, and a record that nobody waits for may wait for
/// one that somebody does: both then take one write and one sync. Several times as long as a sync
/// of a solid-state disk, and short against all that people or networks do.
const LINGER: Duration = Duration::from_millis(2);

/// The appenders' end. The thread ends when it is dropped, after writing what waits.
#[derive(Debug)]
pub(super) struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    durable: AtomicU64,
    /// Records taken and neither durable nor refused yet.
    waiting: AtomicU64,
    config: ArcSwap<Config>,
    /// The second place, where there is one.
    copier: ArcSwapOption<Copier>,
}

#[derive(Debug)]
struct Queue {
    entries: VecDeque<Entry>,
    bytes: usize,
    thread: Thread,
    stop: Stop,
    fault: Option<Fault>,
    /// Dropped by the thread when it has let go of its files.
    ended: Option<oneshot::Receiver<()>>,
}

#[derive(Debug)]
struct Entry {
    event: Event,
    time: Timestamp,
    /// Who waits, if anybody does.
    answer: Option<oneshot::Sender<Answer>>,
}

/// What the thread is doing, as far as appenders must know to wake it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thread {
    /// It writes, and looks at the queue afterwards; or it was woken.
    Awake,
    /// It looks at the queue within [`LINGER`], unless it is woken before.
    Lingers,
    /// It sleeps until it is woken.
    Sleeps,
}

/// Whether the thread goes on once the queue is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    /// Write what waits, then end.
    Draining,
}

/// A failed write, and whether appends may be tried again.
#[derive(Debug)]
struct Fault {
    source: Arc<io::Error>,
    retry_at: Option<Instant>,
}

impl Fault {
    fn error(&self) -> AuditError {
        AuditError::Unwritable {
            source: self.source.clone(),
        }
    }
}

pub(super) fn start(files: Files, config: Config, copier: Option<Copier>) -> io::Result<Handle> {
    let (alive, ended) = oneshot::channel();
    let shared = Arc::new(Shared {
        queue: Mutex::new(Queue {
            entries: VecDeque::new(),
            bytes: 0,
            thread: Thread::Awake,
            stop: Stop::No,
            fault: None,
            ended: Some(ended),
        }),
        wake: Condvar::new(),
        durable: AtomicU64::new(files.newest.seq),
        waiting: AtomicU64::new(0),
        config: ArcSwap::from_pointee(config),
        copier: ArcSwapOption::new(copier.map(Arc::new)),
    });
    let writer = Writer {
        files,
        shared: shared.clone(),
        buffer: Vec::new(),
        waiting: Vec::new(),
        reopen: false,
    };
    std::thread::Builder::new()
        .name("audit".into())
        .spawn(move || {
            writer.run();
            drop::<oneshot::Sender<()>>(alive);
        })?;
    Ok(Handle(shared))
}

impl Handle {
    /// Queues a record that somebody waits for.
    pub fn push(
        &self,
        event: Event,
        time: Timestamp,
    ) -> Result<oneshot::Receiver<Answer>, AuditError> {
        let (answer, receiver) = oneshot::channel();
        self.queue(event, time, Some(answer))?;
        Ok(receiver)
    }

    /// Queues a record that nobody waits for.
    pub fn note(&self, event: Event, time: Timestamp) -> Result<(), AuditError> {
        self.queue(event, time, None)
    }

    fn queue(
        &self,
        event: Event,
        time: Timestamp,
        answer: Option<oneshot::Sender<Answer>>,
    ) -> Result<(), AuditError> {
        let size = event.body.get().len();
        let mut queue = self.0.lock();
        admit(&mut queue)?;
        let config = self.0.config.load();
        let full = queue.entries.len() >= config.queue_records
            || (!queue.entries.is_empty() && queue.bytes + size > config.queue_bytes);
        if full {
            return Err(AuditError::Full {
                records: queue.entries.len(),
            });
        }
        let wake = match queue.thread {
            Thread::Awake => false,
            Thread::Lingers => answer.is_some(),
            Thread::Sleeps => true,
        };
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        queue.push(event, time, answer);
        if wake {
            queue.thread = Thread::Awake;
            drop(queue);
            self.0.wake.notify_one();
        }
        Ok(())
    }

    /// Queues the last record and ends the thread; the second receiver ends with it.
    pub fn close(
        &self,
        event: Event,
        time: Timestamp,
    ) -> Result<(oneshot::Receiver<Answer>, oneshot::Receiver<()>), AuditError> {
        let mut queue = self.0.lock();
        let admitted = admit(&mut queue);
        let ended = queue.ended.take().ok_or(AuditError::Closed)?;
        queue.stop = Stop::Draining;
        let (answer, receiver) = oneshot::channel();
        if admitted.is_ok() {
            self.0.waiting.fetch_add(1, Ordering::Relaxed);
            queue.push(event, time, Some(answer));
        }
        drop(queue);
        self.0.wake.notify_one();
        admitted.map(|()| (receiver, ended))
    }

    pub fn records(&self) -> u64 {
        self.0.durable.load(Ordering::Acquire)
    }

    pub fn waiting(&self) -> u64 {
        self.0.waiting.load(Ordering::Relaxed)
    }

    pub fn reconfigure(&self, config: Config, copier: Option<Copier>) {
        self.0.config.store(Arc::new(config));
        self.0.copier.store(copier.map(Arc::new));
    }

    pub fn ready(&self) -> Result<(), AuditError> {
        let queue = self.0.lock();
        match &queue.fault {
            _ if queue.stop == Stop::Draining => Err(AuditError::Closed),
            Some(fault) => Err(fault.error()),
            None => Ok(()),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().stop = Stop::Draining;
        self.0.wake.notify_one();
    }
}

impl Shared {
    /// The queue is whole between any two statements, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, event: Event, time: Timestamp, answer: Option<oneshot::Sender<Answer>>) {
        self.bytes += event.body.get().len();
        self.entries.push_back(Entry {
            event,
            time,
            answer,
        });
    }

    /// Whether there is something to do that cannot wait.
    fn is_urgent(&self) -> bool {
        self.stop == Stop::Draining || self.entries.iter().any(|entry| entry.answer.is_some())
    }
}

/// Whether an append may join the queue. Past the delay after a full disk the first one may:
/// its fate decides whether the log works again.
fn admit(queue: &mut Queue) -> Result<(), AuditError> {
    if queue.stop == Stop::Draining {
        return Err(AuditError::Closed);
    }
    if let Some(fault) = &queue.fault {
        if fault.retry_at.is_none_or(|at| Instant::now() < at) {
            return Err(fault.error());
        }
        queue.fault = None;
    }
    Ok(())
}

struct Writer {
    files: Files,
    shared: Arc<Shared>,
    buffer: Vec<u8>,
    waiting: Vec<(RecordRef, Option<oneshot::Sender<Answer>>)>,
    /// The segment was cut back after a failure; its descriptor must not be used again.
    reopen: bool,
}

impl Writer {
    fn run(mut self) {
        let mut batch = VecDeque::new();
        while self.take(&mut batch) {
            if let Err(error) = self.commit(&mut batch) {
                self.fail(error, &mut batch);
            }
        }
        // Nobody waits for this, and the next opening copes with an old head.
        let _ = self.files.head.sync_all();
        // Only this thread borrows it, and not now.
        if let Some(copier) = self.shared.copier.swap(None).and_then(Arc::into_inner) {
            copier.finish();
        }
    }

    /// Waits for entries and takes all there are; false when the thread is to end.
    ///
    /// Entries that nobody waits for are left for up to [`LINGER`], to be taken with others.
    fn take(&self, batch: &mut VecDeque<Entry>) -> bool {
        let mut queue = self.shared.lock();
        let until = Instant::now() + LINGER;
        while !queue.is_urgent() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            queue.thread = Thread::Lingers;
            queue = match self.shared.wake.wait_timeout(queue, left) {
                Ok((queue, _)) => queue,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        while queue.entries.is_empty() && queue.stop == Stop::No {
            queue.thread = Thread::Sleeps;
            queue = self
                .shared
                .wake
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        queue.thread = Thread::Awake;
        std::mem::swap(&mut queue.entries, batch);
        queue.bytes = 0;
        !batch.is_empty()
    }

    /// Makes the whole batch durable, one segment's worth at a time.
    fn commit(&mut self, batch: &mut VecDeque<Entry>) -> io::Result<()> {
        if self.reopen {
            self.reopen()?;
        }
        while !batch.is_empty() {
            let segment_bytes = self.shared.config.load().segment_bytes;
            if self.files.length >= segment_bytes && self.files.length > 0 {
                self.rotate()?;
            }
            self.chain(batch, segment_bytes)?;
            let begun = Instant::now();
            self.files
                .segment
                .write_all_at(&self.buffer, self.files.length)?;
            self.files.segment.sync_data()?;
            metrics().audit_commit.observe(begun.elapsed());
            self.files.length += self.buffer.len() as u64;
            if let Some((newest, _)) = self.waiting.last() {
                self.files.newest = *newest;
            }
            self.write_head()?;
            self.shared
                .durable
                .store(self.files.newest.seq, Ordering::Release);
            if let Some(copier) = &*self.shared.copier.load() {
                copier.push(&self.buffer);
            }
            let written = u64::try_from(self.waiting.len()).unwrap_or_default();
            self.shared.waiting.fetch_sub(written, Ordering::Relaxed);
            for (record, answer) in self.waiting.drain(..) {
                if let Some(answer) = answer {
                    // A caller that dropped its `Pending` does not want to know.
                    let _ = answer.send(Ok(record));
                }
            }
        }
        Ok(())
    }

    /// Moves entries from `batch` to the buffer until the segment is full.
    fn chain(&mut self, batch: &mut VecDeque<Entry>, segment_bytes: u64) -> io::Result<()> {
        self.buffer.clear();
        let mut newest = self.files.newest;
        loop {
            let Some(entry) = batch.pop_front() else {
                return Ok(());
            };
            newest = write_line(&mut self.buffer, &newest, entry.time, &entry.event)?;
            self.waiting.push((newest, entry.answer));
            let length = self.files.length + self.buffer.len() as u64;
            if length >= segment_bytes {
                return Ok(());
            }
        }
    }

    fn write_head(&self) -> io::Result<()> {
        let line = head_line(&self.files.newest);
        self.files.head.write_all_at(line.as_bytes(), 0)
    }

    /// Begins the next segment. An empty one may be there from an attempt that failed half-way.
    fn rotate(&mut self) -> io::Result<()> {
        let path = segment_path(&self.files.dir, self.files.newest.seq + 1);
        let segment = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)?;
        if segment.metadata()?.len() != 0 {
            return Err(io::Error::other(format!(
                "the new segment {} is not empty: another program wrote it",
                path.display()
            )));
        }
        sync_directory(&self.files.dir)?;
        self.files.segment = segment;
        self.files.segment_path = path;
        self.files.length = 0;
        Ok(())
    }

    /// Goes on after a full disk, behind the last durable record.
    fn reopen(&mut self) -> io::Result<()> {
        let segment = OpenOptions::new()
            .write(true)
            .open(&self.files.segment_path)?;
        if segment.metadata()?.len() != self.files.length {
            return Err(io::Error::other(
                "the segment has changed since the log stopped",
            ));
        }
        self.files.segment = segment;
        self.write_head()?;
        self.reopen = false;
        Ok(())
    }

    /// Tells everyone, and leaves the segment as it was after the last durable record.
    fn fail(&mut self, error: io::Error, batch: &mut VecDeque<Entry>) {
        let full = matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        );
        let cut = OpenOptions::new()
            .write(true)
            .open(&self.files.segment_path)
            .and_then(|segment| {
                segment.set_len(self.files.length)?;
                segment.sync_all()
            });
        self.reopen = true;
        let source = Arc::new(error);
        let fault = Fault {
            source: source.clone(),
            retry_at: (full && cut.is_ok()).then(|| Instant::now() + RETRY_DELAY),
        };
        tracing::error!(error = %source, "the audit log cannot be written; nothing will be signed");
        let late = {
            let mut queue = self.shared.lock();
            queue.fault = Some(fault);
            queue.bytes = 0;
            std::mem::take(&mut queue.entries)
        };
        let answers = self
            .waiting
            .drain(..)
            .map(|(_, answer)| answer)
            .chain(batch.drain(..).chain(late).map(|entry| entry.answer));
        for answer in answers {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            let Some(answer) = answer else {
                continue;
            };
            let _ = answer.send(Err(AuditError::Unwritable {
                source: source.clone(),
            }));
        }
    }
}
