//! `esgz profile show`.

use std::io::{self, IsTerminal as _};

use serde_json::json;

use super::picture::{self, ASCII, BLOCKS, Glyphs};
use super::{PictureArg, ShowArgs, SortArg};
use crate::cancel::Cancel;
use crate::cli::failure::Failure;
use crate::cli::output::{self, Size, printable};
use crate::cli::report::{print_profile, profile_json};
use crate::profile::{Ended, Phase, Profile, ProfiledFile};

/// Where nobody says how wide the terminal is.
const DEFAULT_WIDTH: usize = 80;
/// Left of a picture.
const INDENT: usize = 12;

pub(super) fn show(args: &ShowArgs, cancel: &Cancel) -> Result<(), Failure> {
    let profile = args.profile.read(&args.reach.options(cancel)?)?;
    let mut files: Vec<&ProfiledFile> = profile.files.iter().collect();
    match args.sort {
        SortArg::FirstTouch => {}
        SortArg::Size => files.sort_by_key(|file| std::cmp::Reverse(file.size_bytes)),
        SortArg::Touched => files.sort_by_key(|file| std::cmp::Reverse(file.touched_bytes)),
    }
    if args.json {
        return output::json(&json!({
            "image": profile.image,
            "workload": profile.workload,
            "collector": profile.collector,
            "runs": profile.runs,
            "profile": profile_json(&profile),
            "notes": notes(&profile),
            "files": files,
            "mounted": profile.mounted,
            "missing": profile.missing,
        }));
    }
    print_head(&profile)?;
    print_files(&files, args)?;
    print_mounted(&profile)
}

fn print_head(profile: &Profile) -> Result<(), Failure> {
    let image = &profile.image;
    let line = |name: &str, text: &str| output::line(format_args!("{name:<10} {text}"));
    let reference = printable(&image.reference);
    line("image", &format!("{reference} {}", image.manifest))?;
    let layers = image.layers.len();
    line("platform", &format!("{}, {layers} layers", image.platform))?;
    line("workload", &printable(&profile.workload.args.join(" ")))?;
    line("ran", &ran(profile))?;
    let unit = match profile.collector.granularity_bytes {
        0 => "whole files".to_owned(),
        bytes => format!("pages of {bytes} bytes"),
    };
    let collector = &profile.collector;
    line(
        "collector",
        &format!("{} on Linux {}, {unit}", collector.tier, collector.kernel),
    )?;
    print_profile(profile)?;
    if !profile.missing.is_empty() {
        line(
            "missing",
            &format!("{} names were opened in vain", profile.missing.len()),
        )?;
    }
    let complete = match (profile.complete, profile.lost_events) {
        (true, _) => "yes".to_owned(),
        (false, 0) => "no".to_owned(),
        (false, lost) => format!("no: {lost} events were lost"),
    };
    line("complete", &complete)?;
    for note in notes(profile) {
        line("note", &note)?;
    }
    Ok(())
}

fn ran(profile: &Profile) -> String {
    let why = match profile.ended {
        Ended::Exit => "until it ended",
        Ended::Period => "until its time was over",
        Ended::Line => "until it printed the awaited line",
        Ended::Port => "until it listened on the awaited port",
        Ended::Http => "until it answered the awaited request",
        Ended::Signal => "until the user ended it",
    };
    let seconds = profile.duration_ms as f64 / 1000.0;
    let code = profile.exit_code;
    let code = code.map_or_else(String::new, |code| format!(" with exit code {code}"));
    match profile.runs {
        1 => format!("{seconds:.1} s, {why}{code}"),
        runs => format!("{runs} times, {seconds:.1} s at most, {why}{code}"),
    }
}

/// What a reader of the figures has to know.
fn notes(profile: &Profile) -> Vec<String> {
    let mut notes = Vec::new();
    let collector = &profile.collector;
    match collector.ranges.as_deref() {
        Some("partial") => notes.push("ranges of mapped files are lower bounds".to_owned()),
        Some("whole") => notes.push("ranges are not known: a file stands as a whole".to_owned()),
        _ => {}
    }
    if !collector.not_known.is_empty() {
        let keys = collector.not_known.join(", ");
        notes.push(format!("the collector cannot know: {keys}"));
    }
    if collector.attached {
        let note = "the container ran before it was watched: what it touched then is not known";
        notes.push(note.to_owned());
    }
    if profile.image.by_path {
        notes.push("merged from several images: paths alone count".to_owned());
    }
    notes
}

fn print_files(files: &[&ProfiledFile], args: &ShowArgs) -> Result<(), Failure> {
    if files.is_empty() {
        return Ok(());
    }
    output::line(format_args!(
        "\n{:>6} {:>5} {:>10} {:>10}  {:<4}  path (o opened, t touched, x executed, s in setup)",
        "order", "layer", "size", "touched", "how"
    ))?;
    let glyphs = glyphs(args.picture);
    let width = width().saturating_sub(INDENT + 2).max(8);
    for file in files {
        output::line(format_args!(
            "{:>6} {:>5} {:>10} {:>10}  {}  {}",
            file.first_touch_seq,
            file.layer,
            Size(file.size_bytes),
            Size(file.touched_bytes),
            how(file),
            printable(&file.path)
        ))?;
        let is_drawn = file.size_bytes >= args.picture_from.max(1) && !file.ranges.is_empty();
        if let Some(glyphs) = glyphs.filter(|_| is_drawn) {
            let row = picture::row(&file.ranges, file.size_bytes, width, glyphs);
            output::line(format_args!("{:INDENT$}|{row}|", ""))?;
        }
    }
    Ok(())
}

/// What was opened of the host's.
fn print_mounted(profile: &Profile) -> Result<(), Failure> {
    if profile.mounted.is_empty() {
        return Ok(());
    }
    output::line(format_args!(
        "\n{:>6} {:<16} {:>10}  mounted file, none of the image's",
        "order", "mount", "size"
    ))?;
    for file in &profile.mounted {
        output::line(format_args!(
            "{:>6} {:<16} {:>10}  {}",
            file.first_touch_seq,
            printable(&file.mount),
            Size(file.size_bytes),
            printable(&file.path)
        ))?;
    }
    Ok(())
}

fn how(file: &ProfiledFile) -> String {
    let flags = [
        (file.opened, 'o'),
        (!file.ranges.is_empty(), 't'),
        (file.executed, 'x'),
        (file.phase == Phase::Setup, 's'),
    ];
    let flags = flags.into_iter();
    flags
        .map(|(is, letter)| if is { letter } else { '-' })
        .collect()
}

fn glyphs(picture: PictureArg) -> Option<Glyphs> {
    let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    match picture {
        PictureArg::Auto if io::stdout().is_terminal() && !is_plain => Some(BLOCKS),
        PictureArg::Auto | PictureArg::Ascii => Some(ASCII),
        PictureArg::Blocks => Some(BLOCKS),
        PictureArg::None => None,
    }
}

/// Columns of the terminal.
fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stdout());
    match size {
        Ok(size) if size.ws_col > 0 => size.ws_col.into(),
        _ => DEFAULT_WIDTH,
    }
}
