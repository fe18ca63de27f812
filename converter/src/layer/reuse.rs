//! Whether a layer that is eStargz already can be carried over as it is. Pure.
//!
//! Enters: the TOC that the blob holds, the digest that the manifest gives it, and the plan. That the
//! blob's members are what its TOC says is not looked at here: `verify` does that.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::image::{BlobId, Digest};
use crate::layer::assemble::FinishedLayer;
use crate::layer::entry::{EntryKind, ScannedLayer, clean_path};
use crate::layer::plan::{
    ChunkPlace, LANDMARK_NAMES, LayerPlan, Prefetch, RowPlace, RowSource, TocRow, is_reserved,
};
use crate::layer::spool::ReadAt as _;
use crate::layer::toc::{Toc, TocEntry, go_string, type_name};
use crate::layer::toc_packs::{giants, packed};

/// A layer that can be carried over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reusable {
    /// The blob, as if it had just been written.
    pub finished: FinishedLayer,
    /// What lies before its landmark.
    pub prefetch: Prefetch,
}

/// Why a layer has to be converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReusable {
    /// Lazy-pulling runtimes check the TOC against the annotation.
    #[error("the manifest does not give the digest of its TOC")]
    TocDigest,
    /// Without a landmark, or with two, readers guess what to prefetch.
    #[error("it has no landmark, or more than one")]
    Landmark,
    /// The TOC lists something else than the tar holds.
    #[error("its TOC is not that of its tar")]
    Rows,
    /// Something else is to be prefetched, or in another order.
    #[error("it prefetches something else")]
    Prefetch,
}

/// The verdict on the layer whose blob holds the TOC `json`, parsed as `toc`. `annotated` is the TOC
/// digest in the manifest.
///
/// A layer of which nothing is to be prefetched is reusable whatever it prefetches now, as in
/// ctr-remote.
///
/// # Errors
/// [`NotReusable`], the first reason.
pub fn reusable(
    (json, toc): (&[u8], &Toc<'_>),
    toc_offset_bytes: u64,
    annotated: Option<&str>,
    layer: &ScannedLayer,
    plan: &LayerPlan,
) -> Result<Reusable, NotReusable> {
    let known = Unscanned {
        blob: BlobId {
            digest: layer.digest,
            size_bytes: layer.size_bytes,
        },
        diff_id: layer.diff_id,
        uncompressed_bytes: layer.spool.len_bytes(),
    };
    let annotated = annotated.ok_or(NotReusable::TocDigest)?;
    let found = check(json, toc, toc_offset_bytes, annotated, &known)?;
    if !rows_are_the_entries(&found.rows, layer) {
        return Err(NotReusable::Rows);
    }
    let landmark = |row: &TocRow| row.source == RowSource::Landmark(LANDMARK_NAMES[0]);
    let before = plan.rows.iter().position(landmark).unwrap_or(0);
    let planned = plan.rows[..before]
        .iter()
        .filter_map(|row| match row.source {
            RowSource::Entry(index) => Some(&layer.entries[index as usize]),
            RowSource::Landmark(_) => None,
        });
    let mut planned = planned.peekable();
    let packs = planned_packs(layer, plan);
    if planned.peek().is_some() || !packs.is_empty() {
        let before = found.rows[..found.before].iter().map(|row| &*row.name);
        let is_same = planned.map(|entry| go_string(&entry.name)).eq(before);
        if !is_same || packs != found_packs(toc) {
            return Err(NotReusable::Prefetch);
        }
    }
    Ok(found.reusable)
}

/// What is known of a layer that was not scanned: what its image says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unscanned {
    /// The blob.
    pub blob: BlobId,
    /// Digest of its tar.
    pub diff_id: Digest,
    /// Length of its tar.
    pub uncompressed_bytes: u64,
}

/// What a TOC says of its tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Entries, the TOC's own among them.
    pub entries: u64,
    /// Regular files among them.
    pub files: u64,
    /// The length of those.
    pub file_bytes: u64,
}

