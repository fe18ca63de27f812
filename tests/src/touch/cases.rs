//! Images of files that are touched in certain ways, the script that does, and what it touches.

use std::collections::BTreeSet;

use esgz::layer::entry::{Entry, EntryKind};

use crate::layers::{self, LayerBuilder};

const PAGE: u64 = 4096;
/// Pages of a file of [`every_way`].
const PAGES: u64 = 2000;
const PAGES_PER_WINDOW: u64 = 16;

/// Numbers of pages.
pub type Pages = BTreeSet<u64>;

/// A layer whose entries have names.
#[derive(Debug, Default)]
pub struct Named {
    /// The layer.
    pub layer: LayerBuilder,
    /// Of each entry.
    pub names: Vec<String>,
}

impl Named {
    /// Adds a regular file.
    #[must_use]
    pub fn file(mut self, name: &str, contents: &[u8]) -> Self {
        let entry = layers::file(name);
        self.layer = self.layer.add(entry, contents);
        self.names.push(name.to_owned());
        self
    }

    /// Adds a file that may be executed.
    #[must_use]
    pub fn program(mut self, name: &str, contents: &[u8]) -> Self {
        let entry = Entry {
            mode: 0o755,
            ..layers::file(name)
        };
        self.layer = self.layer.add(entry, contents);
        self.names.push(name.to_owned());
        self
    }

    /// Adds an entry without contents.
    #[must_use]
    pub fn other(mut self, entry: Entry) -> Self {
        self.names
            .push(String::from_utf8_lossy(&entry.name).into_owned());
        self.layer = self.layer.add(entry, b"");
        self
    }
}

/// Runs of pages that differ with `seed`, in no order; and their pages.
pub fn some_runs(seed: u64, longest: u64) -> (String, Pages) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut words = String::new();
    let mut pages = Pages::new();
    for _ in 0..40 {
        let (first, count) = (next(PAGES - longest), 1 + next(longest));
        words += &format!(" {first}:{count}");
        pages.extend(first..first + count);
    }
    (words, pages)
}

/// The stretches of 64 KiB that hold these pages.
pub fn windows(pages: &Pages) -> Pages {
    pages.iter().map(|page| page / PAGES_PER_WINDOW).collect()
}

/// How much of `part` lies in `whole`; 1 where there is nothing.
pub fn share(part: &Pages, whole: &Pages) -> f64 {
    if part.is_empty() {
        return 1.0;
    }
    part.intersection(whole).count() as f64 / part.len() as f64
}

/// A program for x86-64 of 2000 pages that needs nothing: it reads a byte of each of `pages` and
/// exits.
///
/// # Panics
/// With more pages than code for them fits into the first page.
pub fn program(pages: &Pages) -> Vec<u8> {
    let mut code = Vec::new();
    for page in pages {
        // mov rax, address; mov al, [rax]
        code.extend(b"\x48\xb8");
        code.extend((PROGRAM_ADDRESS + page * PAGE).to_le_bytes());
        code.extend(b"\x8a\x00");
    }
    code.extend(EXIT);
    assert!(
        PROGRAM_HEADERS + code.len() as u64 <= PAGE,
        "the code fits into the first page"
    );
    static_program(&code, PAGES * PAGE)
}

const PROGRAM_ADDRESS: u64 = 0x40_0000;
const PROGRAM_HEADERS: u64 = 64 + 56;
/// `exit(0)` on x86-64.
pub const EXIT: &[u8] = b"\xb8\x3c\0\0\0\x31\xff\x0f\x05";

/// An ELF file for x86-64 that needs no other: headers, `code`, and zeros up to `len_bytes`.
pub fn static_program(code: &[u8], len_bytes: u64) -> Vec<u8> {
    let len_bytes = len_bytes.max(PROGRAM_HEADERS + code.len() as u64);
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    elf.extend((PROGRAM_ADDRESS + PROGRAM_HEADERS).to_le_bytes());
    elf.extend(64_u64.to_le_bytes());
    elf.extend([0; 12]);
    elf.extend(b"\x40\0\x38\0\x01\0\0\0\0\0\0\0");
    // One segment: the whole file, readable and executable.
    elf.extend(b"\x01\0\0\0\x05\0\0\0");
    for number in [
        0,
        PROGRAM_ADDRESS,
        PROGRAM_ADDRESS,
        len_bytes,
        len_bytes,
        4096,
    ] {
        elf.extend(number.to_le_bytes());
    }
    elf.extend(code);
    elf.resize(len_bytes as usize, 0);
    elf
}

