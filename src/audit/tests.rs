//! Logs that are written line by line, with checkpoints of a key in memory.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tempfile::TempDir;

use super::checkpoint::{Checkpoint, Claims, InvalidCheckpoint, KIND};
use super::directory::{HEAD, head_line, segment_path};
use super::merkle::Frontier;
use super::proof::{InvalidProof, Proof, prove};
use super::record::write_line;
use super::verify::{VerifyError, verify};
use super::*;
use crate::base::jose::{self, Jwk, KidHeader};
use crate::base::key::Scheme;
use crate::base::x509::tests::SoftKey;

pub(crate) struct Log {
    directory: TempDir,
    segment: u64,
    newest: RecordRef,
    hashes: Vec<Hash>,
    key: SoftKey,
}

fn time(seq: u64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(i64::try_from(seq).unwrap())
}

fn sign(key: &SoftKey, claims: &Claims) -> Checkpoint {
    let jwk = Jwk::from_public_key(&key.public).unwrap();
    let header = KidHeader {
        typ: "opcert-checkpoint+jwt".into(),
        alg: Scheme::Es256,
        kid: jwk.kid.clone(),
    };
    let input = jose::signing_input(&header, &serde_json::to_vec(claims).unwrap()).unwrap();
    let signature = key.sign(input.as_bytes());
    Checkpoint {
        checkpoint: jose::compact(input, &signature),
        key: jwk,
    }
}

