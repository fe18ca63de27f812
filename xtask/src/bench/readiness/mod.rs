//! `cargo xtask bench readiness`: how long from an empty node to a container that is ready, with every cache empty and
//! through a link of given width and length. What esgz makes of an image takes turns with what ctr-remote makes of it,
//! with an eStargz image that nobody optimised, and with the image itself, pulled whole.

mod contender;
mod images;
mod interrupt;
mod link;
mod node;
mod options;
mod probe;
mod results;
mod start;
mod table;

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};

use crate::bench::distribution::Registry;
use crate::bench::{on_this_machine, results_dir, scratch_dir};
use crate::prerequisites;
use crate::shell::{capture, cargo, is_root, run as run_command};
use contender::Converted;
use images::Image;
use interrupt::Interrupt;
use node::BackgroundFetch;
use options::Options;
use results::Run;
use start::{Scene, Turn};

/// As shells report SIGINT.
const INTERRUPTED: u8 = 130;

/// Results go to `bench/runs/NAME/`: every run as a line of `runs.jsonl`, `table.md`, and `environment.json`, what they
/// hold for.
pub(super) fn run(args: &[String]) -> Result<ExitCode> {
    if let [name, only_table] = args
        && only_table == "--only-table"
    {
        print!("{}", write_table(&results_dir(name)?)?);
        return Ok(ExitCode::SUCCESS);
    }
    let options = options::parse(args)?;
    prepare(&options)?;
    let interrupt = Interrupt::listen()?;
    let results = results_dir(&options.name)?;
    let scratch = tempfile::Builder::new()
        .prefix("r-")
        .tempdir_in(scratch_dir()?)?;
    let measured = measure(&options, &results, scratch.path(), &interrupt);
    // What was measured before a failure or an interruption counts.
    if results.join("runs.jsonl").exists() {
        print!("{}", write_table(&results)?);
    }
    if interrupt.is_set() {
        eprintln!("interrupted: what was measured is kept");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    measured?;
    Ok(ExitCode::SUCCESS)
}

fn prepare(options: &Options) -> Result<()> {
    ensure!(
        is_root(),
        "containers, mounts and dropping caches need root"
    );
    for path in options.programs.all() {
        ensure!(path.is_file(), "{} is missing", path.display());
    }
    // With pigz in PATH containerd unpacks by it; so it is on every machine then.
    let packages = [
        ("runc", "runc"),
        ("pigz", "pigz"),
        ("skopeo", "skopeo"),
        ("ip", "iproute2"),
        ("nsenter", "util-linux"),
    ];
    for (program, package) in packages {
        prerequisites::install(program, package)?;
    }
    println!("building esgz");
    run_command(cargo().args([
        "build",
        "--release",
        "--quiet",
        "--package",
        "esgz",
        "--bins",
    ]))
}

fn measure(options: &Options, results: &Path, scratch: &Path, interrupt: &Interrupt) -> Result<()> {
    let (raw, asked) = (results.join("runs.jsonl"), results.join("requests.jsonl"));
    let first_round = if options.append {
        let runs = results::parse(&fs::read_to_string(&raw).unwrap_or_default())?;
        runs.iter().map(|run| run.round).max().unwrap_or(0) + 1
    } else {
        fs::write(&raw, "").with_context(|| format!("cannot write {}", raw.display()))?;
        // Those of other runs are not these runs'.
        match fs::remove_file(&asked) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", asked.display()));
            }
            _ => {}
        }
        1
    };
    let mut environment = Environment::begin(options, results)?;
    let rounds = first_round..first_round + options.rounds;
    for image in &options.images {
        let work = &options.programs;
        let converted = contender::convert(image, &options.contenders, work, scratch, interrupt)?;
        environment.add(image, &converted)?;
        let registry = Registry::start(&options.programs.registry, scratch)?;
        for one in &converted {
            let repository = format!("{}/{}", image.name, one.contender.name());
            contender::push(one, &registry.image(&repository), interrupt)?;
        }
        let scene = Scene {
            programs: &options.programs,
            registry: &registry,
            scratch,
            interrupt,
            longest: options.longest,
        };
        // Interleaved: a slow minute hits all of them.
        for round in rounds.clone() {
            for turn in turns(options, image, &converted, round) {
                interrupt.check()?;
                let (run, requests) = scene.run(turn)?;
                println!("{}", line(&run));
                append(&raw, &run.to_json())?;
                if options.log_requests {
                    append(&asked, &run.requests_json(&requests))?;
                }
            }
        }
    }
    Ok(())
}

