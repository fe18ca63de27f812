//! Workspace tasks: `cargo xtask TASK`. A file per task; what they share is in `shell` (commands),
//! `prerequisites` (Debian packages) and `layout` (images).

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tasks talk to a terminal"
)]

mod bench;
mod bpf;
mod ci;
mod corpus;
mod demo;
mod fuzz;
mod kernels;
mod layout;
mod prerequisites;
mod python_image;
mod shell;
mod test;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask TASK

  test [ARG…]      all tests, then fuzz; installs what they need from Debian (ARG… go to cargo test,
                   which is all that runs then)
  demo [oci:DIR]   optimises an image under eBPF: the given one, or one made of this machine's Python
  fuzz [TARGET] [SECONDS]
                   fuzz targets of the parsers, each for 10 s or SECONDS; crashes in fuzz/artifacts
  kernels          the profiler's tests on Debian's 6.1 kernel under QEMU
  ci               format, lints, licences, then test
  bench optimize oci:DIR NAME [RUNS]
                   whole runs of esgz optimize; raw results and table in bench/runs/NAME
  bench convert oci:DIR|--small FILES NAME [RUNS] [--levels N,…] [--once]
                [--peer-ctr-remote PATH --peer-containerd PATH]
                   esgz convert, the machine's limit, and ctr-remote, in turns; results as above
  bench limits NAME [--no-zeros]
                   convert and verify on layers at the limits: peak memory and scratch space of each
  bench profiler NAME [ROUNDS] [--subjects NAME,…] [--workloads NAME,…] [--image oci:DIR]
                 [--subject NAME=COMMAND]… [--append] [--only-table]
                   esgz's collectors, fanotify and strace on the same workloads: what they see and what they cost
  bench readiness NAME [ROUNDS] --peer-ctr-remote PATH --peer-containerd PATH --peer-snapshotter PATH
                  --peer-registry PATH [--images NAME,…] [--link MB/s:MS]… [--background-fetch] …
                   from an empty node through a narrow link to a container that is ready: esgz, ctr-remote,
                   eStargz that nobody optimised and a plain pull, in turns
  bench registry oci:DIR[:TAG] NAME [RUNS] [--scratch DIR] [--only copy|convert]
                   an image to and from a registry on this machine, beside skopeo
  bench simulate NAME [--images DIR] [--fit]
                   what esgz simulate predicts beside the measured runs in bench/runs/NAME
  bpf [--write]    rebuilds the BPF object and compares it with the committed one
  corpus [NAME]    makes a large image in target/corpus: torch (default) or numpy
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (task, rest) = match args.split_first() {
        Some((task, rest)) => (task.as_str(), rest),
        None => ("", &[][..]),
    };
    let result = match task {
        "bench" => bench::run(rest),
        "bpf" => bpf::run().map(|()| ExitCode::SUCCESS),
        "test" => test::run(rest),
        "demo" => demo::run(rest),
        "fuzz" => fuzz::run(rest),
        "kernels" => kernels::run(rest),
        "ci" => ci::run(rest),
        "corpus" => corpus::run(rest),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
