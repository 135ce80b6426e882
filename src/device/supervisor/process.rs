//! The worker process: started, greeted, and ended.
//!
//! When one is started, and why it is given up, never lives here: see the supervisor itself. A
//! worker that does not end is never waited for by those who call.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use tokio::net::UnixDatagram;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command as Process};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::Supervisor;
use super::output::{LastWords, log_output};
use crate::device::error::DeviceError;
use crate::device::frames::{
    self, FromWorker, LoadFailure, ModuleInfo, PACKET_MAX, PROTOCOL, ToWorker,
};
use crate::device::link::{End, Link, receive};
use crate::device::sandbox::{Confinement, SandboxStatus};
use crate::telemetry::metrics::metrics;

/// How long the exit status of a killed worker is waited for. A process stuck in the kernel ends
/// when the kernel lets go of it, and nobody waits for that.
const REAP_WITHIN: Duration = Duration::from_secs(1);

/// How long the output of a worker that ended is waited for.
const OUTPUT_WITHIN: Duration = Duration::from_millis(100);

/// What a worker says first: what the library is, and how the worker is confined.
pub type Greeting = (ModuleInfo, SandboxStatus);

/// A running worker, and the tasks that serve it.
pub struct Worker {
    link: Arc<Link>,
    /// When it said hello.
    pub started: Instant,
    tasks: JoinSet<()>,
}

impl Supervisor {
    /// Starts a worker and waits for its hello, at most as long as a call may take.
    pub async fn spawn(&self) -> Result<(Worker, Greeting), DeviceError> {
        let (socket, child, output) = self.exec().map_err(|error| DeviceError::WorkerStart {
            path: self.worker.clone(),
            source: Arc::new(error),
        })?;
        let words = LastWords::default();
        let mut tasks = JoinSet::new();
        let log = tokio::spawn(log_output(self.config.name.clone(), output, words.clone()));
        let greeted = tokio::time::timeout(self.config.call_timeout, self.greet(&socket)).await;
        let threads = usize::from(self.config.thread_count());
        let link = Link::new(socket, threads, metrics().module(&self.config.name));
        tokio::spawn(reap(child, link.clone(), log, words, self.stuck.clone()));
        let failed = match greeted {
            Ok(Ok(Some(greeting))) => {
                tasks.spawn(link.clone().write());
                tasks.spawn(link.clone().read());
                tasks.spawn(link.clone().watch_deadlines());
                let worker = Worker {
                    link,
                    started: Instant::now(),
                    tasks,
                };
                return Ok((worker, greeting));
            }
            Ok(Ok(None)) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(DeviceError::Timeout {
                token: format!("module {}", self.config.name),
                function: "C_Initialize",
                after: self.config.call_timeout,
            }),
        };
        // Without a hello the worker is of no use. If it ended on its own, its words say why.
        if failed.is_some() {
            link.close(End::Retired);
        }
        let end = tokio::time::timeout(REAP_WITHIN, link.ended()).await;
        Err(failed.unwrap_or_else(|| DeviceError::WorkerDied {
            module: self.config.name.clone(),
            function: "C_Initialize",
            last_words: match end {
                Ok(End::Died(words)) => words,
                Ok(_) | Err(_) => "it said nothing".into(),
            },
        }))
    }

