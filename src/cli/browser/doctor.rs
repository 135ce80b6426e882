//! `opcert browser doctor`: looks for what keeps pages from the daemon.
//!
//! It goes the way that a page's request goes, as far as it can without a browser: from the
//! browser's databases through the doors, with this user's own client certificate.

use http::Request;
use hyper::body::Bytes;

use super::nss::{self, AUTHORITY, CLIENT};
use super::places::Places;
use super::{Doors, Installed, PEM_LIMIT};
use crate::api::caller::PAGE_ORIGIN;
use crate::api::client::PATIENT;
use crate::api::problem::ProblemDocument;
use crate::base::sysexits::{EX_FAILED, EX_OK};
use crate::base::x509::Certificate;
use crate::cli::client::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};
use crate::cli::daemon::{self, Credentials, native_target};
use crate::cli::doctor::{Findings, Verdict, show};
use crate::cli::error::Error;
use crate::cli::input::read_file;
use crate::cli::output::Output;
use crate::cli::{Global, native_host};
use crate::http::client::{Client, Target};

const SET_UP: &str = "Run `opcert browser setup`.";

pub(super) async fn run(places: &Places, global: &Global, output: &Output) -> Result<u8, Error> {
    let mut findings = Findings::default();
    let doors = doors(global, &mut findings).await;
    let installed = Installed::read(places)?;
    if [CERTIFICATE_FILE, KEY_FILE, CA_FILE]
        .iter()
        .all(|file| places.file(file).exists())
    {
        databases(places, &mut findings);
        hosts(places, &installed, &mut findings);
        requests(places, &doors, &mut findings).await;
    } else {
        findings.fail("setup", "Nothing is set up for this user.", SET_UP);
    }
    policies(&installed, &mut findings);
    let failed = findings.count(Verdict::Fail);
    output.result(&findings, |output| show(&findings, output))?;
    Ok(if failed == 0 { EX_OK } else { EX_FAILED })
}

async fn doors(global: &Global, findings: &mut Findings) -> Doors {
    let status = match daemon::control(global).await {
        Ok(mut daemon) => daemon.status().await.map_err(Error::from),
        Err(error) => Err(error),
    };
    match status {
        Ok(status) => {
            let doors = Doors::of(&status);
            if doors.origins.is_empty() {
                findings.fail(
                    "browser door",
                    "It is shut: no origin is configured.",
                    "List the account service's origin under `[browser] origins` of \
                     opcertd.toml, and restart the daemon.",
                );
            } else {
                findings.ok(
                    "browser door",
                    format!(
                        "{} for pages of {}.",
                        match doors.browser_port {
                            Some(port) => format!("Open on port {port}"),
                            None => "Open to the extension only".into(),
                        },
                        doors.origins.join(", ")
                    ),
                );
            }
            doors
        }
        Err(error) => {
            findings.warn(
                "daemon",
                format!("Its control socket cannot be used: {}.", error.detail()),
                "Start the daemon, or run this as a user who may use the socket; what follows \
                 goes by the usual addresses.",
            );
            Doors::usual()
        }
    }
}

fn databases(places: &Places, findings: &mut Findings) {
    if let Err(error) = nss::need_tools() {
        return findings.error("tools", &error);
    }
    let databases = match places.databases() {
        Ok(databases) => databases,
        Err(error) => return findings.error("databases", &error),
    };
    for database in databases {
        for (name, file) in [(AUTHORITY, CA_FILE), (CLIENT, CERTIFICATE_FILE)] {
            let ours = read_file(&places.file(file), PEM_LIMIT)
                .ok()
                .and_then(|pem| Certificate::from_pem(&pem).ok());
            let theirs = database
                .certificate(name)
                .ok()
                .flatten()
                .and_then(|pem| Certificate::from_pem(&pem).ok());
            let what = format!("{}: {name}", database.what);
            match (ours, theirs) {
                (Some(ours), Some(theirs)) if ours.der() == theirs.der() => {
                    findings.ok(what, "It is there, and it is the daemon's.");
                }
                (_, Some(_)) => findings.fail(what, "It is an old one.", SET_UP),
                (_, None) => findings.fail(what, "It is not there.", SET_UP),
            }
        }
    }
}

