//! The arguments as clap reads them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cli::attach::AttachArgs;
use crate::cli::containerd::ContainerdArgs;
use crate::cli::created::Created;
use crate::cli::generate::{CompletionsArgs, ManArgs};
use crate::cli::image::ImageCommand;
use crate::cli::page::PageArgs;
use crate::cli::profile::ProfileCommand;
use crate::cli::profile_place::{ProfilePlace, place_parser};
use crate::cli::progress::ProgressArg;
use crate::cli::registry::{RegistryArgs, UserArg};
use crate::cli::simulate::SimulateArgs;
use crate::cli::workload::WorkloadArgs;
use crate::image::{ImageRef, Platform};
use crate::layer::encode::Level;
use crate::layer::plan::PlanOptions;
use crate::planner::HotPack;
use crate::registry::Early;
use crate::simulate::Link;

/// Make container images start fast: profile a workload with eBPF and rewrite its image as eStargz.
#[derive(Debug, Parser)]
#[command(name = "esgz", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
    /// How much to say on stderr: error, warn, info, debug, trace, or a filter of the crate
    /// tracing-subscriber
    #[arg(
        long,
        global = true,
        default_value = "info",
        value_name = "LEVEL",
        overrides_with = "log_level"
    )]
    pub(super) log_level: String,
    /// How to show what is going on, on stderr
    #[arg(
        long,
        global = true,
        default_value = "auto",
        value_name = "HOW",
        overrides_with = "progress"
    )]
    pub(super) progress: ProgressArg,
    #[command(flatten)]
    pub(super) containerd: ContainerdArgs,
}

const EXIT_CODES: &str = "Exit codes: 0 ok; 2 usage; 3 the workload failed; 4 the profile is \
incomplete; 5 verification failed; 6 source or destination cannot be read or written; 130 \
interrupted; 1 anything else.";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run an image's workload, watch what it touches, and convert the image to eStargz
    Optimize(Box<OptimizeArgs>),
    /// Run an image's workload and write down what it touches
    Record(Box<RecordArgs>),
    /// Convert an image to eStargz without running it; needs no privilege
    Convert(Box<ConvertArgs>),
    /// Show, merge, compare and export profiles
    #[command(subcommand)]
    Profile(ProfileCommand),
    /// Show an eStargz image's layers, or one layer's table of contents
    Inspect(InspectArgs),
    /// Check every digest, TOC row and chunk of an eStargz image
    Verify(VerifyArgs),
    /// What ctr-remote does with images in containerd, under its names and flags
    #[command(subcommand, visible_aliases = ["images", "i"])]
    Image(ImageCommand),
    /// Predict how long a container takes to become ready, and what goes through the link until then
    Simulate(SimulateArgs),
    /// Write an HTML page: what an image reads at its start, what is prefetched, how soon it is ready
    Report(PageArgs),
    /// Print a script that completes esgz's commands and flags in a shell
    Completions(CompletionsArgs),
    /// Print or write manual pages
    Man(ManArgs),
}

#[derive(Debug, Args)]
pub(super) struct OptimizeArgs {
    /// Image to read, oci:DIR[:TAG], docker://NAME, containerd:NAME or an archive
    #[arg(value_name = "SRC")]
    pub(super) source: ImageRef,
    /// Image to write, oci:DIR[:TAG], docker://NAME, containerd:NAME or an archive
    #[arg(value_name = "DST")]
    pub(super) destination: ImageRef,
    /// Prefetch what this profile says instead of running the workload: a file, or docker://NAME of it or of
    /// its image
    #[arg(long, value_name = "PROFILE", value_parser = place_parser(),
        conflicts_with_all = ["prefetch_list", "no_optimize", "profile_out", "record_out"])]
    pub(super) profile: Option<ProfilePlace>,
    /// Prefetch what this list names instead of running the workload: paths and patterns, one a line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["no_optimize", "profile_out", "record_out"])]
    pub(super) prefetch_list: Option<PathBuf>,
    /// Neither run the workload nor prefetch anything: convert only
    #[arg(long, conflicts_with_all = ["profile_out", "record_out"])]
    pub(super) no_optimize: bool,
    /// Write the profile there, too: to a file, or to docker://NAME
    #[arg(long, value_name = "PROFILE", value_parser = place_parser())]
    pub(super) profile_out: Option<ProfilePlace>,
    /// Write a record there, as ctr-remote does
    #[arg(long, value_name = "FILE")]
    pub(super) record_out: Option<PathBuf>,
    /// Write an HTML page there: what the start reads, what is prefetched, how soon the image is ready
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prefetch_list", "no_optimize"])]
    pub(super) report: Option<PathBuf>,
    #[command(flatten)]
    pub(super) workload: WorkloadArgs,
    #[command(flatten)]
    pub(super) conversion: ConversionArgs,
}

