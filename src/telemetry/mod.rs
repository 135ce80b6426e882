//! Logs and metrics for whoever runs the program.
//!
//! A log has one line an event, on standard error, as text or JSON, or goes to the journal with its
//! fields. Metrics are in [`metrics`]; the trace that a request belongs to is in [`trace`].
//!
//! The audit trail is another thing and lives in [`crate::audit`]; what a log line says is for
//! people and may change. Dependencies are heard from `warn` on only, whatever the level: at finer
//! levels HTTP and TLS libraries print headers and frames, and with them what must not be in a log.
//!
//! Under systemd, where standard error is the journal, each line begins with its priority as
//! `<N>` (sd-daemon(3)) and leaves out the time, which the journal keeps itself.

mod cells;
pub mod exposition;
pub mod metrics;
pub mod trace;

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};
use tracing::{Event, Level as Severity, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{DefaultFields, Format, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The `[log]` table.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// How a line looks. Default text.
    pub format: LineFormat,
    /// The least severe level that is written. Default info.
    pub level: Level,
}

/// How a log line looks.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum LineFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
    /// The journal's own protocol, with every field searchable: `journalctl OPCERT_REQUEST=…`.
    Journal,
}

/// How severe an event is.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Something does not work.
    Error,
    /// Something will not work for long, or somebody does what they should not.
    Warn,
    /// What changes in the life of the program.
    #[default]
    Info,
    /// For finding faults.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Logging was set up before in this process: a fault of the program.
    #[error("logging is already set up")]
    AlreadySetUp {
        /// What says so.
        source: tracing_subscriber::util::TryInitError,
    },
    /// There is no journal to log to.
    #[error("log.format is \"journal\" and the journal cannot be reached")]
    NoJournal {
        /// Why not.
        source: io::Error,
    },
}

/// Changes the log while the program runs.
pub struct Handle(reload::Handle<Targets, Registry>);

impl Handle {
    /// Writes events from this level on.
    pub fn set_level(&self, level: Level) {
        if let Err(error) = self.0.reload(targets(level)) {
            tracing::error!(%error, "the log level stays as it was");
        }
    }
}

/// Starts logging to standard error. Once a process, before anything worth logging.
pub fn start(config: Config) -> Result<Handle, LogError> {
    if config.format == LineFormat::Journal {
        return start_journal(config.level);
    }
    let kind = if is_journal(&io::stderr(), std::env::var("JOURNAL_STREAM").ok()) {
        Stream::Journal
    } else {
        Stream::Plain
    };
    let (subscriber, handle) = subscriber(config, kind, io::stderr);
    subscriber
        .try_init()
        .map_err(|source| LogError::AlreadySetUp { source })?;
    Ok(handle)
}

fn start_journal(level: Level) -> Result<Handle, LogError> {
    let layer = tracing_journald::layer()
        .map_err(|source| LogError::NoJournal { source })?
        .with_field_prefix(Some("OPCERT".to_owned()))
        // The same as of lines of text.
        .with_priority_mappings(PriorityMappings {
            info: Priority::Informational,
            debug: Priority::Debug,
            ..PriorityMappings::new()
        })
        .with_syslog_identifier(program());
    let (targets, handle) = reload::Layer::new(targets(level));
    tracing_subscriber::registry()
        .with(layer.with_filter(targets))
        .try_init()
        .map_err(|source| LogError::AlreadySetUp { source })?;
    Ok(Handle(handle))
}

/// What the program is called.
fn program() -> String {
    std::env::args_os()
        .next()
        .and_then(|path| {
            let name = std::path::Path::new(&path).file_name()?;
            Some(name.to_string_lossy().into_owned())
        })
        .unwrap_or_else(|| env!("CARGO_PKG_NAME").to_owned())
}

/// An error with all its causes, for a log line: `Display` of an error prints its own level only.
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

/// What standard error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Plain,
    Journal,
}

/// Whether `stream` is the journal socket that `$JOURNAL_STREAM` names by device and inode
/// (systemd.exec(5)); the variable is inherited, so it alone says nothing.
fn is_journal(stream: &impl AsFd, variable: Option<String>) -> bool {
    let Some(variable) = variable else {
        return false;
    };
    let Ok(stat) = rustix::fs::fstat(stream) else {
        return false;
    };
    variable == format!("{}:{}", stat.st_dev, stat.st_ino)
}

fn targets(level: Level) -> Targets {
    let level = level.filter();
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target(env!("CARGO_CRATE_NAME"), level)
}

fn subscriber<W>(
    config: Config,
    stream: Stream,
    writer: W,
) -> (impl Subscriber + Send + Sync, Handle)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (targets, handle) = reload::Layer::new(targets(config.level));
    // Of the layer too: it colours the fields of spans.
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false);
    let plain = Format::default().with_ansi(false);
    let layer = match (config.format, stream) {
        (LineFormat::Text, Stream::Plain) => layer
            .fmt_fields(DefaultFields::new())
            .event_format(Line::new(plain, stream))
            .boxed(),
        (LineFormat::Text, Stream::Journal) => layer
            .fmt_fields(DefaultFields::new())
            .event_format(Line::new(plain.without_time(), stream))
            .boxed(),
        (LineFormat::Json | LineFormat::Journal, _) => layer
            .fmt_fields(JsonFields::new())
            .event_format(Line::new(
                plain.json().flatten_event(true).with_span_list(false),
                stream,
            ))
            .boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(layer.with_filter(targets));
    (subscriber, Handle(handle))
}

