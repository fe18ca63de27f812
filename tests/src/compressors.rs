//! The gzip compressors of the field, as programs and libraries.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::compress::Compression;
use crate::oracle::Oracle;

/// A way to make a gzip layer of a tar.
#[derive(Clone, Copy, Debug)]
pub struct Compressor {
    /// For messages.
    pub name: &'static str,
    how: How,
    /// So slow that it gets a small tar.
    pub is_slow: bool,
}

#[derive(Clone, Copy, Debug)]
enum How {
    /// A filter.
    Filter(&'static [&'static str]),
    /// A program with arguments, among them `IN` and `OUT`.
    Files(&'static [&'static str]),
    /// A subcommand of the oracle.
    Go(&'static str, &'static [&'static str]),
    /// zlib-rs, which compresses as zlib-ng does.
    ZlibNg(u32),
    /// The fixed code alone.
    Fixed,
}

const fn filter(name: &'static str, command: &'static [&'static str]) -> Compressor {
    Compressor {
        name,
        how: How::Filter(command),
        is_slow: false,
    }
}

const fn go(
    name: &'static str,
    subcommand: &'static str,
    args: &'static [&'static str],
) -> Compressor {
    Compressor {
        name,
        how: How::Go(subcommand, args),
        is_slow: false,
    }
}

const fn other(name: &'static str, how: How) -> Compressor {
    Compressor {
        name,
        how,
        is_slow: false,
    }
}

/// All of them.
pub const ALL: [Compressor; 31] = [
    filter("gzip-1", &["gzip", "-nc1"]),
    filter("gzip-6", &["gzip", "-nc6"]),
    filter("gzip-9", &["gzip", "-nc9"]),
    filter("gzip-name", &["gzip", "-c"]),
    filter("gzip-rsyncable", &["gzip", "-nc", "--rsyncable"]),
    filter("pigz-6", &["pigz", "-nc", "-p4"]),
    filter("pigz-i", &["pigz", "-nci", "-p4", "-b128"]),
    Compressor {
        is_slow: true,
        ..filter("pigz-11", &["pigz", "-nc11", "-I1"])
    },
    Compressor {
        is_slow: true,
        ..other("zopfli", How::Files(&["zopfli", "--i1", "-c", "IN"]))
    },
    filter("libdeflate-1", &["libdeflate-gzip", "-c1"]),
    filter("libdeflate-6", &["libdeflate-gzip", "-c6"]),
    filter("libdeflate-12", &["libdeflate-gzip", "-c12"]),
    filter("igzip-0", &["igzip", "-c0"]),
    filter("igzip-1", &["igzip", "-c1"]),
    filter("igzip-3", &["igzip", "-c3"]),
    filter("bgzip", &["bgzip", "-c"]),
    go("go-1", "compress", &["--level", "1"]),
    go("go-6", "compress", &["--level", "6"]),
    go("go-9", "compress", &["--level", "9"]),
    go("go-huffman", "compress", &["--level", "-2"]),
    go("klauspost-1", "compress", &["--klauspost", "--level", "1"]),
    go("klauspost-5", "compress", &["--klauspost", "--level", "5"]),
    go("klauspost-9", "compress", &["--klauspost", "--level", "9"]),
    go(
        "klauspost-stateless",
        "compress",
        &["--klauspost", "--level", "-3"],
    ),
    go(
        "estargz",
        "build",
        &["--level", "6", "--chunk-size", "300000"],
    ),
    other("zlib-ng-1", How::ZlibNg(1)),
    other("zlib-ng-6", How::ZlibNg(6)),
    other("fixed", How::Fixed),
    other("bsdtar", How::Files(&["bsdtar", "-czf", "OUT", "@IN"])),
    other(
        "7z",
        How::Files(&["7zz", "a", "-bd", "-tgzip", "-mx=5", "OUT", "IN"]),
    ),
    Compressor {
        is_slow: true,
        ..other("advdef", How::Files(&["advdef", "-z", "-2", "OUT"]))
    },
];

/// A tar that was compressed.
#[derive(Clone, Debug)]
pub struct Compressed {
    /// The blob.
    pub blob: Vec<u8>,
    /// What it means; another tar than the one that was given if the program makes its own.
    pub tar: Vec<u8>,
}

impl Compressor {
    /// Compresses the file `tar`; other files are made in `dir`.
    ///
    /// # Errors
    /// Why this cannot be done here.
    ///
    /// # Panics
    /// When the program is there and fails.
    pub fn compress(&self, tar: &Path, dir: &Path, oracle: &Oracle) -> Result<Compressed, String> {
        let bytes = fs::read(tar).expect("the tar is there");
        let out = dir.join(format!("{}.gz", self.name));
        let blob = match self.how {
            How::ZlibNg(level) => Compression::Gzip(level).compress(&bytes),
            How::Fixed => crate::fixed::gzip(&bytes),
            How::Go(subcommand, args) => {
                let text = |path: &Path| path.to_str().expect("test paths are text").to_owned();
                let mut request = vec![subcommand.to_owned(), text(tar), text(&out)];
                request.extend(args.iter().map(|&arg| arg.to_owned()));
                let answers = oracle.batch(&[request]);
                for answer in answers {
                    answer.unwrap_or_else(|error| panic!("{}: {error}", self.name));
                }
                fs::read(&out).expect("Go has written it")
            }
            How::Filter(command) | How::Files(command) => {
                if crate::find_program(command[0]).is_none() {
                    return Err(format!("{} is not installed", command[0]));
                }
                if command[0] == "advdef" {
                    // It works on what is there.
                    fs::write(&out, Compression::Gzip(1).compress(&bytes)).expect("it is writable");
                }
                self.run(command, tar, &out)
            }
        };
        let mut meaning = Vec::new();
        std::io::Read::read_to_end(
            &mut flate2::bufread::MultiGzDecoder::new(&blob[..]),
            &mut meaning,
        )
        .unwrap_or_else(|error| panic!("{}: {error}", self.name));
        Ok(Compressed { blob, tar: meaning })
    }

    fn run(&self, command: &[&str], tar: &Path, out: &Path) -> Vec<u8> {
        let mut program = Command::new(command[0]);
        let mut has_out = false;
        for &arg in &command[1..] {
            match arg {
                "IN" => program.arg(tar),
                "@IN" => program.arg(format!("@{}", tar.display())),
                "OUT" => {
                    has_out = true;
                    program.arg(out)
                }
                other => program.arg(other),
            };
        }
        if let How::Filter(_) = self.how {
            program.stdin(File::open(tar).expect("the tar is there"));
        } else {
            program.stdin(Stdio::null());
        }
        let output = program
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {errors}", self.name);
        if has_out {
            fs::read(out).expect("the program has written it")
        } else {
            output.stdout
        }
    }
}