#[derive(Debug, Args)]
pub(super) struct RecordArgs {
    /// Image to run, oci:DIR[:TAG], docker://NAME, containerd:NAME or an archive
    #[arg(value_name = "SRC")]
    pub(super) source: ImageRef,
    /// Write the profile there: to a file, or beside its image to docker://NAME
    #[arg(short, long, value_name = "PROFILE", value_parser = place_parser())]
    pub(super) output: ProfilePlace,
    /// Write a record there, as ctr-remote does
    #[arg(long, value_name = "FILE")]
    pub(super) record_out: Option<PathBuf>,
    #[command(flatten)]
    pub(super) attach: AttachArgs,
    #[command(flatten)]
    pub(super) workload: WorkloadArgs,
    #[command(flatten)]
    pub(super) platforms: PlatformArgs,
    #[command(flatten)]
    pub(super) reading: ReadingArgs,
    #[command(flatten)]
    pub(super) registry: RegistryArgs,
    /// Print the result as JSON on stdout
    #[arg(long)]
    pub(super) json: bool,
}

/// Which platforms of an image are meant.
#[derive(Debug, Args)]
#[command(next_help_heading = "Platforms")]
pub(super) struct PlatformArgs {
    /// A platform of the image, OS/ARCHITECTURE[/VARIANT] or one of the first two; may be repeated
    #[arg(long, value_name = "PLATFORM", conflicts_with = "all_platforms")]
    pub(super) platform: Vec<Platform>,
    /// All platforms of the image
    #[arg(long)]
    pub(super) all_platforms: bool,
}

/// What is written besides layers.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputArgs {
    /// Write OCI media types; --oci=false writes Docker's, with which lazy pulling fails
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    pub(super) oci: bool,
    /// Annotation of every image's manifest, or with index: of the index; may be repeated
    #[arg(long, value_name = "[index:]KEY=VALUE", value_parser = parse_annotation)]
    pub(super) annotation: Vec<Annotation>,
    /// When the image was created: RFC 3339, or seconds since 1970 [default: $SOURCE_DATE_EPOCH, or
    /// as in the source]
    #[arg(long, value_name = "TIME")]
    pub(super) created: Option<Created>,
    /// Prefetch the profile's paths on the other platforms, too
    #[arg(long)]
    pub(super) profile_other_platforms: bool,
}

/// `KEY=VALUE`, and what it is said of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Annotation {
    pub(super) of: Annotated,
    pub(super) key: String,
    pub(super) value: String,
}

/// What an annotation is said of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Annotated {
    Manifest,
    Index,
}

/// How layers are read.
#[derive(Debug, Args)]
#[command(next_help_heading = "Layers")]
pub(super) struct ReadingArgs {
    /// Worker threads; the output does not depend on it [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) threads: Option<u16>,
    /// Directory for uncompressed layers and archives; needs room for all of them [default: $TMPDIR or
    /// /var/tmp]
    #[arg(long, value_name = "DIR")]
    pub(super) scratch: Option<PathBuf>,
    /// Refuse layers, and archives, that are larger than this when decompressed
    #[arg(long, default_value = "256GiB", value_name = "SIZE", value_parser = parse_size)]
    pub(super) max_layer_size: u64,
    /// Memory, with a suffix KiB, MiB or GiB. Layers whose entries and TOCs take more than half of it are
    /// refused; a thread needs about 35 MiB of the rest, or nine chunks, and those that find none are not used
    #[arg(long, default_value = "512MiB", value_name = "SIZE", value_parser = parse_size)]
    pub(super) memory: u64,
}