fn hosts(places: &Places, installed: &Installed, findings: &mut Findings) {
    let script = places.file("native-host");
    for path in &installed.manifests {
        let named = read_file(path, PEM_LIMIT)
            .ok()
            .and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
        let what = format!("extension host {}", path.display());
        if named == Some(native_host::manifest(&script)) && script.exists() {
            findings.ok(what, "The extension finds it.");
        } else {
            findings.fail(what, "It is not as setup left it.", SET_UP);
        }
    }
}

/// One request by each way, as a page of the first origin would make it.
async fn requests(places: &Places, doors: &Doors, findings: &mut Findings) {
    let (certificate, key, ca) = (
        places.file(CERTIFICATE_FILE),
        places.file(KEY_FILE),
        places.file(CA_FILE),
    );
    let credentials = Credentials {
        certificate: &certificate,
        key: &key,
        ca: &ca,
    };
    let Some(origin) = doors.origins.first() else {
        return;
    };
    let target = |address: String| -> Result<Target, Error> {
        let address = address.parse().map_err(|_| Error::Answer {
            who: "the daemon",
            problem: format!("{address} is no address"),
        })?;
        native_target(address, &credentials)
    };
    let mut ways = vec![(
        "request by the extension",
        PAGE_ORIGIN,
        target(doors.native.clone()),
    )];
    if let Some(port) = doors.browser_port {
        let address = format!("127.0.0.1:{port}");
        ways.push(("request by a page", http::header::ORIGIN, target(address)));
    }
    for (what, header, target) in ways {
        let outcome = match target {
            Ok(target) => ask(&target, header, origin).await,
            Err(error) => Err((error.detail(), error.action())),
        };
        match outcome {
            Ok(()) => findings.ok(what, "The daemon answers it."),
            Err((detail, action)) => {
                findings.fail(what, format!("{}.", detail.trim_end_matches('.')), action);
            }
        }
    }
}

async fn ask(
    target: &Target,
    header: http::HeaderName,
    origin: &str,
) -> Result<(), (String, String)> {
    let failed = |error: crate::http::ClientError| {
        (
            crate::telemetry::Chain(&error).to_string(),
            "Start the daemon; if its state was made anew, run `opcert browser remove` and set \
             up again."
                .to_owned(),
        )
    };
    let mut client = Client::connect(target, PATIENT).await.map_err(failed)?;
    let request = Request::builder()
        .uri("/v1/status")
        .header(header, origin)
        .body(Bytes::new())
        .map_err(|error| (error.to_string(), SET_UP.to_owned()))?;
    let answer = client.send(request).await.map_err(failed)?;
    if answer.status().is_success() {
        return Ok(());
    }
    Err(
        match serde_json::from_slice::<ProblemDocument>(answer.body()) {
            Ok(problem) => (problem.detail, problem.action),
            Err(_) => (
                format!("the answer has status {}", answer.status()),
                "Check that another program does not listen there.".to_owned(),
            ),
        },
    )
}

fn policies(installed: &Installed, findings: &mut Findings) {
    let missing: Vec<String> = installed
        .policies
        .iter()
        .filter(|path| !path.exists())
        .map(|path| path.display().to_string())
        .collect();
    if !missing.is_empty() {
        findings.fail(
            "policies",
            format!("{} is gone.", missing.join(", ")),
            SET_UP,
        );
    } else if installed.policies.is_empty() {
        findings.ok(
            "policies",
            "None is written, so browsers ask the person which certificate to present, and \
             whether a page may reach programs on this computer.",
        );
    } else {
        findings.ok("policies", "They are where setup wrote them.");
    }
}
