//! What is watched. To add a workload, add a row to [`PROGRAMS`], or a case of `esgz_tests::touch::cases` to
//! [`generators`].

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail};
use esgz_tests::touch::cases::{Named, Pages, every_way, in_order, odd_ways, script_chain};

use crate::image::Image;
use crate::metrics::{Order, PagesOf};

/// A workload and its image.
pub(crate) struct Workload {
    pub(crate) name: String,
    pub(crate) image: Image,
    pub(crate) work: Work,
    /// None: it has to be found out.
    pub(crate) known: Option<Known>,
    /// It has run once before it is watched, so that all it reads is cached: then its time is its own and the
    /// profiler's, and not the disk's. What is seen is not compared.
    pub(crate) is_warm: bool,
}

/// Names of the warm ones end with this.
const WARM: &str = "-warm";

/// What runs.
pub(crate) enum Work {
    /// A program of the image.
    Command(Vec<String>),
    /// A script for `esgz_tests::touch::work`.
    Script(String),
    /// The same, again and again, while a process outside is timed.
    Beside(String),
}

/// What a generator touches of its own layer, which is the uppermost.
pub(crate) struct Known {
    pub(crate) files: Order,
    /// Whether `files` is in order.
    pub(crate) is_ordered: bool,
    /// Of the files whose pages are known.
    pub(crate) pages: PagesOf,
}

/// Programs of the image that `cargo xtask bench profiler` makes.
const PROGRAMS: [(&str, &[&str]); 6] = [
    (
        "shell",
        &[
            "sh",
            "-c",
            "i=0; while [ $i -lt 60 ]; do cat /etc/passwd | grep root | wc -l; i=$((i+1)); done; \
             ls -lR /usr/share | sort | uniq -c | tail -n 1; find /usr/bin -name 'a*' -exec head -c 1 {} +; \
             grep -rl debian /etc; sed -n 1p /etc/os-release; awk 'END { print NR }' /etc/passwd /etc/group",
        ],
    ),
    (
        "python",
        &[
            "python3",
            "-c",
            "import json, re, asyncio, email.message, http.server, sqlite3, ssl, decimal, zipfile, \
             xml.etree.ElementTree, unittest, logging.config, multiprocessing, ctypes, csv, tarfile, difflib, pydoc",
        ],
    ),
    (
        "java",
        &[
            "keytool",
            "-genkeypair",
            "-alias",
            "a",
            "-keyalg",
            "EC",
            "-dname",
            "CN=a",
            "-storepass",
            "changeit",
            "-keystore",
            "/tmp/keys",
        ],
    ),
    (
        "node",
        &[
            "node",
            "-e",
            "for (const name of require('module').builtinModules) { try { require(name) } catch {} } \
             const zlib = require('zlib'), crypto = require('crypto'), fs = require('fs'); \
             for (const name of fs.readdirSync('/usr/share/nodejs')) { try { require('/usr/share/nodejs/' + name) } catch {} } \
             console.log(crypto.createHash('sha256').update(zlib.gzipSync(fs.readFileSync('/bin/bash'))).digest('hex'))",
        ],
    ),
    (
        "nginx",
        &[
            "bash",
            "-c",
            "nginx; for i in 1 2 3; do exec 3<>/dev/tcp/127.0.0.1/80; \
             printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3; exec 3<&-; done; \
             nginx -s quit; sleep 0.02; while [ -e /run/nginx.pid ]; do sleep 0.01; done",
        ],
    ),
    (
        "gcc",
        &[
            "sh",
            "-c",
            "printf '#include <stdio.h>\\n#include <stdlib.h>\\n#include <string.h>\\n#include <pthread.h>\\n\
             #include <math.h>\\n#include <sys/socket.h>\\nint main(void) { puts(strerror((int) sqrt(4))); }\\n' > /tmp/a.c; \
             gcc -O2 -g /tmp/a.c -o /tmp/a -lm && /tmp/a",
        ],
    ),
];

/// Names of what is always there; an image that is given adds `image`.
const GENERATORS: [&str; 6] = ["ways", "odd", "scripts", "order", "storm", "bystander"];

