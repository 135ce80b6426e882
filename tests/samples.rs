//! The published samples in `tests/samples`: challenges and approvals, good and bad, for verifiers
//! in other languages. This test holds them to what the manifest says; with
//! `OPCERT_REFRESH_SAMPLES=1` it writes them anew, with the same keys.

use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair,
};
use jiff::Timestamp;
use opcert::api::problem::code_of;
use opcert::base::encoding::{base64url, from_base64url};
use opcert::base::ids::Jti;
use opcert::base::jose::{Jwk, JwkSet, compact};
use opcert::base::key::{Curve, PublicKey, Scheme, Signature};
use opcert::base::x509::{
    Certificate, CertificateFields, DOCUMENT_SIGNING, Draft, OperatingIdentity, RemoteKey,
    certificate_builder, common_name,
};
use opcert::signing::SigningError;
use opcert::statement::{
    Approval, ApprovalDraft, ApprovalError, ApprovalHeader, Challenge, ChallengeClaims, Consent,
    ConsentMethod, Facts, Kind, NoKey, Payee, PayeeList, Payees, Statement,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use x509_cert::ext::pkix::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
};

/// The instant at which the samples are to be looked at: 2027-01-15T08:00:00Z.
const NOW: i64 = 1_800_000_000;

const ISSUER: &str = "https://pay.example";

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples")
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// One sample, as the manifest describes it.
#[derive(Debug, Serialize, Deserialize)]
struct Sample {
    /// Its file.
    file: String,
    /// `challenge` or `approval`.
    kind: String,
    /// The algorithm it is signed with.
    algorithm: String,
    /// Whether it has to be accepted.
    valid: bool,
    /// What is wrong with it, in a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
    /// The problem code of the daemon, for challenges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    /// What has to be checked to see the fault: `signature`, `certificate`, `claims` or `text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layer: Option<String>,
    /// The challenge it answers, for approvals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    challenge: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    /// The instant at which to look, Unix seconds.
    now: i64,
    /// The issuing service, and the audience of approvals.
    issuer: String,
    samples: Vec<Sample>,
}

enum Pair {
    Ecdsa(EcdsaKeyPair, Curve),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

struct Key {
    pair: Pair,
    public: PublicKey,
}

impl Key {
    fn read(name: &str) -> Self {
        let path = directory().join("keys").join(format!("{name}.pem"));
        let der = PrivatePkcs8KeyDer::from_pem_file(&path).unwrap();
        let pkcs8 = der.secret_pkcs8_der();
        let (pair, public) = match name {
            "rsa2048" => {
                let pair = RsaKeyPair::from_pkcs8(pkcs8).unwrap();
                let public = PublicKey::from_pkcs1(pair.public_key().as_ref()).unwrap();
                (Pair::Rsa(pair), public)
            }
            "ed25519" => {
                let pair = Ed25519KeyPair::from_pkcs8(pkcs8).unwrap();
                let public = PublicKey::from_ed25519(pair.public_key().as_ref()).unwrap();
                (Pair::Ed25519(pair), public)
            }
            "p384" => {
                let pair =
                    EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, pkcs8).unwrap();
                let public =
                    PublicKey::from_ec_point(Curve::P384, pair.public_key().as_ref()).unwrap();
                (Pair::Ecdsa(pair, Curve::P384), public)
            }
            _ => {
                let pair =
                    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).unwrap();
                let public =
                    PublicKey::from_ec_point(Curve::P256, pair.public_key().as_ref()).unwrap();
                (Pair::Ecdsa(pair, Curve::P256), public)
            }
        };
        Self { pair, public }
    }

    fn sign(&self, scheme: Scheme, message: &[u8]) -> Signature {
        let random = SystemRandom::new();
        let rsa = |pair: &RsaKeyPair, padding: &'static dyn RsaEncoding| {
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(padding, &random, message, &mut signature)
                .unwrap();
            signature
        };
        let bytes = match (&self.pair, scheme) {
            (Pair::Ecdsa(pair, Curve::P256), Scheme::Es256)
            | (Pair::Ecdsa(pair, Curve::P384), Scheme::Es384) => {
                pair.sign(&random, message).unwrap().as_ref().to_vec()
            }
            (Pair::Ed25519(pair), Scheme::EdDsa) => pair.sign(message).as_ref().to_vec(),
            (Pair::Rsa(pair), Scheme::Rs256) => rsa(pair, &RSA_PKCS1_SHA256),
            (Pair::Rsa(pair), Scheme::Ps256) => rsa(pair, &RSA_PSS_SHA256),
            _ => panic!("no such signature"),
        };
        Signature::from_jose(bytes)
    }
}

