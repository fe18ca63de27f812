//! One run: from an empty node to a container that is ready.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::sync;

use super::contender::Converted;
use super::images::{Image, Ready};
use super::interrupt::{Interrupt, Running};
use super::link::{Link, Proxy, Request};
use super::node::{BackgroundFetch, Node, Programs};
use super::results::Run;
use crate::bench::distribution::Registry;
use crate::shell::capture;

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What all runs have in common.
pub(super) struct Scene<'a> {
    pub(super) programs: &'a Programs,
    pub(super) registry: &'a Registry,
    pub(super) scratch: &'a Path,
    pub(super) interrupt: &'a Interrupt,
    /// For each pull, and for each start.
    pub(super) longest: Duration,
}

/// What takes its turn.
#[derive(Clone, Copy)]
pub(super) struct Turn<'a> {
    pub(super) image: &'a Image,
    pub(super) converted: &'a Converted,
    pub(super) link: Link,
    pub(super) background_fetch: BackgroundFetch,
    pub(super) round: usize,
}

impl Scene<'_> {
    /// Pulls the image through the link onto an empty node, and runs it until it is ready. With the run comes what was
    /// asked for since the pull ended.
    pub(super) fn run(&self, turn: Turn<'_>) -> Result<(Run, Vec<Request>)> {
        let proxy = Proxy::start(turn.link, self.registry.address())?;
        let node = Node::start(
            self.programs,
            proxy.address(),
            turn.background_fetch,
            self.scratch,
            self.interrupt,
        )?;
        self.cool_down()?;
        let _ = proxy.take();
        let log = self.scratch.join("client.log");
        let said = |node: &Node| {
            let client = fs::read_to_string(&log).unwrap_or_default();
            format!("{}\n{}", client.trim_end(), node.log_end())
        };

        let contender = turn.converted.contender.name();
        let reference = format!("{}/{}/{contender}:x", proxy.address(), turn.image.name);
        let is_lazy = turn.converted.contender.is_lazy();
        let mut pull = if is_lazy {
            let mut pull = node.ctr_remote();
            pull.args(["image", "rpull", "--plain-http", "--snapshotter=stargz"]);
            pull
        } else {
            let mut pull = node.ctr();
            pull.args(["images", "pull", "--plain-http", "--snapshotter=overlayfs"]);
            pull
        };
        let begun = Instant::now();
        let mut pulling = Running::start(logged(pull.arg(&reference), &log)?)?;
        let status = pulling.wait(self.interrupt, self.longest)?;
        let pull_seconds = begun.elapsed().as_secs_f64();
        ensure!(status.success(), "{pull:?}: {status}: {}", said(&node));
        let (pulled, _) = proxy.take();

        let mut create = node.ctr();
        create.args(["run", "--rm"]);
        create.arg(if is_lazy {
            "--snapshotter=stargz"
        } else {
            "--snapshotter=overlayfs"
        });
        let begun = Instant::now();
        let ready = match turn.image.ready {
            Ready::Exit => {
                let mut container =
                    Running::start(logged(create.args([&reference, "ready"]), &log)?)?;
                let status = container.wait(self.interrupt, self.longest)?;
                let ended = Instant::now();
                ensure!(status.success(), "{create:?}: {status}: {}", said(&node));
                ended
            }
            Ready::Http(port) => {
                let network = format!("network:{}", node.network().display());
                create.args(["--with-ns", &network, &reference, "ready"]);
                let probe = super::probe::Probe::start(node.open_network()?, port)?;
                let mut container = Running::start(logged(&mut create, &log)?)?;
                let answered = self.first_answer(&probe, &mut container);
                self.interrupt.check()?;
                answered.with_context(|| format!("{create:?}: {}", said(&node)))?
            }
        };
        let (started, requests) = proxy.take();
        let run = Run {
            image: turn.image.name.clone(),
            contender: contender.to_owned(),
            is_lazy,
            link: turn.link,
            background_fetch: turn.background_fetch,
            round: turn.round,
            image_bytes: turn.converted.bytes,
            pull_seconds,
            start_seconds: (ready - begun).as_secs_f64(),
            pulled,
            started,
        };
        Ok((run, requests))
    }

    fn first_answer(
        &self,
        probe: &super::probe::Probe,
        container: &mut Running,
    ) -> Result<Instant> {
        let until = Instant::now() + self.longest;
        loop {
            self.interrupt.check()?;
            if let Some(answered) = probe.answer(LOOK_EVERY)? {
                return Ok(answered);
            }
            if let Some(status) = container.wait_a_little(Duration::ZERO)? {
                bail!("ended before it answered: {status}");
            }
            ensure!(
                Instant::now() < until,
                "no answer after {} s",
                self.longest.as_secs()
            );
        }
    }

    /// Nothing of the image is cached on the node; the far side answers from memory, and the programs that every node
    /// has run before are cached.
    fn cool_down(&self) -> Result<()> {
        sync();
        fs::write("/proc/sys/vm/drop_caches", "3").context("caches cannot be dropped")?;
        let mut warm = vec![self.registry.dir().to_owned()];
        warm.extend(self.programs.all());
        let mut read = Command::new("find");
        read.args(&warm)
            .args(["-type", "f", "-exec", "cat", "{}", "+"]);
        Running::start(read.stdin(Stdio::null()).stdout(Stdio::null()))?
            .wait(self.interrupt, self.longest)?;
        for program in ["runc", "nsenter"] {
            capture(Command::new(program).arg("--version"))?;
        }
        Ok(())
    }
}

fn logged<'a>(command: &'a mut Command, log: &Path) -> Result<&'a mut Command> {
    let log = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    Ok(command.stdout(log.try_clone()?).stderr(log))
}
