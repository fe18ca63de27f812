//! Arguments of `cargo xtask bench readiness`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::contender::Contender;
use super::images::Image;
use super::link::Link;
use super::node::{BackgroundFetch, Programs};

pub(super) const USAGE: &str = "usage: cargo xtask bench readiness NAME [ROUNDS] --peer-ctr-remote PATH \
    --peer-containerd PATH --peer-snapshotter PATH --peer-registry PATH [--images NAME,…] [--image NAME=oci:DIR[:TAG]]… \
    [--link MB/s:MS]… [--background-fetch[=only]] [--contenders NAME,…] [--variant NAME=FLAGS]… [--timeout SECONDS] \
    [--log-requests] [--append]\n       cargo xtask bench readiness NAME --only-table";

/// What is asked for.
#[derive(Debug, PartialEq)]
pub(super) struct Options {
    pub(super) name: String,
    pub(super) rounds: usize,
    pub(super) images: Vec<Image>,
    pub(super) links: Vec<Link>,
    pub(super) contenders: Vec<Contender>,
    /// Configurations of the snapshotter.
    pub(super) background_fetch: Vec<BackgroundFetch>,
    pub(super) programs: Programs,
    /// For each pull and each start.
    pub(super) longest: Duration,
    /// Writes down what is asked for in each run.
    pub(super) log_requests: bool,
    /// Adds rounds to those that are there.
    pub(super) append: bool,
}

pub(super) fn parse(args: &[String]) -> Result<Options> {
    let mut words = Vec::new();
    let mut named: Option<Vec<Image>> = None;
    let (mut given, mut links, mut variants) = (Vec::new(), Vec::new(), Vec::new());
    let mut contenders = vec![
        Contender::Plain,
        Contender::Unoptimized,
        Contender::Peer,
        Contender::Esgz,
    ];
    let mut background_fetch = vec![BackgroundFetch::Off];
    let mut paths: [Option<PathBuf>; 4] = Default::default();
    let mut longest = Duration::from_secs(1800);
    let (mut append, mut log_requests) = (false, false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .with_context(|| format!("{arg}: a value is missing\n{USAGE}"))
        };
        match arg.as_str() {
            "--images" => {
                let names = value()?.split(',').map(Image::named);
                named = Some(names.collect::<Result<_>>()?);
            }
            "--image" => given.push(Image::given(value()?)?),
            "--link" => links.push(value()?.parse()?),
            "--variant" => variants.push(Contender::variant(value()?)?),
            "--contenders" => contenders = chosen(&contenders, value()?)?,
            "--background-fetch" => {
                background_fetch = vec![BackgroundFetch::Off, BackgroundFetch::On];
            }
            "--background-fetch=only" => background_fetch = vec![BackgroundFetch::On],
            "--peer-ctr-remote" => paths[0] = Some(value()?.into()),
            "--peer-containerd" => paths[1] = Some(value()?.into()),
            "--peer-snapshotter" => paths[2] = Some(value()?.into()),
            "--peer-registry" => paths[3] = Some(value()?.into()),
            "--timeout" => {
                longest = Duration::from_secs(value()?.parse().context("--timeout: seconds")?);
            }
            "--append" => append = true,
            "--log-requests" => log_requests = true,
            flag if flag.starts_with('-') => bail!("unknown flag {flag}\n{USAGE}"),
            word => words.push(word),
        }
    }
    let (name, rounds) = match words.as_slice() {
        [name] => (*name, 5),
        [name, rounds] => (*name, rounds.parse().context(USAGE)?),
        _ => bail!(USAGE),
    };
    ensure!(rounds > 0 && !name.contains('/'), USAGE);
    let [
        Some(ctr_remote),
        Some(containerd),
        Some(snapshotter),
        Some(registry),
    ] = paths
    else {
        bail!("the peer's four programs have to be named\n{USAGE}");
    };
    if links.is_empty() {
        links = vec!["125:10".parse()?, "25:40".parse()?];
    }
    contenders.extend(variants);
    // Images that are given take the place of the set.
    let mut images = match named {
        Some(named) => named,
        None if given.is_empty() => Image::all(),
        None => Vec::new(),
    };
    images.extend(given);
    let names: BTreeSet<&str> = images.iter().map(|image| &*image.name).collect();
    ensure!(names.len() == images.len(), "two images have one name");
    let names: BTreeSet<&str> = contenders.iter().map(Contender::name).collect();
    ensure!(
        names.len() == contenders.len(),
        "two contenders have one name"
    );
    Ok(Options {
        name: name.to_owned(),
        rounds,
        images,
        links,
        contenders,
        background_fetch,
        programs: Programs {
            ctr_remote: absolute(&ctr_remote)?,
            containerd: absolute(&containerd)?,
            snapshotter: absolute(&snapshotter)?,
            registry: absolute(&registry)?,
        },
        longest,
        log_requests,
        append,
    })
}

fn chosen(all: &[Contender], text: &str) -> Result<Vec<Contender>> {
    let find = |name: &str| {
        let found = all.iter().find(|contender| contender.name() == name);
        let names = || {
            all.iter()
                .map(Contender::name)
                .collect::<Vec<_>>()
                .join(", ")
        };
        found
            .cloned()
            .with_context(|| format!("no contender {name:?}; there are: {}", names()))
    };
    text.split(',').map(find).collect()
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} is no path", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEERS: &str = "--peer-ctr-remote /a/x --peer-containerd /b/x --peer-snapshotter /c/x --peer-registry /d/x";

    fn parsed(text: &str) -> Result<Options> {
        let args: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        parse(&args)
    }

    #[test]
    fn defaults_are_the_whole_set() {
        let options = parsed(&format!("name {PEERS}")).unwrap();
        assert_eq!((options.rounds, options.images.len()), (5, 6));
        assert_eq!(options.links.len(), 2);
        let names: Vec<&str> = options.contenders.iter().map(Contender::name).collect();
        assert_eq!(names, ["plain", "estargz", "ctr-remote", "esgz"]);
        assert_eq!(options.background_fetch, [BackgroundFetch::Off]);
        assert_eq!(options.programs.ctr(), Path::new("/b/ctr"));
    }

    #[test]
    fn arguments_are_understood() {
        let text = format!(
            "name 2 {PEERS} --images nginx,gcc --image mine=oci:/a --link 1:2 --background-fetch \
             --contenders ctr-remote,esgz --variant v=--x --append --log-requests"
        );
        let options = parsed(&text).unwrap();
        let names: Vec<&str> = options.images.iter().map(|image| &*image.name).collect();
        assert_eq!(names, ["nginx", "gcc", "mine"]);
        let names: Vec<&str> = options.contenders.iter().map(Contender::name).collect();
        assert_eq!(names, ["ctr-remote", "esgz", "v"]);
        assert_eq!(options.background_fetch.len(), 2);
        assert!(options.append && options.log_requests && options.rounds == 2);
        let only_given = parsed(&format!("name {PEERS} --image mine=oci:/a")).unwrap();
        assert_eq!(only_given.images.len(), 1);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in [
            "name",
            PEERS,
            &format!("name 0 {PEERS}"),
            &format!("a/b {PEERS}"),
            &format!("name {PEERS} --images perl"),
            &format!("name {PEERS} --images gcc,gcc"),
            &format!("name {PEERS} --contenders nobody"),
            &format!("name {PEERS} --variant esgz=--x"),
            &format!("name {PEERS} --link"),
            &format!("name {PEERS} --x"),
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
