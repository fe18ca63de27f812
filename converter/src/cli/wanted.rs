//! What is to be prefetched, as the user says it.

use std::path::Path;

use crate::artifact::ArtifactOptions;
use crate::cli::args::{ConvertArgs, OptimizeArgs, OutputArgs};
use crate::cli::failure::{Failure, IMAGE};
use crate::cli::profile_place::ProfilePlace;
use crate::convert::{ImageError, ImageOptions};
use crate::image::Platform;
use crate::layer::entry::ScannedLayer;
use crate::planner::{self, Placements};
use crate::profile::{self, PrefetchList, Profile};
use crate::source::{Source, SourceImage};

/// Which platforms get a profile's paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    /// The one that it was recorded on.
    Unprofiled,
    /// All.
    Profiled,
}

pub(super) fn others(args: &OutputArgs) -> Others {
    if args.profile_other_platforms {
        Others::Profiled
    } else {
        Others::Unprofiled
    }
}

/// What the user wants to be prefetched.
pub(super) enum Wanted {
    Nothing,
    /// At most one for a platform.
    Profiles(Vec<Profile>),
    Paths(Vec<String>),
    List(PrefetchList),
}

/// The same for one image.
#[derive(Clone, Copy)]
pub(super) enum WantedOf<'a> {
    Nothing,
    Profile(&'a Profile),
    Paths(&'a [String]),
    List(&'a PrefetchList),
}

impl Wanted {
    /// What `esgz optimize` takes instead of a run's profile, if that is what the user wants.
    pub(super) fn instead_of_run(
        args: &OptimizeArgs,
        artifacts: &ArtifactOptions,
    ) -> Result<Option<Self>, Failure> {
        if let Some(place) = &args.profile {
            return Self::read_profiles(place, artifacts).map(Some);
        }
        match &args.prefetch_list {
            Some(path) => Self::read_list(path).map(Some),
            None => Ok(args.no_optimize.then_some(Self::Nothing)),
        }
    }

    fn read_list(path: &Path) -> Result<Self, Failure> {
        let list = PrefetchList::parse(&read_input(path)?);
        if list.is_empty() {
            tracing::warn!("{} names nothing to prefetch", path.display());
        }
        Ok(Self::List(list))
    }

    fn read_profiles(place: &ProfilePlace, artifacts: &ArtifactOptions) -> Result<Self, Failure> {
        place.read_all(artifacts).map(Self::Profiles)
    }

    pub(super) fn read(args: &ConvertArgs, artifacts: &ArtifactOptions) -> Result<Self, Failure> {
        if let Some(place) = &args.profile {
            return Self::read_profiles(place, artifacts);
        }
        if let Some(path) = &args.record_in {
            let bytes = read_input(path)?;
            let lines = profile::parse_record(&bytes).map_err(|error| bad_input(path, error))?;
            return Ok(Self::Paths(
                lines.into_iter().map(|line| line.path).collect(),
            ));
        }
        match &args.prefetch_list {
            Some(path) => Self::read_list(path),
            None => Ok(Self::Nothing),
        }
    }

    /// A profile is for its own platform; paths that the user lists are for every image.
    pub(super) fn of(&self, image: &SourceImage, source: &Source, others: Others) -> WantedOf<'_> {
        match self {
            Self::Nothing => WantedOf::Nothing,
            Self::Paths(paths) => WantedOf::Paths(paths),
            Self::List(list) => WantedOf::List(list),
            Self::Profiles(profiles) => {
                let is_alone = source.images.len() == 1;
                let own = profiles.iter().find(|profile| is_of(profile, image));
                let own = own.or_else(|| {
                    let mut profiles = profiles.iter();
                    profiles.find(|profile| is_for_machine_of(profile, &image.platform))
                });
                let any = (others == Others::Profiled || is_alone).then(|| profiles.first());
                own.or(any.flatten())
                    .map_or(WantedOf::Nothing, WantedOf::Profile)
            }
        }
    }
}

impl WantedOf<'_> {
    pub(super) fn resolve(
        self,
        layers: &[ScannedLayer],
        options: &ImageOptions,
    ) -> Result<Placements, Failure> {
        Ok(match self {
            Self::Nothing => profile::from_paths([], layers).into(),
            Self::Profile(profile) => place(profile, layers, options)?,
            Self::List(list) => profile::from_list(list, layers).into(),
            Self::Paths(paths) => {
                profile::from_paths(paths.iter().map(String::as_str), layers).into()
            }
        })
    }
}

/// Decides by sizes, or where a link is assumed by what each plan would cost over it.
pub(super) fn place(
    profile: &Profile,
    layers: &[ScannedLayer],
    options: &ImageOptions,
) -> Result<Placements, Failure> {
    let Some(costs) = &options.planner.costs else {
        return Ok(planner::place(profile, layers, &options.planner));
    };
    let choice = planner::choose(profile, layers, &options.planner, costs, options.plan);
    Ok(choice.map_err(ImageError::from)?.into_placements())
}

fn is_of(profile: &Profile, image: &SourceImage) -> bool {
    profile.image.manifest == image.manifest.id.digest
}

/// Whether the profile was recorded on such a machine.
pub(super) fn is_for_machine_of(profile: &Profile, platform: &Platform) -> bool {
    let recorded: Option<Platform> = profile.image.platform.parse().ok();
    recorded.is_some_and(|recorded| recorded.has_machine_of(platform))
}

pub(super) fn read_input(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| bad_input(path, error))
}

pub(super) fn bad_input(path: &Path, error: impl Into<anyhow::Error>) -> Failure {
    Failure::new(IMAGE, error).context(format!("reading {}", path.display()))
}

pub(super) fn warn_missed(placements: &Placements) {
    if let Some(first) = placements.missed.first() {
        tracing::warn!(
            "{} of the paths to prefetch are in no layer, the first is \"{first}\"",
            placements.missed.len()
        );
    }
}
