//! How registries are reached: flags, and where Docker and Podman keep credentials.

use std::path::PathBuf;

use clap::Args;

use crate::cli::failure::{Failure, USAGE};
use crate::registry::{CredentialSources, RegistryOptions, Secret, Security};

/// How registries are reached.
#[derive(Debug, Args)]
#[command(next_help_heading = "Registries")]
pub(super) struct RegistryArgs {
    /// Speak HTTP without TLS to registries; done anyway to one on this machine
    #[arg(long)]
    pub(super) plain_http: bool,
    /// Take any certificate of a registry
    #[arg(short = 'k', long)]
    pub(super) skip_verify: bool,
    /// Certificates of authorities to trust beside the system's, PEM
    #[arg(long, value_name = "FILE")]
    pub(super) tlscacert: Option<PathBuf>,
    /// Our certificate for registries, PEM
    #[arg(long, value_name = "FILE", requires = "tlskey")]
    pub(super) tlscert: Option<PathBuf>,
    /// The key of our certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tlscert")]
    pub(super) tlskey: Option<PathBuf>,
    /// Directory with a hosts.toml for each registry, as containerd has it: mirrors, certificates
    #[arg(long, value_name = "DIR")]
    pub(super) hosts_dir: Option<PathBuf>,
    /// Who we are to registries, instead of what Docker's and Podman's files say
    #[arg(long, value_name = "USER:PASSWORD", value_parser = parse_user)]
    pub(super) registry_user: Option<User>,
}

/// As [`RegistryArgs::registry_user`], under ctr's name, where no workload has a user.
#[derive(Debug, Args)]
#[command(next_help_heading = "Registries")]
pub(super) struct UserArg {
    /// The same as --registry-user
    #[arg(short, long, value_name = "USER:PASSWORD", value_parser = parse_user, conflicts_with = "registry_user")]
    pub(super) user: Option<User>,
}

/// A user, and the password if there is one.
#[derive(Clone, Debug)]
pub(super) struct User {
    name: String,
    password: Option<Secret>,
}

/// Takes every text: clap would print what it refuses.
#[allow(clippy::unnecessary_wraps, reason = "clap asks for it")]
fn parse_user(text: &str) -> Result<User, String> {
    let (name, password) = match text.split_once(':') {
        Some((name, password)) => (name, Some(Secret::new(password))),
        None => (text, None),
    };
    Ok(User {
        name: name.to_owned(),
        password,
    })
}

/// Resolves the flags.
pub(super) fn options(
    args: &RegistryArgs,
    user: Option<&UserArg>,
) -> Result<RegistryOptions, Failure> {
    let user = user.and_then(|arg| arg.user.as_ref());
    let user = user.or(args.registry_user.as_ref());
    Ok(RegistryOptions {
        credentials: CredentialSources {
            given: user.map(given).transpose()?,
            files: credential_files(),
        },
        security: Security {
            plain_http: args.plain_http,
            skip_verify: args.skip_verify,
            authorities: args.tlscacert.iter().cloned().collect(),
            identity: args.tlscert.clone().zip(args.tlskey.clone()),
        },
        hosts_dir: args.hosts_dir.clone(),
        ..RegistryOptions::default()
    })
}

fn given(user: &User) -> Result<(String, Secret), Failure> {
    let password = user.password.clone().ok_or_else(|| {
        Failure::message(
            USAGE,
            "a registry's user needs a password: USER:PASSWORD".to_owned(),
        )
    })?;
    Ok((user.name.clone(), password))
}

/// Docker's file, then Podman's (containers-auth.json(5)).
fn credential_files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = variable("HOME").map(PathBuf::from);
    let docker = variable("DOCKER_CONFIG").map(PathBuf::from);
    let docker = docker.or_else(|| Some(home.as_ref()?.join(".docker")));
    let podman = match variable("REGISTRY_AUTH_FILE") {
        Some(file) => vec![PathBuf::from(file)],
        None => {
            let run = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
            let config = variable("XDG_CONFIG_HOME").map(PathBuf::from);
            let config = config.or_else(|| Some(home.as_ref()?.join(".config")));
            let dirs = run.into_iter().chain(config);
            dirs.map(|dir| dir.join("containers/auth.json")).collect()
        }
    };
    let docker = docker.map(|dir| dir.join("config.json"));
    docker.into_iter().chain(podman).collect()
}
