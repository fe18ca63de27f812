//! `esgz optimize` and `esgz record`.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::artifact::{ArtifactOptions, Subject};
use crate::cancel::Cancel;
use crate::cli::args::{OptimizeArgs, RecordArgs};
use crate::cli::attach::attach_options;
use crate::cli::containerd::Remotes;
use crate::cli::conversion::{
    Said, image_options, open_ends, say, scan_options, scan_stage, threads,
};
use crate::cli::failure::{Failure, INCOMPLETE, USAGE, WORKLOAD};
use crate::cli::output;
use crate::cli::page;
use crate::cli::profile_place::{ProfileOutput, ProfilePlace, Written, artifact_options};
use crate::cli::reading;
use crate::cli::registry;
use crate::cli::report::{Report, print_profile, profile_json};
use crate::cli::signals::Signals;
use crate::cli::wanted::{Others, Wanted, WantedOf, others, place, warn_missed};
use crate::cli::workload::{WorkloadArgs, record_options};
use crate::containerd::ContainerdOptions;
use crate::convert::{Conversion, Scanner};
use crate::image::Platform;
use crate::image::manifest::MANIFEST;
use crate::layer::entry::ScannedLayer;
use crate::layer::scan::Keep;
use crate::profile::{self, Ended, Profile};
use crate::progress::{Progress, Step};
use crate::record::{RecordOptions, Recorded};
use crate::runtime::Streams;
use crate::source::{Node, Source, SourceImage};

/// Runs `esgz optimize`.
pub(super) fn optimize(
    args: &OptimizeArgs,
    containerd: &ContainerdOptions,
    signals: &Signals,
    progress: &dyn Progress,
    said: Said,
) -> Result<(), Failure> {
    let clock = Instant::now();
    let cancel = signals.cancel();
    let mut options = image_options(&args.conversion)?;
    let remotes = Remotes {
        registry: registry::options(&args.conversion.registry, None)?,
        containerd: containerd.clone(),
    };
    let artifacts = artifact_options(&remotes.registry, &options.scan.scratch, cancel);
    let wanted = Wanted::instead_of_run(args, &artifacts)?;
    if wanted.is_none() {
        options.scan.keep = Keep::Spool;
    }
    let streams = streams(args.conversion.json);
    let scratch = options.scan.scratch.clone();
    let record_options = record_options(&args.workload, scratch, streams, signals)?;
    let ends = (&args.source, &args.destination);
    let (source, sink) = open_ends(ends, (&args.conversion, remotes), &options, cancel)?;
    let threads = options.parallel.threads;
    let mut scanner = Scanner::new(&source, &options.scan, threads, cancel).shown(progress);
    let mut conversion = Conversion::new(&source, &options, sink, cancel)?.shown(progress);
    let mut recorded = None;
    if wanted.is_none() {
        let profiled = image_to_run(&source)?;
        let image = &source.images[profiled];
        let output = open_output(args.profile_out.as_ref(), image, &artifacts)?;
        let layers = scanner.scan(image)?;
        let run = progress.begin(Step::RUN);
        let found = record_for((args, output), image, &layers, &record_options, cancel)?;
        run.finish();
        let placements = place(&found.profile, &layers, &options)?;
        warn_missed(&placements);
        conversion.image(profiled, &layers, &placements)?;
        recorded = Some((profiled, found));
    }
    let others = others(&args.conversion.output);
    let for_others = match (wanted, &recorded, others) {
        (Some(wanted), _, _) => wanted,
        (None, Some((_, recorded)), Others::Profiled) => {
            Wanted::Profiles(vec![recorded.profile.clone()])
        }
        _ => Wanted::Nothing,
    };
    for (number, image) in source.images.iter().enumerate() {
        if recorded.as_ref().is_some_and(|(done, _)| *done == number) {
            continue;
        }
        let wanted = for_others.of(image, &source, others);
        if matches!(wanted, WantedOf::Nothing) && conversion.can_go_in_one_pass() {
            conversion.image_in_one_pass(number)?;
            continue;
        }
        let layers = scanner.scan(image)?;
        let placements = wanted.resolve(&layers, &options)?;
        warn_missed(&placements);
        conversion.image(number, &layers, &placements)?;
    }
    let mut stages = scan_stage(&scanner);
    if let Some((_, recorded)) = &recorded {
        stages.extend([("mount", recorded.mount), ("run", recorded.run)]);
    }
    let converted = conversion.finish()?;
    if let (Some(path), Some((profiled, recorded))) = (&args.report, &recorded) {
        page::report_on(
            args,
            &source.images[*profiled],
            &recorded.profile,
            path,
            containerd,
            cancel,
        )?;
    }
    let report = Report {
        source: &args.source,
        destination: &args.destination,
        converted: &converted,
        stages,
        total: clock.elapsed(),
        verified: options.verify,
        profile: recorded.as_ref().map(|(_, recorded)| &recorded.profile),
    };
    say(&report, args.conversion.json, said)
}

/// Runs the workload for [`optimize`], and writes what the user wants to keep of it.
fn record_for(
    (args, output): (&OptimizeArgs, Option<ProfileOutput>),
    image: &SourceImage,
    layers: &[ScannedLayer],
    options: &RecordOptions,
    cancel: &Cancel,
) -> Result<Recorded, Failure> {
    let recorded = crate::record::record(image, layers, options, cancel)?;
    let profile = &recorded.profile;
    must_have_succeeded(&recorded, &args.workload)?;
    write_outputs(profile, output, args.record_out.as_deref())?;
    must_be_complete(profile, &args.workload)?;
    Ok(recorded)
}