/// What the files are made with.
struct Scene {
    service: Key,
    authority: Certificate,
    authority_key: Key,
    identity: OperatingIdentity,
}

impl Scene {
    fn new() -> Self {
        let authority_key = Key::read("authority");
        let name = common_name("opcert sample authority").unwrap();
        let mut builder = certificate_builder(CertificateFields {
            issuer: name.clone(),
            issuer_key: authority_key.public.clone(),
            subject: name,
            subject_key: authority_key.public.clone(),
            not_before: at(NOW - 86_400 * 365),
            not_after: at(NOW + 86_400 * 365 * 10),
        })
        .unwrap();
        builder
            .add_extension(&BasicConstraints {
                ca: true,
                path_len_constraint: Some(0),
            })
            .unwrap();
        builder
            .add_extension(&KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign))
            .unwrap();
        let draft = Draft::new(builder, RemoteKey::new(authority_key.public.clone())).unwrap();
        let signature = authority_key.sign(Scheme::Es256, draft.to_sign());
        Self {
            service: Key::read("service"),
            authority: Certificate::from_der(&draft.assemble(&signature).unwrap()).unwrap(),
            authority_key,
            identity: OperatingIdentity {
                account: "acme".parse().unwrap(),
                operator: "alice".parse().unwrap(),
                computer: "sample-computer".parse().unwrap(),
            },
        }
    }

    fn kid(&self) -> String {
        Jwk::from_public_key(&self.service.public).unwrap().kid
    }

    fn certificate(&self, key: &Key, not_after: i64) -> Certificate {
        let mut builder = certificate_builder(CertificateFields {
            issuer: self.authority.subject().clone(),
            issuer_key: self.authority_key.public.clone(),
            subject: self.identity.subject().unwrap(),
            subject_key: key.public.clone(),
            not_before: at(NOW - 86_400 * 30),
            not_after: at(not_after),
        })
        .unwrap();
        builder
            .add_extension(&KeyUsage(
                KeyUsages::DigitalSignature | KeyUsages::NonRepudiation,
            ))
            .unwrap();
        builder
            .add_extension(&ExtendedKeyUsage(vec![
                DOCUMENT_SIGNING,
                const_oid::db::rfc5280::ID_KP_EMAIL_PROTECTION,
            ]))
            .unwrap();
        builder
            .add_extension(&SubjectAltName(vec![
                self.identity.alternative_name().unwrap(),
            ]))
            .unwrap();
        let signer = RemoteKey::new(self.authority_key.public.clone());
        let draft = Draft::new(builder, signer).unwrap();
        let signature = self.authority_key.sign(Scheme::Es256, draft.to_sign());
        Certificate::from_der(&draft.assemble(&signature).unwrap()).unwrap()
    }

    fn claims(&self, statement: &Statement) -> Value {
        let issuer = ISSUER.parse().unwrap();
        let claims = ChallengeClaims::new(issuer, statement, None, at(NOW - 10), 120);
        serde_json::to_value(claims).unwrap()
    }

    /// A challenge with these claims, as text so that anything can be in it.
    fn challenge(&self, payload: &str, header: Value, key: &Key) -> String {
        let header = base64url(header.to_string().as_bytes());
        let input = format!("{header}.{}", base64url(payload.as_bytes()));
        let signature = key.sign(Scheme::Es256, input.as_bytes());
        compact(input, &signature)
    }

    fn header(&self) -> Value {
        json!({ "typ": "opcert-challenge+jwt", "alg": "ES256", "kid": self.kid() })
    }

    fn good(&self, statement: &Statement) -> String {
        let claims = self.claims(statement).to_string();
        self.challenge(&claims, self.header(), &self.service)
    }
}

fn payees() -> Vec<Payee> {
    [("张三", 18_800), ("李四", 18_800), ("Zoë Müller", 8_800)]
        .map(|(payee, amount)| Payee {
            payee: payee.into(),
            amount,
        })
        .into()
}

