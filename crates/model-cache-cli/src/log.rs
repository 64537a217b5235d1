//! What the library logs, on stderr: warnings as they are; with `-v` what is done; `MODEL_CACHE_LOG` says it in full.

use crate::{args::ProgressMode, output, render, talk};
use std::{fmt, io};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, format::Writer},
    registry::LookupSpan,
};

const OURS: [&str; 4] = ["model_cache", "model_cache_mount", "tabagent_model_cache", "storage"];

/// Begins to log. A filter that makes no sense is told, and not used.
pub(crate) fn start(verbose: u8, progress: ProgressMode) {
    let asked = std::env::var("MODEL_CACHE_LOG").ok().filter(|filter| !filter.is_empty());
    let usual = match (verbose, progress) {
        // Programs read stderr line by line there.
        (0, ProgressMode::Json) => "off".to_owned(),
        (0, _) => "warn".to_owned(),
        (1, _) => OURS.iter().fold("warn".to_owned(), |filter, crate_name| format!("{filter},{crate_name}=debug")),
        (_, _) => OURS.iter().fold("info".to_owned(), |filter, crate_name| format!("{filter},{crate_name}=trace")),
    };
    let filter = match asked.as_deref().map(EnvFilter::try_new) {
        Some(Ok(filter)) => filter,
        Some(Err(error)) => {
            talk::line(&format!("warning: MODEL_CACHE_LOG can't be used: {}", render::clean(&error.to_string())));
            EnvFilter::new(usual)
        }
        None => EnvFilter::new(usual),
    };
    tracing_subscriber::fmt().with_env_filter(filter).event_format(Line).with_writer(Stderr).init();
}

/// `warning: what happened (field=value)`; debug lines name their module.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut said = Said::default();
        event.record(&mut said);
        let paint = render::Paint(output::stderr_colour());
        let metadata = event.metadata();
        let text = match said.fields.is_empty() {
            true => render::clean(&said.message),
            false => render::clean(&format!("{} ({})", said.message, said.fields.join(", "))),
        };
        match *metadata.level() {
            Level::ERROR => writeln!(writer, "{} {text}", paint.red("error:")),
            Level::WARN => writeln!(writer, "{} {text}", paint.yellow("warning:")),
            level => {
                let head = format!("{}: {}:", level.as_str().to_lowercase(), metadata.target());
                writeln!(writer, "{} {text}", paint.dim(&head))
            }
        }
    }
}

#[derive(Default)]
struct Said {
    message: String,
    fields: Vec<String>,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.fields.push(format!("{name}={value:?}")),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.to_owned(),
            name => self.fields.push(format!("{name}={value}")),
        }
    }
}

/// Stderr, above the progress.
struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl io::Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        talk::raw(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
