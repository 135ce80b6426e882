//! The real daemon under clients that do not play by the rules: honest ones are served all the
//! while, what is refused is refused with its own code, and memory stays within a stated bound.
//!
//! Nothing here is timed: `benches/run` measures what honest clients wait.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use rustls::{ClientConnection, StreamOwned};
use serde_json::{Value, json};
use support::daemon::{ClientIdentity, Daemon};
use support::service::{Service, withdrawal};
use support::softhsm::TestToken;

const ORIGIN: &str = "https://pay.example";

/// What the daemon may grow by under any abuse here, in KiB. Measured are 1 to 24 MiB; an
/// unbounded queue anywhere would take hundreds.
const MOST_GROWTH: u64 = 48 * 1024;

/// So long a connection may take that nothing is to come of. A daemon that hangs fails by this.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon with an enrolled operator, and a client that is registered and honest.
struct Scene {
    daemon: Daemon,
    service: Service,
    honest: ClientIdentity,
    resident: u64,
    _token: TestToken,
}

impl Scene {
    fn new(limits: &str) -> Self {
        // Inherited by the daemon: each end of each connection is a descriptor of somebody.
        let mut most = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        most.current = most.maximum;
        rustix::process::setrlimit(rustix::process::Resource::Nofile, most).unwrap();
        let token = TestToken::new("opcert-abuse");
        let daemon = Daemon::start_with(&token, &format!("[native.limits]\n{limits}\n"));
        let service = Service::new(ORIGIN);
        let honest = daemon.add_client("honest", &json!({ "consent": "none" }));
        daemon.enrol(&service, "alice", "p256");
        let mut scene = Self {
            daemon,
            service,
            honest,
            resident: 0,
            _token: token,
        };
        scene.honest_client_is_served();
        scene.resident = scene.resident_kib();
        scene
    }

    /// A whole approval, over a connection of its own.
    fn honest_client_is_served(&self) {
        let challenge = self.service.challenge(&withdrawal("alice"), |_| ());
        let body = json!({ "challenge": challenge });
        let answer = self
            .daemon
            .native(&self.honest, Method::POST, "/v1/approvals", &body);
        assert!(answer.ok()["approval"].is_string());
    }

    /// Resident memory of the daemon.
    fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.daemon.pid());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let number = line.unwrap().split_whitespace().nth(1);
        number.unwrap().parse().unwrap()
    }

    fn memory_is_bounded(&self) {
        let grown = self.resident_kib().saturating_sub(self.resident);
        println!("grew by {grown} KiB");
        assert!(grown <= MOST_GROWTH, "the daemon grew by {grown} KiB");
    }

    fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.daemon.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// A registered client's connection, its handshake done.
    fn tls(&self, protocol: &[u8]) -> Tls {
        let mut config = self.honest.tls();
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = "localhost".try_into().unwrap();
        let session = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = StreamOwned::new(session, self.tcp());
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        stream
    }
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// All that is to be read until the other end closes, in whatever way it does.
fn rest(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return bytes,
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                let waited = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                assert!(!waited, "the daemon neither answers nor closes");
                return bytes;
            }
        }
    }
}

#[test]
fn a_thousand_idle_and_slow_clients_keep_nobody_out() {
    let scene = Scene::new(
        "connections = 1002\nhandshake-timeout-seconds = 3600\nheader-timeout-seconds = 3600\n\
         body-timeout-seconds = 3600\nidle-timeout-seconds = 3600",
    );
    let silent: Vec<TcpStream> = (0..500).map(|_| scene.tcp()).collect();
    let idle: Vec<Tls> = (0..200).map(|_| scene.tls(b"http/1.1")).collect();
    let mut slow: Vec<Tls> = (0..300_usize)
        .map(|number| {
            scene.tls(if number.is_multiple_of(3) {
                b"h2"
            } else {
                b"http/1.1"
            })
        })
        .collect();
    let port = scene.daemon.address().port();
    let body_due = format!(
        "POST /v1/approvals HTTP/1.1\r\nhost: localhost:{port}\r\n\
         content-type: application/json\r\ncontent-length: 9000\r\n\r\n{{\""
    );
    for (number, stream) in slow.iter_mut().enumerate() {
        let part = match number % 3 {
            0 => &PREFACE[..PREFACE.len() / 2],
            1 => b"POST /v1/approvals HTTP/1.1\r\nhost: loc",
            _ => body_due.as_bytes(),
        };
        stream.write_all(part).unwrap();
    }
    for _ in 0..20 {
        scene.honest_client_is_served();
    }
    scene.memory_is_bounded();

    // One more than the limit is closed at once, and there is room again when others leave.
    let _two: Vec<Tls> = (0..2).map(|_| scene.tls(b"http/1.1")).collect();
    assert!(rest(&mut scene.tcp()).is_empty());
    drop((silent, idle, slow));
    scene.honest_client_is_served();
}