/// A statement of each kind, and a batch.
fn statements() -> Vec<(String, Statement)> {
    use opcert::statement::kinds::Presence;
    let make = |kind: Kind, facts| {
        let (account, operator) = ("acme".parse().unwrap(), "alice".parse().unwrap());
        Statement::new(kind, account, operator, facts).unwrap()
    };
    let mut all: Vec<(String, Statement)> = Kind::all()
        .map(|kind| {
            let has = |presence| presence != Presence::Forbidden;
            let facts = Facts {
                amount: has(kind.amount()).then(|| (100_000, "CNY".into())),
                payee: has(kind.payee()).then(|| "ICBC 6222 **** 1234".into()),
                count: has(kind.count()).then_some(10),
                reference: has(kind.reference()).then(|| "2027-0001".into()),
                memo: Some("新年快乐".into()),
                payees: None,
            };
            (kind.name().to_owned(), make(kind, facts))
        })
        .collect();
    let list = PayeeList::new(&payees(), "CNY").unwrap();
    let facts = Facts {
        amount: Some((list.sum(), "CNY".into())),
        payees: Some(list.digest().to_string()),
        count: i64::try_from(list.count()).ok(),
        reference: Some("2027-0002".into()),
        memo: Some("新年快乐".into()),
        payee: None,
    };
    all.push(("batch".into(), make("red-packet".parse().unwrap(), facts)));
    all
}

struct Writer(Vec<Sample>);

