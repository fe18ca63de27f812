//! Mounting: an EROFS index over a spool, and overlayfs over all layers.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags};

use super::error::RootfsError;
use super::workspace::Workspace;
use crate::sys::loopdev::{LoopDevice, LoopError};

/// Mounts the EROFS image `index`, whose external device is `spool`, as `name` in the workspace.
pub(super) fn mount_erofs(
    workspace: &mut Workspace,
    name: &str,
    index: BorrowedFd<'_>,
    spool: BorrowedFd<'_>,
    read_ahead_kib: u32,
) -> Result<(), RootfsError> {
    let path = workspace.make_directory(name)?;
    let index = attach(index, &format!("esgz index {name}"), read_ahead_kib)?;
    let spool = attach(spool, &format!("esgz spool {name}"), read_ahead_kib)?;
    let (source, device) = (index.path().to_path_buf(), spool.path().to_path_buf());
    workspace.keep_loop(index);
    workspace.keep_loop(spool);
    let fs = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| mount_error("erofs", &path, String::new(), errno))?;
    let configure = || {
        rustix::mount::fsconfig_set_flag(&fs, "ro")?;
        rustix::mount::fsconfig_set_string(&fs, "source", &source)?;
        rustix::mount::fsconfig_set_string(&fs, "device", &device)?;
        rustix::mount::fsconfig_create(&fs)
    };
    configure().map_err(|errno| mount_error("erofs", &path, messages(&fs), errno))?;
    attach_mount(&fs, MountAttrFlags::MOUNT_ATTR_RDONLY, &path)
        .map_err(|errno| mount_error("erofs", &path, messages(&fs), errno))?;
    workspace.keep_mount(path);
    Ok(())
}

fn attach(
    file: BorrowedFd<'_>,
    label: &str,
    read_ahead_kib: u32,
) -> Result<LoopDevice, RootfsError> {
    let failed =
        |LoopError {
             operation,
             path,
             source,
         }: LoopError| { RootfsError::loop_device(operation, &path, source) };
    let mut device = LoopDevice::attach(file, label).map_err(failed)?;
    device.set_read_ahead_kib(read_ahead_kib).map_err(failed)?;
    Ok(device)
}

/// What overlayfs is asked for. Names of directories are relative to the workspace, so that their
/// length and characters do not matter: `fsconfig` takes 255 bytes a value, `mount` 4095 in all.
pub(super) struct Overlay<'a> {
    /// Names of the lower directories, the top layer first.
    pub(super) lowers: &'a [String],
    pub(super) upper: &'a str,
    pub(super) work: &'a str,
    pub(super) target: &'a str,
}

/// Options wanted, and what to do without each: `xino` makes inode numbers of several lower file
/// systems unique; `volatile` spares the `sync` of a writable layer that is thrown away. Directory
/// redirects are never followed: a layer could point one at another place.
const FIRM_OPTIONS: [(&str, &str); 3] = [
    ("redirect_dir", "nofollow"),
    ("metacopy", "off"),
    ("index", "off"),
];

/// Mounts `overlay` in the workspace.
pub(super) fn mount_overlay(
    workspace: &mut Workspace,
    overlay: &Overlay<'_>,
) -> Result<(), RootfsError> {
    let path = workspace.make_directory(overlay.target)?;
    let directory = workspace.open()?;
    // Through this link a name is found from anywhere, whatever the scratch directory is called.
    let place = |name: &str| format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    let error = match mount_layer_by_layer(overlay, &path, place) {
        // Before 6.8 there is no `lowerdir+`; what the kernel then says differs.
        Err(NewApiError {
            errno: Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP,
            messages,
        }) => {
            let legacy = mount_at_once(overlay, &path, place);
            legacy.err().map(|errno| NewApiError { errno, messages })
        }
        other => other.err(),
    };
    match error {
        None => {
            workspace.keep_mount(path);
            Ok(())
        }
        Some(NewApiError { errno, messages }) => {
            Err(mount_error("overlay", &path, messages, errno))
        }
    }
}

struct NewApiError {
    errno: Errno,
    messages: String,
}

