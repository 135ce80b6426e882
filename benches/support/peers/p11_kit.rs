//! `p11-kit server`: the token over a Unix socket, the module of its clients `p11-kit-client.so`.
//!
//! The server forks for each connection, and a loaded client module is one connection on which
//! calls wait for each other. So up to eight copies of the module are loaded; more in flight than
//! that share them.

use std::path::Path;
use std::process::Command;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use opcert::base::encoding::sha256;
use opcert::base::key::{KeySpec, PublicKey, Signature};

use super::{Missing, Peer, Server, Signer, program};
use crate::scene::Scene;

const CONNECTIONS: usize = 8;

/// Where Debian and Fedora put it.
const CLIENT: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so",
    "/usr/lib64/pkcs11/p11-kit-client.so",
];

struct P11Kit {
    // Before the server: its connections end first.
    modules: Vec<Pkcs11>,
    server: Server,
    keys: Vec<(KeySpec, Vec<u8>, PublicKey)>,
}

struct Key {
    session: Session,
    key: ObjectHandle,
    spec: KeySpec,
}

pub fn start(scene: &Scene) -> Result<Box<dyn Peer>, Missing> {
    let program = program("p11-kit", "p11-kit")?;
    let client = CLIENT.iter().map(Path::new).find(|path| path.is_file());
    let client = client.ok_or(Missing {
        what: "p11-kit-client.so",
        package: "p11-kit-modules",
    })?;
    let mut server = Server::start(|directory| {
        let mut command = Command::new(program);
        command
            .args(["server", "--foreground", "--provider"])
            .arg(scene.module_path())
            .arg("--name")
            .arg(directory.join("socket"))
            .arg(format!("pkcs11:token={}", scene.token_label()));
        command
    });
    let socket = server.directory().join("socket");
    server.wait(|| std::fs::metadata(&socket));
    // SAFETY: no other thread runs yet; the daemon's runtime is single-threaded.
    unsafe {
        let address = format!("unix:path={}", socket.display());
        std::env::set_var("P11_KIT_SERVER_ADDRESS", address);
    }
    let modules: Vec<Pkcs11> = (0..CONNECTIONS)
        .map(|number| {
            let copy = server.directory().join(format!("client-{number}.so"));
            std::fs::copy(client, &copy).unwrap();
            let module = Pkcs11::new(copy).unwrap();
            let flags = CInitializeFlags::OS_LOCKING_OK;
            module.initialize(CInitializeArgs::new(flags)).unwrap();
            let slot = module.get_slots_with_token().unwrap()[0];
            let session = module.open_ro_session(slot).unwrap();
            let pin = AuthPin::from(scene.pin().to_owned());
            session.login(UserType::User, Some(&pin)).unwrap();
            // Open as long as the process: the last session's end would log out.
            std::mem::forget(session);
            module
        })
        .collect();
    let keys = scene.specs().map(|spec| {
        let public = scene.public_key(spec).clone();
        (spec, scene.key_id(spec), public)
    });
    Ok(Box::new(P11Kit {
        keys: keys.collect(),
        server,
        modules,
    }))
}

impl P11Kit {
    fn key(&self, spec: KeySpec) -> &(KeySpec, Vec<u8>, PublicKey) {
        self.keys.iter().find(|(of, ..)| *of == spec).unwrap()
    }
}

impl Peer for P11Kit {
    fn name(&self) -> &'static str {
        "p11-kit"
    }

    fn server(&self) -> &Server {
        &self.server
    }

    fn signers(&self, spec: KeySpec, count: usize) -> Vec<Box<dyn Signer>> {
        let signer = |module: &Pkcs11| -> Box<dyn Signer> {
            let slot = module.get_slots_with_token().unwrap()[0];
            let session = module.open_ro_session(slot).unwrap();
            let wanted = [
                Attribute::Class(ObjectClass::PRIVATE_KEY),
                Attribute::Id(self.key(spec).1.clone()),
            ];
            let key = session.find_objects(&wanted).unwrap()[0];
            Box::new(Key { session, key, spec })
        };
        let modules = self.modules.iter().cycle().take(count);
        modules.map(signer).collect()
    }

    fn public_key(&self, spec: KeySpec) -> PublicKey {
        self.key(spec).2.clone()
    }
}

impl Signer for Key {
    fn sign(&mut self, message: &[u8]) -> Signature {
        let digest = sha256(message);
        let raw = match self.spec {
            KeySpec::Rsa2048 => {
                let info = [crate::bare::SHA256_INFO.as_slice(), &digest].concat();
                self.session.sign(&Mechanism::RsaPkcs, self.key, &info)
            }
            _ => self.session.sign(&Mechanism::Ecdsa, self.key, &digest),
        };
        Signature::from_jose(raw.unwrap())
    }
}