/// How layers are converted.
#[derive(Debug, Args)]
#[command(next_help_heading = "Conversion")]
pub(super) struct ConversionArgs {
    #[command(flatten)]
    pub(super) platforms: PlatformArgs,
    #[command(flatten)]
    pub(super) reading: ReadingArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
    #[command(flatten)]
    pub(super) registry: RegistryArgs,
    /// Compression level, 0 (store) to 12 [default: a gzip source's compressed data is copied, anything
    /// else is compressed at 6]
    #[arg(long, value_name = "LEVEL", value_parser = parse_level)]
    pub(super) estargz_compression_level: Option<Level>,
    /// Compress a layer again if copying its compressed data would make it larger by more than this
    #[arg(
        long,
        default_value = "1",
        value_name = "PERCENT",
        value_parser = parse_percent,
        conflicts_with = "estargz_compression_level"
    )]
    pub(super) transcode_overhead: f64,
    /// Keep there, for each gzip layer, where it can be decoded from: the next conversion of the same
    /// layer decodes it on all cores; takes 1 % of the layers at most
    #[arg(long, value_name = "DIR")]
    pub(super) index_cache: Option<PathBuf>,
    /// Uncompressed bytes in a chunk, the unit that a lazy-pulling runtime fetches; 1 KiB to 128 MiB,
    /// 0 means 4 MiB
    #[arg(long, default_value = "0", value_name = "SIZE", value_parser = parse_chunk_size)]
    pub(super) estargz_chunk_size: u32,
    /// Let small files share a gzip member until it has this many compressed bytes, at most 4 MiB;
    /// readers need Stargz Snapshotter 0.13
    #[arg(long, default_value = "0", value_name = "SIZE", value_parser = parse_min_chunk_size)]
    pub(super) estargz_min_chunk_size: u32,
    /// Prefetch of a big file (8 MiB) only the parts that the profile says were touched. auto: where that
    /// is less than 50 % of it, and all touched parts are known; on: also elsewhere; off: each touched file
    /// whole. Layers with such parts need Stargz Snapshotter 0.13 to be pulled lazily
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pub(super) hot_pack: HotPackArg,
    /// How much bigger the image may get, in percent and by estimate, before less is packed: packs are stored twice,
    /// and rows of the TOC count too. At least 1 % is for packs. Not with --hot-pack=on
    #[arg(
        long,
        default_value = "6",
        value_name = "PERCENT",
        value_parser = parse_percent
    )]
    pub(super) hot_pack_growth: f64,
    /// Decide what is prefetched by what it costs over this link (bandwidth and round trip, such as 1gbit,10ms), and
    /// by simulating it, instead of by sizes alone
    #[arg(long, value_name = "BANDWIDTH,RTT")]
    pub(super) assume_link: Option<Link>,
    /// Carry a layer over as it is where it is valid eStargz and prefetches nothing else than wanted
    #[arg(long)]
    pub(super) reuse: bool,
    /// Send a layer to a registry while it is still being made. auto: to a repository that has no tags; on:
    /// also where it may turn out that the layer is there already; off: when it is whole
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pub(super) early_push: EarlyPushArg,
    /// Do not read the written layers back
    #[arg(long)]
    pub(super) no_verify: bool,
    /// Print the result as JSON on stdout
    #[arg(long)]
    pub(super) json: bool,
}

/// See [`Early`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum EarlyPushArg {
    #[default]
    Auto,
    On,
    Off,
}

