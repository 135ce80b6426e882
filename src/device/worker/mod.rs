//! `opcert-worker`: the process that loads one PKCS#11 library.
//!
//! Vendor code may crash, hang, print, leak, call `exit`. It does so here, where there is nothing
//! else to lose: no configuration, no network, no statement, only the PIN it needs anyway. The
//! worker is a plain blocking program. It is started by exec with the supervisor's socket as
//! descriptor 0, moves it out of the library's way, gives up what it can give up (`confine` says
//! what), loads the library, says hello, and then does as told until the socket closes.
//!
//! Signing threads, each with sessions of its own, all wait in `recv` on the same socket: the
//! kernel wakes exactly one per packet, and the thread that wakes does the work, without a hop
//! through a queue. Everything that is not a signature goes to one more thread, the keeper; another
//! waits for what the library tells of its slots, where it does.
//!
//! Nothing here closes down: when the supervisor hangs up, or a thread panics, the process leaves
//! by `_exit`, even while other threads hang inside the module.

mod administer;
mod codes;
mod confine;
mod generation;
mod keeper;
mod login;
mod mechanism;
mod module;
mod objects;
mod raw;
mod signer;
mod slots;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags, SocketType, recv};
use zeroize::Zeroize;

use self::keeper::Keeper;
use self::module::Module;
use self::signer::{Job, Signer};
use super::frames::{
    self, Answer, Call, Failure, FromWorker, LoadFailure, PACKET_MAX, PROTOCOL, Reply, ToWorker,
    Verb,
};
use crate::base::memory::{lock_all, undumpable};
use crate::base::sysexits;

/// A reply waits at most this long for others to share its packet. Longer than one P-256 signature
/// in software, so that several share; far shorter than a person or a network notices.
const FLUSH_AFTER: Duration = Duration::from_micros(250);

/// The socket goes to a descriptor no lower than this: libraries that assume 0 to 2, or close what
/// they think is theirs, miss it.
const SOCKET_FLOOR: i32 = 100;

/// The most descriptors of the process.
const DESCRIPTORS_MAX: u64 = 1024;

/// Runs the program.
pub fn main() -> ExitCode {
    match run() {
        Err(Refusal::NotStartedBySupervisor) => {
            eprintln!(
                "opcert-worker is started by opcertd and opcert-accountd; it does nothing on its own."
            );
            ExitCode::from(sysexits::EX_USAGE)
        }
        result => end(result),
    }
}

/// Why the worker cannot work.
enum Refusal {
    NotStartedBySupervisor,
    Io(&'static str, std::io::Error),
    Protocol(frames::FrameError),
}

fn io(doing: &'static str) -> impl Fn(rustix::io::Errno) -> Refusal {
    move |errno| Refusal::Io(doing, errno.into())
}

fn run() -> Result<(), Refusal> {
    let socket: &'static OwnedFd = Box::leak(Box::new(take_socket()?));
    give_up_privileges()?;

    let mut buffer = vec![0; PACKET_MAX];
    let Some(length) = receive(socket, &mut buffer)? else {
        return Ok(());
    };
    let mut greeting = frames::split(&buffer[..length]);
    let ToWorker::Hello {
        protocol,
        module: path,
        threads,
    } = next(&mut greeting)?
    else {
        return Err(Refusal::Protocol(frames::FrameError::Malformed));
    };
    if protocol != PROTOCOL {
        return send(socket, &[load_failed(LoadFailure::Protocol(PROTOCOL))]);
    }
    let ToWorker::Prepare {
        confinement,
        parameters,
        slot_events,
    } = next(&mut greeting)?
    else {
        return Err(Refusal::Protocol(frames::FrameError::Malformed));
    };
    let path = Path::new(&path);
    if let Err(error) = lock_all() {
        eprintln!("memory is not locked, the PIN could reach the swap: {error}");
    }
    // As long as there is one thread: what it gives up, those that it starts never have.
    let sandbox = confine::confine(&confinement, path);
    spawn("watcher", move || leave_when_hung_up(socket))?;
    let module: &'static Module = match Module::load(path, parameters.as_deref()) {
        Ok((module, info)) => {
            let hello = FromWorker::Hello {
                protocol: PROTOCOL,
                module: info,
            };
            send(socket, &[hello, FromWorker::Confined(sandbox)])?;
            Box::leak(Box::new(module))
        }
        Err(failure) => return send(socket, &[load_failed(failure)]),
    };

