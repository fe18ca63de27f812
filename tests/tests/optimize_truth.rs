//! `esgz optimize` against what others say of the same workload, and on images at the edges.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use esgz_tests::archive::{Ending, Entry, archive};
use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::esgz::Esgz;
use esgz_tests::layout::{Layer, LayoutBuilder};
use esgz_tests::oracle::Oracle;
use esgz_tests::touch::cases::{EXIT, static_program};
use esgz_tests::{find_program, machine, privileged, sets, skipped};
use serde_json::{Value, json};

/// Every file of the image that the workload opens, as strace sees it in a chroot of the same tree.
#[test]
fn strace_sees_no_file_that_the_profile_lacks() {
    let name = "optimize_truth::strace_sees_no_file_that_the_profile_lacks";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    if find_program("strace").is_none() {
        return skipped(name, "strace is not installed");
    }
    let conversion = Conversion::of(&machine::image());
    let root = conversion.path("root");
    machine::write_tree(&root);
    let log = conversion.path("strace.log");
    // -y: the kernel's own name of every opened file, that is, through all links.
    let status = Command::new("strace")
        .args([
            "-f",
            "-y",
            "-s",
            "4096",
            "-e",
            "trace=open,openat,openat2,execve,execveat,chroot",
            "-o",
        ])
        .arg(&log)
        .args(["chroot"])
        .arg(&root)
        .arg("/opt/main")
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .output()
        .unwrap()
        .status;
    if !status.success() {
        return skipped(name, format_args!("strace cannot trace here: {status}"));
    }
    let traced = opened(&fs::read_to_string(&log).unwrap(), &root);
    assert!(traced.len() > 5, "{traced:?}");

    let finished = conversion.record_run("profile").run();
    conversion.finish(finished.success().unwrap()).unwrap();
    let profile = conversion.json("profile");
    let profiled: BTreeSet<&str> = profile["files"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|file| file["path"].as_str())
        .collect();
    let mut expected: BTreeSet<String> = traced;
    // The kernel opens these itself.
    expected.extend(machine::libraries_of_sh());
    expected.insert(machine::program("sh"));
    let lacking: Vec<_> = expected
        .iter()
        .filter(|path| !profiled.contains(path.as_str()))
        .collect();
    assert!(lacking.is_empty(), "{lacking:?} not in {profiled:?}");
    // The runtime itself looks into passwd and group.
    let extra: Vec<_> = profiled
        .iter()
        .filter(|path| !expected.contains(**path) && !path.starts_with("etc/"))
        .collect();
    assert!(extra.is_empty(), "{extra:?} not in {expected:?}");
}

/// Regular files of the image's own that were opened or executed below `root`, as paths in it.
fn opened(log: &str, root: &Path) -> BTreeSet<String> {
    let root = root.display().to_string();
    let of_image = machine::layers().iter().flatten();
    let of_image: BTreeSet<&[u8]> = of_image.map(|entry| &*entry.name).collect();
    let (_, inside) = log.split_once("chroot(").expect("chroot changes the root");
    let mut found = BTreeSet::new();
    for line in inside.lines() {
        // `… = 3</path>`, or `execve("/path", …) = 0`.
        let path = if let Some((_, fd)) = line.rsplit_once("= ") {
            let fd = fd
                .split_once('<')
                .and_then(|(_, path)| path.strip_suffix('>'));
            let executed = line.ends_with("= 0").then(|| {
                let (_, rest) = line.split_once("execve(\"")?;
                let name = rest.split('"').next()?;
                let inside = format!("{root}{name}");
                Some(resolve_in(&inside, &root))
            });
            fd.map(str::to_owned).or(executed.flatten())
        } else {
            None
        };
        let Some(path) = path else { continue };
        let Some(inside) = path.strip_prefix(&root) else {
            continue;
        };
        let inside = inside.trim_start_matches('/');
        let is_file = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file());
        // A hardlink stands in the profile as the entry that holds the bytes.
        let inside = inside.replace("opt/data/hard", "opt/data/small");
        if is_file && of_image.contains(inside.as_bytes()) {
            found.insert(inside);
        }
    }
    found
}