impl From<EarlyPushArg> for Early {
    fn from(arg: EarlyPushArg) -> Self {
        match arg {
            EarlyPushArg::Auto => Self::NewRepository,
            EarlyPushArg::On => Self::Always,
            EarlyPushArg::Off => Self::Never,
        }
    }
}

/// See [`HotPack`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum HotPackArg {
    #[default]
    Auto,
    On,
    Off,
}

impl From<HotPackArg> for HotPack {
    fn from(arg: HotPackArg) -> Self {
        match arg {
            HotPackArg::Auto => Self::Auto,
            HotPackArg::On => Self::On,
            HotPackArg::Off => Self::Off,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct ConvertArgs {
    /// Image to read, oci:DIR[:TAG], docker://NAME, containerd:NAME or an archive
    #[arg(value_name = "SRC")]
    pub(super) source: ImageRef,
    /// Image to write, oci:DIR[:TAG], docker://NAME, containerd:NAME or an archive
    #[arg(value_name = "DST")]
    pub(super) destination: ImageRef,
    /// Prefetch what this profile says was touched: a file, or docker://NAME of it or of its image
    #[arg(long, value_name = "PROFILE", value_parser = place_parser(),
        conflicts_with_all = ["record_in", "prefetch_list"])]
    pub(super) profile: Option<ProfilePlace>,
    /// Prefetch what this list names: paths and patterns, one a line
    #[arg(long, value_name = "FILE", conflicts_with = "record_in")]
    pub(super) prefetch_list: Option<PathBuf>,
    /// Prefetch the files of this record of ctr-remote's
    #[arg(long, alias = "estargz-record-in", value_name = "FILE")]
    pub(super) record_in: Option<PathBuf>,
    /// Make plain, uncompressed tar layers instead of eStargz
    #[arg(long, conflicts_with_all = ["profile", "record_in", "prefetch_list", "reuse",
        "estargz_compression_level", "estargz_chunk_size", "estargz_min_chunk_size"])]
    pub(super) uncompress: bool,
    #[command(flatten)]
    pub(super) registry_user: UserArg,
    #[command(flatten)]
    pub(super) conversion: ConversionArgs,
}

/// What a conversion would do.
#[derive(Debug, Args)]
#[command(next_help_heading = "Plan")]
pub(super) struct PlanArgs {
    /// Show what a conversion with this profile would prefetch, why, and what that costs and saves
    #[arg(long, requires = "profile", conflicts_with = "layer")]
    pub(super) plan: bool,
    /// What the workload touches: a file, or docker://NAME of the profile or of its image
    #[arg(long, value_name = "PROFILE", requires = "plan", value_parser = place_parser())]
    pub(super) profile: Option<ProfilePlace>,
    /// Bandwidth and round trip to the registry [default: 1gbit,10ms]
    #[arg(long, value_name = "BANDWIDTH,RTT", requires = "plan")]
    pub(super) assume_link: Option<Link>,
    /// As for convert
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "WHEN",
        requires = "plan"
    )]
    pub(super) hot_pack: HotPackArg,
    /// As for convert
    #[arg(
        long,
        default_value = "6",
        value_name = "PERCENT",
        value_parser = parse_percent,
        requires = "plan"
    )]
    pub(super) hot_pack_growth: f64,
}

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// Image to read, oci:DIR[:TAG], docker://NAME, containerd:NAME or an archive
    #[arg(value_name = "IMAGE")]
    pub(super) image: ImageRef,
    #[command(flatten)]
    pub(super) platforms: PlatformArgs,
    #[command(flatten)]
    pub(super) registry: RegistryArgs,
    #[command(flatten)]
    pub(super) registry_user: UserArg,
    /// Show the rows of this layer's TOC, 0 is the base
    #[arg(long, value_name = "N")]
    pub(super) layer: Option<usize>,
    #[command(flatten)]
    pub(super) plan: PlanArgs,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Image to check, oci:DIR[:TAG], docker://NAME, containerd:NAME or an archive
    #[arg(value_name = "IMAGE")]
    pub(super) image: ImageRef,
    /// Compare the file systems with those of this image, entry by entry
    #[arg(long, value_name = "SRC")]
    pub(super) source: Option<ImageRef>,
    #[command(flatten)]
    pub(super) platforms: PlatformArgs,
    #[command(flatten)]
    pub(super) reading: ReadingArgs,
    #[command(flatten)]
    pub(super) registry: RegistryArgs,
    #[command(flatten)]
    pub(super) registry_user: UserArg,
    /// Print the result as JSON on stdout
    #[arg(long)]
    pub(super) json: bool,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let percent: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if percent.is_finite() && percent >= 0.0 {
        Ok(percent / 100.0)
    } else {
        Err("not 0 or more".to_owned())
    }
}