    if slot_events {
        spawn("slots", move || {
            if let Err(refusal) =
                slots::watch(module, |news| send(socket, &[FromWorker::Slots(news)]))
            {
                end(Err(refusal))
            }
        })?;
    }
    let (to_keeper, calls) = channel();
    let signers: Vec<_> = (0..threads.max(1))
        .map(|_| Mutex::new(Signer::new(module)))
        .collect();
    let signers: &'static [Mutex<Signer>] = signers.leak();
    for signer in signers {
        let to_keeper = to_keeper.clone();
        spawn("signer", move || {
            end(serve_signatures(socket, signer, &to_keeper))
        })?;
    }
    serve_the_rest(socket, Keeper::new(module, signers), &calls)
}

/// Starts a thread whose panic takes the process with it: a thread that silently ended would leave
/// a worker that looks alive and answers nothing.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Refusal> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
                raw::exit_now(sysexits::EX_SOFTWARE);
            }
        })
        .map(drop)
        .map_err(|error| Refusal::Io("cannot start a thread", error))
}

/// Ends the process with what a thread came back with.
fn end(result: Result<(), Refusal>) -> ! {
    match result {
        Ok(()) | Err(Refusal::NotStartedBySupervisor) => raw::exit_now(sysexits::EX_OK),
        Err(Refusal::Io(doing, error)) => {
            eprintln!("{doing}: {error}");
            raw::exit_now(sysexits::EX_OSERR)
        }
        Err(Refusal::Protocol(error)) => {
            eprintln!("the supervisor broke the protocol: {error}");
            raw::exit_now(sysexits::EX_SOFTWARE)
        }
    }
}

/// Takes the socket off descriptor 0 and puts `/dev/null` there.
fn take_socket() -> Result<OwnedFd, Refusal> {
    let stdin = rustix::stdio::stdin();
    if rustix::net::sockopt::socket_type(stdin) != Ok(SocketType::SEQPACKET) {
        return Err(Refusal::NotStartedBySupervisor);
    }
    let socket = rustix::io::fcntl_dupfd_cloexec(stdin, SOCKET_FLOOR)
        .map_err(io("cannot move the socket"))?;
    let null = std::fs::File::open("/dev/null")
        .map_err(|error| Refusal::Io("cannot open /dev/null", error))?;
    rustix::stdio::dup2_stdin(&null).map_err(io("cannot replace standard input"))?;
    Ok(socket)
}

/// No core dump and no debugger may show the PIN; nothing that is executed from here gains rights.
fn give_up_privileges() -> Result<(), Refusal> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    undumpable().map_err(io("cannot forbid dumps"))?;
    // A library that leaks descriptors shall run out of them here, not the machine.
    let most = getrlimit(Resource::Nofile)
        .maximum
        .map_or(DESCRIPTORS_MAX, |most| most.min(DESCRIPTORS_MAX));
    let few = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(Resource::Nofile, few).map_err(io("cannot limit descriptors"))?;
    rustix::thread::set_no_new_privs(true).map_err(io("cannot set no_new_privs"))
}

/// Ends the process when the supervisor is gone, whatever the other threads are stuck in.
fn leave_when_hung_up(socket: &OwnedFd) {
    loop {
        // Asking for no event still reports a hang-up, and is not woken by each packet.
        let mut watched = [PollFd::new(socket, PollFlags::empty())];
        match poll(&mut watched, None) {
            Ok(_) if !watched[0].revents().is_empty() => raw::exit_now(sysexits::EX_OK),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => raw::exit_now(sysexits::EX_OSERR),
        }
    }
}

/// A signing thread.
fn serve_signatures(
    socket: &OwnedFd,
    signer: &Mutex<Signer>,
    to_keeper: &Sender<Call>,
) -> Result<(), Refusal> {
    let mut buffer = vec![0; PACKET_MAX];
    let mut outbox = Outbox::new(socket);
    while let Some(length) = receive(socket, &mut buffer)? {
        for frame in frames::split(&buffer[..length]) {
            let call = match frame.and_then(frames::decode).map_err(Refusal::Protocol)? {
                ToWorker::Call(call) => call,
                ToWorker::Hello { .. } | ToWorker::Prepare { .. } => {
                    return Err(Refusal::Protocol(frames::FrameError::Malformed));
                }
            };
            if !matches!(call.verb, Verb::Sign { .. }) {
                // The packet holds nothing else, and may have held a PIN.
                buffer[..length].zeroize();
                serve_one(signer, call, to_keeper, &mut outbox)?;
                break;
            }
            serve_one(signer, call, to_keeper, &mut outbox)?;
        }
        outbox.flush()?;
    }
    Ok(())
}

