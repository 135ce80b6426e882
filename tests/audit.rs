//! The audit log on real files: what is acknowledged stays, what is changed is found.

use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use opcert::audit::verify::{Summary, VerifyError, verify};
use opcert::audit::{Audit, AuditError, BODY_LIMIT, Broken, Config, Event, Recovered, read};
use opcert::base::Clock;
use proptest::prelude::*;
use tempfile::TempDir;

mod support;
use support::wait::until;

/// Small segments, so that a few dozen records make several.
fn small() -> Config {
    Config {
        segment_bytes: 1500,
        ..Config::default()
    }
}

fn event(number: usize) -> Event {
    let body = serde_json::json!({ "number": number, "payee": "某商户 \"A\"\n" });
    Event::new("test", Some("request-1".parse().unwrap()), &body).unwrap()
}

fn open(dir: &Path) -> (Audit, Recovered) {
    Audit::open(dir, small(), Clock::system()).unwrap()
}

async fn write(audit: &Audit, count: usize) {
    let pending: Vec<_> = (0..count)
        .map(|number| audit.append(event(number)).unwrap())
        .collect();
    for pending in pending {
        pending.durable().await.unwrap();
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    paths.sort();
    paths
}

fn copy(from: &Path) -> TempDir {
    let to = private_directory();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.path().join(path.file_name().unwrap())).unwrap();
    }
    to
}

fn private_directory() -> TempDir {
    tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir()
        .unwrap()
}

fn broken(dir: &Path) -> Broken {
    match verify(dir) {
        Err(VerifyError::Broken(broken)) => broken,
        other => panic!("not found: {other:?}"),
    }
}

/// A closed log of several segments.
static SOUND: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = private_directory();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (audit, _) = open(dir.path());
        write(&audit, 30).await;
        audit.close().await.unwrap();
    });
    dir
});

/// All lines of the log, with their line breaks, by segment.
fn lines(dir: &Path) -> Vec<(PathBuf, Vec<Vec<u8>>)> {
    segments(dir)
        .into_iter()
        .map(|path| {
            let bytes = std::fs::read(&path).unwrap();
            let lines = bytes
                .split_inclusive(|byte| *byte == b'\n')
                .map(<[u8]>::to_vec)
                .collect();
            (path, lines)
        })
        .collect()
}