/// Those that `wanted` names, or all, in their own order: programs and generators on the image `programs`, and the own
/// command of the image `given`.
pub(crate) fn chosen(
    wanted: &[String],
    programs: &Image,
    given: Option<&Image>,
    scratch: &Path,
) -> Result<Vec<Workload>> {
    let programs_and_image = || {
        let image = given.is_some().then_some("image");
        PROGRAMS.iter().map(|(name, _)| *name).chain(image)
    };
    let warm = programs_and_image()
        .chain(["storm"])
        .map(|name| format!("{name}{WARM}"));
    let cold = programs_and_image().chain(GENERATORS).map(str::to_owned);
    let names: BTreeSet<String> = cold.chain(warm).collect();
    if let Some(name) = wanted.iter().find(|name| !names.contains(*name)) {
        let names: Vec<String> = names.into_iter().collect();
        bail!("no workload {name:?}; there are: {}", names.join(", "));
    }
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let mut chosen = Vec::new();
    let mut add = |name: &str, image: &Image, work: &dyn Fn() -> Work, is_warm: bool| {
        let name = format!("{name}{}", if is_warm { WARM } else { "" });
        if is_wanted(&name) {
            chosen.push(Workload {
                name,
                image: image.clone(),
                work: work(),
                known: None,
                is_warm,
            });
        }
    };
    for is_warm in [false, true] {
        for (name, words) in PROGRAMS {
            let words = || words.iter().map(|&word| word.to_owned()).collect();
            add(name, programs, &|| Work::Command(words()), is_warm);
        }
        if let Some(image) = given {
            add(
                "image",
                image,
                &|| Work::Command(image.args.clone()),
                is_warm,
            );
        }
    }
    let of_generators = GENERATORS.map(|name| (name, false));
    for (case, is_warm) in of_generators.into_iter().chain([("storm", true)]) {
        let name = format!("{case}{}", if is_warm { WARM } else { "" });
        if is_wanted(&name) {
            let (layer, work, known) = generator(case);
            chosen.push(Workload {
                name,
                image: programs.with_layer(layer.layer, scratch)?,
                work,
                known: Some(known),
                is_warm,
            });
        }
    }
    Ok(chosen)
}

const STORM_FILES: u64 = 5000;

fn generator(name: &str) -> (Named, Work, Known) {
    let known = |files: Order, is_ordered| Known {
        files,
        is_ordered,
        pages: PagesOf::new(),
    };
    // The generators run in the image's root.
    let once = |script: &str| Work::Script(script.replace('@', "/"));
    match name {
        "ways" => {
            let (image, script, truth) = every_way();
            let mut known = known(
                truth.iter().map(|(name, _)| (*name).to_owned()).collect(),
                true,
            );
            // What these two ask the kernel for is more than what they touch.
            let asks = |name: &str| ["mmap-huge", "mmap-populate"].contains(&name);
            known.pages = truth
                .into_iter()
                .filter(|(name, _)| !asks(name))
                .map(|(name, pages)| (name.to_owned(), pages))
                .collect();
            (image, once(&script), known)
        }
        "odd" => {
            let (image, script, files) = odd_ways();
            (image, once(&script), known(files, false))
        }
        "scripts" => {
            let (image, script, files) = script_chain();
            (image, once(&script), known(files, true))
        }
        "order" | "bystander" => {
            let (image, script, files) = in_order(400);
            let mut known = known(files, true);
            known.pages = known
                .files
                .iter()
                .map(|name| (name.clone(), Pages::from([0])))
                .collect();
            let script = script.replace('@', "/");
            let work = if name == "order" {
                Work::Script(script)
            } else {
                Work::Beside(script)
            };
            (image, work, known)
        }
        _ => {
            let names = || (0..STORM_FILES).map(|i| format!("f{i}"));
            let image = names().fold(Named::default(), |image, name| image.file(&name, b"x"));
            let script = format!("storm 8 {STORM_FILES} 50000 @");
            let mut known = known(names().collect(), false);
            known.pages = names().map(|name| (name, Pages::from([0]))).collect();
            (image, once(&script), known)
        }
    }
}