/// Does a call here, if it is one for a private key, or else leaves it to the keeper.
fn serve_one(
    signer: &Mutex<Signer>,
    call: Call,
    to_keeper: &Sender<Call>,
    outbox: &mut Outbox<'_>,
) -> Result<(), Refusal> {
    // Nobody else holds the lock but the keeper, for a moment, to take the session away.
    let result = Job::of(&call.verb).map(|job| {
        signer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .perform(job)
    });
    match result {
        Some(result) if !signer::is_shrink(&result) => outbox.push(call.id, result),
        Some(_) | None => {
            hand_over(to_keeper, call);
            Ok(())
        }
    }
}

fn hand_over(to_keeper: &Sender<Call>, call: Call) {
    if to_keeper.send(call).is_err() {
        // The keeper is gone, and with it the process, in a moment.
        raw::exit_now(sysexits::EX_SOFTWARE);
    }
}

/// The keeper's thread, which is the main one.
fn serve_the_rest(
    socket: &OwnedFd,
    mut keeper: Keeper,
    calls: &Receiver<Call>,
) -> Result<(), Refusal> {
    let mut outbox = Outbox::new(socket);
    while let Ok(Call { id, verb }) = calls.recv() {
        let result = keeper.answer(verb);
        outbox.push(id, result)?;
        outbox.flush()?;
    }
    Ok(())
}

/// Replies that wait for their packet.
struct Outbox<'a> {
    socket: &'a OwnedFd,
    packet: Vec<u8>,
    oldest: Option<Instant>,
}

impl<'a> Outbox<'a> {
    fn new(socket: &'a OwnedFd) -> Self {
        Self {
            socket,
            packet: Vec::with_capacity(4096),
            oldest: None,
        }
    }

    fn push(&mut self, id: u64, result: Result<Answer, Failure>) -> Result<(), Refusal> {
        let is_secret = matches!(result, Ok(Answer::Plaintext(_)));
        let reply = FromWorker::Reply(Reply { id, result });
        // Large enough for any plaintext from the start: growing would leave pieces behind.
        let mut frame = Vec::with_capacity(2048);
        frames::append(&mut frame, &reply).map_err(Refusal::Protocol)?;
        if is_secret {
            self.flush()?;
            let sent = send_packet(self.socket, &frame);
            frame.zeroize();
            return sent;
        }
        if self.packet.len() + frame.len() > PACKET_MAX {
            self.flush()?;
        }
        self.packet.append(&mut frame);
        let oldest = *self.oldest.get_or_insert_with(Instant::now);
        if oldest.elapsed() > FLUSH_AFTER {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Refusal> {
        if self.oldest.take().is_some() {
            send_packet(self.socket, &self.packet)?;
            self.packet.clear();
        }
        Ok(())
    }
}

/// The next frame of the supervisor's first packet.
fn next(greeting: &mut frames::Split<'_>) -> Result<ToWorker, Refusal> {
    greeting
        .next()
        .unwrap_or(Err(frames::FrameError::Truncated))
        .and_then(frames::decode)
        .map_err(Refusal::Protocol)
}

fn load_failed(failure: LoadFailure) -> FromWorker {
    FromWorker::LoadFailed {
        protocol: PROTOCOL,
        failure,
    }
}

/// Sends frames in one packet.
fn send(socket: &OwnedFd, frames: &[FromWorker]) -> Result<(), Refusal> {
    let mut packet = Vec::new();
    for frame in frames {
        frames::append(&mut packet, frame).map_err(Refusal::Protocol)?;
    }
    send_packet(socket, &packet)
}

fn send_packet(socket: &OwnedFd, packet: &[u8]) -> Result<(), Refusal> {
    loop {
        match rustix::net::send(socket, packet, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => {
                raw::exit_now(sysexits::EX_OK)
            }
            Err(errno) => return Err(io("cannot send")(errno)),
        }
    }
}

/// One packet, or `None` when the supervisor hung up.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<Option<usize>, Refusal> {
    loop {
        match recv(socket, &mut *buffer, RecvFlags::TRUNC) {
            Ok((0, _)) => return Ok(None),
            Ok((length, whole)) if whole <= length => return Ok(Some(length)),
            Ok((_, whole)) => {
                return Err(Refusal::Protocol(frames::FrameError::TooLarge {
                    length: whole,
                    limit: PACKET_MAX,
                }));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(errno) => return Err(io("cannot receive")(errno)),
        }
    }
}