    /// Starts the process with the socket as descriptor 0 and its output in a pipe.
    fn exec(&self) -> std::io::Result<(UnixDatagram, Child, pipe::Receiver)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let (output, input) = std::io::pipe()?;
        let child = Process::new(&self.worker)
            .arg(&self.config.name)
            .env_clear()
            // A provider of OpenSSL that is itself a PKCS#11 client would enter the module again.
            .env("OPENSSL_CONF", "/dev/null")
            .envs(&self.config.environment)
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(input.try_clone()?))
            .stderr(Stdio::from(input))
            .kill_on_drop(true)
            .spawn()?;
        let output = pipe::Receiver::from_owned_fd(output.into())?;
        // A type for datagram sockets does for SEQPACKET: both send and receive whole packets.
        let ours = UnixDatagram::from_std(ours.into())?;
        Ok((ours, child, output))
    }

    /// Says hello. `None`: the worker hung up.
    async fn greet(&self, socket: &UnixDatagram) -> Result<Option<Greeting>, DeviceError> {
        let broken = |reason: String| DeviceError::Protocol {
            module: self.config.name.clone(),
            reason,
        };
        let mut packet = Vec::new();
        let hello = ToWorker::Hello {
            protocol: PROTOCOL,
            module: self.config.path.to_string_lossy().into_owned(),
            threads: self.config.thread_count(),
        };
        let prepare = ToWorker::Prepare {
            confinement: Confinement::of(&self.config),
            parameters: self.config.init_args.clone(),
            slot_events: self.slot_events,
        };
        for frame in [hello, prepare] {
            frames::append(&mut packet, &frame).map_err(|error| broken(error.to_string()))?;
        }
        if send(socket, &packet, SendFlags::NOSIGNAL).is_err() {
            return Ok(None);
        }
        let mut buffer = vec![0; PACKET_MAX];
        let received = receive(socket, &mut buffer).await;
        let Some(length) = received.map_err(|error| broken(error.to_string()))? else {
            return Ok(None);
        };
        let mut frames = frames::split(&buffer[..length]);
        let mut next = || {
            frames
                .next()
                .unwrap_or(Err(frames::FrameError::Truncated))
                .and_then(frames::decode)
                .map_err(|error| broken(error.to_string()))
        };
        match next()? {
            FromWorker::Hello {
                protocol: PROTOCOL,
                module,
            } => match next()? {
                FromWorker::Confined(sandbox) => Ok(Some((module, sandbox))),
                _ => Err(broken("it does not say how it is confined".into())),
            },
            FromWorker::Hello { protocol, .. } => Err(broken(format!(
                "it speaks protocol {protocol}, not {PROTOCOL}"
            ))),
            FromWorker::LoadFailed { failure, .. } => Err(self.load_error(failure)),
            FromWorker::Reply(_) | FromWorker::Confined(_) | FromWorker::Slots(_) => {
                Err(broken("it speaks before its hello".into()))
            }
        }
    }

    fn load_error(&self, failure: LoadFailure) -> DeviceError {
        let module = self.config.name.clone();
        match failure {
            LoadFailure::Missing => DeviceError::ModuleMissing {
                module,
                path: self.config.path.clone(),
            },
            LoadFailure::Unloadable(reason) => DeviceError::ModuleUnusable { module, reason },
            LoadFailure::Refused { function, code } => DeviceError::ModuleUnusable {
                module,
                reason: format!("{function} failed with {code}"),
            },
            LoadFailure::Protocol(protocol) => DeviceError::Protocol {
                module,
                reason: format!("it speaks protocol {protocol}, not {PROTOCOL}"),
            },
        }
    }
}

impl Drop for Worker {
    /// Ends the process, also where a start was given up half way.
    fn drop(&mut self) {
        self.link.close(End::Retired);
    }
}

impl Worker {
    /// Its socket.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Lets the calls under way finish, then ends the worker.
    pub async fn retire(&mut self) {
        self.link.drain().await;
        self.link.close(End::Retired);
        self.tasks.shutdown().await;
    }
}
/// Ends a worker whose link is closed and waits for it, without ever holding up anybody.
async fn reap(
    mut child: Child,
    link: Arc<Link>,
    log: JoinHandle<()>,
    words: LastWords,
    stuck: Arc<AtomicUsize>,
) {
    let ended = tokio::select! {
        status = child.wait() => Some(status),
        () = link.closed() => {
            // An error means that it has ended by itself.
            let _ended = child.start_kill();
            tokio::time::timeout(REAP_WITHIN, child.wait()).await.ok()
        }
    };
    // The output ends with the process, unless a child of the library's holds on to it.
    let _last_lines = tokio::time::timeout(OUTPUT_WITHIN, log).await;
    let status = match &ended {
        Some(Ok(status)) => describe(*status),
        Some(Err(error)) => format!("its exit status is not known: {error}"),
        None => "it does not end, it is stuck in the kernel".into(),
    };
    let output: Vec<String> = words
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
        .cloned()
        .collect();
    link.close(End::Died(if output.is_empty() {
        status
    } else {
        format!("{status}; its last output: {}", output.join(" / "))
    }));
    if ended.is_none() {
        stuck.fetch_add(1, Ordering::Relaxed);
        // Whatever comes of it, the process must not stay a zombie.
        let _status = child.wait().await;
        stuck.fetch_sub(1, Ordering::Relaxed);
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with status {code}"),
        (None, Some(signal)) => format!("signal {signal} ended it"),
        (None, None) => "it ended".into(),
    }
}

/// Where the worker executable is: as configured, else beside the running program, else one
/// directory up, which is where cargo puts it for tests, else in the program's own directory of
/// `libexec`, where a package puts it: `/usr/libexec/opcertd` for `/usr/sbin/opcertd`.
pub fn find_worker(configured: Option<&Path>) -> PathBuf {
    const NAME: &str = "opcert-worker";
    if let Some(path) = configured {
        return path.to_owned();
    }
    let Ok(program) = std::env::current_exe() else {
        return PathBuf::from(NAME);
    };
    let packaged = program.ancestors().nth(2).zip(program.file_name());
    program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(NAME))
        .chain(packaged.map(|(prefix, program)| prefix.join("libexec").join(program).join(NAME)))
        .find(|path| path.is_file())
        .unwrap_or_else(|| program.with_file_name(NAME))
}
