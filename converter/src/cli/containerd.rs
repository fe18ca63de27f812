//! Which containerd is meant: flags that all commands share, under ctr's names.

use std::path::PathBuf;

use clap::Args;

use crate::containerd::{ContainerdOptions, ContentAccess};
use crate::registry::RegistryOptions;

/// Which containerd is meant.
#[derive(Debug, Args)]
#[command(next_help_heading = "containerd")]
pub(super) struct ContainerdArgs {
    /// containerd's socket [default: $CONTAINERD_ADDRESS or /run/containerd/containerd.sock]
    #[arg(
        short,
        long,
        global = true,
        value_name = "PATH",
        overrides_with = "address"
    )]
    pub(super) address: Option<PathBuf>,
    /// Namespace in containerd [default: $CONTAINERD_NAMESPACE or default]
    #[arg(
        short,
        long,
        global = true,
        value_name = "NAME",
        overrides_with = "namespace"
    )]
    pub(super) namespace: Option<String>,
    /// Read blobs through containerd's socket, also where its files can be read
    #[arg(long, global = true)]
    pub(super) content_over_socket: bool,
    /// The same as --log-level=debug
    #[arg(long, global = true, hide = true)]
    pub(super) debug: bool,
    /// Without effect, for scripts that are written for ctr
    #[arg(long, global = true, hide = true, value_name = "DURATION")]
    timeout: Option<String>,
    /// As above
    #[arg(long, global = true, hide = true, value_name = "DURATION")]
    connect_timeout: Option<String>,
}

/// All that images may be fetched from and sent to.
#[derive(Clone, Debug)]
pub(super) struct Remotes {
    pub(super) registry: RegistryOptions,
    pub(super) containerd: ContainerdOptions,
}

/// Resolves the flags.
pub(super) fn options(args: &ContainerdArgs) -> ContainerdOptions {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let default = ContainerdOptions::default();
    let address = args.address.clone();
    let address = address.or_else(|| variable("CONTAINERD_ADDRESS").map(PathBuf::from));
    let namespace = args.namespace.clone().or_else(|| {
        let namespace = variable("CONTAINERD_NAMESPACE")?;
        // One that is no text is no name either, and is refused as such.
        Some(namespace.to_string_lossy().into_owned())
    });
    ContainerdOptions {
        address: address.unwrap_or(default.address),
        namespace: namespace.unwrap_or(default.namespace),
        contents: if args.content_over_socket {
            ContentAccess::Messages
        } else {
            ContentAccess::Files
        },
    }
}