#[test]
fn garbage_on_each_door_is_refused() {
    let scene = Scene::new("handshake-timeout-seconds = 5\nheader-timeout-seconds = 5");
    let good = b"POST /v1/approvals HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 20\r\n\r\n{\"challenge\":\"a.b.c\"}".as_slice();
    let settings = [PREFACE, &frame(0x4, 0, 0, &[])].concat();
    let mut random = Random(7);
    for round in 0..60_usize {
        let noise = random.bytes(1 + round * 40);
        let mut tcp = scene.tcp();
        let _ = tcp.write_all(&noise);
        let _ = tcp.shutdown(std::net::Shutdown::Write);
        assert!(!rest(&mut tcp).starts_with(b"HTTP"), "no HTTP without TLS");

        let mut control = UnixStream::connect(scene.daemon.socket()).unwrap();
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = control.write_all(&random.spoiled(good));
        let _ = control.shutdown(std::net::Shutdown::Write);
        assert_refused(&rest(&mut control));

        let mut tls = scene.tls(b"http/1.1");
        let _ = tls.write_all(&if round.is_multiple_of(2) {
            noise
        } else {
            random.spoiled(good)
        });
        tls.conn.send_close_notify();
        let _ = tls.flush();
        assert_refused(&rest(&mut tls));

        let mut tls = scene.tls(b"h2");
        let mut bytes = settings.clone();
        let frame = [headers(1, 0x4), random.bytes(200)].concat();
        bytes.extend(random.spoiled(&frame));
        let _ = tls.write_all(&bytes);
        tls.conn.send_close_notify();
        let _ = tls.flush();
        // Whatever frames come back; that it ends is what matters.
        let _ = rest(&mut tls);
    }
    scene.honest_client_is_served();
    scene.memory_is_bounded();
}

/// Nothing, or an HTTP answer that says whose fault it is: never that something broke here.
fn assert_refused(answer: &[u8]) {
    let text = String::from_utf8_lossy(answer);
    assert!(
        answer.is_empty() || text.starts_with("HTTP/1.1 4") || text.starts_with("HTTP/1.0 4"),
        "{text}"
    );
    if let Some((head, body)) = text.split_once("\r\n\r\n")
        && !body.is_empty()
    {
        assert!(head.contains("application/problem+json"), "{text}");
    }
}

#[test]
fn oversize_has_its_own_answer_by_either_protocol() {
    let scene = Scene::new("body-bytes = 4096\nheader-bytes = 4096");
    let answer = scene.daemon.native(
        &scene.honest,
        Method::POST,
        "/v1/approvals",
        &json!({ "challenge": "x".repeat(8_000) }),
    );
    assert_eq!(answer.code(), "too-large");

    // Without a length in its head, and more than the daemon would drop for the sake of an answer.
    let mut tls = scene.tls(b"http/1.1");
    let head = format!(
        "POST /v1/approvals HTTP/1.1\r\nhost: localhost:{}\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n",
        scene.daemon.address().port()
    );
    tls.write_all(head.as_bytes()).unwrap();
    let chunk = format!("{:x}\r\n{}\r\n", 4_000, "x".repeat(4_000));
    while tls.write_all(chunk.as_bytes()).is_ok() {}

    let mut tls = scene.tls(b"http/1.1");
    let wide = format!(
        "GET /v1/status HTTP/1.1\r\nx-wide: {}\r\n",
        "x".repeat(9_000)
    );
    let _ = tls.write_all(wide.as_bytes());
    let answer = rest(&mut tls);
    assert!(
        answer.starts_with(b"HTTP/1.1 431"),
        "{}",
        String::from_utf8_lossy(&answer)
    );

    // A head that never ends, in CONTINUATION frames.
    let mut tls = scene.tls(b"h2");
    let mut bytes = [PREFACE, &frame(0x4, 0, 0, &[])].concat();
    bytes.extend(headers(1, 0));
    tls.write_all(&bytes).unwrap();
    let header = literal(b"x-more", &[b'x'; 4_000]);
    let written = pour(&mut tls, &frame(0x9, 0, 1, &header), 64 * 1024 * 1024);
    assert!(
        written < 64 * 1024 * 1024,
        "the daemon takes headers without end"
    );
    scene.honest_client_is_served();
    scene.memory_is_bounded();
}