/// As [`reusable`], for a layer of which nothing is to be prefetched, and whose TOC has been read alone: that
/// its rows are the tar's entries is taken on trust.
///
/// # Errors
/// [`NotReusable`], the first reason.
pub fn reusable_unscanned(
    (json, toc): (&[u8], &Toc<'_>),
    toc_offset_bytes: u64,
    annotated: &str,
    layer: &Unscanned,
) -> Result<(Reusable, Contents), NotReusable> {
    let found = check(json, toc, toc_offset_bytes, annotated, layer)?;
    let files = found.rows.iter().filter(|row| row.kind == "reg");
    let contents = Contents {
        entries: found.rows.len() as u64 + 1,
        files: files.clone().count() as u64 + 1,
        file_bytes: files.map(|row| row.size).sum::<u64>() + json.len() as u64,
    };
    Ok((found.reusable, contents))
}

/// A TOC that is as it should be.
struct Checked<'a> {
    rows: Vec<&'a TocEntry<'a>>,
    /// How many of them are before the landmark, if that has any meaning.
    before: usize,
    reusable: Reusable,
}

/// What can be said by the TOC alone.
fn check<'a>(
    json: &[u8],
    toc: &'a Toc<'a>,
    toc_offset_bytes: u64,
    annotated: &str,
    layer: &Unscanned,
) -> Result<Checked<'a>, NotReusable> {
    let toc_digest = Digest::of(json);
    if annotated != toc_digest.to_string() {
        return Err(NotReusable::TocDigest);
    }
    let rows: Vec<&TocEntry<'_>> = toc.entries.iter().filter(|r| r.kind != "chunk").collect();
    let is_landmark = |row: &&TocEntry<'_>| {
        let path = clean_path(row.name.as_bytes());
        path.is_some_and(|path| LANDMARK_NAMES.iter().any(|name| path == name.as_bytes()))
    };
    let mut landmarks = (0..rows.len()).filter(|&at| is_landmark(&rows[at]));
    let (Some(landmark), None) = (landmarks.next(), landmarks.next()) else {
        return Err(NotReusable::Landmark);
    };
    let prefetches = clean_path(rows[landmark].name.as_bytes())
        .is_some_and(|path| path == LANDMARK_NAMES[0].as_bytes());
    let before = if prefetches { landmark } else { 0 };
    let files = rows[..before].iter().filter(|row| row.kind == "reg");
    let mut members: Vec<u64> = toc.entries.iter().map(|row| row.offset).collect();
    members.sort_unstable();
    members.dedup();
    let reusable = Reusable {
        prefetch: Prefetch {
            files: files.clone().count() as u64,
            bytes: files.map(|row| row.size).sum(),
            packed: packed(toc),
        },
        finished: FinishedLayer {
            digest: layer.blob.digest,
            size_bytes: layer.blob.size_bytes,
            diff_id: layer.diff_id,
            toc_digest: Some(toc_digest),
            uncompressed_bytes: layer.uncompressed_bytes,
            toc_offset_bytes,
            prefetch_bytes: if prefetches { rows[landmark].offset } else { 0 },
            members: members.len() as u64,
            copied_bytes: 0,
        },
    };
    Ok(Checked {
        rows,
        before,
        reusable,
    })
}

/// The chunks of files of which some are in packs: where each ends in the file, and whether it is.
type Packs<'a> = HashMap<Cow<'a, str>, Vec<(u64, bool)>>;

fn found_packs<'t>(toc: &'t Toc<'_>) -> Packs<'t> {
    let found = giants(toc).into_iter();
    found
        .map(|(name, chunks)| {
            let chunks = chunks
                .iter()
                .map(|chunk| (chunk.bytes.end, chunk.is_packed));
            (Cow::Borrowed(name), chunks.collect())
        })
        .collect()
}

fn planned_packs<'l>(layer: &'l ScannedLayer, plan: &LayerPlan) -> Packs<'l> {
    let mut packs = Packs::new();
    for row in &plan.rows {
        let (RowSource::Entry(entry), RowPlace::Scattered(_)) = (row.source, row.place) else {
            continue;
        };
        let mut end_bytes = 0;
        let chunks = plan.members_of(row).map(|member| {
            let member = &plan.members[member];
            end_bytes += u64::from(member.chunk_bytes);
            (end_bytes, member.place == ChunkPlace::Copy)
        });
        packs.insert(
            go_string(&layer.entries[entry as usize].name),
            chunks.collect(),
        );
    }
    packs
}

