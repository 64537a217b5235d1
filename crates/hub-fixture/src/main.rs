//! The program `hub-fixture`: serves a directory of repos as the Hub would, for the demo and for other clients.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hub_fixture::{Fault, Hub, Repo, Target};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "\
Serves DIR/org/name/... as a Hugging Face Hub on 127.0.0.1, until SIGTERM or SIGINT.

usage: hub-fixture --root DIR [options]

  --root DIR              one directory per repo, two levels down; an optional .hf.json in each as for mkhf.py
  --port N                port of the Hub (default: any free one)
  --cdn-port N            port of the CDN (default: any free one)
  --page N                tree entries per page (default: 1000)
  --slow BYTES_PER_SECOND speed of each answer (default: unlimited)
  --url-lifetime SECONDS  how long a signed CDN URL works (default: 3600)
  --faults RATE           the share of requests, 0 to 1, that meet a random fault (default: 0)
  --fault-seed N          what those faults are drawn by (default: the time; it is printed)
  --fault-pause MS        what delays, outages and trickles are made of (default: 200)
  --log FILE              append a line per finished answer
  --print-endpoint FILE   write the endpoint there too, once ready
  --help                  print this

Tokens: hf_good opens everything; hf_unlisted is valid but on no list.
";

#[derive(Debug, Default)]
struct Args {
    root: PathBuf,
    port: u16,
    cdn_port: u16,
    page: Option<usize>,
    slow: Option<u64>,
    url_lifetime: Option<u64>,
    faults: Option<f64>,
    fault_seed: Option<u64>,
    fault_pause: Option<u64>,
    log: Option<PathBuf>,
    print_endpoint: Option<PathBuf>,
}

impl Args {
    /// `None` if help is asked for.
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Args>, String> {
        let mut args = Args::default();
        let mut root = None;
        while let Some(word) = words.next() {
            if word == "--help" || word == "-h" {
                return Ok(None);
            }
            let (name, inline) = match word.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (word, None),
            };
            let known = [
                "--root",
                "--port",
                "--cdn-port",
                "--page",
                "--slow",
                "--url-lifetime",
                "--faults",
                "--fault-seed",
                "--fault-pause",
                "--log",
                "--print-endpoint",
            ];
            if !known.contains(&name.as_str()) {
                return Err(format!("unknown argument {name}"));
            }
            let value = inline.or_else(|| words.next()).ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--root" => root = Some(PathBuf::from(value)),
                "--port" => args.port = number(&name, &value)?,
                "--cdn-port" => args.cdn_port = number(&name, &value)?,
                "--page" => args.page = Some(number(&name, &value)?),
                "--slow" => args.slow = Some(number(&name, &value)?),
                "--url-lifetime" => args.url_lifetime = Some(number(&name, &value)?),
                "--faults" => {
                    let rate = number(&name, &value)?;
                    if !(0.0..=1.0).contains(&rate) {
                        return Err(format!("{name}: {value} is not a share, 0 to 1"));
                    }
                    args.faults = Some(rate);
                }
                "--fault-seed" => args.fault_seed = Some(number(&name, &value)?),
                "--fault-pause" => args.fault_pause = Some(number(&name, &value)?),
                "--log" => args.log = Some(value.into()),
                _ => args.print_endpoint = Some(value.into()),
            }
        }
        args.root = root.ok_or("--root is required")?;
        Ok(Some(args))
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name}: {value} is not a number in range"))
}

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(Some(args)) => args,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("hub-fixture: {message}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("hub-fixture: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before the endpoint is printed: whoever reads it may stop us at once.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut builder = Hub::builder().port(args.port).cdn_port(args.cdn_port);
        for repo in repos_below(&args.root)? {
            builder = builder.repo(repo);
        }
        if let Some(page) = args.page.filter(|page| *page > 0) {
            builder = builder.page_entries(page);
        }
        if let Some(seconds) = args.url_lifetime {
            builder = builder.url_lifetime(Duration::from_secs(seconds));
        }
        if let Some(log) = &args.log {
            builder = builder.log_file(log);
        }
        let hub = builder.start()?;
        if let Some(rate) = args.slow {
            hub.faults().always(Target::any(), Fault::SlowBytesPerSecond(rate));
        }
        if let Some(rate) = args.faults {
            let time = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
            let seed = args.fault_seed.unwrap_or_else(time);
            eprintln!("hub-fixture: random faults at rate {rate}, --fault-seed {seed}");
            hub.faults().at_random(seed, rate, Duration::from_millis(args.fault_pause.unwrap_or(200)));
        }
        if let Some(path) = &args.print_endpoint {
            // By rename, so that a script waiting for the file never reads half of it.
            let half = path.with_extension("part");
            std::fs::write(&half, format!("{}\n", hub.endpoint()))?;
            std::fs::rename(&half, path)?;
        }
        println!("HF_ENDPOINT={}", hub.endpoint());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if args.faults.is_some() {
            eprintln!("hub-fixture: {:?}", hub.faults().struck());
        }
        Ok(())
    })
}

/// Every `org/name` directory below `root`, in order of name.
fn repos_below(root: &Path) -> std::io::Result<Vec<Repo>> {
    let mut repos = Vec::new();
    for org in directories(root)? {
        for name in directories(&root.join(&org))? {
            repos.push(Repo::from_dir(format!("{org}/{name}"), root.join(&org).join(&name))?);
        }
    }
    Ok(repos)
}

fn directories(parent: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Option<Args>, String> {
        Args::parse(words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn arguments_are_read_in_both_spellings() {
        let args = parse(&["--root", "d", "--port=80", "--slow", "5"]).unwrap().unwrap();
        assert_eq!((args.root, args.port, args.slow), (PathBuf::from("d"), 80, Some(5)));
    }

    #[test]
    fn bad_arguments_are_refused_by_name() {
        assert!(parse(&["--root", "d", "--prot", "1"]).unwrap_err().contains("--prot"));
        assert!(parse(&["--root"]).unwrap_err().contains("--root"));
        assert!(parse(&["--root", "d", "--port", "70000"]).unwrap_err().contains("--port"));
        assert!(parse(&["--root", "d", "--faults", "1.5"]).unwrap_err().contains("--faults"));
        assert!(parse(&["--root", "d", "--faults", "NaN"]).unwrap_err().contains("--faults"));
        assert!(parse(&[]).unwrap_err().contains("--root"));
    }
}
