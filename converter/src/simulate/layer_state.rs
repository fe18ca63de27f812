//! One layer on the node: what has been fetched and inflated of it, and how a chunk is read.

use crate::simulate::Constants;
use crate::simulate::fetched::Fetched;
use crate::simulate::image::{Contents, Landmark, LayerModel};

/// What a node has of a layer, and what that took.
#[derive(Debug)]
pub(super) struct LayerState<'a> {
    pub(super) model: &'a LayerModel,
    /// None where the layer is pulled as a whole.
    pub(super) contents: Option<&'a Contents>,
    pub(super) fetched: Fetched,
    /// Of each row: whether it lies inflated in the cache.
    pub(super) cached: Vec<bool>,
    /// Of each row: whether the workload read it.
    pub(super) used: Vec<bool>,
    pub(super) prefetch: Prefetch,
    connections: Connections,
    pub(super) bytes: u64,
    pub(super) requests: u64,
    pub(super) missed_chunks: u64,
    pub(super) missed_bytes: u64,
}

/// A layer has a client of its own (`service/resolver/registry.go` makes one for each call).
#[derive(Debug, Default)]
pub(super) struct Connections {
    pub(super) open: u64,
    busy: u64,
}

impl Connections {
    /// Takes an idle connection, or makes one. Round trips until an answer arrives.
    pub(super) fn take(&mut self) -> f64 {
        self.busy += 1;
        if self.busy > self.open {
            self.open += 1;
            2.0
        } else {
            1.0
        }
    }

    pub(super) fn give_back(&mut self) {
        self.busy = self.busy.saturating_sub(1);
    }
}

/// A layer's prefetch (`fs/layer/layer.go`, `prefetch`).
#[derive(Debug, Default)]
pub(super) struct Prefetch {
    /// Where it ends.
    pub(super) end_bytes: u64,
    /// What is asked for, in one request.
    pub(super) units: Vec<u32>,
    /// Rows to inflate, in the order in which that is done.
    pub(super) rows: Vec<u32>,
    /// The first of them that nobody has begun with.
    pub(super) next: usize,
    /// How many are at work.
    pub(super) workers: u32,
    /// When it was over, well or not.
    pub(super) over: Option<f64>,
    /// It was given up.
    pub(super) failed: bool,
}

/// A chunk that is being read (`estargz/estargz.go`, `fileReader.ReadAt`): blocks of compressed bytes are fetched
/// until its member ends, then it is inflated.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reading {
    pub(super) row: u32,
    at_bytes: u64,
    state: ReadState,
}

#[derive(Clone, Debug, PartialEq)]
enum ReadState {
    Begin,
    Fetching { units: Vec<u32> },
    Inflating,
}

/// What reading a chunk needs next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Need {
    /// These bytes of the blob.
    Bytes(u64),
    /// One core, for so many uncompressed bytes.
    Inflate(u64),
    /// Nothing: it is in the cache.
    Nothing,
}

impl<'a> LayerState<'a> {
    pub(super) fn new(model: &'a LayerModel, lazy: bool, constants: &Constants) -> Self {
        let contents = model.contents.as_ref().filter(|_| lazy);
        let rows = contents.map_or(0, |contents| contents.rows.len());
        Self {
            model,
            contents,
            fetched: Fetched::nothing(model.size_bytes, constants.unit_bytes),
            cached: vec![false; rows],
            used: vec![false; rows],
            prefetch: Prefetch::default(),
            connections: Connections::default(),
            bytes: 0,
            requests: 0,
            missed_chunks: 0,
            missed_bytes: 0,
        }
    }

    /// Sends a request. Round trips until its answer arrives.
    pub(super) fn request(&mut self) -> f64 {
        self.requests += 1;
        self.connections.take()
    }

    /// The answer of a request is there.
    pub(super) fn answered(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.connections.give_back();
    }

    pub(super) fn connections(&self) -> u64 {
        self.connections.open
    }

    /// Decides what is prefetched. Bytes to ask for; 0 if there is nothing to fetch.
    pub(super) fn plan_prefetch(&mut self, constants: &Constants) -> u64 {
        let size = self.model.size_bytes;
        let end = match self.contents.map(|contents| contents.landmark) {
            Some(Landmark::Prefetch(offset)) => offset,
            Some(Landmark::Missing) => constants.default_prefetch_bytes,
            Some(Landmark::NoPrefetch) | None => 0,
        };
        self.prefetch.end_bytes = end.min(size);
        self.prefetch.units = self.fetched.missing(0..self.prefetch.end_bytes);
        self.fetched.len_bytes(&self.prefetch.units)
    }

