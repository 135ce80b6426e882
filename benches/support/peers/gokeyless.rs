//! Cloudflare's `gokeyless`: mutual TLS, many requests to a connection; here one at a time.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use opcert::base::encoding::sha256;
use opcert::base::key::{KeySpec, PublicKey, Scheme, Signature};
use rustls::{ClientConnection, StreamOwned};

use super::{Missing, Peer, Server, Signer, program};
use crate::scene::Scene;

// Tags and opcodes of its protocol.
const TAG_SKI: u8 = 0x04;
const TAG_OPCODE: u8 = 0x11;
const TAG_PAYLOAD: u8 = 0x12;
const RSA_SIGN_SHA256: u8 = 0x05;
const ECDSA_SIGN_SHA256: u8 = 0x15;
const RESPONSE: u8 = 0xF0;

struct Gokeyless {
    server: Server,
    port: u16,
    config: Arc<rustls::ClientConfig>,
    keys: Vec<(KeySpec, PublicKey)>,
}

struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    spec: KeySpec,
    ski: Vec<u8>,
}

pub fn start(scene: &Scene) -> Result<Box<dyn Peer>, Missing> {
    let program = program(
        "gokeyless",
        "github.com/cloudflare/gokeyless built with -tags pkcs11",
    )?;
    let (port, metrics) = (free_port(), free_port());
    let mut server = Server::start(|directory| {
        let config = directory.join("gokeyless.yaml");
        std::fs::write(&config, config_yaml(scene, directory, port, metrics)).unwrap();
        let mut command = Command::new(program);
        command.arg("--config-file").arg(config);
        command
    });
    server.wait(|| TcpStream::connect(("127.0.0.1", port)));
    let keys = scene
        .specs()
        .map(|spec| (spec, scene.public_key(spec).clone()));
    Ok(Box::new(Gokeyless {
        keys: keys.collect(),
        server,
        port,
        config: Arc::new(scene.client_config()),
    }))
}

/// The daemon's own authority vouches for both ends.
fn config_yaml(scene: &Scene, directory: &Path, port: u16, metrics: u16) -> String {
    let ca = scene.state_directory().join("local-ca");
    let mut text = format!(
        "loglevel: 4\nport: {port}\nmetrics_port: {metrics}\nauth_cert: {ca}/server.pem\n\
         auth_key: {ca}/server-key.pem\ncloudflare_ca_cert: {ca}/ca.pem\nauth_csr: {}/csr.pem\n\
         private_key_stores:\n",
        directory.display(),
        ca = ca.display(),
    );
    for spec in scene.specs() {
        let id: String = scene
            .key_id(spec)
            .iter()
            .map(|byte| format!("%{byte:02x}"))
            .collect();
        text.push_str(&format!(
            "  - uri: \"pkcs11:token={};id={id}?module-path={}&pin-value={}\"\n",
            scene.token_label(),
            scene.module_path().display(),
            scene.pin(),
        ));
    }
    text
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Peer for Gokeyless {
    fn name(&self) -> &'static str {
        "gokeyless"
    }

    fn server(&self) -> &Server {
        &self.server
    }

    fn signers(&self, spec: KeySpec, count: usize) -> Vec<Box<dyn Signer>> {
        let public = self.public_key(spec);
        let signer = |_| -> Box<dyn Signer> {
            let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
            stream.set_nodelay(true).unwrap();
            let name = "localhost".try_into().unwrap();
            let session = ClientConnection::new(self.config.clone(), name).unwrap();
            Box::new(Connection {
                stream: StreamOwned::new(session, stream),
                spec,
                ski: key_identifier(&public),
            })
        };
        (0..count).map(signer).collect()
    }

    fn public_key(&self, spec: KeySpec) -> PublicKey {
        let found = self.keys.iter().find(|(of, _)| *of == spec);
        found.unwrap().1.clone()
    }
}

impl Signer for Connection {
    fn sign(&mut self, message: &[u8]) -> Signature {
        let opcode = match self.spec {
            KeySpec::Rsa2048 => RSA_SIGN_SHA256,
            _ => ECDSA_SIGN_SHA256,
        };
        let mut body = item(TAG_OPCODE, &[opcode]);
        body.extend(item(TAG_PAYLOAD, &sha256(message)));
        body.extend(item(TAG_SKI, &self.ski));
        // Version 1.0, length, a number to tell answers apart.
        let mut request = vec![1, 0];
        request.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        request.extend(1_u32.to_be_bytes());
        request.extend(body);
        self.stream.write_all(&request).unwrap();
        self.stream.flush().unwrap();
        let mut header = [0; 8];
        self.stream.read_exact(&mut header).unwrap();
        let mut answer = vec![0; usize::from(u16::from_be_bytes([header[2], header[3]]))];
        self.stream.read_exact(&mut answer).unwrap();
        assert_eq!(find(&answer, TAG_OPCODE), [RESPONSE], "{answer:02x?}");
        let raw = find(&answer, TAG_PAYLOAD);
        match self.spec {
            KeySpec::Rsa2048 => Signature::from_jose(raw.to_vec()),
            _ => Signature::from_x509(Scheme::Es256, raw).unwrap(),
        }
    }
}

/// SHA-1 of the public key's bits (RFC 5280 section 4.2.1.2), the last field of what is certified.
fn key_identifier(key: &PublicKey) -> Vec<u8> {
    use der::Decode;
    let info = spki::SubjectPublicKeyInfoRef::from_der(key.spki()).unwrap();
    let bits = info.subject_public_key.raw_bytes();
    let algorithm = &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY;
    aws_lc_rs::digest::digest(algorithm, bits).as_ref().to_vec()
}

fn item(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[tag], length.as_slice(), bytes].concat()
}

fn find(mut items: &[u8], wanted: u8) -> &[u8] {
    while let [tag, high, low, rest @ ..] = items {
        let (bytes, rest) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        if *tag == wanted {
            return bytes;
        }
        items = rest;
    }
    panic!("gokeyless's answer has no item {wanted:#04x}");
}
