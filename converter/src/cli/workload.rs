//! How the workload is run: the flags that `optimize` and `record` share, and what they mean.

mod values;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use values::{
    parse_command, parse_host, parse_list, parse_mount, parse_ring, parse_seconds, parse_url,
    parse_word,
};

use crate::cli::failure::{Failure, USAGE};
use crate::cli::signals::Signals;
use crate::profiler::{Exactness, OpenSource, Tier};
use crate::record::RecordOptions;
use crate::rootfs::{RootfsMode, RootfsOptions};
use crate::runtime::{
    CniOptions, Devices, Input, Mount, NameResolution, Network, Streams, Until, WorkloadOptions,
};

/// How the workload is run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Workload")]
pub(super) struct WorkloadArgs {
    /// Entrypoint of the container, a JSON array; replaces the image's
    #[arg(long, value_name = "JSON", value_parser = parse_list)]
    pub(super) entrypoint: Option<List>,
    /// Arguments for the entrypoint, a JSON array; replaces the image's command
    #[arg(long, value_name = "JSON", value_parser = parse_list)]
    pub(super) args: Option<List>,
    /// Environment variable; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) env: Vec<String>,
    /// File with environment variables, KEY=VALUE a line; --env has the last word
    #[arg(long, value_name = "FILE")]
    pub(super) env_file: Option<PathBuf>,
    /// User to run as: name or number, with :GROUP if wanted
    #[arg(long)]
    pub(super) user: Option<String>,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    pub(super) cwd: Option<String>,
    /// Give the container a terminal; needs -i, and a terminal here
    #[arg(short, long, requires = "interactive", conflicts_with_all = ["wait_on_signal", "runs"])]
    pub(super) terminal: bool,
    /// Give the container what is read from stdin
    #[arg(short, long, conflicts_with = "runs")]
    pub(super) interactive: bool,
    /// Mount into the container, as ctr has it: type=bind,source=DIR,destination=DIR,options=rbind:ro;
    /// may be repeated
    #[arg(long, value_name = "KEY=VALUE,…", value_parser = parse_mount)]
    pub(super) mount: Vec<Mount>,
    /// GPUs, by the specifications of the Container Device Interface: indices with commas, or all; or
    /// devices of any kind as VENDOR/CLASS=NAME
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(super) gpus: Vec<String>,
    /// Directory with device specifications; may be repeated [default: /etc/cdi and /var/run/cdi]
    #[arg(long, value_name = "DIR")]
    pub(super) cdi_spec_dir: Vec<PathBuf>,
    /// OCI runtime, by name or path
    #[arg(long, default_value = "runc", value_name = "NAME")]
    pub(super) runtime: String,
    #[command(flatten)]
    pub(super) end: EndArgs,
    #[command(flatten)]
    pub(super) network: NetworkArgs,
    #[command(flatten)]
    pub(super) watching: WatchingArgs,
}

/// When a run ends.
#[derive(Debug, Args)]
#[command(next_help_heading = "End of the run")]
pub(super) struct EndArgs {
    /// Seconds after which the workload is stopped; its own exit ends the run earlier
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = parse_seconds)]
    pub(super) period: Duration,
    /// Stop the workload when this text stands in its stdout
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(super) wait_on_line: Option<String>,
    /// Stop the workload on SIGINT (Ctrl-C), however long that takes; esgz goes on
    #[arg(long)]
    pub(super) wait_on_signal: bool,
    /// Stop the workload when something listens on this TCP port in the container
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) wait_on_port: Option<u16>,
    /// Stop the workload when a request for this URL, made inside the container's network, succeeds
    #[arg(long, value_name = "URL", value_parser = parse_url)]
    pub(super) wait_on_http: Option<String>,
    /// Run this in the container once it is up, and count what it touches: a JSON array, or a line for
    /// /bin/sh; with --wait-on-… when that has happened. May be repeated
    #[arg(long, value_name = "COMMAND", value_parser = parse_command)]
    pub(super) exec: Vec<List>,
    /// Run the workload so many times, each on a fresh mount, and merge the profiles
    #[arg(long, default_value = "1", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) runs: u32,
    /// Go on although the workload exits with an error
    #[arg(long)]
    pub(super) allow_failure: bool,
}

/// What the container is connected to.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub(super) struct NetworkArgs {
    /// Use the host's network
    #[arg(long, conflicts_with = "cni")]
    pub(super) net_host: bool,
    /// Connect the container with CNI plugins
    #[arg(long)]
    pub(super) cni: bool,
    /// Directory with CNI configurations; the first by name is used
    #[arg(
        long,
        alias = "cni-plugin-conf-dir",
        default_value = "/etc/cni/net.d",
        value_name = "DIR"
    )]
    pub(super) cni_plugin_config_dir: PathBuf,
    /// Directory with CNI plugins; may be repeated [default: /opt/cni/bin and /usr/lib/cni]
    #[arg(long, value_name = "DIR")]
    pub(super) cni_plugin_dir: Vec<PathBuf>,
    /// Nameservers in /etc/resolv.conf, with commas [default: 8.8.8.8]
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    pub(super) dns_nameservers: Vec<IpAddr>,
    /// Search domains in /etc/resolv.conf, with commas
    #[arg(long, value_name = "DOMAINS", value_delimiter = ',', value_parser = parse_word)]
    pub(super) dns_search_domains: Vec<String>,
    /// Options in /etc/resolv.conf, with commas
    #[arg(long, value_name = "OPTIONS", value_delimiter = ',', value_parser = parse_word)]
    pub(super) dns_options: Vec<String>,
    /// Hosts in /etc/hosts, with commas
    #[arg(long, value_name = "NAME:ADDRESS", value_delimiter = ',', value_parser = parse_host)]
    pub(super) add_hosts: Vec<(String, IpAddr)>,
}