    /// Decides what is inflated once the bytes are there: all chunks of each file whose first chunk lies before the
    /// end. Go walks the files of a directory in no order that could be known; this is some order.
    pub(super) fn plan_inflate(&mut self) {
        let Some(contents) = self.contents else {
            return;
        };
        let end = self.prefetch.end_bytes;
        let files = 0..contents.files.len() as u32;
        let mut files: Vec<(u64, u32)> = files
            .filter(|&file| contents.offset_bytes(contents.rows_of(file).start) < end)
            .map(|file| (scattered(&contents.files[file as usize].path), file))
            .collect();
        files.sort_unstable();
        let rows = files.iter().flat_map(|&(_, file)| contents.rows_of(file));
        self.prefetch.rows = rows.collect();
    }

    /// The next row that the prefetch inflates, if any is left.
    pub(super) fn next_to_inflate(&mut self) -> Option<u32> {
        let rest = &self.prefetch.rows[self.prefetch.next..];
        let skipped = rest.iter().position(|&row| !self.cached[row as usize])?;
        self.prefetch.next += skipped + 1;
        Some(rest[skipped])
    }

    /// Begins to read a chunk.
    pub(super) fn read(&self, row: u32) -> Reading {
        let at_bytes = self.contents.map_or(0, |all| all.offset_bytes(row));
        Reading {
            row,
            at_bytes,
            state: ReadState::Begin,
        }
    }

    /// What `reading` needs next, now that it has what it needed before.
    pub(super) fn advance(&mut self, reading: &mut Reading, constants: &Constants) -> Need {
        let Some(contents) = self.contents else {
            return Need::Nothing;
        };
        let row = contents.rows[reading.row as usize];
        let member = &contents.members[row.member as usize];
        match &reading.state {
            ReadState::Begin if self.cached[reading.row as usize] => return Need::Nothing,
            ReadState::Begin => {}
            ReadState::Fetching { units } => {
                self.fetched.add(units);
                let bytes = self.fetched.len_bytes(units);
                self.answered(bytes + constants.response_header_bytes);
            }
            ReadState::Inflating => {
                // Whoever reads a member keeps all chunks in it.
                for &row in &member.rows {
                    self.cached[row as usize] = true;
                }
                return Need::Nothing;
            }
        }
        let file_end = contents.files[row.file as usize].end_bytes;
        while reading.at_bytes < member.end_bytes {
            let end = file_end.max(member.end_bytes);
            let block = reading.at_bytes..end.min(reading.at_bytes + constants.peek_bytes);
            let units = self.fetched.missing(block.clone());
            reading.at_bytes = block.end;
            if !units.is_empty() {
                let bytes = self.fetched.len_bytes(&units);
                reading.state = ReadState::Fetching { units };
                return Need::Bytes(bytes);
            }
        }
        reading.state = ReadState::Inflating;
        let lengths = member.rows.iter();
        Need::Inflate(
            lengths
                .map(|&row| contents.rows[row as usize].chunk_bytes)
                .sum(),
        )
    }
}