impl Writer {
    fn add(&mut self, text: &str, sample: Sample) {
        let path = directory().join(&sample.file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{text}\n")).unwrap();
        self.0.push(sample);
    }

    fn challenge(&mut self, name: &str, text: &str, fault: Option<(&str, &str)>) {
        let (code, layer) = fault.unzip();
        let kind = if fault.is_some() { "bad" } else { "good" };
        self.add(
            text,
            Sample {
                file: format!("challenges/{kind}/{name}.jws"),
                kind: "challenge".into(),
                algorithm: "ES256".into(),
                valid: fault.is_none(),
                fault: fault.map(|_| name.to_owned()),
                code: code.map(str::to_owned),
                layer: layer.map(str::to_owned),
                challenge: None,
            },
        );
    }

    fn approval(&mut self, algorithm: Scheme, name: &str, text: &str, layer: Option<&str>) {
        let kind = if layer.is_some() { "bad" } else { "good" };
        let algorithm = algorithm.as_str();
        self.add(
            text,
            Sample {
                file: format!("approvals/{kind}/{algorithm}-{name}.jws"),
                kind: "approval".into(),
                algorithm: algorithm.into(),
                valid: layer.is_none(),
                fault: layer.map(|_| name.to_owned()),
                code: None,
                layer: layer.map(str::to_owned),
                challenge: Some("challenges/good/withdrawal.jws".into()),
            },
        );
    }
}

/// A compact JWS with one bit of its signature changed.
fn other_signature(compact: &str) -> String {
    let (input, signature) = compact.rsplit_once('.').unwrap();
    let mut bytes = from_base64url(signature).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    format!("{input}.{}", base64url(&bytes))
}

/// A compact JWS of another amount, with the signature of the first.
fn other_amount(compact: &str) -> String {
    let parts: Vec<&str> = compact.split('.').collect();
    let payload = String::from_utf8(from_base64url(parts[1]).unwrap()).unwrap();
    let changed = payload.replacen("\"amount\":100000", "\"amount\":900000", 1);
    assert_ne!(payload, changed);
    let payload = base64url(changed.as_bytes());
    format!("{}.{payload}.{}", parts[0], parts[2])
}

fn write_all() {
    let scene = Scene::new();
    for folder in ["challenges", "approvals"] {
        let _ = std::fs::remove_dir_all(directory().join(folder));
    }
    let put = |name: &str, text: String| std::fs::write(directory().join(name), text).unwrap();
    put("ca.pem", scene.authority.to_pem().unwrap());
    let keys = JwkSet {
        keys: vec![Jwk::from_public_key(&scene.service.public).unwrap()],
    };
    put(
        "jwks.json",
        serde_json::to_string_pretty(&keys).unwrap() + "\n",
    );
    put(
        "payees.json",
        serde_json::to_string_pretty(&payees()).unwrap() + "\n",
    );
    let mut writer = Writer(Vec::new());
    let mut withdrawal = None;
    for (name, statement) in statements() {
        let challenge = scene.good(&statement);
        writer.challenge(&name, &challenge, None);
        if name == "withdrawal" {
            withdrawal = Some((statement, challenge));
        }
    }
    let (statement, challenge) = withdrawal.unwrap();
    bad_challenges(&scene, &mut writer, &statement, &challenge);
    for scheme in [
        Scheme::Rs256,
        Scheme::Ps256,
        Scheme::Es256,
        Scheme::Es384,
        Scheme::EdDsa,
    ] {
        approvals(&scene, &mut writer, scheme, &challenge);
    }
    let manifest = Manifest {
        now: NOW,
        issuer: ISSUER.into(),
        samples: writer.0,
    };
    put(
        "manifest.json",
        serde_json::to_string_pretty(&manifest).unwrap() + "\n",
    );
}

fn bad_challenges(scene: &Scene, writer: &mut Writer, statement: &Statement, good: &str) {
    let service = &scene.service;
    let stranger = Key::read("stranger");
    let header = |change: fn(&mut Value)| {
        let mut header = scene.header();
        change(&mut header);
        let claims = scene.claims(statement).to_string();
        scene.challenge(&claims, header, service)
    };
    let mut bad = |name: &str, text: &str, code: &str, layer: &str| {
        writer.challenge(name, text, Some((code, layer)));
    };
    let signature = "challenge-signature";
    bad(
        "signature-changed",
        &other_signature(good),
        signature,
        "signature",
    );
    bad(
        "payload-changed",
        &other_amount(good),
        signature,
        "signature",
    );
    let claims = scene.claims(statement).to_string();
    let foreign = scene.challenge(&claims, scene.header(), &stranger);
    bad("other-key", &foreign, signature, "signature");
    let unknown = header(|header| header["kid"] = "unknown".into());
    bad(
        "unknown-key",
        &unknown,
        "challenge-key-unknown",
        "signature",
    );
    let malformed = "challenge-malformed";
    bad(
        "wrong-type",
        &header(|header| header["typ"] = "opcert-approval+jwt".into()),
        malformed,
        "signature",
    );
    bad(
        "no-algorithm",
        &header(|header| header["alg"] = "none".into()),
        malformed,
        "signature",
    );
    let own_key = header(|header| header["jwk"] = json!({ "kty": "EC" }));
    bad("brings-its-key", &own_key, malformed, "signature");

    let with = |change: fn(&mut Value)| {
        let mut claims = scene.claims(statement);
        change(&mut claims);
        scene.challenge(&claims.to_string(), scene.header(), service)
    };
    for (name, code, layer, change) in [
        (
            "expired",
            "challenge-expired",
            "claims",
            (|claims| {
                claims["iat"] = (NOW - 300).into();
                claims["exp"] = (NOW - 180).into();
            }) as fn(&mut Value),
        ),
        (
            "from-the-future",
            "challenge-not-yet-valid",
            "claims",
            |claims| {
                claims["iat"] = (NOW + 120).into();
                claims["exp"] = (NOW + 240).into();
            },
        ),
        ("lives-too-long", malformed, "claims", |claims| {
            claims["exp"] = (NOW + 3_600).into();
        }),
        ("wrong-audience", "challenge-audience", "claims", |claims| {
            claims["aud"] = "bank".into();
        }),
        (
            "wrong-issuer",
            "challenge-issuer-unknown",
            "claims",
            |claims| claims["iss"] = "https://pay.example.evil".into(),
        ),
        ("other-account", malformed, "claims", |claims| {
            claims["sub"] = "rival".into();
        }),
        ("no-id", malformed, "claims", |claims| {
            claims.as_object_mut().unwrap().remove("jti");
        }),
        ("unknown-claim", malformed, "claims", |claims| {
            claims["extra"] = 1.into();
        }),
        ("unknown-fact", "statement-invalid", "claims", |claims| {
            claims["statement"]["fee"] = 1.into();
        }),
        ("unknown-kind", "statement-invalid", "claims", |claims| {
            claims["statement"]["kind"] = "theft".into();
        }),
        ("no-payee", "statement-invalid", "claims", |claims| {
            claims["statement"].as_object_mut().unwrap().remove("payee");
        }),
        ("amount-zero", "statement-invalid", "claims", |claims| {
            claims["statement"]["amount"] = 0.into();
        }),
        ("amount-as-text", "statement-invalid", "claims", |claims| {
            claims["statement"]["amount"] = "100000".into();
        }),
        (
            "amount-too-large",
            "statement-invalid",
            "claims",
            |claims| {
                claims["statement"]["amount"] = 9_007_199_254_740_992_i64.into();
            },
        ),
        (
            "currency-unknown",
            "statement-invalid",
            "claims",
            |claims| {
                claims["statement"]["currency"] = "cny".into();
            },
        ),
        ("payee-bidi", "statement-invalid", "text", |claims| {
            claims["statement"]["payee"] = "Bank \u{202e}4321".into();
        }),
        ("payee-line-break", "statement-invalid", "text", |claims| {
            claims["statement"]["payee"] = "Bank\nAmount: CNY 1.00".into();
        }),
        ("payee-confusable", "statement-invalid", "text", |claims| {
            claims["statement"]["payee"] = "B\u{430}nk".into();
        }),
        ("payee-not-normal", "statement-invalid", "text", |claims| {
            claims["statement"]["payee"] = "Cafe\u{301}".into();
        }),
        ("memo-too-long", "statement-invalid", "text", |claims| {
            claims["statement"]["memo"] = "长".repeat(121).into();
        }),
    ] {
        bad(name, &with(change), code, layer);
    }
    // What a library that reads JSON loosely would not see.
    let text = scene.claims(statement).to_string();
    let mut loose = |name: &str, from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        let changed = text.replacen(from, to, 1);
        let challenge = scene.challenge(&changed, scene.header(), service);
        bad(name, &challenge, malformed, "claims");
    };
    loose(
        "claim-twice",
        "\"aud\":\"opcert\"",
        "\"aud\":\"bank\",\"aud\":\"opcert\"",
    );
    loose(
        "fact-twice",
        "\"amount\":100000",
        "\"amount\":1,\"amount\":100000",
    );
    loose(
        "amount-fraction",
        "\"amount\":100000",
        "\"amount\":100000.0",
    );
    loose("amount-exponent", "\"amount\":100000", "\"amount\":1e5");
}