/// How the workload is watched.
#[derive(Debug, Args)]
#[command(next_help_heading = "Watching")]
pub(super) struct WatchingArgs {
    /// How the image's files are made available to the container
    #[arg(long, default_value = "auto", value_name = "HOW")]
    pub(super) rootfs: RootfsArg,
    /// See every single page that is touched; slower: no read-ahead
    #[arg(long)]
    pub(super) exact: bool,
    /// How to watch the workload; by default as well as the kernel can
    #[arg(long, default_value = "auto", value_name = "HOW")]
    pub(super) collector: CollectorArg,
    /// Also see which names are opened or executed in vain; then every system call of every process on the machine
    /// takes a little longer
    #[arg(long)]
    pub(super) missing: bool,
    /// Go on although events were lost
    #[arg(long)]
    pub(super) allow_incomplete: bool,
    /// Size of the buffer between kernel and esgz
    #[arg(long, default_value = "4MiB", value_name = "SIZE", value_parser = parse_ring, hide = true)]
    pub(super) ring_size: u32,
    /// Where is written down what a killed esgz leaves behind; the next call removes it
    #[arg(long, default_value = "/run/esgz", value_name = "DIR", hide = true)]
    pub(super) state_dir: PathBuf,
}

/// A JSON array of strings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct List(pub(super) Vec<String>);

/// See [`crate::rootfs::RootfsMode`].
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum RootfsArg {
    /// erofs where the kernel has it, else unpack
    Auto,
    /// Mount the layers' tars in place, through an index
    Erofs,
    /// Unpack every layer
    Unpack,
}

impl WatchingArgs {
    pub(super) fn opens(&self) -> Result<OpenSource, Failure> {
        match (self.missing, self.collector) {
            (true, CollectorArg::Fanotify) => {
                let message = "the collector fanotify cannot see --missing names".to_owned();
                Err(Failure::message(USAGE, message))
            }
            (true, _) => Ok(OpenSource::SystemCalls),
            (false, _) => Ok(OpenSource::Fanotify),
        }
    }
}

/// See [`crate::profiler::Tier`].
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum CollectorArg {
    /// The first of these that works
    Auto,
    /// eBPF, every page that is read or mapped; Linux 6.12
    Filemap,
    /// eBPF, every page that enters the page cache, without read-ahead; Linux 5.15
    PageCache,
    /// eBPF, opened and executed files as a whole; Linux 5.15
    Open,
    /// No eBPF, opened and executed files as a whole
    Fanotify,
}

impl CollectorArg {
    pub(super) fn tier(self) -> Option<Tier> {
        match self {
            Self::Auto => None,
            Self::Filemap => Some(Tier::Filemap),
            Self::PageCache => Some(Tier::PageCache),
            Self::Open => Some(Tier::Open),
            Self::Fanotify => Some(Tier::Fanotify),
        }
    }
}

/// Above 64 the kernel hides touches (docs/profile.md). Below, less counts as touched that is not, and
/// reading takes longer.
const READ_AHEAD_KIB: u32 = 24;

/// Where specifications of devices are (CDI specification, "CDI JSON Specification"); the later one has the
/// last word.
const CDI_DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// containerd's, and Debian's.
const CNI_PLUGIN_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];
/// The kind of device that an index means.
const GPU_KIND: &str = "nvidia.com/gpu";

/// What a run needs of the flags. `scratch` is where layers are.
pub(super) fn record_options(
    args: &WorkloadArgs,
    scratch: PathBuf,
    streams: Streams,
    signals: &Signals,
) -> Result<RecordOptions, Failure> {
    let watching = &args.watching;
    Ok(RecordOptions {
        rootfs: RootfsOptions {
            mode: match watching.rootfs {
                RootfsArg::Auto => RootfsMode::Auto,
                RootfsArg::Erofs => RootfsMode::Erofs,
                RootfsArg::Unpack => RootfsMode::Unpack,
            },
            scratch,
            read_ahead_kib: if watching.exact { 0 } else { READ_AHEAD_KIB },
        },
        workload: workload_options(args, streams, signals)?,
        runs: args.end.runs,
        state: watching.state_dir.clone(),
        exactness: if watching.exact {
            Exactness::Exact
        } else {
            Exactness::FaultAround
        },
        collector: watching.collector.tier(),
        opens: watching.opens()?,
        ring_bytes: watching.ring_size,
    })
}