fn mount_layer_by_layer(
    overlay: &Overlay<'_>,
    path: &Path,
    place: impl Fn(&str) -> String,
) -> Result<(), NewApiError> {
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| {
        NewApiError {
            errno,
            messages: String::new(),
        }
    })?;
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&fs, key, value);
    let configure = || {
        set("source", "overlay")?;
        for (key, value) in FIRM_OPTIONS.into_iter().chain([("xino", "on")]) {
            set(key, value)?;
        }
        rustix::mount::fsconfig_set_flag(&fs, "volatile")?;
        for lower in overlay.lowers {
            set("lowerdir+", &place(lower))?;
        }
        set("upperdir", &place(overlay.upper))?;
        set("workdir", &place(overlay.work))?;
        rustix::mount::fsconfig_create(&fs)?;
        attach_mount(&fs, MountAttrFlags::empty(), path)
    };
    configure().map_err(|errno| NewApiError {
        errno,
        messages: messages(&fs),
    })
}

/// With one option string, as all kernels take it: about 180 layers fit.
fn mount_at_once(
    overlay: &Overlay<'_>,
    path: &Path,
    place: impl Fn(&str) -> String,
) -> rustix::io::Result<()> {
    let lowers: Vec<String> = overlay.lowers.iter().map(|lower| place(lower)).collect();
    let mut options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lowers.join(":"),
        place(overlay.upper),
        place(overlay.work)
    );
    for (key, value) in FIRM_OPTIONS {
        let _ = write!(options, ",{key}={value}");
    }
    let mut result = Err(Errno::INVAL);
    for optional in [",xino=on,volatile", ",xino=on", ""] {
        let options = std::ffi::CString::new(format!("{options}{optional}"))
            .expect("names in the workspace hold no zero byte");
        result = rustix::mount::mount(
            "overlay",
            path,
            "overlay",
            MountFlags::empty(),
            Some(&*options),
        );
        if result != Err(Errno::INVAL) {
            break;
        }
    }
    result
}

fn attach_mount(fs: impl AsFd, flags: MountAttrFlags, path: &Path) -> rustix::io::Result<()> {
    let mount = rustix::mount::fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
    rustix::mount::move_mount(
        &mount,
        "",
        rustix::fs::CWD,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// What the kernel logged for a file system that is being set up: one message a read, each with a
/// letter for its severity in front.
fn messages(fs: impl AsFd) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(len) = rustix::io::read(&fs, &mut buffer[..]) {
        let text = String::from_utf8_lossy(&buffer[..len]);
        let text = text.trim_end();
        all.push(text.strip_prefix("e ").unwrap_or(text).to_owned());
        if len == 0 || all.len() == 16 {
            break;
        }
    }
    all.join("; ")
}

fn mount_error(
    filesystem: &'static str,
    path: &Path,
    messages: String,
    errno: Errno,
) -> RootfsError {
    let source = io::Error::from(errno);
    let path = path.to_path_buf();
    if source.kind() == io::ErrorKind::PermissionDenied {
        return RootfsError::NotPrivileged {
            operation: "mount on",
            path,
            source,
        };
    }
    RootfsError::Mount {
        filesystem,
        path,
        messages,
        source,
    }
}

#[cfg(test)]
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
mod tests {
    use super::*;

    /// Kernels before 6.8 take this way only.
    #[test]
    fn one_option_string_holds_as_many_layers_as_images_may_have() {
        let name = "one_option_string_holds_as_many_layers_as_images_may_have";
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: {name}: not root");
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let mut workspace = match Workspace::new(scratch.path()) {
            Ok(workspace) => workspace,
            Err(error) => {
                eprintln!("skipped: {name}: {error}");
                return;
            }
        };
        let lowers: Vec<String> = (0..127).map(|layer| format!("l{layer}")).collect();
        for lower in &lowers {
            std::fs::write(workspace.make_directory(lower).unwrap().join(lower), "x").unwrap();
        }
        for name in ["upper", "work"] {
            workspace.make_directory(name).unwrap();
        }
        let path = workspace.make_directory("merged").unwrap();
        let overlay = Overlay {
            lowers: &lowers,
            upper: "upper",
            work: "work",
            target: "merged",
        };
        let directory = workspace.open().unwrap();
        let place = |name: &str| format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
        mount_at_once(&overlay, &path, place).unwrap();
        workspace.keep_mount(path.clone());
        assert_eq!(std::fs::read_dir(path).unwrap().count(), 127);
        drop(directory);
        workspace.release().unwrap();
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