fn approvals(scene: &Scene, writer: &mut Writer, scheme: Scheme, challenge: &str) {
    let key = Key::read(match scheme {
        Scheme::Rs256 | Scheme::Ps256 => "rsa2048",
        Scheme::Es256 => "p256",
        Scheme::Es384 => "p384",
        Scheme::EdDsa => "ed25519",
    });
    let leaf = scene.certificate(&key, NOW + 86_400 * 365);
    let opened = open(scene, challenge).unwrap();
    let consent = Consent {
        method: ConsentMethod::Pinentry,
        at: NOW,
    };
    let computer = &scene.identity.computer;
    let draft =
        ApprovalDraft::new(&opened, "client:till", None, computer, &consent, at(NOW)).unwrap();
    let sign = |draft: &ApprovalDraft, key: &Key, leaf: &Certificate| {
        let header = ApprovalHeader::new(scheme, std::slice::from_ref(leaf)).unwrap();
        let input = draft.signing_input(&header);
        let signature = key.sign(scheme, input.as_bytes());
        ApprovalDraft::assemble(input, &signature)
    };
    let good = sign(&draft, &key, &leaf);
    writer.approval(scheme, "approval", &good, None);

    let mut bad = |name: &str, text: &str, layer: &str| {
        writer.approval(scheme, name, text, Some(layer));
    };
    bad("signature-changed", &other_signature(&good), "signature");
    bad("payload-changed", &other_amount(&good), "signature");
    let expired = scene.certificate(&key, NOW - 86_400);
    bad(
        "certificate-expired",
        &sign(&draft, &key, &expired),
        "certificate",
    );
    let stranger = Scene {
        authority_key: Key::read("stranger"),
        ..Scene::new()
    };
    let unknown = stranger.certificate(&key, NOW + 86_400 * 365);
    bad(
        "unknown-authority",
        &sign(&draft, &key, &unknown),
        "certificate",
    );
    // Signed by the certified key, but the payload says something else than the challenge.
    let claims = |change: fn(&mut Value)| {
        let mut claims: Value = serde_json::from_slice(draft.payload()).unwrap();
        change(&mut claims);
        let payload = serde_json::to_vec(&claims).unwrap();
        ApprovalDraft::from_payload(Jti::random(), payload)
    };
    for (name, change) in [
        (
            "other-challenge",
            (|claims| claims["challenge"] = base64url(&[0; 32]).into()) as fn(&mut Value),
        ),
        ("other-statement", |claims| {
            claims["statement"]["amount"] = 1.into();
        }),
        ("other-computer", |claims| {
            claims["computer"] = "other".into()
        }),
        ("unknown-claim", |claims| claims["extra"] = 1.into()),
        ("no-consent", |claims| {
            claims.as_object_mut().unwrap().remove("consent");
        }),
    ] {
        bad(name, &sign(&claims(change), &key, &leaf), "claims");
    }
}

