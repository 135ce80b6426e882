//! `opcert init`: writes the daemon's configuration and makes its directories.
//!
//! Nothing that is there is overwritten: a file that decides what the daemon does is changed by a
//! person who reads it.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Global;
use super::daemon::start_command;
use super::error::Error;
use super::output::Output;
use crate::base::files::{FileError, private_directory, write_new};
use crate::base::pkcs11::TokenUri;
use crate::base::sysexits::EX_OK;
use crate::config::places::Places;

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Writes the daemon's configuration and makes its directories: for root those of \
                  this computer's daemon, for anybody else those of a daemon of their own. A file \
                  that is there stays as it is. The token itself is set up with its maker's tool, \
                  such as `softhsm2-util --init-token`.",
    after_help = "Examples:\n  \
        opcert init --module /usr/lib/softhsm/libsofthsm2.so --token my-token\n  \
        opcert init --module /usr/lib/libeToken.so --token 'pkcs11:serial=0281' \\\n      \
        --pin-file /etc/opcert/pin"
)]
pub(super) struct Arguments {
    /// Directory for what has to survive a restart. [default: /var/lib/opcert for root, else
    /// ~/.local/state/opcert]
    #[arg(long, value_name = "DIR", default_value_os_t = Places::of_user().state, hide_default_value = true)]
    state_directory: PathBuf,
    /// Directory for the control socket. [default: /run/opcert for root, else
    /// $XDG_RUNTIME_DIR/opcert]
    #[arg(long, value_name = "DIR", default_value_os_t = Places::of_user().runtime, hide_default_value = true)]
    runtime_directory: PathBuf,
    /// The token's PKCS#11 module.
    #[arg(long, value_name = "FILE")]
    module: PathBuf,
    /// A variable for the module's environment; may be repeated.
    #[arg(long = "module-env", value_name = "NAME=VALUE", value_parser = variable)]
    module_env: Vec<(String, String)>,
    /// The token, by its label or PKCS#11 URI.
    #[arg(long, value_name = "LABEL|URI", value_parser = token)]
    token: TokenUri,
    /// File with the token's PIN, for a computer that starts unattended; otherwise the daemon waits
    /// for `opcert token unlock`.
    #[arg(long, value_name = "FILE")]
    pin_file: Option<PathBuf>,
    /// Address of the native door; may be repeated. Without it, port 7443 of 127.0.0.1 and of ::1.
    #[arg(long, value_name = "ADDRESS", value_parser = loopback)]
    native: Vec<SocketAddr>,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<u8, Error> {
    let config = &global
        .config
        .clone()
        .unwrap_or_else(|| Places::of_user().config);
    if config.exists() {
        return Err(Error::State {
            code: "config-exists",
            what: format!("{} is there already", config.display()),
            action: "Edit it, or name another file with --config.".into(),
        });
    }
    if !arguments.module.is_file() {
        return Err(Error::Usage {
            what: format!("there is no module {}", arguments.module.display()),
            action: "Install the token's PKCS#11 module, or check the path.".into(),
        });
    }
    let arguments = absolute(arguments)?;
    private_directory(&arguments.state_directory)?;
    open_directory(&arguments.runtime_directory)?;
    if let Some(parent) = config.parent().filter(|parent| !parent.exists()) {
        open_directory(parent)?;
    }
    let mode = if rustix::process::geteuid().is_root() {
        // The service's group reads it; systemd units run the daemon as a user of its own.
        0o640
    } else {
        0o600
    };
    write_new(config, text(&arguments).as_bytes(), mode)?;

    let value = json!({
        "config": config,
        "state_directory": arguments.state_directory,
        "runtime_directory": arguments.runtime_directory,
        "token": arguments.token,
    });
    output.result(&value, |output| {
        let facts = output.facts(&[
            ("Configuration", config.display().to_string()),
            ("State", arguments.state_directory.display().to_string()),
            ("Runtime", arguments.runtime_directory.display().to_string()),
            ("Token", arguments.token.to_string()),
        ]);
        format!(
            "{facts}\nNext: start the daemon with `{}`, then look at `opcert doctor`.",
            start_command(config)
        )
    })?;
    Ok(EX_OK)
}

/// The file, with every key that has a choice explained.
fn text(arguments: &Arguments) -> String {
    let string = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let path = |path: &Path| string(&path.to_string_lossy());
    let native = if arguments.native.is_empty() {
        vec!["127.0.0.1:7443".to_owned(), "[::1]:7443".to_owned()]
    } else {
        arguments.native.iter().map(SocketAddr::to_string).collect()
    };
    let native: Vec<String> = native.iter().map(|address| string(address)).collect();
    let mut text = format!(
        "# Configuration of opcertd, written by `opcert init`.\n\
         # Unknown keys are refused, and so is a file that others can read or its group can write.\n\
         \n\
         # What has to survive a restart: records, the local authority, clients, certificates.\n\
         state-directory = {}\n\
         # The control socket.\n\
         runtime-directory = {}\n\
         \n\
         [native]\n\
         # TLS doors for local programs; loopback addresses only.\n\
         addresses = [{}]\n\
         \n\
         [[module]]\n\
         # The vendor's PKCS#11 library; it runs in a process of its own.\n\
         name = \"main\"\n\
         path = {}\n",
        path(&arguments.state_directory),
        path(&arguments.runtime_directory),
        native.join(", "),
        path(&arguments.module),
    );
    if !arguments.module_env.is_empty() {
        let variables: Vec<String> = arguments
            .module_env
            .iter()
            .map(|(name, value)| format!("{name} = {}", string(value)))
            .collect();
        let _ = writeln!(text, "environment = {{ {} }}", variables.join(", "));
    }
    let _ = write!(
        text,
        "\n[[module.token]]\nuri = {}\n",
        string(&arguments.token.to_string())
    );
    text.push_str(&match &arguments.pin_file {
        Some(file) => format!(
            "pin-source = {}\n",
            string(&format!("file:{}", file.display()))
        ),
        None => "# No pin-source: the daemon waits for `opcert token unlock`.\n".to_owned(),
    });
    text.push_str(
        "\n\
         # The program that asks the person at this computer; without one, whatever needs a person \
         is\n\
         # refused.\n\
         # [consent]\n\
         # pinentry = \"/usr/bin/pinentry\"\n",
    );
    text
}

/// The daemon runs in a directory of its own, so relative paths would mean something else there.
fn absolute(arguments: &Arguments) -> Result<Arguments, Error> {
    let absolute = |path: &PathBuf| {
        std::path::absolute(path).map_err(|source| {
            Error::File(FileError::Unreadable {
                path: path.clone(),
                source,
            })
        })
    };
    Ok(Arguments {
        state_directory: absolute(&arguments.state_directory)?,
        runtime_directory: absolute(&arguments.runtime_directory)?,
        module: absolute(&arguments.module)?,
        module_env: arguments.module_env.clone(),
        token: arguments.token.clone(),
        pin_file: arguments.pin_file.as_ref().map(absolute).transpose()?,
        native: arguments.native.clone(),
    })
}

/// A directory that others may enter; what is in it has modes of its own.
fn open_directory(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    private_directory(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).map_err(|source| {
        Error::File(FileError::Unwritable {
            path: path.to_owned(),
            source,
        })
    })
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("must be NAME=VALUE, such as SOFTHSM2_CONF=/etc/opcert/softhsm2.conf")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(plain) || name.starts_with(|c: char| c.is_ascii_digit())
    {
        return Err(format!("{name:?} is no name of a variable"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

fn token(text: &str) -> Result<TokenUri, String> {
    if text.starts_with("pkcs11:") {
        return text.parse().map_err(|error| format!("{error}"));
    }
    Ok(TokenUri {
        token: Some(text.to_owned()),
        ..TokenUri::default()
    })
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "must be an address with a port, such as 127.0.0.1:7443".to_owned())?;
    if !address.ip().is_loopback() {
        return Err("must be a loopback address: the door is for this computer only".into());
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments() -> Arguments {
        Arguments {
            state_directory: "/var/lib/opcert".into(),
            runtime_directory: "/run/opcert".into(),
            module: "/usr/lib/x \"y\".so".into(),
            module_env: vec![("A".into(), "b c".into())],
            token: token("my token").unwrap(),
            pin_file: Some("/etc/opcert/pin".into()),
            native: vec![],
        }
    }

    #[test]
    fn the_file_says_what_was_asked_for() {
        let parsed: toml::Value = toml::from_str(&text(&arguments())).unwrap();
        let module = &parsed["module"][0];
        assert_eq!(module["path"].as_str(), Some("/usr/lib/x \"y\".so"));
        assert_eq!(module["environment"]["A"].as_str(), Some("b c"));
        assert_eq!(
            module["token"][0]["uri"].as_str(),
            Some("pkcs11:token=my%20token")
        );
        assert_eq!(
            module["token"][0]["pin-source"].as_str(),
            Some("file:/etc/opcert/pin")
        );
        assert_eq!(
            parsed["native"]["addresses"][1].as_str(),
            Some("[::1]:7443")
        );
    }

    #[test]
    fn only_loopback_is_an_address() {
        assert!(loopback("127.0.0.1:0").is_ok());
        assert!(loopback("[::1]:7443").is_ok());
        assert!(loopback("0.0.0.0:7443").is_err());
        assert!(loopback("localhost:7443").is_err());
    }
}
