//! `esgz profile diff`.

use serde_json::{Value, json};

use super::DiffArgs;
use crate::cancel::Cancel;
use crate::cli::failure::{Failure, OTHER};
use crate::cli::output::{self, Size, printable};
use crate::cli::profile_place::ProfilePlace;
use crate::profile::{self, ChangedFile, Difference, Profile, ProfiledFile};

pub(super) fn diff(args: &DiffArgs, cancel: &Cancel) -> Result<(), Failure> {
    let options = args.reach.options(cancel)?;
    let (before, after) = (args.before.read(&options)?, args.after.read(&options)?);
    let difference = profile::diff(&before, &after);
    if args.json {
        output::json(&json!({
            "before": side_json(&args.before, &before),
            "after": side_json(&args.after, &after),
            "same": difference.is_empty(),
            "removed": difference.removed,
            "added": difference.added,
            "changed": difference.changed.iter().map(changed_json).collect::<Vec<_>>(),
            "common": difference.common,
            "kendall_tau": difference.order,
        }))?;
    } else {
        print(args, &difference)?;
    }
    if args.exit_code && !difference.is_empty() {
        let message = "the profiles differ".to_owned();
        return Err(Failure::message(OTHER, message));
    }
    Ok(())
}

fn side_json(place: &ProfilePlace, profile: &Profile) -> Value {
    json!({
        "file": place.to_string(),
        "manifest": profile.image.manifest,
        "files": profile.files.len(),
        "touched_bytes": profile.touched_bytes(),
    })
}

fn changed_json(changed: &ChangedFile<'_>) -> Value {
    json!({
        "path": changed.after.path,
        "layer": changed.after.layer,
        "size_bytes": changed.after.size_bytes,
        "before_bytes": changed.before.touched_bytes,
        "after_bytes": changed.after.touched_bytes,
        "gained_bytes": changed.gained_bytes,
        "lost_bytes": changed.lost_bytes,
    })
}

fn print(args: &DiffArgs, difference: &Difference<'_>) -> Result<(), Failure> {
    print_only("-", &args.before, &difference.removed)?;
    print_only("+", &args.after, &difference.added)?;
    let changed = difference.changed.iter();
    let gained: u64 = changed.clone().map(|file| file.gained_bytes).sum();
    let lost: u64 = changed.clone().map(|file| file.lost_bytes).sum();
    output::line(format_args!(
        "changed    {} of {} files in both: {} more, {} less",
        changed.len(),
        difference.common,
        Size(gained),
        Size(lost)
    ))?;
    for file in changed {
        output::line(format_args!(
            "~ {:>10} {:>10}  {}",
            format!("+{}", Size(file.gained_bytes)),
            format!("-{}", Size(file.lost_bytes)),
            printable(&file.after.path)
        ))?;
    }
    match difference.order {
        Some(tau) => output::line(format_args!(
            "order      Kendall's tau {tau:.3} (1 the same, -1 the reverse)"
        )),
        None => output::line(format_args!("order      nothing to compare")),
    }
}

fn print_only(sign: &str, place: &ProfilePlace, files: &[&ProfiledFile]) -> Result<(), Failure> {
    output::line(format_args!(
        "only in    {place}: {} files, {} touched",
        files.len(),
        Size(files.iter().map(|file| file.touched_bytes).sum())
    ))?;
    for file in files {
        output::line(format_args!(
            "{sign} {:>10} {:>10}  {}",
            Size(file.size_bytes),
            Size(file.touched_bytes),
            printable(&file.path)
        ))?;
    }
    Ok(())
}