/// A number that scatters names (FNV-1a).
fn scattered(name: &str) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, mix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::image::tests::{Short, layer};

    const MIB: u64 = 1 << 20;

    fn constants() -> Constants {
        Constants {
            unit_bytes: 100,
            peek_bytes: 1000,
            ..Constants::measured()
        }
    }

    /// All that reading `row` needs.
    fn needs(state: &mut LayerState<'_>, row: u32) -> Vec<Need> {
        let mut reading = state.read(row);
        let mut needs = Vec::new();
        loop {
            match state.advance(&mut reading, &constants()) {
                Need::Nothing => return needs,
                need => needs.push(need),
            }
        }
    }

    #[test]
    fn a_miss_fetches_what_lies_ahead_in_its_file() {
        use Need::{Bytes, Inflate};
        let rows: [Short<'_>; 5] = [
            ("small", "reg", 50, 10, 0, 0, 0),
            ("big", "reg", 9000, 250, 0, 0, 3000),
            ("big", "chunk", 0, 800, 0, 3000, 3000),
            ("big", "chunk", 0, 3000, 0, 6000, 3000),
            ("end", "reg", 7, 4000, 0, 0, 0),
        ];
        let model = layer(&rows, 5000, 5200);
        let check = |reads: &[(u32, &[Need])]| {
            let mut state = LayerState::new(&model, true, &constants());
            for &(row, expected) in reads {
                assert_eq!(needs(&mut state, row), expected, "row {row} of {reads:?}");
            }
        };
        // Its file ends at 250: units 0, 1 and 2.
        check(&[(0, &[Bytes(300), Inflate(50)]), (0, &[])]);
        // From 250 on 1000 bytes, so units 2 to 12; the chunk behind it lies there in part.
        check(&[
            (1, &[Bytes(1100), Inflate(3000)]),
            (2, &[Bytes(500), Bytes(1000), Bytes(1000), Inflate(3000)]),
        ]);
        // Peeks do not go past the file's end, at 4000.
        check(&[(3, &[Bytes(1000), Inflate(3000)])]);
        check(&[(4, &[Bytes(1000), Inflate(7)])]);
    }

    #[test]
    fn members_are_read_as_a_whole() {
        let rows: [Short<'_>; 4] = [
            ("a", "reg", 5, 10, 0, 0, 0),
            ("b", "reg", 6, 10, 5, 0, 0),
            ("c", "reg", 7, 10, 11, 0, 0),
            ("d", "reg", 7, 300, 0, 0, 0),
        ];
        let model = layer(&rows, 5000, 5200);
        let mut state = LayerState::new(&model, true, &constants());
        assert_eq!(
            needs(&mut state, 1),
            [Need::Bytes(300), Need::Inflate(18)],
            "up to 300, where the next member begins"
        );
        assert_eq!(state.cached, [true, true, true, false]);
        assert_eq!(needs(&mut state, 2), []);
    }

    #[test]
    fn prefetch_is_what_lies_before_the_landmark() {
        let rows: [Short<'_>; 6] = [
            ("hot", "reg", 5, 10, 0, 0, 0),
            (".prefetch.landmark", "reg", 1, 1950, 0, 0, 0),
            ("giant", "reg", 12, 2100, 1, 0, 4),
            ("giant", "chunk", 0, 1500, 1, 4, 4),
            ("giant", "chunk", 0, 2500, 0, 8, 4),
            ("z", "reg", 12, 3000, 0, 0, 0),
        ];
        let model = layer(&rows, 5000, 5200);
        let mut state = LayerState::new(&model, true, &constants());
        state.fetched.add(&[3]);
        // 0 to 2000 but for a unit that is here.
        assert_eq!(state.plan_prefetch(&constants()), 1900);
        state.fetched.add(&state.prefetch.units.clone());
        state.plan_inflate();
        // The giant's first chunk lies behind the landmark.
        assert_eq!(state.prefetch.rows, [0]);
        // Its packed chunk is here, but the reader peeks beyond the landmark.
        let packed = needs(&mut state, 2);
        assert_eq!(packed, [Need::Bytes(500), Need::Inflate(4)]);

        let check = |rows: &[Short<'_>], expected_bytes: u64, expected_rows: &[u32]| {
            let model = layer(rows, 30 * MIB, 40 * MIB);
            let mut state = LayerState::new(&model, true, &constants());
            assert_eq!(
                state.plan_prefetch(&constants()),
                expected_bytes,
                "{rows:?}"
            );
            state.plan_inflate();
            let mut rows = state.prefetch.rows;
            rows.sort_unstable();
            assert_eq!(rows, expected_rows);
        };
        let none: [Short<'_>; 2] = [
            (".no.prefetch.landmark", "reg", 1, 10, 0, 0, 0),
            ("a", "reg", 5, 100, 0, 0, 0),
        ];
        check(&none, 0, &[]);
        // Without a landmark 10 MiB, and files that begin there.
        let plain: [Short<'_>; 3] = [
            ("a", "reg", 5, 100, 0, 0, 0),
            ("b", "reg", 50 * MIB, 9 * MIB, 0, 0, 0),
            ("c", "reg", 5, 11 * MIB, 0, 0, 0),
        ];
        check(&plain, (10 * MIB).div_ceil(100) * 100, &[0, 1]);
    }

    #[test]
    fn connections_are_used_again() {
        let mut connections = Connections::default();
        assert_eq!((connections.take(), connections.take()), (2.0, 2.0));
        connections.give_back();
        assert_eq!((connections.take(), connections.open), (1.0, 2));
    }
}
