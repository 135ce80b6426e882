//! An audit log and proofs from it, as they come to somebody who checks them.
//!
//! Each line of the input becomes a line of the log: a record under its right hash; after `!`, a
//! checkpoint with these claims, rightly signed; after `~`, bytes as they are. `/` begins the next
//! segment, at the record that the text names or else at the one that is due; `=` is the head.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use opcert::audit::checkpoint::Checkpoint;
use opcert::audit::proof::{self, Proof};
use opcert::audit::{read, verify};
use opcert::base::encoding::base64url;
use opcert::base::ids::RequestId;
use opcert::base::jose::Jwk;
use opcert::base::key::{Curve, PublicKey};
use serde_json::json;

static KEY: LazyLock<(EcdsaKeyPair, Jwk)> = LazyLock::new(|| {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let public = PublicKey::from_ec_point(Curve::P256, pair.public_key().as_ref()).unwrap();
    let jwk = Jwk::from_public_key(&public).unwrap();
    (pair, jwk)
});

static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    let directory = parent.join(format!("opcert-fuzz-audit-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    directory
});

fn checkpoint(claims: &[u8]) -> Checkpoint {
    let header = json!({"typ": "opcert-checkpoint+jwt", "alg": "ES256", "kid": KEY.1.kid});
    let header = base64url(header.to_string().as_bytes());
    let input = format!("{header}.{}", base64url(claims));
    let signature = KEY.0.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
    Checkpoint {
        checkpoint: format!("{input}.{}", base64url(signature.as_ref())),
        key: KEY.1.clone(),
    }
}

/// Writes the log; the files it has.
fn write(data: &[u8]) -> Vec<PathBuf> {
    let mut files: Vec<(String, Vec<u8>)> = vec![(format!("{:020}.log", 1), Vec::new())];
    let (mut previous, mut due) = ([0; 32], 1_u64);
    let mut head = None;
    for line in data.split(|byte| *byte == b'\n') {
        let body;
        let json = match line.split_first() {
            None => continue,
            Some((b'/', rest)) => {
                let named = std::str::from_utf8(rest)
                    .ok()
                    .and_then(|text| text.parse().ok());
                let first: u64 = named.unwrap_or(due);
                files.push((format!("{first:020}.log"), Vec::new()));
                continue;
            }
            Some((b'=', rest)) => {
                head = Some(rest.to_vec());
                continue;
            }
            Some((b'~', rest)) => {
                if let Some((_, contents)) = files.last_mut() {
                    contents.extend_from_slice(rest);
                }
                continue;
            }
            Some((b'!', rest)) => {
                body = json!({
                    "seq": due,
                    "time": "2026-01-01T00:00:00.000Z",
                    "kind": "checkpoint",
                    "body": checkpoint(rest),
                })
                .to_string();
                body.as_bytes()
            }
            Some(_) => line,
        };
        let mut context = Context::new(&SHA256);
        context.update(b"opcert-audit\0");
        context.update(&previous);
        context.update(json);
        previous.copy_from_slice(context.finish().as_ref());
        due += 1;
        if let Some((_, contents)) = files.last_mut() {
            contents.extend_from_slice(base64url(&previous).as_bytes());
            contents.push(b' ');
            contents.extend_from_slice(json);
            contents.push(b'\n');
        }
    }
    let head =
        head.unwrap_or_else(|| format!("{:020} {}\n", due - 1, base64url(&previous)).into_bytes());
    files.push(("head".into(), head));
    files
        .into_iter()
        .map(|(name, contents)| {
            let path = DIRECTORY.join(name);
            std::fs::write(&path, contents).unwrap();
            path
        })
        .collect()
}

fuzz_target!(|data: &[u8]| {
    if let Ok(proof) = serde_json::from_slice::<Proof>(data) {
        assert!(proof.check(&KEY.1.kid).is_err());
        let _ = proof.check(&proof.checkpoint.key.kid);
        let again = Proof {
            checkpoint: checkpoint(proof.checkpoint.checkpoint.as_bytes()),
            ..proof
        };
        let _ = again.check(&KEY.1.kid);
        return;
    }
    let files = write(data);
    let dir = &*DIRECTORY;
    let summary = verify::verify(dir);
    let records = read::all(dir).map(|records| records.collect::<Result<Vec<_>, _>>());
    let request: RequestId = "r".parse().unwrap();
    let proofs = proof::prove(dir, &request);
    for from in [2, u64::MAX] {
        let _ = read::from(dir, from).map(Iterator::count);
    }
    let time = Timestamp::from_second(1_800_000_000).unwrap();
    let _ = read::since(dir, time).map(Iterator::count);
    if let Ok(summary) = summary {
        let records = records.unwrap().unwrap();
        assert_eq!(records.len() as u64, summary.records);
        for proof in proofs.unwrap().proofs {
            assert!(proof.check(&KEY.1.kid).is_ok(), "{proof:?}");
        }
    }
    for path in files {
        // Two segments may have had one name.
        let _ = std::fs::remove_file(path);
    }
});
