//! Watching a container that runs already: its flags, and what they mean.

use std::path::PathBuf;

use clap::Args;

use crate::attach::{Target, Until};
use crate::cli::failure::{Failure, USAGE};
use crate::cli::signals::Signals;
use crate::cli::workload::WorkloadArgs;
use crate::profiler::Tier;
use crate::record::AttachOptions;

/// Which running container is watched, instead of one of our own.
#[derive(Debug, Args)]
#[command(next_help_heading = "Attaching")]
pub(super) struct AttachArgs {
    /// Watch the running container that this process is in, until it ends, for --period, or until Ctrl-C. It is not
    /// changed, and runs on
    #[arg(
        long,
        value_name = "PID",
        value_parser = clap::value_parser!(u32).range(1..),
        conflicts_with = "attach_cgroup",
        conflicts_with_all = OF_OWN_CONTAINERS
    )]
    pub(super) attach: Option<u32>,
    /// As --attach, for the container whose processes are in this cgroup
    #[arg(long, value_name = "PATH", conflicts_with_all = OF_OWN_CONTAINERS)]
    pub(super) attach_cgroup: Option<PathBuf>,
}

/// Flags that say how a container is made, or stopped.
const OF_OWN_CONTAINERS: [&str; 26] = [
    "entrypoint",
    "args",
    "env",
    "env_file",
    "user",
    "cwd",
    "terminal",
    "interactive",
    "mount",
    "gpus",
    "cdi_spec_dir",
    "runtime",
    "wait_on_line",
    "exec",
    "runs",
    "allow_failure",
    "net_host",
    "cni",
    "cni_plugin_config_dir",
    "cni_plugin_dir",
    "dns_nameservers",
    "dns_search_domains",
    "dns_options",
    "add_hosts",
    "rootfs",
    "exact",
];

/// What watching a running container needs of the flags; None where none is named.
pub(super) fn attach_options(
    attach: &AttachArgs,
    args: &WorkloadArgs,
    signals: &Signals,
) -> Result<Option<AttachOptions>, Failure> {
    let target = match (attach.attach, &attach.attach_cgroup) {
        (Some(pid), _) => Target::Process(pid),
        (None, Some(path)) => Target::Cgroup(path.clone()),
        (None, None) => return Ok(None),
    };
    let (watching, end) = (&args.watching, &args.end);
    let collector = watching.collector.tier();
    if collector == Some(Tier::PageCache) {
        let message =
            "the collector page-cache needs a file system that was mounted for it".to_owned();
        return Err(Failure::message(USAGE, message));
    }
    Ok(Some(AttachOptions {
        target,
        until: Until {
            period: (!end.wait_on_signal).then_some(end.period),
            port: end.wait_on_port,
            http: end.wait_on_http.clone(),
            // There is nothing that an interruption would have to remove.
            signal: Some(signals.end_of_run()),
        },
        collector,
        opens: watching.opens()?,
        ring_bytes: watching.ring_size,
    }))
}