/// Whether the rows name the tar's entries in their order, apart from what eStargz adds.
fn rows_are_the_entries(rows: &[&TocEntry<'_>], layer: &ScannedLayer) -> bool {
    let own = |name: &[u8]| clean_path(name).is_some_and(|path| is_reserved(&path));
    let entries = layer.entries.iter().filter(|entry| !own(&entry.name));
    let rows = rows.iter().filter(|row| !own(row.name.as_bytes()));
    entries
        .map(|entry| {
            let size = if entry.kind == EntryKind::Regular {
                entry.size_bytes
            } else {
                0
            };
            (go_string(&entry.name), type_name(entry.kind), size)
        })
        .eq(rows.map(|row| (row.name.clone(), &*row.kind, row.size)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Blob;
    use crate::cancel::Cancel;
    use crate::layer::encode::{Check, Level};
    use crate::layer::placement::Placement;
    use crate::layer::plan::{PlanOptions, plan_layer};
    use crate::layer::scan::tests::scan_bytes;
    use crate::layer::verify::{parse_toc, read_toc};
    use crate::layer::{ConvertOptions, Encoding, Parallel, convert_layer};
    use crate::progress::Silent;

    /// The TOC of `layer` converted with `picks`, and the layer that a scan of the result gives.
    fn converted(layer: &ScannedLayer, picks: &[u32]) -> (Vec<u8>, u64, ScannedLayer) {
        let plan = plan_layer(
            layer,
            &Placement::of_whole(picks.to_vec()),
            PlanOptions::default(),
        )
        .unwrap();
        let options = ConvertOptions {
            check: Check::Inflate,
            parallel: Parallel {
                threads: 1,
                memory_bytes: 1 << 20,
            },
        };
        let mut blob = Vec::new();
        convert_layer(
            layer,
            &plan,
            &Encoding::Compress(Level::default()),
            options,
            &mut blob,
            &Cancel::default(),
            &Silent,
        )
        .unwrap();
        let (json, offset) = read_toc(&Blob::of_bytes(blob.clone())).unwrap();
        let mut tar = Vec::new();
        let mut reader = flate2::bufread::MultiGzDecoder::new(&*blob);
        std::io::Read::read_to_end(&mut reader, &mut tar).unwrap();
        (json, offset, scan_bytes(&tar).unwrap())
    }

    #[test]
    fn a_layer_is_carried_over_where_nothing_changes() {
        let mut builder = tar::Builder::new(Vec::new());
        for name in ["a", "b", "c"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(3);
            builder.append_data(&mut header, name, &b"xyz"[..]).unwrap();
        }
        let source = scan_bytes(&builder.into_inner().unwrap()).unwrap();
        let entry = |layer: &ScannedLayer, name: &str| {
            let mut names = layer.entries.iter().map(|entry| &*entry.name);
            u32::try_from(names.position(|n| n == name.as_bytes()).unwrap()).unwrap()
        };
        let verdict = |made: &[&str], wanted: &[&str], annotated: Option<&str>, cut: usize| {
            let picks: Vec<u32> = made.iter().map(|name| entry(&source, name)).collect();
            let (json, offset, mut layer) = converted(&source, &picks);
            let wanted: Vec<u32> = wanted.iter().map(|name| entry(&layer, name)).collect();
            layer.entries.truncate(layer.entries.len() - cut);
            let plan =
                plan_layer(&layer, &Placement::of_whole(wanted), PlanOptions::default()).unwrap();
            let toc = parse_toc(&json, offset).unwrap();
            let digest = Digest::of(&json).to_string();
            reusable(
                (&json, &toc),
                offset,
                annotated.or(Some(&digest)),
                &layer,
                &plan,
            )
        };
        for (made, wanted) in [
            (vec![], vec![]),
            (vec!["b"], vec![]),
            (vec!["c", "a"], vec!["c", "a"]),
        ] {
            let found = verdict(&made, &wanted, None, 0).unwrap();
            assert_eq!(found.prefetch.files, made.len() as u64);
            assert_eq!(found.prefetch.bytes, 3 * made.len() as u64);
            assert_eq!(found.finished.prefetch_bytes > 0, !made.is_empty());
        }
        for (made, wanted) in [
            (vec![], vec!["a"]),
            (vec!["c", "a"], vec!["a", "c"]),
            (vec!["c", "a"], vec!["c"]),
            (vec!["c"], vec!["c", "a"]),
        ] {
            assert_eq!(verdict(&made, &wanted, None, 0), Err(NotReusable::Prefetch));
        }
        assert_eq!(
            verdict(&[], &[], Some("sha256:0"), 0),
            Err(NotReusable::TocDigest)
        );
        // The TOC's own entry, the landmark, and the last of the source's.
        assert_eq!(verdict(&[], &[], None, 3), Err(NotReusable::Rows));
    }
}
