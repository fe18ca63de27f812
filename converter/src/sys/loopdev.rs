//! Loop devices (Linux, `drivers/block/loop.c`): read-only block devices over a file descriptor.
//! Needs Linux 5.8 (`LOOP_CONFIGURE`) and `CAP_SYS_ADMIN`.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// A loop device that ends with its last user: detached when this value is dropped and nothing has
/// it mounted any more.
#[derive(Debug)]
pub struct LoopDevice {
    file: File,
    path: PathBuf,
    /// What to restore: the setting outlives the attachment.
    old_read_ahead_sectors: Option<u64>,
}

/// An operation on a loop device failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct LoopError {
    /// What was tried.
    pub operation: &'static str,
    /// The device file.
    pub path: PathBuf,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

/// How often a device that another process took first is asked for anew.
const ATTEMPTS: usize = 256;
const CONTROL: &str = "/dev/loop-control";
const SECTOR_BYTES: u64 = 512;

/// `LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR`.
const FLAGS: u32 = 1 | 4;

/// `struct loop_config` of `linux/loop.h`, with its `struct loop_info64` spelled out.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
    reserved: [u64; 8],
}
const _: () = assert!(size_of::<LoopConfig>() == 304);

mod request {
    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4c82);
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4c0a, super::LoopConfig);
    nix::ioctl_write_int_bad!(block_set_read_ahead, 0x1262);
    nix::ioctl_read_bad!(block_get_read_ahead, 0x1263, nix::libc::c_long);
}

impl LoopDevice {
    /// Attaches a free device to `backing`, read-only, in blocks of 512 bytes, through the page
    /// cache. `label` is shown by `losetup` as the backing file and is cut at 63 bytes.
    ///
    /// # Errors
    /// When there is no loop driver, no free device, no privilege, or `backing` is no regular file.
    pub fn attach(backing: impl AsFd, label: &str) -> Result<Self, LoopError> {
        let control_path = Path::new(CONTROL);
        let control = open_device(control_path)?;
        let mut config = config(backing.as_fd().as_raw_fd() as u32, label);
        for _ in 0..ATTEMPTS {
            // SAFETY: the request takes no argument; the descriptor is open for the call.
            let number = unsafe { request::loop_ctl_get_free(control.as_raw_fd()) }
                .map_err(|errno| error("get a free loop device from", control_path, errno))?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let file = match open_device(&path) {
                // Another process took it, is done, and it is being torn down.
                Err(error) if error.source.raw_os_error() == Some(Errno::ENXIO as i32) => continue,
                other => other?,
            };
            config.number = number as u32;
            // SAFETY: `config` is a `struct loop_config` (size asserted, all fields initialised)
            // that the kernel only reads; both descriptors are open for the call.
            match unsafe { request::loop_configure(file.as_raw_fd(), &raw const config) } {
                Ok(_) => {
                    return Ok(Self {
                        file,
                        path,
                        old_read_ahead_sectors: None,
                    });
                }
                // Another process configured it between the two calls.
                Err(Errno::EBUSY) => {}
                Err(errno) => return Err(error("attach a file to", &path, errno)),
            }
        }
        Err(error("attach a file to", control_path, Errno::EBUSY))
    }

    /// The device file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets how far the kernel reads ahead. The old setting comes back when this value is dropped.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_read_ahead_kib(&mut self, kib: u32) -> Result<(), LoopError> {
        let fd = self.file.as_raw_fd();
        let mut old: nix::libc::c_long = 0;
        // SAFETY: the kernel writes one `long` to `old`, which outlives the call.
        unsafe { request::block_get_read_ahead(fd, &raw mut old) }
            .map_err(|errno| error("get the read-ahead of", &self.path, errno))?;
        let sectors = u64::from(kib) * 1024 / SECTOR_BYTES;
        self.write_read_ahead(sectors)?;
        self.old_read_ahead_sectors.get_or_insert(old as u64);
        Ok(())
    }

    fn write_read_ahead(&self, sectors: u64) -> Result<(), LoopError> {
        let value = sectors.min(nix::libc::c_int::MAX as u64) as nix::libc::c_int;
        // SAFETY: the argument is a plain number; the descriptor is open for the call.
        unsafe { request::block_set_read_ahead(self.file.as_raw_fd(), value) }
            .map_err(|errno| error("set the read-ahead of", &self.path, errno))?;
        Ok(())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // The device detaches itself when `file`, its last user, is closed.
        if let Some(sectors) = self.old_read_ahead_sectors {
            let _ = self.write_read_ahead(sectors);
        }
    }
}

fn config(fd: u32, label: &str) -> LoopConfig {
    let mut file_name = [0; 64];
    let len = label.len().min(63);
    file_name[..len].copy_from_slice(&label.as_bytes()[..len]);
    LoopConfig {
        fd,
        block_size: SECTOR_BYTES as u32,
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: FLAGS,
        file_name,
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
        reserved: [0; 8],
    }
}

fn open_device(path: &Path) -> Result<File, LoopError> {
    OpenOptions::new()
        .read(true)
        .open(path)
        .map_err(|source| LoopError {
            operation: "open",
            path: path.to_path_buf(),
            source,
        })
}

fn error(operation: &'static str, path: &Path, errno: Errno) -> LoopError {
    LoopError {
        operation,
        path: path.to_path_buf(),
        source: errno.into(),
    }
}
