//! `esgz profile`: what can be done with profiles alone.

mod compare;
mod picture;
mod show;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::artifact::ArtifactOptions;
use crate::cancel::Cancel;
use crate::cli::args::parse_size;
use crate::cli::failure::{Failure, USAGE};
use crate::cli::output;
use crate::cli::profile_place::{ProfileOutput, ProfilePlace, artifact_options, place_parser};
use crate::cli::reading::default_scratch;
use crate::cli::registry::{self, RegistryArgs, UserArg};
use crate::cli::report::{print_profile, profile_json};
use crate::profile::{self, MergeError, Profile, SameFile};

#[derive(Debug, Subcommand)]
pub(super) enum ProfileCommand {
    /// Show a profile's files, and which parts of the big ones were touched
    Show(ShowArgs),
    /// Make one profile of several
    Merge(MergeArgs),
    /// Tell in what two profiles differ
    Diff(DiffArgs),
    /// Write what a profile says in the form that another tool reads
    Export(ExportArgs),
}

/// How registries are reached where profiles may be.
#[derive(Debug, Args)]
struct ReachArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    user: UserArg,
}

impl ReachArgs {
    fn options(&self, cancel: &Cancel) -> Result<ArtifactOptions, Failure> {
        let registry = registry::options(&self.registry, Some(&self.user))?;
        Ok(artifact_options(&registry, &default_scratch(), cancel))
    }
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Profile to show
    #[arg(value_name = "PROFILE", value_parser = place_parser())]
    profile: ProfilePlace,
    #[command(flatten)]
    reach: ReachArgs,
    /// In which order files are shown
    #[arg(long, default_value = "first-touch", value_name = "ORDER")]
    sort: SortArg,
    /// How the touched ranges of big files are drawn
    #[arg(long, default_value = "auto", value_name = "HOW")]
    picture: PictureArg,
    /// Draw files from this size on
    #[arg(long, default_value = "1MiB", value_name = "SIZE", value_parser = parse_size)]
    picture_from: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SortArg {
    /// What was touched first comes first
    FirstTouch,
    /// The largest first
    Size,
    /// That of which most was touched first
    Touched,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PictureArg {
    /// blocks on a terminal unless $NO_COLOR is set, else ascii
    Auto,
    /// A row of block characters
    Blocks,
    /// A row of ASCII characters
    Ascii,
    /// Not at all
    None,
}

#[derive(Debug, Args)]
pub(super) struct MergeArgs {
    /// Profiles to merge, of one image
    #[arg(value_name = "PROFILE", required = true, value_parser = place_parser())]
    profiles: Vec<ProfilePlace>,
    /// Write the merged profile there: to a file, or beside its image to docker://NAME
    #[arg(short, long, value_name = "PROFILE", value_parser = place_parser())]
    output: ProfilePlace,
    #[command(flatten)]
    reach: ReachArgs,
    /// Also merge profiles of different images: files of one path are one file
    #[arg(long)]
    by_path: bool,
    /// Print the result as JSON on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// The first profile
    #[arg(value_name = "BEFORE", value_parser = place_parser())]
    before: ProfilePlace,
    /// The second profile
    #[arg(value_name = "AFTER", value_parser = place_parser())]
    after: ProfilePlace,
    #[command(flatten)]
    reach: ReachArgs,
    /// Exit with 1 if other bytes or files were touched; by default only failures give another code than 0
    #[arg(long)]
    exit_code: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// Profile to export
    #[arg(value_name = "PROFILE", value_parser = place_parser())]
    profile: ProfilePlace,
    #[command(flatten)]
    reach: ReachArgs,
    /// For which tool
    #[arg(long, value_name = "FORMAT")]
    format: FormatArg,
    /// Write there instead of to stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    /// ctr-remote's record: opened and touched files, JSON a line
    CtrRemote,
    /// nydus's prefetch files: touched ranges, JSON
    Nydus,
    /// SOCI's prefetch files: touched files, JSON
    Soci,
    /// Touched files, a path a line; --prefetch-list reads it
    Paths,
}

/// Runs `esgz profile`.
pub(super) fn run(command: &ProfileCommand, cancel: &Cancel) -> Result<(), Failure> {
    match command {
        ProfileCommand::Show(args) => show::show(args, cancel),
        ProfileCommand::Merge(args) => merge(args, cancel),
        ProfileCommand::Diff(args) => compare::diff(args, cancel),
        ProfileCommand::Export(args) => export(args, cancel),
    }
}

fn merge(args: &MergeArgs, cancel: &Cancel) -> Result<(), Failure> {
    let options = args.reach.options(cancel)?;
    let profiles = args.profiles.iter().map(|place| place.read(&options));
    let profiles = profiles.collect::<Result<Vec<Profile>, Failure>>()?;
    let same = if args.by_path {
        SameFile::ByPath
    } else {
        SameFile::InImage
    };
    let merged = profile::merge(&profiles, same).map_err(|error| match error {
        MergeError::Images { .. } => {
            let message = format!("{error}; --by-path merges them by their paths");
            Failure::message(USAGE, message)
        }
        error => Failure::new(USAGE, error),
    })?;
    let written = ProfileOutput::open_for(&args.output, &merged, &options)?.write(&merged)?;
    if args.json {
        return output::json(&serde_json::json!({
            "profile": profile_json(&merged),
            "runs": merged.runs,
            "by_path": merged.image.by_path,
            "output": written.place,
            "artifact": written.json(),
        }));
    }
    output::line(format_args!(
        "merged     {} profiles of {} runs",
        profiles.len(),
        merged.runs
    ))?;
    print_profile(&merged)?;
    output::line(format_args!("written    {}", written.shown()))
}

fn export(args: &ExportArgs, cancel: &Cancel) -> Result<(), Failure> {
    let profile = args.profile.read(&args.reach.options(cancel)?)?;
    let document = match args.format {
        FormatArg::CtrRemote => profile::to_record(&profile),
        FormatArg::Nydus => profile::to_nydus(&profile),
        FormatArg::Soci => profile::to_soci(&profile),
        FormatArg::Paths => {
            let (list, left_out) = profile::to_paths(&profile);
            if left_out > 0 {
                tracing::warn!("{left_out} paths hold a line break and are left out");
            }
            list
        }
    };
    match &args.output {
        Some(path) => output::write_file(path, &document),
        None => output::bytes(&document),
    }
}
