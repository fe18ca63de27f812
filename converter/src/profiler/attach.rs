//! Puts single programs into the kernel, and ties them to their tracepoints.

use aya::programs::raw_trace_point::RawTracePointLink;
use aya::programs::tp_btf::BtfTracePointLink;
use aya::programs::trace_point::TracePointLink;
use aya::programs::{Program, ProgramError};
use aya::{Btf, Ebpf};

use super::ProfilerError;
use super::hooks::{Gets, Hook};

/// Where a program is attached, and what it is given there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// Group and tracepoint: its record.
    Record(&'static str, &'static str),
    /// The tracepoint's arguments, with their types.
    Typed(&'static str),
    /// The tracepoint's arguments as they are.
    Raw(&'static str),
}

/// What keeps a program attached.
#[derive(Debug)]
#[expect(dead_code, reason = "held to be dropped")]
pub(super) enum Link {
    Record(TracePointLink),
    Typed(BtfTracePointLink),
    Raw(RawTracePointLink),
}

impl Hook {
    pub(super) fn place(&self) -> Place {
        match self.gets {
            Gets::Record(_) => Place::Record(self.group, self.tracepoint),
            Gets::Arguments => Place::Typed(self.tracepoint),
        }
    }

    pub(super) fn attachment(&self) -> (&'static str, Place) {
        (self.program, self.place())
    }
}

/// Attaches programs.
#[derive(Default)]
pub(super) struct Attacher {
    /// The kernel's types, once somebody needs them: reading them takes a while.
    types: Option<Btf>,
}

impl Attacher {
    pub(super) fn attach(
        &mut self,
        programs: &mut Ebpf,
        program: &'static str,
        place: Place,
    ) -> Result<Link, ProfilerError> {
        self.load(programs, program, place)?;
        let failed = |source| program_error("attach", program, source);
        Ok(match (find(programs, program)?, place) {
            (Program::TracePoint(found), Place::Record(group, tracepoint)) => {
                let link = found.attach(group, tracepoint).map_err(failed)?;
                Link::Record(found.take_link(link).map_err(failed)?)
            }
            (Program::BtfTracePoint(found), Place::Typed(_)) => {
                let link = found.attach().map_err(failed)?;
                Link::Typed(found.take_link(link).map_err(failed)?)
            }
            (Program::RawTracePoint(found), Place::Raw(tracepoint)) => {
                let link = found.attach(tracepoint).map_err(failed)?;
                Link::Raw(found.take_link(link).map_err(failed)?)
            }
            _ => return Err(ProfilerError::ObjectLacks(program)),
        })
    }

    /// Brings the program into the kernel, unless it is there.
    pub(super) fn load(
        &mut self,
        programs: &mut Ebpf,
        program: &'static str,
        place: Place,
    ) -> Result<(), ProfilerError> {
        let failed = |source| program_error("load", program, source);
        match (find(programs, program)?, place) {
            (Program::TracePoint(found), _) => load(found.fd().is_ok(), || found.load()),
            (Program::RawTracePoint(found), _) => load(found.fd().is_ok(), || found.load()),
            (Program::BtfTracePoint(found), Place::Typed(tracepoint)) => {
                let types = match self.types.take() {
                    Some(types) => types,
                    None => Btf::from_sys_fs().map_err(|error| failed(error.into()))?,
                };
                let types = self.types.insert(types);
                load(found.fd().is_ok(), || found.load(tracepoint, types))
            }
            _ => return Err(ProfilerError::ObjectLacks(program)),
        }
        .map_err(failed)
    }
}

fn load(
    is_loaded: bool,
    load: impl FnOnce() -> Result<(), ProgramError>,
) -> Result<(), ProgramError> {
    if is_loaded { Ok(()) } else { load() }
}

fn find<'a>(
    programs: &'a mut Ebpf,
    program: &'static str,
) -> Result<&'a mut Program, ProfilerError> {
    programs
        .program_mut(program)
        .ok_or(ProfilerError::ObjectLacks(program))
}

fn program_error(
    operation: &'static str,
    program: &'static str,
    source: ProgramError,
) -> ProfilerError {
    ProfilerError::Program {
        operation,
        program,
        source: Box::new(source),
    }
}

/// Detaches one program that gets a record. The kernel waits then until no tracepoint's program is running that began
/// before (`tracepoint_synchronize_unregister`).
pub(super) fn detach_one_and_wait(links: &mut Vec<Link>) {
    let record = |link: &Link| matches!(link, Link::Record(_));
    if let Some(position) = links.iter().rposition(record) {
        drop(links.remove(position));
    }
}

/// Detaches without waiting. For each link of a program that gets a record the kernel waits twice for all CPUs: before
/// it lets go of the program (`perf_event_detach_bpf_prog`), and, with a lock held, before it frees the tracepoint
/// (`perf_trace_event_unreg`). With a thread for each, the first waits are one.
pub(super) fn detach_behind(links: Vec<Link>) {
    for link in links {
        let detach = std::thread::Builder::new().name("esgz-detach".into());
        if let Err(error) = detach.spawn(move || drop(link)) {
            tracing::debug!("detached at once, no thread: {error}");
        }
    }
}
