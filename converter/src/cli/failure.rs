//! What a failed command says and exits with.

use crate::artifact::ArtifactError;
use crate::attach::AttachError;
use crate::cancel::Cancelled;
use crate::convert::ImageError;
use crate::layer::encode::EncodeError;
use crate::layer::scan::ScanError;
use crate::layer::verify::VerifyError;
use crate::record::RecordError;
use crate::registry::RegistryError;
use crate::rootfs::{LocateError, RootfsError};
use crate::runtime::RuntimeError;
use crate::simulate::ReadError;
use crate::sink::SinkError;
use crate::source::SourceError;
use crate::verify::ImageFault;

/// Wrong arguments.
pub(super) const USAGE: u8 = 2;
/// The workload failed, or could not be run.
pub(super) const WORKLOAD: u8 = 3;
/// Events were lost.
pub(super) const INCOMPLETE: u8 = 4;
/// A written or given image is faulty.
pub(super) const VERIFICATION: u8 = 5;
/// Source or destination cannot be read or written.
pub(super) const IMAGE: u8 = 6;
/// The user interrupted; as shells report SIGINT.
pub(super) const INTERRUPTED: u8 = 130;
/// All else.
pub(super) const OTHER: u8 = 1;

/// An error and the exit code for it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: u8,
    pub(super) error: anyhow::Error,
}

impl Failure {
    pub(super) fn new(code: u8, error: impl Into<anyhow::Error>) -> Self {
        Self {
            code,
            error: error.into(),
        }
    }

    /// As [`Failure::new`]; what was interrupted does not matter to the user who did it.
    fn coded(code: u8, error: impl Into<anyhow::Error>) -> Self {
        match code {
            INTERRUPTED => Cancelled.into(),
            code => Self::new(code, error),
        }
    }

    /// A failure that has no error below it.
    pub(super) fn message(code: u8, message: String) -> Self {
        Self {
            code,
            error: anyhow::Error::msg(message),
        }
    }

    pub(super) fn context(self, context: String) -> Self {
        Self {
            code: self.code,
            error: self.error.context(context),
        }
    }

    /// The error and its causes, in one line.
    pub(super) fn line(&self) -> String {
        let mut line = String::new();
        for cause in self.error.chain() {
            let text = cause.to_string();
            // Some errors print their source themselves.
            if line.ends_with(&text) {
                continue;
            }
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&text);
        }
        line.replace('\n', " ")
    }
}

impl From<Cancelled> for Failure {
    fn from(error: Cancelled) -> Self {
        Self::new(INTERRUPTED, error)
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        let code = match error {
            SourceError::Cancelled(_) => INTERRUPTED,
            // The scratch directory is neither source nor destination.
            SourceError::Unpack { .. } => OTHER,
            _ => IMAGE,
        };
        Self::coded(code, error)
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Source(error) => error.into(),
            ReadError::Toc { layer, source } => {
                Self::from(source).context(format!("layer {layer}"))
            }
        }
    }
}

impl From<ArtifactError> for Failure {
    fn from(error: ArtifactError) -> Self {
        let code = match error {
            ArtifactError::Cancelled(_) => INTERRUPTED,
            _ => IMAGE,
        };
        Self::coded(code, error)
    }
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        let code = match error {
            SinkError::Registry(RegistryError::Cancelled(_)) => INTERRUPTED,
            _ => IMAGE,
        };
        Self::coded(code, error)
    }
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        let code = match error {
            VerifyError::Read { .. } => IMAGE,
            VerifyError::Cancelled(_) => INTERRUPTED,
            _ => VERIFICATION,
        };
        Self::coded(code, error)
    }
}

impl From<ImageFault> for Failure {
    fn from(error: ImageFault) -> Self {
        let code = match &error {
            ImageFault::Cancelled(_) => INTERRUPTED,
            ImageFault::Source { source, .. } if matches!(**source, ScanError::Spool { .. }) => {
                OTHER
            }
            ImageFault::Contents { .. } => OTHER,
            ImageFault::Layer {
                source: VerifyError::Read { .. },
                ..
            }
            | ImageFault::Open(_)
            | ImageFault::Source { .. } => IMAGE,
            ImageFault::Layer { .. }
            | ImageFault::History { .. }
            | ImageFault::Different { .. } => VERIFICATION,
        };
        Self::coded(code, error)
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        let code = match &error {
            RecordError::Runtime(RuntimeError::Cancelled(_))
            | RecordError::Rootfs(RootfsError::Cancelled(_)) => INTERRUPTED,
            RecordError::Runtime(
                RuntimeError::NotExecutable { .. }
                | RuntimeError::NothingToRun
                | RuntimeError::UnknownUser { .. },
            ) => WORKLOAD,
            RecordError::Runtime(
                RuntimeError::Malformed { .. } | RuntimeError::UnknownDevice { .. },
            ) => USAGE,
            RecordError::Attach(error) => attach_code(error),
            RecordError::Locate(error) => locate_code(error),
            RecordError::Rootfs(RootfsError::Layer { .. }) => IMAGE,
            RecordError::Runtime(_)
            | RecordError::Rootfs(_)
            | RecordError::Profiler(_)
            | RecordError::Merge(_) => OTHER,
        };
        Self::coded(code, error)
    }
}

/// Wrong is what names no container.
fn attach_code(error: &AttachError) -> u8 {
    match error {
        AttachError::Cancelled(_) => INTERRUPTED,
        AttachError::NoProcess { .. }
        | AttachError::NoRoot { .. }
        | AttachError::NotInContainer { .. }
        | AttachError::NoCgroup { .. }
        | AttachError::WholeHierarchy { .. }
        | AttachError::Empty { .. }
        | AttachError::Shared { .. }
        | AttachError::Listens { .. } => USAGE,
        _ => OTHER,
    }
}

/// Wrong is an image that is not the container's.
fn locate_code(error: &LocateError) -> u8 {
    match error {
        LocateError::Cancelled(_) => INTERRUPTED,
        LocateError::Count { .. } | LocateError::Differs { .. } => USAGE,
        LocateError::Rootfs(RootfsError::Layer { .. }) => IMAGE,
        LocateError::Rootfs(_) => OTHER,
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let code = match &error {
            ImageError::Cancelled(_)
            | ImageError::Source(SourceError::Cancelled(_))
            | ImageError::Sink(SinkError::Registry(RegistryError::Cancelled(_)))
            | ImageError::Scan(ScanError::Cancelled(_))
            | ImageError::Convert(crate::layer::ConvertError::Cancelled(_))
            | ImageError::Verify {
                source: VerifyError::Cancelled(_),
                ..
            } => INTERRUPTED,
            ImageError::Verify {
                source: VerifyError::Read { .. },
                ..
            } => IMAGE,
            ImageError::Verify { .. }
            | ImageError::Convert(crate::layer::ConvertError::Encode {
                source: EncodeError::Check { .. },
                ..
            }) => VERIFICATION,
            ImageError::Scratch(_)
            | ImageError::Scan(ScanError::Spool { .. })
            | ImageError::Convert(crate::layer::ConvertError::Encode { .. }) => OTHER,
            ImageError::Source(_)
            | ImageError::Scan(_)
            | ImageError::Plan(_)
            | ImageError::Write { .. }
            | ImageError::Copy { .. }
            | ImageError::Convert(_)
            | ImageError::Sink(_) => IMAGE,
        };
        Self::coded(code, error)
    }
}