impl Log {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            segment: 1,
            newest: RecordRef::NONE,
            hashes: Vec::new(),
            key: SoftKey::new(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Appends a record, a second after the one before.
    pub(crate) fn add(
        &mut self,
        kind: &'static str,
        request: Option<&str>,
        body: &impl Serialize,
    ) -> u64 {
        let event = Event {
            kind,
            request: request.map(|id| id.parse().unwrap()),
            trace: None,
            body: serde_json::value::to_raw_value(body).unwrap(),
        };
        let path = segment_path(self.path(), self.segment);
        let mut text = std::fs::read(&path).unwrap_or_default();
        let at = time(self.newest.seq + 1);
        self.newest = write_line(&mut text, &self.newest, at, &event).unwrap();
        self.hashes.push(self.newest.hash);
        std::fs::write(path, text).unwrap();
        std::fs::write(self.path().join(HEAD), head_line(&self.newest)).unwrap();
        self.newest.seq
    }

    pub(crate) fn several(&mut self, count: usize) {
        for number in 0..count {
            self.add("test", None, &json!({ "number": number }));
        }
    }

    pub(crate) fn next_segment(&mut self) {
        self.segment = self.newest.seq + 1;
    }

    /// What a true checkpoint over these records says.
    pub(crate) fn claims(&self, first: u64, last: u64) -> Claims {
        let place = |seq: u64| usize::try_from(seq - 1).unwrap();
        let mut frontier = Frontier::default();
        for hash in &self.hashes[place(first)..=place(last)] {
            frontier.push(hash);
        }
        Claims {
            issuer: "desk-1".into(),
            time: "2026-01-02T03:04:05.678Z".into(),
            first,
            last,
            hash: self.hashes[place(last)],
            root: frontier.root().unwrap(),
        }
    }

    pub(crate) fn checkpoint(&mut self, claims: &Claims) -> u64 {
        let signed = sign(&self.key, claims);
        self.add(KIND, None, &signed)
    }

    fn thumbprint(&self) -> String {
        Jwk::from_public_key(&self.key.public).unwrap().kid
    }
}

#[test]
fn checkpoints_that_follow_each_other_are_counted() {
    let mut log = Log::new();
    log.several(3);
    log.checkpoint(&log.claims(1, 3));
    log.several(2);
    // Records may come between what is covered and the checkpoint.
    let claims = log.claims(4, 5);
    log.next_segment();
    log.checkpoint(&claims);
    log.several(1);
    let summary = verify(log.path()).unwrap();
    assert_eq!((summary.records, summary.segments), (8, 2));
    assert_eq!(summary.checkpoints, 2);
    let last = summary.checkpoint.unwrap();
    assert_eq!((last.last, last.key), (5, log.thumbprint()));
    assert_eq!(summary.first.unwrap().seq, 1);
    assert_eq!(summary.last.unwrap().hash, log.newest.hash);
    assert!(!summary.closed);
}

#[test]
fn a_checkpoint_that_does_not_fit_its_log_is_found() {
    type Change = fn(&Log, &mut Claims);
    let changes: [(Change, &str); 8] = [
        (|_, claims| claims.first = 5, "but 4 is due"),
        (|log, claims| *claims = log.claims(3, 6), "but 4 is due"),
        (|log, claims| *claims = log.claims(1, 6), "but 4 is due"),
        (|_, claims| claims.last = 7, "come after it"),
        (|log, claims| claims.hash = log.hashes[0], "other records"),
        (|log, claims| claims.root = log.hashes[0], "other records"),
        (|_, claims| claims.first = 7, "not a checkpoint"),
        (|_, claims| claims.first = 0, "not a checkpoint"),
    ];
    for (change, what) in changes {
        let mut log = Log::new();
        log.several(3);
        log.checkpoint(&log.claims(1, 3));
        log.several(2);
        let mut claims = log.claims(4, 6);
        change(&log, &mut claims);
        let at = log.checkpoint(&claims);
        let Err(VerifyError::Broken(broken)) = verify(log.path()) else {
            panic!("{what}: not found");
        };
        assert!(broken.what.contains(what), "{broken}");
        assert_eq!((broken.seq, broken.line), (Some(at), at));
    }
}

#[test]
fn a_checkpoint_is_signed_by_the_key_beside_it() {
    let mut log = Log::new();
    log.several(2);
    let claims = log.claims(1, 2);
    let good = sign(&log.key, &claims);
    assert_eq!(good.open(), Ok(claims.clone()));
    let one_record = log.claims(2, 2);
    assert_eq!(sign(&log.key, &one_record).open(), Ok(one_record));
    let stranger = sign(&SoftKey::new(), &claims);
    let named = |checkpoint: &str, key: &Jwk| Checkpoint {
        checkpoint: checkpoint.into(),
        key: key.clone(),
    };
    let swapped = named(&good.checkpoint, &stranger.key);
    assert_eq!(swapped.open(), Err(InvalidCheckpoint::Key));
    // It goes by the right thumbprint and is another key.
    let mut disguised = swapped;
    disguised.key.kid.clone_from(&good.key.kid);
    assert!(disguised.open().is_err());
    let (input, _) = good.checkpoint.rsplit_once('.').unwrap();
    let (_, signature) = stranger.checkpoint.rsplit_once('.').unwrap();
    let forged = named(&format!("{input}.{signature}"), &good.key);
    assert_eq!(forged.open(), Err(InvalidCheckpoint::Signature));
    for text in ["", "a.b.c", &good.checkpoint.replacen('.', "..", 1)] {
        assert_eq!(
            named(text, &good.key).open(),
            Err(InvalidCheckpoint::Malformed)
        );
    }
}

#[test]
fn a_proof_holds_for_its_record_its_place_and_its_key_only() {
    let mut log = Log::new();
    log.several(1);
    let first = log.add("approval", Some("wanted"), &json!({ "amount": 1 }));
    log.add("approval", Some("other"), &json!({}));
    log.checkpoint(&log.claims(1, 3));
    log.several(3);
    let second = log.add("done", Some("wanted"), &json!({}));
    let covered = log.claims(4, 8);
    // Between what is covered and its checkpoint.
    let late = log.add("late", Some("wanted"), &json!({}));
    log.checkpoint(&covered);

    let wanted = "wanted".parse().unwrap();
    let found = prove(log.path(), &wanted).unwrap();
    let key = log.thumbprint();
    let proven: Vec<(u64, u64)> = found
        .proofs
        .iter()
        .map(|proof| proof.check(&key).unwrap())
        .map(|proven| (proven.record.seq, proven.claims.last))
        .collect();
    assert_eq!(proven, [(first, 3), (second, 8)]);
    assert_eq!(found.uncovered, [late]);
    let nobody = prove(log.path(), &"nobody".parse().unwrap()).unwrap();
    assert!(nobody.proofs.is_empty() && nobody.uncovered.is_empty());

    let [one, two] = &found.proofs[..] else {
        panic!("{found:?}");
    };
    let wrong = |change: &dyn Fn(&mut Proof)| {
        let mut proof = one.clone();
        change(&mut proof);
        proof.check(&key).unwrap_err()
    };
    assert_eq!(
        one.check("another").unwrap_err(),
        InvalidProof::OtherKey { found: key.clone() }
    );
    assert_eq!(
        wrong(&|proof| proof.checkpoint = two.checkpoint.clone()),
        InvalidProof::NotCovered {
            seq: first,
            first: 4,
            last: 8
        }
    );
    assert_eq!(
        wrong(&|proof| proof.record = proof.record.replace("\"amount\":1", "\"amount\":2")),
        InvalidProof::Path
    );
    assert_eq!(
        wrong(&|proof| proof.record = proof.record.replace("\"seq\":2", "\"seq\":3")),
        InvalidProof::Path
    );
    assert_eq!(
        wrong(&|proof| proof.previous = two.previous),
        InvalidProof::Path
    );
    assert_eq!(wrong(&|proof| proof.path.truncate(1)), InvalidProof::Path);
    assert_eq!(
        wrong(&|proof| proof.record = "{}".into()),
        InvalidProof::Record
    );
    assert_eq!(wrong(&|proof| proof.record.push('x')), InvalidProof::Record);
}

#[test]
fn records_are_read_from_any_number_or_time_on_over_segments() {
    let mut log = Log::new();
    for _ in 0..3 {
        log.several(4);
        log.next_segment();
    }
    let seqs = |records: Result<read::Records, VerifyError>| -> Vec<u64> {
        records.unwrap().map(|one| one.unwrap().seq).collect()
    };
    let dir = log.path();
    let numbers = |range: std::ops::RangeInclusive<u64>| range.collect::<Vec<_>>();
    assert_eq!(seqs(read::all(dir)), numbers(1..=12));
    for from in 1..=12 {
        assert_eq!(seqs(read::from(dir, from)), numbers(from..=12));
        assert_eq!(seqs(read::since(dir, time(from))), numbers(from..=12));
        for last in from..=12 {
            assert_eq!(seqs(read::range(dir, from, last)), numbers(from..=last));
            assert_eq!(
                seqs(read::up_to(dir, time(from), last)),
                numbers(from..=last)
            );
        }
    }
    assert_eq!(seqs(read::from(dir, 13)), [0; 0]);

    // Only what was looked at is told of.
    let mut records = read::since(dir, time(7)).unwrap();
    assert_eq!(records.passed_over(), None);
    assert_eq!(records.next().unwrap().unwrap().seq, 7);
    assert_eq!(records.passed_over(), Some(time(6)));
}

#[test]
fn the_newest_record_of_a_kind_is_found_in_any_segment() {
    let mut log = Log::new();
    log.add("wanted", None, &json!({}));
    log.several(2);
    log.add("wanted", None, &json!({}));
    log.several(1);
    log.next_segment();
    log.several(4);
    let newest = |until| {
        let record = read::last_of_kind(log.path(), "wanted", until).unwrap();
        record.map(|record| record.seq)
    };
    assert_eq!(newest(u64::MAX), Some(4));
    assert_eq!(newest(4), Some(4));
    assert_eq!(newest(3), Some(1));
    let none = read::last_of_kind(log.path(), "unheard-of", u64::MAX).unwrap();
    assert!(none.is_none());
}

#[tokio::test]
async fn refusals_that_were_only_counted_are_on_record_when_the_log_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let (audit, _) = Audit::open(directory.path(), Config::default(), Clock::system()).unwrap();
    for number in 0..70 {
        let event = Event::new("refused", None, &json!({ "number": number })).unwrap();
        audit.refused("uid:7", "busy", event).unwrap();
    }
    audit.close().await.unwrap();
    let records: Vec<Record> = read::all(directory.path())
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let own = records.iter().filter(|record| record.kind == "refused");
    let sums: Vec<serde_json::Value> = records
        .iter()
        .filter(|record| record.kind == refusals::KIND)
        .map(|record| serde_json::from_str(record.body.get()).unwrap())
        .collect();
    let own = u64::try_from(own.count()).unwrap();
    assert!((60..70).contains(&own), "{own}");
    assert_eq!((sums.len(), &sums[0]["caller"]), (1, &json!("uid:7")));
    assert_eq!(sums[0]["count"], 70 - own);
    assert_eq!(records.last().unwrap().kind, CLOSED);
}

#[test]
fn a_head_that_names_another_record_is_found() {
    let mut log = Log::new();
    log.several(3);
    for (seq, hash) in [(3, log.hashes[1]), (2, log.hashes[2]), (0, log.hashes[0])] {
        let head = head_line(&RecordRef { seq, hash });
        std::fs::write(log.path().join(HEAD), head).unwrap();
        let Err(VerifyError::Broken(broken)) = verify(log.path()) else {
            panic!("{seq}: not found");
        };
        assert!(broken.what.contains("replaced"), "{broken}");
        let opened = Audit::open(log.path(), Config::default(), Clock::system());
        assert!(matches!(opened, Err(AuditError::Broken(_))), "{seq}");
    }
    let short = RecordRef {
        seq: 2,
        hash: log.hashes[1],
    };
    std::fs::write(log.path().join(HEAD), head_line(&short)).unwrap();
    assert_eq!(verify(log.path()).unwrap().beyond_head, 1);
}
