//! The examples for people who write clients, run as they stand: in Rust here, with curl and
//! Python in tests/clients.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;

use jiff::Timestamp;
use opcert::api::local_ca::LocalCa;
use opcert::client::{CallError, Client, PATIENT, RequestApproval, Target, native_door};
use opcert::http::tls;
use opcert::statement::Approval;
use serde_json::json;
use support::daemon::{ClientIdentity, Daemon};
use support::service::{Service, withdrawal};
use support::softhsm::TestToken;

/// A daemon with a certificate for alice, and a program with its files.
struct Scene {
    daemon: Daemon,
    service: Service,
    token: TestToken,
}

impl Scene {
    fn new() -> Self {
        let token = TestToken::new("opcert-test");
        // Users of the control socket are asked by default; here a rule lets them go unasked.
        let policy = token.directory().join("policy");
        std::fs::create_dir(&policy).unwrap();
        let rule = policy.join("site.cedar");
        std::fs::write(
            &rule,
            "@id(\"local-users\")\n@reason(\"local users need nobody's consent here\")\n\
             permit (principal is User, action in Action::\"approve\", resource);\n",
        )
        .unwrap();
        std::fs::set_permissions(&rule, std::fs::Permissions::from_mode(0o600)).unwrap();
        let daemon = Daemon::start_with(
            &token,
            &format!("[policy]\ndirectory = \"{}\"\n", policy.display()),
        );
        let service = Service::new("https://pay.example");
        daemon.enrol(&service, "alice", "p256");
        let client = daemon.add_client("erp", &json!({ "consent": "none" }));
        let scene = Self {
            daemon,
            service,
            token,
        };
        scene.write(&client);
        scene
    }

    /// The files that `opcert client add` writes.
    fn write(&self, client: &ClientIdentity) {
        let folder = self.directory();
        std::fs::create_dir(&folder).unwrap();
        let key = der::pem::encode_string("PRIVATE KEY", der::pem::LineEnding::LF, &client.key);
        std::fs::write(folder.join("client.pem"), &client.certificate_pem).unwrap();
        std::fs::write(folder.join("client-key.pem"), key.unwrap()).unwrap();
        std::fs::write(folder.join("server-ca.pem"), &client.ca_pem).unwrap();
        let owner = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(folder.join("client-key.pem"), owner).unwrap();
    }

    fn directory(&self) -> std::path::PathBuf {
        self.token.directory().join("erp")
    }

    fn challenge(&self) -> String {
        self.service.challenge(&withdrawal("alice"), |_| ())
    }

    #[track_caller]
    fn check(&self, approval: &str, challenge: &str, client: &str) {
        let authorities = std::slice::from_ref(&self.service.ca);
        let approval = Approval::verify(approval, authorities, None, Timestamp::now()).unwrap();
        assert!(approval.is_for(challenge));
        assert_eq!(approval.client, client);
    }
}

fn example(name: &str, arguments: &[&str], input: &str) -> Output {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(name);
    let mut child = Command::new(path)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

#[test]
fn curl_and_python_get_approvals_by_both_doors() {
    let scene = Scene::new();
    let directory = scene.directory();
    let directory = directory.to_str().unwrap();
    let address = format!("localhost:{}", scene.daemon.address().port());
    let socket = scene.daemon.socket();
    let socket = socket.to_str().unwrap();
    let user = format!("uid:{}", rustix::process::geteuid().as_raw());
    for name in ["approve-curl", "approve.py"] {
        for (arguments, client) in [
            ([directory, &address], "client:erp"),
            (["--socket", socket], user.as_str()),
        ] {
            let challenge = scene.challenge();
            let output = example(name, &arguments, &challenge);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name} {arguments:?}: {said}");
            let approval = String::from_utf8(output.stdout).unwrap();
            scene.check(approval.trim(), &challenge, client);

            let output = example(name, &arguments, "no challenge");
            assert!(!output.status.success(), "{name}");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("challenge-malformed"), "{name}: {said}");
        }
    }
}

#[test]
fn rust_gets_approvals_by_both_doors() {
    let scene = Scene::new();
    let directory = scene.directory();
    let read = |name: &str| std::fs::read(directory.join(name)).unwrap();
    let native = native_door(
        scene.daemon.address(),
        &read("server-ca.pem"),
        &read("client.pem"),
        &read("client-key.pem"),
    )
    .unwrap();
    let socket = Target::Unix(scene.daemon.socket());
    let user = format!("uid:{}", rustix::process::geteuid().as_raw());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for (target, client) in [(native, "client:erp"), (socket, user.as_str())] {
        let challenge = scene.challenge();
        let approval = runtime.block_on(approve(&target, &challenge)).unwrap();
        scene.check(&approval, &challenge, client);
        match runtime.block_on(approve(&target, "no challenge")) {
            Err(CallError::Refused(problem)) => assert_eq!(problem.code, "challenge-malformed"),
            other => panic!("{other:?}"),
        }
    }
}

/// A program that took the daemon's port: it has a certificate for this host, of an authority of
/// its own. Gives what each of `visits` visitors sent it.
fn impostor(visits: usize) -> (SocketAddr, JoinHandle<Vec<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let heard = std::thread::spawn(move || {
        let directory = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let authority = LocalCa::open(directory.path(), now).unwrap();
        let settings = tls::public(authority.server_identity(now).unwrap()).unwrap();
        let visitors = listener.incoming().take(visits);
        visitors
            .map(|visitor| {
                let mut session = rustls::ServerConnection::new(settings.clone()).unwrap();
                let mut heard = Vec::new();
                // How it ends does not matter here.
                let _ = rustls::Stream::new(&mut session, &mut visitor.unwrap())
                    .read_to_end(&mut heard);
                heard
            })
            .collect()
    });
    (address, heard)
}

#[test]
fn a_program_in_the_daemons_place_is_not_believed() {
    let scene = Scene::new();
    let directory = scene.directory();
    let read = |name: &str| std::fs::read(directory.join(name)).unwrap();
    let (address, heard) = impostor(2);
    let target = native_door(
        address,
        &read("server-ca.pem"),
        &read("client.pem"),
        &read("client-key.pem"),
    )
    .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let refused = runtime.block_on(approve(&target, &scene.challenge()));
    assert!(
        matches!(refused, Err(CallError::Transport(_))),
        "{refused:?}"
    );

    let challenge = directory.join("challenge.jws");
    std::fs::write(&challenge, scene.challenge()).unwrap();
    let approve = |address: SocketAddr| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_opcert"));
        command.args(["approve", "--native", &address.to_string()]);
        for (option, file) in [
            ("--client-cert", "client.pem"),
            ("--client-key", "client-key.pem"),
            ("--server-ca", "server-ca.pem"),
            ("--challenge", "challenge.jws"),
            ("--out", "approval.jws"),
        ] {
            command.arg(option).arg(directory.join(file));
        }
        command.output().unwrap()
    };
    let output = approve(address);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("certificate"), "{said}");
    assert_eq!(heard.join().unwrap(), [Vec::<u8>::new(), Vec::new()]);

    // The daemon itself is.
    let output = approve(scene.daemon.address());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// The approval of a challenge. The same challenge again gives the same one.
async fn approve(target: &Target, challenge: &str) -> Result<String, CallError> {
    let mut daemon = Client::connect(target, PATIENT).await?;
    let request = RequestApproval {
        challenge: challenge.to_owned(),
        cms: false,
        payees: None,
    };
    let answer = daemon.approve(&request).await?;
    let again = daemon.approval(&answer.challenge_jti).await?;
    assert_eq!(again, answer, "it can be had again");
    Ok(answer.approval)
}