fn workload_options(
    args: &WorkloadArgs,
    streams: Streams,
    signals: &Signals,
) -> Result<WorkloadOptions, Failure> {
    let list = |list: &Option<List>| list.as_ref().map(|list| list.0.clone());
    let or = |given: &[PathBuf], default: [&str; 2]| match given {
        [] => default.map(PathBuf::from).to_vec(),
        given => given.to_vec(),
    };
    let network = &args.network;
    let end = &args.end;
    let mut env = env_file(args)?;
    env.extend(args.env.iter().cloned());
    Ok(WorkloadOptions {
        entrypoint: list(&args.entrypoint),
        args: list(&args.args),
        env,
        user: args.user.clone(),
        cwd: args.cwd.clone(),
        runtime: args.runtime.clone(),
        streams,
        input: input(args)?,
        mounts: args.mount.iter().map(absolute).collect::<Result<_, _>>()?,
        network: match (network.net_host, network.cni) {
            (true, _) => Network::Host,
            (false, true) => Network::Cni(CniOptions {
                config_dir: network.cni_plugin_config_dir.clone(),
                plugin_dirs: or(&network.cni_plugin_dir, CNI_PLUGIN_DIRS),
            }),
            (false, false) => Network::Isolated,
        },
        names: NameResolution {
            hosts: network
                .add_hosts
                .iter()
                .map(|(name, address)| (name.clone(), address.to_string()))
                .collect(),
            nameservers: network
                .dns_nameservers
                .iter()
                .map(IpAddr::to_string)
                .collect(),
            search: network.dns_search_domains.clone(),
            options: network.dns_options.clone(),
        },
        devices: Devices {
            names: args.gpus.iter().map(|name| device(name)).collect(),
            spec_dirs: or(&args.cdi_spec_dir, CDI_DIRS),
        },
        until: Until {
            period: (!end.wait_on_signal).then_some(end.period),
            line: end.wait_on_line.clone(),
            port: end.wait_on_port,
            http: end.wait_on_http.clone(),
            signal: end.wait_on_signal.then(|| signals.end_of_run()),
        },
        commands: end.exec.iter().map(|command| command.0.clone()).collect(),
    })
}

fn input(args: &WorkloadArgs) -> Result<Input, Failure> {
    use std::io::IsTerminal as _;
    match (args.terminal, args.interactive) {
        (true, _) if !std::io::stdin().is_terminal() => {
            let message = "--terminal needs a terminal, and stdin is none".to_owned();
            Err(Failure::message(USAGE, message))
        }
        (true, _) => Ok(Input::Terminal),
        (false, true) => Ok(Input::Stdin),
        (false, false) => Ok(Input::Nothing),
    }
}

/// Lines as containerd reads them; empty ones and comments are left out.
fn env_file(args: &WorkloadArgs) -> Result<Vec<String>, Failure> {
    let Some(path) = &args.env_file else {
        return Ok(Vec::new());
    };
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::new(USAGE, error).context(format!("reading {}", path.display()))
    })?;
    let lines = text.lines().map(|line| line.trim_end_matches('\r'));
    let lines = lines.filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

/// A mount with the source as the runtime understands it, which runs in another directory.
fn absolute(mount: &Mount) -> Result<Mount, Failure> {
    let is_bind = mount.kind == "bind"
        || mount
            .options
            .iter()
            .any(|option| matches!(&**option, "bind" | "rbind"));
    if !is_bind {
        return Ok(mount.clone());
    }
    let source = std::fs::canonicalize(&mount.source).map_err(|error| {
        Failure::new(USAGE, error).context(format!("mounting {}", mount.source))
    })?;
    let source = source.into_os_string().into_string().map_err(|source| {
        let message = format!("mounting {}: not UTF-8", source.to_string_lossy());
        Failure::message(USAGE, message)
    })?;
    // The runtime wants to be told in the options, too.
    let mut options = mount.options.clone();
    if !options
        .iter()
        .any(|option| matches!(&**option, "bind" | "rbind"))
    {
        options.insert(0, "rbind".to_owned());
    }
    Ok(Mount {
        source,
        options,
        ..mount.clone()
    })
}

/// An index, `all`, or the full name of any device.
fn device(name: &str) -> String {
    if name.contains('=') {
        name.to_owned()
    } else {
        format!("{GPU_KIND}={name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_of_a_mount_is_made_absolute() {
        // The example of ctr-remote's manual.
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("hello.go");
        std::fs::write(&file, "").unwrap();
        let text = format!(
            "type=bind,source={},destination=/hello.go,options=bind:ro",
            file.display()
        );
        let mount = absolute(&parse_mount(&text).unwrap()).unwrap();
        assert_eq!(mount.options, ["bind", "ro"]);
        let text = text.replace("options=bind:ro", "options=ro");
        assert_eq!(
            absolute(&parse_mount(&text).unwrap()).unwrap().options,
            ["rbind", "ro"]
        );
    }

    #[test]
    fn devices_are_named_in_full() {
        assert_eq!(device("0"), "nvidia.com/gpu=0");
        assert_eq!(device("all"), "nvidia.com/gpu=all");
        assert_eq!(device("v/c=d"), "v/c=d");
    }
}
