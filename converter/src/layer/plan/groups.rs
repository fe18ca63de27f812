//! Which members one worker compresses together.
//!
//! Small members go in groups so that handing them over costs little. With a minimum size of gzip
//! members they also share these: a gzip member ends only where its *compressed* size reaches the
//! minimum, which nobody knows before compressing. So the plan's members are grouped by their
//! uncompressed size; a worker compresses a group and cuts it where the minimum is reached. Where a
//! group ends, a member ends too: it may be smaller than the minimum, but nothing depends on threads.

use std::ops::Range;

use crate::layer::plan::{LayerPlan, Member};

/// Members of a plan that one worker compresses together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Indices into [`LayerPlan::members`].
    pub members: Range<usize>,
    /// Uncompressed bytes of all of them.
    pub len_bytes: u64,
}

/// Uncompressed bytes at which a group is full, at least; with a minimum size of gzip members.
const SHARING_GROUP_BYTES: u64 = 4 << 20;
/// The same without one: enough to make the handing over cheap.
pub(in crate::layer) const GROUP_BYTES: u64 = 256 << 10;
/// A group holds about this many members of the minimum size, so that few are cut short at its end.
const MINIMA_IN_GROUP: u64 = 16;

/// Whether a group takes no more, where members are not shared.
pub(in crate::layer) fn is_full(len_bytes: u64) -> bool {
    len_bytes >= GROUP_BYTES
}

/// The plan's members in groups, in order; every member is in exactly one. Where gzip members are
/// shared, a landmark begins a group, and so does what follows a member of headers alone; a member of a
/// pack is one.
pub fn groups(plan: &LayerPlan) -> Vec<Group> {
    let full_bytes = match u64::from(plan.min_chunk_bytes) {
        0 => GROUP_BYTES,
        min_bytes => SHARING_GROUP_BYTES.max(min_bytes * MINIMA_IN_GROUP),
    };
    let mut groups: Vec<Group> = Vec::new();
    // What may share a gzip member with others.
    let shares = |member: &Member| member.chunk_bytes > 0 && member.lead_bytes == 0;
    for (index, member) in plan.members.iter().enumerate() {
        let len_bytes = u64::from(member.len_bytes);
        let joins = plan.min_chunk_bytes == 0
            || index > 0
                && index != plan.landmark_member as usize
                && shares(member)
                && shares(&plan.members[index - 1]);
        match groups.last_mut() {
            Some(group) if joins && group.len_bytes < full_bytes => {
                group.members.end = index + 1;
                group.len_bytes += len_bytes;
            }
            _ => groups.push(Group {
                members: index..index + 1,
                len_bytes,
            }),
        }
    }
    groups
}