#[test]
fn floods_of_frames_are_borne() {
    let scene = Scene::new("connections = 300");
    let begin = [PREFACE, &frame(0x4, 0, 0, &[])].concat();
    let ping = frame(0x6, 0, 0, &[7; 8]);
    let settings = frame(0x4, 0, 0, &[0, 3, 0, 0, 0, 100]);
    let floods: [(&str, Vec<u8>); 4] = [
        ("pings", ping.repeat(100)),
        ("settings", settings.repeat(100)),
        ("empty data", frame(0x0, 0, 1, &[]).repeat(100)),
        (
            "window updates",
            frame(0x8, 0, 0, &[0, 0, 0, 1]).repeat(100),
        ),
    ];
    std::thread::scope(|scope| {
        for (what, bytes) in &floods {
            let mut tls = scene.tls(b"h2");
            tls.write_all(&begin).unwrap();
            tls.write_all(&headers(1, 0x4)).unwrap();
            scope.spawn(move || {
                // None of what comes back is read.
                let written = pour(&mut tls, bytes, 4 * 1024 * 1024);
                println!("{what}: {written} bytes were taken");
            });
        }
        let mut tls = scene.tls(b"h2");
        tls.write_all(&begin).unwrap();
        scope.spawn(move || {
            // Requests that are taken back at once (CVE-2023-44487).
            let mut stream = 1_u32;
            while stream < 60_000 {
                let mut bytes = Vec::new();
                for _ in 0..100 {
                    bytes.extend(headers(stream, 0x5));
                    bytes.extend(frame(0x3, 0, stream, &8_u32.to_be_bytes()));
                    stream += 2;
                }
                if tls.write_all(&bytes).is_err() {
                    break;
                }
            }
            println!("resets: up to stream {stream}");
        });
        for _ in 0..20 {
            scene.honest_client_is_served();
        }
    });
    scene.honest_client_is_served();
    scene.memory_is_bounded();
}

#[test]
fn who_never_reads_fills_nothing() {
    let scene = Scene::new("connections = 300");
    let host = format!("localhost:{}", scene.daemon.address().port());
    let ask = format!("GET /v1/openapi.json HTTP/1.1\r\nhost: {host}\r\n\r\n").repeat(50);
    let deaf: Vec<Tls> = (0..60_usize)
        .map(|number| {
            if number.is_multiple_of(2) {
                let mut tls = scene.tls(b"http/1.1");
                pour(&mut tls, ask.as_bytes(), 1024 * 1024);
                tls
            } else {
                // No window for any answer: SETTINGS_INITIAL_WINDOW_SIZE 0.
                let mut tls = scene.tls(b"h2");
                let mut bytes = [PREFACE, &frame(0x4, 0, 0, &[0, 4, 0, 0, 0, 0])].concat();
                for stream in 0..64 {
                    bytes.extend(get(2 * stream + 1, host.as_bytes(), b"/v1/openapi.json"));
                }
                pour(&mut tls, &bytes, bytes.len());
                tls
            }
        })
        .collect();
    for _ in 0..20 {
        scene.honest_client_is_served();
    }
    scene.memory_is_bounded();
    drop(deaf);
    scene.honest_client_is_served();
}

#[test]
fn no_session_is_resumed_and_no_early_data_taken() {
    let scene = Scene::new("");
    let mut config = scene.honest.tls();
    config.enable_early_data = true;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let config = Arc::new(config);
    for _ in 0..3 {
        let name = "localhost".try_into().unwrap();
        let mut session = ClientConnection::new(config.clone(), name).unwrap();
        assert!(session.early_data().is_none());
        let mut stream = scene.tcp();
        while session.is_handshaking() {
            session.complete_io(&mut stream).unwrap();
        }
        assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full));
        let mut tls = StreamOwned::new(session, stream);
        // The answer brings along whatever tickets the daemon would give.
        tls.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .unwrap();
        let answer: Value = json_body(&rest(&mut tls));
        assert_eq!(answer["code"], "host-refused");
    }
}

