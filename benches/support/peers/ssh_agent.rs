//! OpenSSH's `ssh-agent` with its PKCS#11 helper, by the agent's protocol
//! (draft-ietf-sshm-ssh-agent).

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use opcert::base::key::{KeySpec, PublicKey, Signature};

use super::{Missing, Peer, Server, Signer, program};
use crate::scene::Scene;

const SUCCESS: u8 = 6;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
const ADD_SMARTCARD_KEY: u8 = 20;

/// SSH_AGENT_RSA_SHA2_256.
const RSA_SHA2_256: u32 = 2;

struct SshAgent {
    server: Server,
    socket: PathBuf,
    keys: Vec<(KeySpec, PublicKey)>,
}

struct Agent {
    stream: UnixStream,
    blob: Vec<u8>,
    flags: u32,
}

pub fn start(scene: &Scene) -> Result<Box<dyn Peer>, Missing> {
    let program = program("ssh-agent", "openssh-client")?;
    let mut server = Server::start(|directory| {
        let mut command = Command::new(program);
        command.args(["-D", "-a"]).arg(directory.join("socket"));
        command
    });
    let socket = server.directory().join("socket");
    let mut stream = server.wait(|| UnixStream::connect(&socket));
    let module = scene.module_path().to_str().unwrap();
    let add = [string(module.as_bytes()), string(scene.pin().as_bytes())].concat();
    ask(&mut stream, ADD_SMARTCARD_KEY, &add, SUCCESS);
    let keys = scene
        .specs()
        .map(|spec| (spec, scene.public_key(spec).clone()));
    Ok(Box::new(SshAgent {
        keys: keys.collect(),
        server,
        socket,
    }))
}

impl Peer for SshAgent {
    fn name(&self) -> &'static str {
        "ssh-agent"
    }

    fn server(&self) -> &Server {
        &self.server
    }

    fn signers(&self, spec: KeySpec, count: usize) -> Vec<Box<dyn Signer>> {
        let (kind, flags) = match spec {
            KeySpec::Rsa2048 => ("ssh-rsa", RSA_SHA2_256),
            _ => ("ecdsa-sha2-nistp256", 0),
        };
        let blob = identity(&self.socket, kind);
        let signer = |_| -> Box<dyn Signer> {
            let stream = UnixStream::connect(&self.socket).unwrap();
            let blob = blob.clone();
            Box::new(Agent {
                stream,
                blob,
                flags,
            })
        };
        (0..count).map(signer).collect()
    }

    fn public_key(&self, spec: KeySpec) -> PublicKey {
        let found = self.keys.iter().find(|(of, _)| *of == spec);
        found.unwrap().1.clone()
    }
}

impl Signer for Agent {
    fn sign(&mut self, message: &[u8]) -> Signature {
        let flags = self.flags.to_be_bytes().to_vec();
        let request = [string(&self.blob), string(message), flags].concat();
        let answer = ask(&mut self.stream, SIGN_REQUEST, &request, SIGN_RESPONSE);
        let signature = &mut take(&mut answer.as_slice()).to_vec();
        let signature = &mut signature.as_slice();
        let kind = take(signature).to_vec();
        let mut raw = take(signature);
        if kind.starts_with(b"rsa") {
            return Signature::from_jose(raw.to_vec());
        }
        // Two signed numbers (RFC 5656 section 3.1.2).
        let mut jose = Vec::with_capacity(64);
        for _ in 0..2 {
            let number = take(&mut raw);
            let number = number.strip_prefix(&[0]).unwrap_or(number);
            jose.resize(jose.len() + 32 - number.len(), 0);
            jose.extend_from_slice(number);
        }
        Signature::from_jose(jose)
    }
}

/// The first key of `kind` that the agent has.
fn identity(socket: &Path, kind: &str) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).unwrap();
    let answer = ask(&mut stream, REQUEST_IDENTITIES, &[], IDENTITIES_ANSWER);
    let mut rest = &answer[4..];
    while !rest.is_empty() {
        let blob = take(&mut rest);
        take(&mut rest);
        if take(&mut { blob }) == kind.as_bytes() {
            return blob.to_vec();
        }
    }
    panic!("ssh-agent offers no {kind}");
}

/// Sends a message and returns what is behind the kind of its answer.
fn ask(stream: &mut UnixStream, kind: u8, body: &[u8], wanted: u8) -> Vec<u8> {
    let message = [&[kind], body].concat();
    stream.write_all(&string(&message)).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer.remove(0), wanted, "ssh-agent's answer to {kind}");
    answer
}

/// Bytes behind their length (RFC 4251 section 5).
fn string(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap();
    [&length.to_be_bytes(), bytes].concat()
}

/// The next such bytes.
fn take<'a>(from: &mut &'a [u8]) -> &'a [u8] {
    let (length, rest) = from.split_first_chunk::<4>().unwrap();
    let (bytes, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
    *from = rest;
    bytes
}