fn append(path: &Path, line: &Value) -> Result<()> {
    let mut out = fs::File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    writeln!(out, "{line}").with_context(|| format!("cannot write {}", path.display()))
}

/// One round of an image.
fn turns<'a>(
    options: &'a Options,
    image: &'a Image,
    converted: &'a [Converted],
    round: usize,
) -> impl Iterator<Item = Turn<'a>> {
    let links = options.links.iter().copied();
    links.flat_map(move |link| {
        converted.iter().flat_map(move |converted| {
            // A whole pull has no use for the snapshotter, whatever its configuration.
            let is_lazy = converted.contender.is_lazy();
            let wanted = if is_lazy {
                &options.background_fetch[..]
            } else {
                &[BackgroundFetch::Off]
            };
            wanted.iter().map(move |&background_fetch| Turn {
                image,
                converted,
                link,
                background_fetch,
                round,
            })
        })
    })
}

fn line(run: &Run) -> String {
    let background_fetch = match run.background_fetch {
        BackgroundFetch::Off => "",
        BackgroundFetch::On => ", background fetch on",
    };
    format!(
        "round {}: {}, {}{background_fetch}, {}: {:.2} s ({:.2} + {:.2}), {:.1} MB, {} requests",
        run.round,
        run.image,
        run.link,
        run.contender,
        run.total_seconds(),
        run.pull_seconds,
        run.start_seconds,
        run.bytes() as f64 / 1e6,
        run.requests(),
    )
}

/// `environment.json`: a list, as every call adds one.
struct Environment {
    path: std::path::PathBuf,
    before: Vec<Value>,
    this: Map<String, Value>,
}

impl Environment {
    fn begin(options: &Options, results: &Path) -> Result<Self> {
        let path = results.join("environment.json");
        let before = match fs::read_to_string(&path) {
            Ok(text) if options.append => serde_json::from_str(&text)?,
            _ => Vec::new(),
        };
        let mut links = Map::new();
        for &link in &options.links {
            links.insert(link.to_string(), link::measured(link)?.to_json());
        }
        let programs = &options.programs;
        let version = |program: &Path| -> Result<String> {
            let text = capture(Command::new(program).arg("--version"))?;
            // Some say by which path they were called.
            let dir = program.with_file_name("").display().to_string();
            let text = text.strip_prefix(&dir).unwrap_or(&text);
            Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
        };
        let mut this = Map::new();
        this.insert("machine".to_owned(), on_this_machine()?.into());
        this.insert("memory".to_owned(), memory().into());
        this.insert(
            "containerd".to_owned(),
            version(&programs.containerd)?.into(),
        );
        this.insert(
            "ctr_remote".to_owned(),
            version(&programs.ctr_remote)?.into(),
        );
        this.insert("registry".to_owned(), version(&programs.registry)?.into());
        this.insert("runc".to_owned(), version(Path::new("runc"))?.into());
        this.insert("links".to_owned(), links.into());
        this.insert("images".to_owned(), json!({}));
        let environment = Self { path, before, this };
        environment.write()?;
        Ok(environment)
    }

    fn add(&mut self, image: &Image, converted: &[Converted]) -> Result<()> {
        let mut contenders = Map::new();
        for one in converted {
            let name = one.contender.name().to_owned();
            contenders.insert(name, json!({"bytes": one.bytes, "made": one.made}));
        }
        self.this["images"][&image.name] =
            json!({"ready": image.ready.name(), "contenders": contenders});
        self.write()
    }

    fn write(&self) -> Result<()> {
        let mut all = self.before.clone();
        all.push(self.this.clone().into());
        let text = serde_json::to_string_pretty(&all)?;
        fs::write(&self.path, text + "\n")
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// `MemTotal` of `proc_meminfo(5)`.
fn memory() -> String {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.unwrap_or_default().trim().to_owned()
}

/// Makes `table.md` of what is there, and returns it.
fn write_table(results: &Path) -> Result<String> {
    let raw = results.join("runs.jsonl");
    let text =
        fs::read_to_string(&raw).with_context(|| format!("cannot read {}", raw.display()))?;
    let environment = fs::read_to_string(results.join("environment.json")).unwrap_or_default();
    let environment: Value = serde_json::from_str(&environment).unwrap_or_default();
    let last = environment.as_array().and_then(|all| all.last());
    let machine = last.and_then(|last| last["machine"].as_str());
    let title = format!("Time to ready; {}", machine.unwrap_or("machine unknown"));
    let table = table::table(&title, &results::parse(&text)?)?;
    fs::write(results.join("table.md"), &table)?;
    Ok(table)
}
