//! `opcert list`: the installed operating certificates.

use super::error::Error;
use super::output::{Mood, Output, time};
use super::{Global, daemon};
use crate::api::types::OperatingCertificate;
use crate::base::sysexits::EX_OK;

pub(super) async fn run(global: &Global, output: &Output) -> Result<u8, Error> {
    let list = daemon::control(global).await?.certificates().await?;
    output.result(&list, |output| {
        let rows = list
            .certificates
            .iter()
            .map(|certificate| {
                vec![
                    certificate.account.to_string(),
                    certificate.operator.to_string(),
                    standing(certificate, output),
                    time(&certificate.not_after),
                    certificate.algorithm.clone(),
                    certificate.service.clone(),
                ]
            })
            .collect();
        output.table(
            &[
                "account",
                "operator",
                "standing",
                "valid until",
                "algorithm",
                "service",
            ],
            rows,
            "No operating certificate is installed; `opcert install` gets one.",
        )
    })?;
    Ok(EX_OK)
}

/// One certificate in full.
pub(super) fn describe(certificate: &OperatingCertificate, output: &Output) -> String {
    output.facts(&[
        ("Account", certificate.account.to_string()),
        ("Operator", certificate.operator.to_string()),
        ("Computer", certificate.computer.to_string()),
        ("Standing", standing(certificate, output)),
        ("Valid until", time(&certificate.not_after)),
        ("Service", certificate.service.clone()),
        ("Key", certificate.key.clone()),
        ("Serial", certificate.serial.clone()),
        ("SHA-256", certificate.fingerprint.clone()),
    ])
}

fn standing(certificate: &OperatingCertificate, output: &Output) -> String {
    let mood = if certificate.standing == "active" {
        Mood::Good
    } else {
        Mood::Bad
    };
    output.paint(&certificate.standing, mood)
}