fn parse_level(text: &str) -> Result<Level, String> {
    let level = text.parse().ok().and_then(Level::new);
    level.ok_or_else(|| "not a level from 0 to 12".to_owned())
}

/// 0 stands for the default.
fn parse_chunk_size(text: &str) -> Result<u32, String> {
    let range = PlanOptions::MIN_CHUNK_BYTES..=PlanOptions::MAX_CHUNK_BYTES;
    match u32::try_from(parse_size(text)?) {
        Ok(0) => Ok(PlanOptions::DEFAULT_CHUNK_BYTES),
        Ok(size) if range.contains(&size) => Ok(size),
        _ => Err("not 0, or from 1KiB to 128MiB".to_owned()),
    }
}

/// 0 switches sharing off.
fn parse_min_chunk_size(text: &str) -> Result<u32, String> {
    let size = u32::try_from(parse_size(text)?).ok();
    size.filter(|&size| size <= PlanOptions::MAX_MIN_CHUNK_BYTES)
        .ok_or_else(|| "larger than 4MiB".to_owned())
}

fn parse_annotation(text: &str) -> Result<Annotation, String> {
    let (of, pair) = match text.strip_prefix("index:") {
        Some(pair) => (Annotated::Index, pair),
        None => (Annotated::Manifest, text),
    };
    match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok(Annotation {
            of,
            key: key.to_owned(),
            value: value.to_owned(),
        }),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// A number with an optional suffix; without one it counts bytes.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.trim() {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err(format!("unknown suffix \"{suffix}\"; use KiB, MiB or GiB")),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "not a size such as 512MiB".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "too large".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn chunk_sizes_have_bounds() {
        assert_eq!(parse_chunk_size("0"), Ok(4 << 20));
        assert_eq!(parse_chunk_size("1024"), Ok(1024));
        assert_eq!(parse_chunk_size("128MiB"), Ok(128 << 20));
        for bad in ["1023", "1", "129MiB", "4GiB", "9999999999", "-1", "x"] {
            assert!(parse_chunk_size(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_min_chunk_size("0"), Ok(0));
        assert_eq!(parse_min_chunk_size("50000"), Ok(50_000));
        for bad in ["4194305", "1GiB", "99999999999", "-1"] {
            assert!(parse_min_chunk_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn annotations_are_of_manifests_or_of_the_index() {
        let check = |text: &str, of, key: &str, value: &str| {
            let expected = Annotation {
                of,
                key: key.to_owned(),
                value: value.to_owned(),
            };
            assert_eq!(parse_annotation(text), Ok(expected));
        };
        check("a=b", Annotated::Manifest, "a", "b");
        check("a=", Annotated::Manifest, "a", "");
        check("index:a.b=c=d", Annotated::Index, "a.b", "c=d");
        for bad in ["", "a", "=b", "index:", "index:=b"] {
            assert!(parse_annotation(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_binary_suffixes() {
        assert_eq!(parse_size("512MiB"), Ok(512 << 20));
        assert_eq!(parse_size("7"), Ok(7));
        assert_eq!(parse_size("2 GiB"), Ok(2 << 30));
        for bad in [
            "",
            "MiB",
            "1.5G",
            "12MB",
            "99999999999999999999",
            "99999999T",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