fn open(scene: &Scene, compact: &str) -> Result<Challenge, SigningError> {
    Challenge::open(compact, at(NOW), |issuer, kid| {
        if issuer.as_str() != ISSUER {
            Err(NoKey::Issuer)
        } else if kid == scene.kid() {
            Ok(scene.service.public.clone())
        } else {
            Err(NoKey::Key)
        }
    })
    .map_err(SigningError::Challenge)
}

fn read(name: &str) -> String {
    let path = directory().join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|_| panic!("{}", path.display()));
    text.trim_end().to_owned()
}

/// The layer in which an approval is refused.
fn refusal(authority: &Certificate, approval: &str, challenge: &str) -> Option<&'static str> {
    let anchors = std::slice::from_ref(authority);
    match Approval::verify(approval, anchors, None, at(NOW)) {
        Ok(approval) if !approval.is_for(challenge) => Some("claims"),
        Ok(approval) => {
            let asked = open(&Scene::new(), challenge).unwrap();
            (approval.statement != *asked.statement()).then_some("claims")
        }
        Err(ApprovalError::Jose(_) | ApprovalError::Claims(_) | ApprovalError::Identity { .. }) => {
            Some("claims")
        }
        Err(ApprovalError::Certificate(_)) => Some("certificate"),
        Err(ApprovalError::Thumbprint | ApprovalError::Signature(_)) => Some("signature"),
    }
}

#[test]
fn every_sample_is_what_the_manifest_says() {
    if std::env::var_os("OPCERT_REFRESH_SAMPLES").is_some() {
        write_all();
    }
    let scene = Scene::new();
    let manifest: Manifest = serde_json::from_str(&read("manifest.json")).unwrap();
    assert_eq!((manifest.now, &*manifest.issuer), (NOW, ISSUER));
    let authority = Certificate::from_pem(read("ca.pem").as_bytes()).unwrap();
    for sample in &manifest.samples {
        let text = read(&sample.file);
        match sample.kind.as_str() {
            "challenge" => {
                let code = open(&scene, &text).err().map(|error| code_of(&error));
                assert_eq!(code, sample.code.as_deref(), "{sample:?}");
            }
            _ => {
                let challenge = read(sample.challenge.as_deref().unwrap());
                let layer = refusal(&authority, &text, &challenge);
                assert_eq!(layer, sample.layer.as_deref(), "{sample:?}");
            }
        }
        assert_eq!(sample.valid, sample.layer.is_none());
    }
    // Nothing lies beside the manifest, and every algorithm and kind is there.
    let listed: Vec<&str> = manifest.samples.iter().map(|one| &*one.file).collect();
    for folder in [
        "challenges/good",
        "challenges/bad",
        "approvals/good",
        "approvals/bad",
    ] {
        for entry in std::fs::read_dir(directory().join(folder)).unwrap() {
            let name = format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap());
            assert!(listed.contains(&name.as_str()), "{name}");
        }
    }
    for algorithm in ["RS256", "PS256", "ES256", "ES384", "EdDSA"] {
        for valid in [true, false] {
            let there = |one: &Sample| {
                one.kind == "approval" && one.algorithm == algorithm && one.valid == valid
            };
            assert!(manifest.samples.iter().any(there), "{algorithm} {valid}");
        }
    }
    for kind in Kind::all() {
        let name = format!("challenges/good/{kind}.jws");
        assert!(
            listed.contains(&name.as_str()),
            "{name} is missing: run with OPCERT_REFRESH_SAMPLES=1"
        );
    }
}

#[test]
fn the_published_list_is_that_of_the_batch() {
    let list: Vec<Payee> = serde_json::from_str(&read("payees.json")).unwrap();
    let batch = open(&Scene::new(), &read("challenges/good/batch.jws")).unwrap();
    let payees = Payees::of(batch.statement(), Some(&list)).unwrap().unwrap();
    assert_eq!(payees.count(), list.len());
}