fn json_body(answer: &[u8]) -> Value {
    let text = std::str::from_utf8(answer).unwrap();
    serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// The HTTP/2 connection preface (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A literal header field that is not indexed (RFC 7541 section 6.2.2).
fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        // An integer with a 7-bit prefix (RFC 7541 section 5.1).
        match text.len().checked_sub(127) {
            None => bytes.push(u8::try_from(text.len()).unwrap()),
            Some(mut more) => {
                bytes.push(127);
                while more >= 128 {
                    bytes.push(u8::try_from(more % 128).unwrap() | 0x80);
                    more /= 128;
                }
                bytes.push(u8::try_from(more).unwrap());
            }
        }
        bytes.extend_from_slice(text);
    }
    bytes
}

/// HEADERS of `GET /`; with flag 4 they are all (END_HEADERS), with 1 no body follows.
fn headers(stream: u32, flags: u8) -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x84];
    block.extend(literal(b":authority", b"localhost"));
    frame(0x1, flags, stream, &block)
}

/// A whole request.
fn get(stream: u32, host: &[u8], path: &[u8]) -> Vec<u8> {
    let mut block = vec![0x82, 0x87];
    block.extend(literal(b":path", path));
    block.extend(literal(b":authority", host));
    frame(0x1, 0x5, stream, &block)
}

/// Writes `bytes` over and over, up to `most` in all, until the other end takes no more; reads
/// nothing. Returns how much was taken.
fn pour(tls: &mut Tls, bytes: &[u8], most: usize) -> usize {
    let wait = Some(Duration::from_millis(500));
    tls.sock.set_write_timeout(wait).unwrap();
    let mut taken = 0;
    while taken < most {
        if tls.conn.writer().write_all(bytes).is_err() {
            break;
        }
        while tls.conn.wants_write() {
            if tls.conn.write_tls(&mut tls.sock).is_err() {
                return taken;
            }
        }
        taken += bytes.len();
    }
    taken
}

/// Noise that is the same in each run (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[3]).collect()
    }

    /// A few bytes changed, and sometimes cut.
    fn spoiled(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for _ in 0..1 + self.next() % 4 {
            let place = usize::try_from(self.next()).unwrap() % bytes.len();
            bytes[place] = self.next().to_le_bytes()[3];
        }
        if self.next().is_multiple_of(3) {
            bytes.truncate(1 + usize::try_from(self.next()).unwrap() % good.len());
        }
        bytes
    }
}

#[test]
fn a_client_that_is_refused_without_end_fills_no_disk_and_nothing_is_left_out() {
    const REFUSED: u64 = 400;
    let mut scene = Scene::new("");
    let bad = scene.daemon.add_client("bad", &json!({}));
    let garbage = json!({ "challenge": "garbage" });
    for turn in 0..REFUSED {
        // By the pipeline, and before it.
        let (method, path, body, code) = if turn % 2 == 0 {
            let path = "/v1/approvals";
            (Method::POST, path, &garbage, "challenge-malformed")
        } else {
            let path = "/v1/clients/honest";
            (Method::DELETE, path, &Value::Null, "not-permitted")
        };
        assert_eq!(scene.daemon.native(&bad, method, path, body).code(), code);
    }
    let other = scene
        .daemon
        .native(&scene.honest, Method::POST, "/v1/approvals", &garbage);
    assert_eq!(other.body["code"], "challenge-malformed");
    scene.honest_client_is_served();
    assert_eq!(scene.daemon.stop(), 0);

    let (mut one_by_one, mut summed_up, mut others) = (0, 0, 0);
    for record in opcert::audit::read::all(&scene.daemon.audit_directory()).unwrap() {
        let record = record.unwrap();
        let body: Value = serde_json::from_str(record.body.get()).unwrap();
        match (record.kind.as_str(), body["caller"].as_str()) {
            ("approval-refused" | "request-refused", Some("client:bad")) => one_by_one += 1,
            ("more-refusals", Some("client:bad")) => {
                let codes = body["codes"].as_object().unwrap();
                let sum: u64 = codes.values().map(|count| count.as_u64().unwrap()).sum();
                assert_eq!(body["count"].as_u64(), Some(sum));
                assert!(codes["challenge-malformed"].as_u64() > Some(0));
                assert!(codes["not-permitted"].as_u64() > Some(0));
                summed_up += sum;
            }
            ("approval-refused", Some("client:honest")) => {
                let request = record.request.unwrap();
                assert_eq!(other.body["request_id"], request.as_str());
                others += 1;
            }
            _ => {}
        }
    }
    assert_eq!(one_by_one + summed_up, REFUSED);
    // 60, and 10 for each minute that it took.
    assert!((60..200).contains(&one_by_one), "{one_by_one}");
    assert_eq!(others, 1);
}