/// The file that `path` leads to if `root` is the root.
fn resolve_in(path: &str, root: &str) -> String {
    let inside = path.strip_prefix(root).unwrap_or(path);
    let output = Command::new("chroot")
        .args([
            root,
            "/bin/sh",
            "-c",
            "cd \"${1%/*}\" && pwd -P",
            "sh",
            inside,
        ])
        .output();
    let directory = String::from_utf8(output.unwrap().stdout).unwrap();
    let name = inside.rsplit('/').next().unwrap_or_default();
    let path = format!("{root}{}/{name}", directory.trim_end());
    match fs::read_link(&path) {
        Ok(target) if target.is_absolute() => {
            resolve_in(&format!("{root}{}", target.display()), root)
        }
        Ok(target) => {
            let beside = format!("{root}{}/{}", directory.trim_end(), target.display());
            resolve_in(&beside, root)
        }
        Err(_) => path,
    }
}

#[test]
fn images_at_the_edges() {
    let name = "optimize_truth::images_at_the_edges";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    if !cfg!(target_arch = "x86_64") {
        return skipped(name, "its program is for x86-64");
    }
    let oracle = Oracle::for_test(name);
    let program = || Entry::file("true", static_program(EXIT, 0)).mode(0o755);
    let base = |compression| Layer::new(&[program()], compression);
    let empty_tar = |compression| Layer::new(&[], compression);
    let empty = |compression| Layer::from_tar(archive(&[], Ending::None), compression);
    let usual = |compression| Layer::new(&sets::usual(), compression);
    use Compression::{Gzip, Plain, Zstd};
    let images: [(&str, Vec<Layer>); 6] = [
        ("one layer", vec![base(Gzip(6))]),
        ("plain", vec![usual(Plain), base(Plain)]),
        ("zstd", vec![usual(Zstd), base(Zstd)]),
        ("all kinds", vec![usual(Gzip(6)), base(Zstd), usual(Plain)]),
        (
            "empty archives",
            vec![
                empty_tar(Gzip(6)),
                base(Gzip(6)),
                empty_tar(Zstd),
                empty_tar(Plain),
            ],
        ),
        ("no bytes", vec![empty(Gzip(6)), base(Gzip(6)), empty(Zstd)]),
    ];
    for (what, layers) in images {
        let config = json!({"Entrypoint": ["/true"]});
        let image = LayoutBuilder::new().config(config);
        let conversion = Conversion::of(&layers.into_iter().fold(image, LayoutBuilder::layer));
        for rootfs in ["--rootfs=erofs", "--rootfs=unpack"] {
            let command = conversion
                .optimize(rootfs)
                .arg("--profile-out")
                .arg(conversion.path("profile"))
                .arg(rootfs);
            let finished = conversion.finish(command.run()).unwrap();
            let finished = finished.success();
            finished.unwrap_or_else(|error| panic!("{what}: {error}"));
            let output = conversion.output(rootfs);
            let verify = Esgz::new("verify").arg(output.reference()).run();
            verify.success().unwrap();
            if let Some(oracle) = &oracle {
                let checked = oracle.image(&output, Some(&conversion.source), &[]);
                checked.unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            let profile: Value = conversion.json("profile");
            // The runtime itself looks into passwd and group.
            let files: Vec<_> = profile["files"].as_array().unwrap().iter().collect();
            let of_workload: Vec<_> = files
                .into_iter()
                .filter(|file| {
                    !file["path"]
                        .as_str()
                        .is_some_and(|path| path.starts_with("etc/"))
                })
                .collect();
            assert_eq!(of_workload.len(), 1, "{what}: {profile:#}");
            let file = of_workload[0];
            assert_eq!(file["path"], "true");
            assert_eq!(file["executed"], true);
            assert_eq!(file["ranges"], json!([[0, file["size_bytes"]]]));
        }
    }
}