/// Ways to read.
pub const READ_FAMILY: [&str; 5] = ["read", "pread", "readv", "sendfile", "splice"];
/// Mappings as they are, and such for which the kernel makes large folios or maps all at once.
pub const MAPPINGS: [&str; 4] = ["mmap-normal", "mmap-random", "mmap-huge", "mmap-populate"];

/// An image with a file for each way to touch one, a script that does (`@` in front of a name stands for the root),
/// and the truth, in order.
pub fn every_way() -> (Named, String, Vec<(&'static str, Pages)>) {
    let contents = vec![7; (PAGES * PAGE) as usize];
    let mut image = Named::default();
    let (mut script, mut truth) = (String::new(), Vec::new());
    for (seed, method) in READ_FAMILY.into_iter().chain(MAPPINGS).enumerate() {
        let longest = if method.starts_with("mmap") { 1 } else { 12 };
        let (runs, pages) = some_runs(seed as u64 + 1, longest);
        image = image.file(method, &contents);
        script += &format!("touch {method} @{method}{runs}\n");
        truth.push((method, pages));
    }
    if cfg!(target_arch = "x86_64") {
        let (_, mut pages) = some_runs(99, 1);
        image = image.program("execve", &program(&pages));
        script += "run @execve\n";
        pages.insert(0);
        truth.push(("execve", pages));
    }
    (image, script, truth)
}

/// An image with a file for each odd way to touch one, a script that does (`@` as in [`every_way`]), and what is
/// touched then. Not touched: `untouched`, and `replaced`, which another file takes the place of.
pub fn odd_ways() -> (Named, String, Vec<String>) {
    let body = vec![7; 3 * PAGE as usize];
    let mut touched: Vec<String> = [
        "copied-up",
        "deleted",
        "renamed",
        "linked",
        "relative",
        "target",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut image = Named::default();
    for name in touched
        .iter()
        .map(String::as_str)
        .chain(["replaced", "untouched"])
    {
        image = image.file(name, &body);
    }
    for i in 0..FORKS {
        let name = format!("fork{i}");
        image = image.file(&name, b"x");
        touched.push(name);
    }
    image = image.other(layers::link(EntryKind::Hardlink, "other-name", "linked"));
    image = image.other(layers::link(EntryKind::Symlink, "link", "target"));
    let script = format!(
        "append @copied-up\ndelete-and-read @deleted\nreplace @replaced
         rename-and-read @renamed @new-name\npread @other-name 4096 1
         read-at @ relative\npread @link 0 1\nforks {FORKS} @fork\n"
    );
    (image, script, touched)
}

/// Children that each read a file of their own.
const FORKS: u64 = 300;

/// A program, started through a script whose interpreter is a script; what is touched, in order. For x86-64.
pub fn script_chain() -> (Named, String, Vec<String>) {
    let image = Named::default()
        .program("inner", b"#!/end\n")
        .program("outer", b"#!/inner\n")
        .program("end", &program(&Pages::new()))
        .program("unused", b"#!/end\n");
    let touched = ["outer", "inner", "end"].map(str::to_owned).to_vec();
    (image, "run @outer\n".to_owned(), touched)
}

/// Files that are touched in an order that is not that of their names: the image, the script (`@` as in [`every_way`]),
/// the names in order.
pub fn in_order(files: u64) -> (Named, String, Vec<String>) {
    let ways = ["pread", "mmap-normal", "sendfile"];
    let (mut image, mut script, mut order) = (Named::default(), String::new(), Vec::new());
    for i in 0..files {
        image = image.file(&format!("f{i}"), &[7; 5000]);
        // 7 divides none of the numbers in use: every file once.
        let name = format!("f{}", i * 7 % files);
        script += &format!("touch {} @{name} 0:1\n", ways[(i % 3) as usize]);
        order.push(name);
    }
    (image, script, order)
}