/// Keeps each event on one line, whatever its values hold, and marks its priority.
struct Line<F> {
    inner: F,
    stream: Stream,
}

impl<F> Line<F> {
    fn new(inner: F, stream: Stream) -> Self {
        Self { inner, stream }
    }
}

impl<S, N, F> FormatEvent<S, N> for Line<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        self.inner
            .format_event(context, Writer::new(&mut text), event)?;
        if self.stream == Stream::Journal {
            write!(writer, "<{}>", priority(*event.metadata().level()))?;
        }
        for c in text.trim_end_matches('\n').chars() {
            if c.is_control() {
                write!(writer, "{}", c.escape_default())?;
            } else {
                writer.write_char(c)?;
            }
        }
        writeln!(writer)
    }
}

/// The syslog priority (syslog(3)).
fn priority(level: Severity) -> u8 {
    match level {
        Severity::ERROR => 3,
        Severity::WARN => 4,
        Severity::INFO => 6,
        Severity::DEBUG | Severity::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, MutexGuard};

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    struct Locked<'a>(MutexGuard<'a, Vec<u8>>);

    impl io::Write for Locked<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Memory {
        type Writer = Locked<'a>;

        fn make_writer(&'a self) -> Locked<'a> {
            Locked(self.0.lock().unwrap())
        }
    }

    fn logged(config: Config, stream: Stream, log: impl FnOnce()) -> String {
        let memory = Memory::default();
        tracing::subscriber::with_default(subscriber(config, stream, memory.clone()).0, log);
        let bytes = memory.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn an_event_is_one_line_whatever_it_holds() {
        let text = logged(Config::default(), Stream::Plain, || {
            tracing::warn!(client = %"shop\n<3>forged\x1b[2J", "refused");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("WARN") && text.contains("refused"), "{text}");
        assert!(!text.contains('\x1b'), "{text:?}");
        assert!(text.starts_with("20"), "{text}");
    }

    #[test]
    fn the_fields_of_spans_have_no_colours() {
        let text = logged(Config::default(), Stream::Plain, || {
            let span = tracing::info_span!("request", request = %"r-1");
            let _inside = span.enter();
            tracing::info!("refused");
        });
        assert!(text.contains("request{request=r-1}"), "{text}");
    }

    #[test]
    fn the_journal_gets_priorities_and_no_time() {
        let text = logged(Config::default(), Stream::Journal, || {
            tracing::error!("broken");
            tracing::info!("started");
            tracing::debug!("not shown");
        });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with("<3>ERROR "), "{text}");
        assert!(lines[1].starts_with("<6> INFO "), "{text}");
    }

    #[test]
    fn json_lines_are_json() {
        let config = Config {
            format: LineFormat::Json,
            level: Level::Debug,
        };
        let text = logged(config, Stream::Plain, || {
            tracing::debug!(records = 3, text = "a\nb", "opened");
        });
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["message"], "opened");
        assert_eq!(value["records"], 3);
        assert_eq!(value["text"], "a\nb");
        assert_eq!(value["level"], "DEBUG");
    }

    #[test]
    fn dependencies_are_heard_from_warn_on() {
        let config = Config {
            level: Level::Trace,
            ..Config::default()
        };
        let text = logged(config, Stream::Plain, || {
            tracing::trace!(target: "h2::codec", "frame with a header");
            tracing::info!(target: "rustls::server", "secret");
            tracing::warn!(target: "rustls::server", "warning");
            tracing::trace!("ours");
        });
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("warning") && text.contains("ours"), "{text}");
    }

    #[test]
    fn the_level_changes_while_the_program_runs() {
        let memory = Memory::default();
        let (subscriber, handle) = subscriber(Config::default(), Stream::Plain, memory.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("before");
            handle.set_level(Level::Debug);
            tracing::debug!("after");
        });
        let text = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
        assert!(!text.contains("before") && text.contains("after"), "{text}");
    }

    #[test]
    fn the_journal_is_told_by_device_and_inode() {
        let file = tempfile::tempfile().unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        let name = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(is_journal(&file, Some(name.clone())));
        assert!(!is_journal(&file, Some(format!("{name}1"))));
        assert!(!is_journal(&file, None));
    }

    #[test]
    fn the_table_is_read_strictly() {
        let config: Config = toml::from_str("format = \"json\"\nlevel = \"warn\"").unwrap();
        assert_eq!(
            (config.format, config.level),
            (LineFormat::Json, Level::Warn)
        );
        assert!(toml::from_str::<Config>("colour = true").is_err());
        assert!(toml::from_str::<Config>("level = \"loud\"").is_err());
    }

    #[test]
    fn a_chain_names_every_cause() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer {
            source: io::Error,
        }
        let error = Outer {
            source: io::Error::other("inner"),
        };
        assert_eq!(Chain(&error).to_string(), "outer: inner");
    }
}
