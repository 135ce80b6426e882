//! `parsec-service` with its PKCS#11 provider, by its wire protocol 1.0: a connection a request.
//!
//! It signs only with keys that it made itself, so it makes one of each kind on the same token.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use opcert::base::encoding::sha256;
use opcert::base::key::{Curve, KeySpec, PublicKey, Signature};

use super::{Missing, Peer, Server, Signer, program};
use crate::scene::Scene;

// Opcodes.
const PING: u32 = 1;
const GENERATE_KEY: u32 = 2;
const SIGN_HASH: u32 = 4;
const EXPORT_PUBLIC_KEY: u32 = 7;

// Providers.
const CORE: u8 = 0;
const PKCS11: u8 = 2;

struct Parsec {
    server: Server,
    socket: PathBuf,
    keys: Vec<(KeySpec, PublicKey)>,
}

struct Requests {
    socket: PathBuf,
    spec: KeySpec,
}

pub fn start(scene: &Scene) -> Result<Box<dyn Peer>, Missing> {
    let program = program(
        "parsec",
        "the crate parsec-service with its feature pkcs11-provider",
    )?;
    let module = crate::bare::module(scene);
    let slot = crate::bare::slot(scene, module);
    let serial = module
        .get_token_info(slot)
        .unwrap()
        .serial_number()
        .to_owned();
    let mut server = Server::start(|directory| {
        let config = directory.join("config.toml");
        let text = format!(
            "[core_settings]\nlog_level = \"error\"\nallow_root = true\n\n\
             [listener]\nlistener_type = \"DomainSocket\"\ntimeout = 3000\nsocket_path = {:?}\n\n\
             [authenticator]\nauth_type = \"UnixPeerCredentials\"\n\n\
             [[key_manager]]\nname = \"keys\"\nmanager_type = \"SQLite\"\nsqlite_db_path = {:?}\n\n\
             [[provider]]\nprovider_type = \"Pkcs11\"\nkey_info_manager = \"keys\"\n\
             library_path = {:?}\nuser_pin = {:?}\nserial_number = {:?}\n",
            directory.join("socket"),
            directory.join("keys.sqlite"),
            scene.module_path(),
            scene.pin(),
            serial.trim(),
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(program);
        command.arg("--config").arg(config);
        command
    });
    let socket = server.directory().join("socket");
    server.wait(|| ask(&socket, CORE, PING, &[]));
    let keys = scene.specs().map(|spec| {
        let name = field(1, spec.as_str().as_bytes());
        let attributes = [kind(spec), policy(spec)].concat();
        let request = [name.clone(), field(2, &attributes)].concat();
        ask(&socket, PKCS11, GENERATE_KEY, &request).unwrap();
        let exported = ask(&socket, PKCS11, EXPORT_PUBLIC_KEY, &name).unwrap();
        let public = match spec {
            KeySpec::Rsa2048 => PublicKey::from_pkcs1(first(&exported)),
            _ => PublicKey::from_ec_point(Curve::P256, first(&exported)),
        };
        (spec, public.unwrap())
    });
    Ok(Box::new(Parsec {
        keys: keys.collect(),
        socket,
        server,
    }))
}

impl Peer for Parsec {
    fn name(&self) -> &'static str {
        "parsec"
    }

    fn server(&self) -> &Server {
        &self.server
    }

    fn signers(&self, spec: KeySpec, count: usize) -> Vec<Box<dyn Signer>> {
        let signer = |_| -> Box<dyn Signer> {
            let socket = self.socket.clone();
            Box::new(Requests { socket, spec })
        };
        (0..count).map(signer).collect()
    }

    fn public_key(&self, spec: KeySpec) -> PublicKey {
        let found = self.keys.iter().find(|(of, _)| *of == spec);
        found.unwrap().1.clone()
    }
}

impl Signer for Requests {
    fn sign(&mut self, message: &[u8]) -> Signature {
        let request = [
            field(1, self.spec.as_str().as_bytes()),
            field(2, &algorithm(self.spec)),
            field(3, &sha256(message)),
        ];
        let answer = ask(&self.socket, PKCS11, SIGN_HASH, &request.concat()).unwrap();
        Signature::from_jose(first(&answer).to_vec())
    }
}

/// Sends one operation and returns the body of the answer; the status of the service is the error.
fn ask(socket: &Path, provider: u8, opcode: u32, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let uid = rustix::process::geteuid().as_raw().to_le_bytes();
    let mut request = Vec::with_capacity(64 + body.len());
    request.extend_from_slice(&0x5EC0_A710_u32.to_le_bytes());
    request.extend_from_slice(&30_u16.to_le_bytes());
    // Version 1.0, flags, provider, session, bodies in Protobuf, Unix peer credentials.
    request.extend_from_slice(&[1, 0, 0, 0, provider]);
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(&[0, 0, 3]);
    request.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    request.extend_from_slice(&u16::try_from(uid.len()).unwrap().to_le_bytes());
    request.extend_from_slice(&opcode.to_le_bytes());
    // Status, reserved.
    request.extend_from_slice(&[0; 4]);
    request.extend_from_slice(body);
    request.extend_from_slice(&uid);
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(&request)?;
    let mut header = [0; 36];
    stream.read_exact(&mut header)?;
    let status = u16::from_le_bytes([header[32], header[33]]);
    if status != 0 {
        let text = format!("parsec answers operation {opcode} with status {status}");
        return Err(std::io::Error::other(text));
    }
    let length = u32::from_le_bytes([header[22], header[23], header[24], header[25]]);
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// `KeyAttributes`: kind and length.
fn kind(spec: KeySpec) -> Vec<u8> {
    let (kind, bits) = match spec {
        KeySpec::Rsa2048 => (field(10, &[]), 2048),
        // The family SECP R1.
        _ => (field(11, &number(1, 2)), 256),
    };
    [field(1, &kind), number(2, bits)].concat()
}

/// `KeyAttributes`: what the key may be used for.
fn policy(spec: KeySpec) -> Vec<u8> {
    let usage = [number(8, 1), number(9, 1)].concat();
    let algorithm = field(6, &algorithm(spec));
    field(3, &[field(1, &usage), field(2, &algorithm)].concat())
}

/// `AsymmetricSignature` with SHA-256.
fn algorithm(spec: KeySpec) -> Vec<u8> {
    let hash = field(1, &number(2, 7));
    match spec {
        KeySpec::Rsa2048 => field(1, &hash),
        _ => field(4, &hash),
    }
}

/// A Protobuf field of bytes, text or a message.
fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut encoded = vec![tag << 3 | 2];
    variable(&mut encoded, bytes.len());
    encoded.extend_from_slice(bytes);
    encoded
}

/// A Protobuf field of a number.
fn number(tag: u8, value: usize) -> Vec<u8> {
    let mut encoded = vec![tag << 3];
    variable(&mut encoded, value);
    encoded
}

fn variable(encoded: &mut Vec<u8>, mut value: usize) {
    while value > 0x7f {
        encoded.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    encoded.push(value as u8);
}

/// What the first field of a message, of bytes, holds.
fn first(message: &[u8]) -> &[u8] {
    assert_eq!(message[0], 1 << 3 | 2, "a field of bytes");
    let (mut length, mut at, mut shift) = (0, 1, 0);
    loop {
        length |= usize::from(message[at] & 0x7f) << shift;
        at += 1;
        if message[at - 1] & 0x80 == 0 {
            return &message[at..at + length];
        }
        shift += 7;
    }
}