#[tokio::test]
async fn records_are_read_back_as_written_and_a_reopened_log_goes_on() {
    let dir = private_directory();
    let log = dir.path().join("state/audit");
    let (clock, hand) = Clock::manual("2026-01-02T03:04:05Z".parse().unwrap());
    let (audit, recovered) = Audit::open(&log, small(), clock.clone()).unwrap();
    assert_eq!((recovered.records, recovered.beyond_head), (0, 0));
    assert_eq!(verify(&log).unwrap().records, 0, "a log without a record");
    for number in 0..20 {
        audit
            .append(event(number))
            .unwrap()
            .durable()
            .await
            .unwrap();
        hand.advance(Duration::from_secs(1));
    }
    assert_eq!(audit.records(), 20);
    audit.close().await.unwrap();
    assert!(matches!(audit.append(event(0)), Err(AuditError::Closed)));
    assert!(matches!(audit.close().await, Err(AuditError::Closed)));

    let (audit, recovered) = Audit::open(&log, small(), clock).unwrap();
    assert_eq!((recovered.records, recovered.torn), (21, None));
    let next = audit.append(event(99)).unwrap().durable().await.unwrap();
    assert_eq!(next.seq, 22);

    let summary = verify(&log).unwrap();
    assert_eq!((summary.records, summary.beyond_head), (22, 0));
    assert_eq!(summary.last.unwrap().hash, next.hash);
    assert!(!summary.closed);
    assert!(summary.segments > 2);

    let records: Vec<_> = read::all(&log).unwrap().map(Result::unwrap).collect();
    assert_eq!(records.len(), 22);
    assert_eq!(records[3].seq, 4);
    assert_eq!(records[3].kind, "test");
    assert_eq!(records[3].time, "2026-01-02T03:04:08Z".parse().unwrap());
    assert_eq!(records[3].body.get(), event(3).body.get());
    assert_eq!(records[20].kind, "closed");

    let since: Timestamp = "2026-01-02T03:04:15Z".parse().unwrap();
    let recent: Vec<_> = read::since(&log, since)
        .unwrap()
        .map(|record| record.unwrap().seq)
        .collect();
    assert_eq!(recent, (11..=22).collect::<Vec<_>>());
    let recovered: Vec<_> = recovered
        .since(since)
        .unwrap()
        .map(|record| record.unwrap().seq)
        .collect();
    assert_eq!(recovered, (11..=21).collect::<Vec<_>>());

    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&log), 0o700);
    for name in ["head", "lock", "00000000000000000001.log"] {
        assert_eq!(mode(&log.join(name)), 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_second_writer_is_refused_until_the_first_is_gone() {
    let dir = private_directory();
    let (first, _) = open(dir.path());
    let second = Audit::open(dir.path(), small(), Clock::system());
    assert!(matches!(second, Err(AuditError::Locked { .. })));
    let clone = first.clone();
    drop(first);
    let pending = clone.append(event(1)).unwrap();
    drop(clone);
    assert_eq!(pending.durable().await.unwrap().seq, 1);
    until("the log is free", || {
        Audit::open(dir.path(), small(), Clock::system()).ok()
    });
}

#[tokio::test]
async fn limits_are_typed_errors_at_once() {
    let dir = private_directory();
    let config = Config {
        queue_records: 10,
        ..Config::default()
    };
    let (audit, _) = Audit::open(dir.path(), config, Clock::system()).unwrap();
    let large = "x".repeat(BODY_LIMIT - 2);
    let fits = Event::new("large", None, &large).unwrap();
    audit.append(fits).unwrap().durable().await.unwrap();
    let too_large = Event::new("large", None, &format!("{large}x")).unwrap();
    assert!(matches!(
        audit.append(too_large),
        Err(AuditError::TooLarge { .. })
    ));
    let kind = Event::new("no\"kind", None, &()).unwrap();
    assert!(matches!(audit.append(kind), Err(AuditError::Kind { .. })));

    let mut accepted = Vec::new();
    let full = (0..1_000_000).find_map(|number| match audit.append(event(number)) {
        Ok(pending) => {
            accepted.push(pending);
            None
        }
        Err(error) => Some(error),
    });
    assert!(
        matches!(full, Some(AuditError::Full { records: 10 })),
        "{full:?}"
    );
    let count = accepted.len() as u64;
    for pending in accepted {
        pending.durable().await.unwrap();
    }
    audit.close().await.unwrap();
    assert_eq!(verify(dir.path()).unwrap().records, 1 + count + 1);

    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o770)).unwrap();
    let open = Audit::open(dir.path(), small(), Clock::system());
    assert!(matches!(
        open,
        Err(AuditError::Permissions { mode: 0o770, .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_appenders_are_all_durable_and_in_order() {
    let dir = private_directory();
    let (audit, _) = open(dir.path());
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let audit = audit.clone();
            tokio::spawn(async move {
                let mut mine = Vec::new();
                for turn in 0..20 {
                    let event = Event::new("turn", None, &(task, turn)).unwrap();
                    mine.push(audit.append(event).unwrap().durable().await.unwrap().seq);
                }
                mine
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        let mine = task.await.unwrap();
        assert!(mine.is_sorted());
        all.extend(mine);
    }
    all.sort_unstable();
    assert_eq!(all, (1..=64 * 20).collect::<Vec<_>>());
    let summary = verify(dir.path()).unwrap();
    assert_eq!((summary.records, summary.beyond_head), (64 * 20, 0));
}

#[tokio::test]
async fn a_log_can_be_verified_while_it_is_written() {
    let dir = private_directory();
    let (audit, _) = open(dir.path());
    let path = dir.path().to_owned();
    let checker = std::thread::spawn(move || {
        let mut last = 0;
        while last < 3000 {
            let summary = verify(&path).unwrap();
            assert!(summary.records >= last);
            last = summary.records;
        }
    });
    while !checker.is_finished() {
        let _ = audit.append(event(1)).unwrap().durable().await.unwrap();
        write(&audit, 5).await;
    }
    checker.join().unwrap();
}

fn torn_at(dir: &Path, tail: &[u8]) -> Summary {
    let last = segments(dir).pop().unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(last).unwrap();
    file.write_all(tail).unwrap();
    verify(dir).unwrap()
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_complete_records_beyond_the_head_are_kept() {
    // The log two records ago is what a crash between write and head leaves.
    let dir = private_directory();
    let (audit, _) = open(dir.path());
    write(&audit, 30).await;
    let head = std::fs::read(dir.path().join("head")).unwrap();
    let next = format!("{{\"seq\":{}", 33);
    write(&audit, 2).await;
    drop(audit);
    std::fs::write(dir.path().join("head"), &head).unwrap();
    let dir = copy(dir.path());

    let tail = format!("{} {next}", "A".repeat(43));
    let summary = torn_at(dir.path(), tail.as_bytes());
    assert_eq!(summary.beyond_head, 2);
    assert_eq!(summary.torn, Some(tail.len() as u64));

    let (audit, recovered) = open(dir.path());
    assert_eq!(recovered.records, 32);
    assert_eq!(recovered.beyond_head, 2);
    assert_eq!(recovered.torn, Some(tail.len() as u64));
    assert_eq!(verify(dir.path()).unwrap().torn, None, "it was cut");
    write(&audit, 1).await;
    audit.close().await.unwrap();
    let summary = verify(dir.path()).unwrap();
    assert_eq!((summary.records, summary.torn), (34, None));
    assert!(summary.closed);
}

#[tokio::test]
async fn an_old_head_is_caught_up_across_segments_and_damage_beyond_it_is_found() {
    let dir = private_directory();
    let (audit, _) = open(dir.path());
    write(&audit, 3).await;
    let head = std::fs::read(dir.path().join("head")).unwrap();
    write(&audit, 30).await;
    audit.close().await.unwrap();
    std::fs::write(dir.path().join("head"), head).unwrap();
    assert_eq!(verify(dir.path()).unwrap().beyond_head, 31);

    let damaged = copy(dir.path());
    let (path, mut lines) = lines(damaged.path()).pop().unwrap();
    lines[0][60] ^= 1;
    std::fs::write(path, lines.concat()).unwrap();
    let error = Audit::open(damaged.path(), small(), Clock::system()).unwrap_err();
    assert!(matches!(error, AuditError::Broken(_)), "{error}");

    let before = segments(dir.path());
    let (audit, recovered) = open(dir.path());
    assert_eq!((recovered.records, recovered.beyond_head), (34, 31));
    assert_eq!(segments(dir.path()), before);
    let next = audit.append(event(1)).unwrap().durable().await.unwrap();
    assert_eq!(next.seq, 35);
    assert_eq!(verify(dir.path()).unwrap().beyond_head, 0);
}

#[test]
fn the_daemon_does_not_open_a_damaged_log() {
    let sound = SOUND.path();
    let refuses = |dir: &Path, what: &str| {
        let error = Audit::open(dir, small(), Clock::system()).unwrap_err();
        assert!(matches!(error, AuditError::Broken(_)), "{what}: {error}");
        assert!(verify(dir).is_err(), "{what}");
    };
    let dir = copy(sound);
    std::fs::remove_file(dir.path().join("head")).unwrap();
    refuses(dir.path(), "no head");

    let dir = copy(sound);
    let last = segments(dir.path()).pop().unwrap();
    let length = std::fs::metadata(&last).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(&last).unwrap();
    file.set_len(length - 1).unwrap();
    refuses(dir.path(), "cut");
    assert_eq!(
        std::fs::metadata(&last).unwrap().len(),
        length - 1,
        "left as found"
    );

    for garbage in ["some garbage", "garbage\n", "\n", &"x".repeat(200_000)] {
        let dir = copy(sound);
        let last = segments(dir.path()).pop().unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&last).unwrap();
        file.write_all_at(garbage.as_bytes(), std::fs::metadata(&last).unwrap().len())
            .unwrap();
        refuses(dir.path(), "garbage");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let dir = copy(SOUND.path());
    let all = segments(dir.path());
    assert!(all.len() >= 4, "{}", all.len());
    assert_eq!(verify(dir.path()).unwrap().records, 31);
    assert!(verify(dir.path()).unwrap().closed);

    std::fs::remove_file(&all[1]).unwrap();
    let fault = broken(dir.path());
    assert_eq!(fault.file, all[2]);
    assert!(fault.what.contains("missing"), "{fault}");

    let dir = copy(SOUND.path());
    let all = segments(dir.path());
    std::fs::remove_file(all.last().unwrap()).unwrap();
    assert!(broken(dir.path()).what.contains("cut off"));

    let dir = copy(SOUND.path());
    std::fs::remove_file(dir.path().join("head")).unwrap();
    assert!(broken(dir.path()).what.contains("head is missing"));

    let dir = copy(SOUND.path());
    let extra = dir.path().join("00000000000000000032.log");
    std::fs::write(&extra, "").unwrap();
    assert_eq!(
        verify(dir.path()).unwrap().records,
        31,
        "a crash in a rotation"
    );
    std::fs::rename(&extra, dir.path().join("00000000000000000033.log")).unwrap();
    assert!(broken(dir.path()).what.contains("extra"));

    let dir = copy(SOUND.path());
    std::fs::write(dir.path().join("copy of 1.log"), "").unwrap();
    assert!(broken(dir.path()).what.contains("name"));

    let dir = copy(SOUND.path());
    let (path, mut text) = (&segments(dir.path())[0], String::new());
    for line in std::fs::read_to_string(path).unwrap().lines() {
        text += &line.replacen("\"number\":2,", "\"number\":3,", 1);
        text.push('\n');
    }
    std::fs::write(path, text).unwrap();
    let fault = broken(dir.path());
    assert_eq!((fault.line, fault.seq), (3, Some(3)));
    assert!(
        fault
            .to_string()
            .contains("line 3, record 3: the hash does not fit"),
        "{fault}"
    );

    assert!(matches!(
        verify(Path::new("/nonexistent")),
        Err(VerifyError::Unreadable { .. })
    ));
}

#[derive(Debug, Clone)]
enum Damage {
    Flip {
        place: prop::sample::Index,
        with: u8,
    },
    FlipHead {
        place: prop::sample::Index,
        with: u8,
    },
    Drop(prop::sample::Index),
    Repeat(prop::sample::Index, prop::sample::Index),
    Swap(prop::sample::Index, prop::sample::Index),
    Cut(prop::sample::Index),
    DropSegment(prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (index(), 1u8..).prop_map(|(place, with)| Damage::Flip { place, with }),
        1 => (index(), 1u8..).prop_map(|(place, with)| Damage::FlipHead { place, with }),
        1 => index().prop_map(Damage::Drop),
        1 => (index(), index()).prop_map(|(what, to)| Damage::Repeat(what, to)),
        2 => (index(), index()).prop_map(|(one, other)| Damage::Swap(one, other)),
        3 => index().prop_map(Damage::Cut),
        1 => index().prop_map(Damage::DropSegment),
    ]
}

/// Applies the damage; false where it changed nothing.
fn apply(dir: &Path, damage: &Damage) -> bool {
    let mut log = lines(dir);
    let mut places: Vec<(usize, usize)> = Vec::new();
    for (segment, (_, lines)) in log.iter().enumerate() {
        places.extend((0..lines.len()).map(|line| (segment, line)));
    }
    match damage {
        Damage::Flip { place, with } => {
            let (segment, line) = *place.get(&places);
            let bytes = &mut log[segment].1[line];
            let at = place.index(bytes.len());
            bytes[at] ^= with;
        }
        Damage::FlipHead { place, with } => {
            let path = dir.join("head");
            let mut head = std::fs::read(&path).unwrap();
            let at = place.index(head.len());
            head[at] ^= with;
            std::fs::write(path, head).unwrap();
        }
        Damage::Drop(which) => {
            let (segment, line) = *which.get(&places);
            log[segment].1.remove(line);
        }
        Damage::Repeat(which, to) => {
            let (segment, line) = *which.get(&places);
            let repeated = log[segment].1[line].clone();
            let (segment, line) = *to.get(&places);
            log[segment].1.insert(line, repeated);
        }
        Damage::Swap(one, other) => {
            let (one, other) = (*one.get(&places), *other.get(&places));
            if one == other {
                return false;
            }
            let first = log[one.0].1[one.1].clone();
            let second = std::mem::replace(&mut log[other.0].1[other.1], first);
            log[one.0].1[one.1] = second;
        }
        Damage::Cut(at) => {
            let (segment, _) = *at.get(&places);
            let bytes = log[segment].1.concat();
            let kept = at.index(bytes.len());
            log[segment].1 = vec![bytes[..kept].to_vec()];
        }
        Damage::DropSegment(which) => {
            let (path, _) = log.remove(which.index(log.len()));
            std::fs::remove_file(path).unwrap();
        }
    }
    for (path, lines) in log {
        std::fs::write(path, lines.concat()).unwrap();
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
    #[test]
    fn any_damage_is_found(damage in damage()) {
        let dir = copy(SOUND.path());
        prop_assume!(apply(dir.path(), &damage));
        let found = verify(dir.path());
        prop_assert!(matches!(found, Err(VerifyError::Broken(_))), "{:?}", found);
    }
}

/// Not a test of its own: the child of the next one, which kills it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_appends_until_it_is_killed() {
    let Some(dir) = std::env::var_os("OPCERT_TEST_AUDIT_CHILD") else {
        return;
    };
    let (audit, _) = open(Path::new(&dir));
    for _ in 0..8 {
        let audit = audit.clone();
        tokio::spawn(async move {
            loop {
                let record = audit.append(event(1)).unwrap().durable().await.unwrap();
                // One call, past the capture of the test harness, so a kill cuts no line.
                let line = format!("ack {} {}\n", record.seq, record.hash);
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        });
    }
    std::future::pending::<()>().await;
}

#[test]
fn nothing_acknowledged_is_lost_when_the_writer_is_killed() {
    let dir = private_directory();
    let mut records = 0;
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "child_that_appends_until_it_is_killed",
                "--nocapture",
            ])
            .env("OPCERT_TEST_AUDIT_CHILD", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut acknowledged = Vec::new();
        for line in output.lines() {
            let line = line.unwrap();
            if let Some((_, ack)) = line.split_once("ack ")
                && let Some((seq, hash)) = ack.split_once(' ')
                && hash.len() == 43
            {
                acknowledged.push((seq.parse::<u64>().unwrap(), hash.to_owned()));
            }
            if acknowledged.len() == 200 + 37 * round {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();

        let summary = verify(dir.path()).unwrap();
        let log: Vec<u8> = lines(dir.path())
            .into_iter()
            .flat_map(|(_, lines)| lines.concat())
            .collect();
        let log = String::from_utf8(log).unwrap();
        for (seq, hash) in &acknowledged {
            assert!(
                log.contains(&format!("{hash} {{\"seq\":{seq},")),
                "record {seq} is lost"
            );
        }
        let (audit, recovered) = open(dir.path());
        assert_eq!(recovered.records, summary.records);
        assert!(recovered.records >= records + acknowledged.len() as u64);
        records = recovered.records;
        drop(audit);
        until("the log is free", || {
            Audit::open(dir.path(), small(), Clock::system()).ok()
        });
    }
}

/// Unmounts when dropped.
struct Mount(TempDir);

impl Mount {
    fn tiny() -> Result<Self, String> {
        let dir = private_directory();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs"])
            .arg(dir.path())
            .output()
            .map_err(|error| error.to_string())?;
        if status.status.success() {
            Ok(Self(dir))
        } else {
            Err(String::from_utf8_lossy(&status.stderr).into_owned())
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_every_record_and_the_log_goes_on_when_there_is_room() {
    let mount = match Mount::tiny() {
        Ok(mount) => mount,
        Err(reason) => {
            println!("skipped: cannot mount a small tmpfs: {reason}");
            return;
        }
    };
    let dir = mount.0.path().join("audit");
    let (audit, _) = Audit::open(&dir, Config::default(), Clock::system()).unwrap();
    let filler = mount.0.path().join("filler");
    std::fs::write(&filler, vec![0; 30_000]).unwrap();

    let mut durable = 0;
    let failure = loop {
        match audit.append(event(1)).unwrap().durable().await {
            Ok(record) => durable = record.seq,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(failure, AuditError::Unwritable { .. }),
        "{failure}"
    );
    assert!(matches!(
        audit.append(event(1)),
        Err(AuditError::Unwritable { .. })
    ));
    assert!(matches!(audit.ready(), Err(AuditError::Unwritable { .. })));
    let summary = verify(&dir).unwrap();
    assert_eq!(
        (summary.records, summary.beyond_head, summary.torn),
        (durable, 0, None)
    );

    std::fs::remove_file(&filler).unwrap();
    let pending = until("the disk is tried again", || audit.append(event(2)).ok());
    assert_eq!(pending.durable().await.unwrap().seq, durable + 1);
    audit.close().await.unwrap();
    let summary = verify(&dir).unwrap();
    assert_eq!(summary.records, durable + 2);
    assert!(summary.closed);
}