/// The image for this machine. One that no index lists is run whatever it says.
fn image_to_run(source: &Source) -> Result<usize, Failure> {
    let here = Platform::of_this_machine();
    let images = || source.images.iter();
    let exact = images().position(|image| image.platform == here);
    let near = || images().position(|image| image.platform.has_machine_of(&here));
    if let Some(found) = exact.or_else(near) {
        return Ok(found);
    }
    let platforms: Vec<String> = images().map(|image| image.platform.to_string()).collect();
    let platforms = platforms.join(", ");
    if let Node::Image(only) = source.root
        && source.images[only].descriptor.get("platform").is_none()
    {
        tracing::warn!("the image is for {platforms}, and this machine runs {here}");
        return Ok(only);
    }
    let message = format!(
        "{} has selected images for {platforms}, and this machine runs {here}; esgz convert needs no run",
        source.reference
    );
    Err(Failure::message(USAGE, message))
}

/// Runs `esgz record`.
pub(super) fn record(
    args: &RecordArgs,
    containerd: &ContainerdOptions,
    signals: &Signals,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    let clock = Instant::now();
    let cancel = signals.cancel();
    let attach = attach_options(&args.attach, &args.workload, signals)?;
    let mut scan = scan_options(&args.reading);
    if attach.is_none() {
        scan.keep = Keep::Spool;
    }
    let (scratch, streams) = (scan.scratch.clone(), streams(args.json));
    let record_options = record_options(&args.workload, scratch, streams, signals)?;
    let remotes = Remotes {
        registry: registry::options(&args.registry, None)?,
        containerd: containerd.clone(),
    };
    let artifacts = artifact_options(&remotes.registry, &scan.scratch, cancel);
    let source = reading::open(&args.source, &args.platforms, &scan, remotes, cancel)?;
    let image = &source.images[image_to_run(&source)?];
    let output = open_output(Some(&args.output), image, &artifacts)?;
    let threads = threads(&args.reading);
    let mut scanner = Scanner::new(&source, &scan, threads, cancel).shown(progress);
    let layers = scanner.scan(image)?;
    let run = progress.begin(Step::RUN);
    let recorded = match &attach {
        Some(options) => crate::record::attach(image, &layers, options, cancel)?,
        None => crate::record::record(image, &layers, &record_options, cancel)?,
    };
    run.finish();
    let profile = &recorded.profile;
    must_have_succeeded(&recorded, &args.workload)?;
    let written = write_outputs(profile, output, args.record_out.as_deref())?;
    if args.json {
        output::json(&json!({
            "source": { "reference": args.source.to_string(), "manifest": image.manifest.id.digest },
            "profile": profile_json(profile),
            "output": written.as_ref().map(|written| &written.place),
            "artifact": written.as_ref().and_then(Written::json),
            "seconds": clock.elapsed().as_secs_f64(),
        }))?;
    } else {
        print_profile(profile)?;
        let seconds = clock.elapsed().as_secs_f64();
        let shown = written.map_or_else(String::new, |written| written.shown());
        output::line(format_args!("written    {shown} in {seconds:.1} s"))?;
    }
    must_be_complete(profile, &args.workload)
}

/// stdout is for the result where that is a document.
fn streams(json: bool) -> Streams {
    if json {
        Streams::AllToStderr
    } else {
        Streams::Apart
    }
}

fn must_have_succeeded(recorded: &Recorded, args: &WorkloadArgs) -> Result<(), Failure> {
    let profile = &recorded.profile;
    let failed = |message: String| {
        if args.end.allow_failure {
            tracing::warn!("{message}");
            return Ok(());
        }
        Err(Failure::message(
            WORKLOAD,
            format!("{message}; --allow-failure goes on regardless"),
        ))
    };
    for command in &recorded.failed_commands {
        let words = command.args.join(" ");
        failed(format!("the command \"{words}\" {}", command.status))?;
    }
    match profile.exit_code {
        Some(code) if code != 0 && profile.ended == Ended::Exit => {
            let message = format!(
                "the workload \"{}\" failed with exit code {code}",
                profile.workload.args.join(" ")
            );
            failed(message)
        }
        _ => Ok(()),
    }
}

fn must_be_complete(profile: &Profile, args: &WorkloadArgs) -> Result<(), Failure> {
    if profile.complete {
        return Ok(());
    }
    let message = format!(
        "the profile is incomplete: {} events were lost",
        profile.lost_events
    );
    if args.watching.allow_incomplete {
        tracing::warn!("{message}");
        return Ok(());
    }
    Err(Failure::message(
        INCOMPLETE,
        format!("{message}; --allow-incomplete goes on regardless"),
    ))
}

/// Where the profile of `image` will be written, if anywhere.
fn open_output(
    place: Option<&ProfilePlace>,
    image: &SourceImage,
    artifacts: &ArtifactOptions,
) -> Result<Option<ProfileOutput>, Failure> {
    let media_type = image.descriptor.get("mediaType").and_then(Value::as_str);
    let subject = Subject {
        id: image.manifest.id,
        media_type: media_type.unwrap_or(MANIFEST).to_owned(),
    };
    let open = |place| ProfileOutput::open(place, subject, artifacts);
    place.map(open).transpose()
}

fn write_outputs(
    profile: &Profile,
    output: Option<ProfileOutput>,
    record_out: Option<&Path>,
) -> Result<Option<Written>, Failure> {
    let written = output.map(|output| output.write(profile)).transpose()?;
    if let Some(path) = record_out {
        output::write_file(path, &profile::to_record(profile))?;
    }
    Ok(written)
}
