//! The worker's actions where the truth has to be known: each touches what its words say, in one
//! certain way.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{IoSliceMut, Read as _, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::ptr;

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use rustix::mm::{Advice, MapFlags, ProtFlags};

const PAGE: u64 = 4096;

/// Does what one line of the script says.
pub(super) fn act(words: &[&str]) -> Result<()> {
    match words {
        ["touch", method, path, runs @ ..] => touch(method, path, &parse(runs)?),
        ["run", path] => {
            let status = Command::new(path).status()?;
            ensure!(status.success(), "{path}: {status}");
            Ok(())
        }
        ["run-in", directory, path] => {
            let status = Command::new(path).current_dir(directory).status()?;
            ensure!(status.success(), "{path}: {status}");
            Ok(())
        }
        ["openat2", directory, name, page] => {
            use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
            let directory = File::open(directory)?;
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let file = openat2(
                &directory,
                *name,
                flags,
                Mode::empty(),
                ResolveFlags::BENEATH,
            )?;
            read_page(&File::from(file), page)
        }
        ["open-by-handle", mount, path, page] => read_page(&open_by_handle(mount, path)?, page),
        ["open-untouched", name, error] => open_untouched(name, error.parse()?),
        ["delete-and-read", path] => {
            let mut file = File::open(path)?;
            fs::remove_file(path)?;
            read_some(&mut file)
        }
        ["replace", path] => {
            let new = format!("{path}.new");
            fs::write(&new, "made by the workload")?;
            fs::rename(&new, path)?;
            read_some(&mut File::open(path)?)
        }
        ["rename-and-read", from, to] => {
            fs::rename(from, to)?;
            read_some(&mut File::open(to)?)
        }
        ["read-at", directory, name] => {
            use rustix::fs::{Mode, OFlags, openat};
            let directory = File::open(directory)?;
            let file = openat(&directory, *name, OFlags::RDONLY, Mode::empty())?;
            read_some(&mut File::from(file))
        }
        // In a mount namespace of this process.
        ["bind-and-read", source, target, name] => {
            let none: Option<&str> = None;
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            mount(Some(*source), *target, none, MsFlags::MS_BIND, none)?;
            read_some(&mut File::open(Path::new(target).join(name))?)
        }
        // A child reads when its parent is gone, and then makes `mark`.
        ["outlive", path, mark] => shell(&format!(
            "(sleep 0.2; read line < {path}; : > {mark}) > /dev/null 2>&1 &"
        )),
        ["forks", count, prefix] => shell(&format!(
            "i=0; while [ $i -lt {count} ]; do (read line < {prefix}$i) & i=$((i+1)); done; wait"
        )),
        ["uring-open", path] => uring_open(path).map(drop),
        ["uring-read", path, page] => {
            let file = uring_open(path)?;
            uring_read(&file, page.parse::<u64>()? * PAGE)
        }
        other => bail!("unknown action {other:?}"),
    }
}

fn read_page(file: &File, page: &str) -> Result<()> {
    file.read_exact_at(&mut [0], page.parse::<u64>()? * PAGE)?;
    Ok(())
}

/// Opens `path` by its handle; `mount` is a directory of the same mount.
pub fn open_by_handle(mount: &str, path: &str) -> std::io::Result<File> {
    use nix::libc;
    use std::os::fd::FromRawFd as _;
    #[repr(C)]
    struct Handle {
        head: libc::file_handle,
        bytes: [u8; 128],
    }
    let mount = File::open(mount)?;
    let path = std::ffi::CString::new(path)?;
    let mut handle = Handle {
        head: libc::file_handle {
            handle_bytes: 128,
            handle_type: 0,
            f_handle: [],
        },
        bytes: [0; 128],
    };
    let (mut mount_id, head) = (0, (&raw mut handle).cast::<libc::file_handle>());
    // SAFETY: the path ends with a zero byte, and the handle has room for the bytes that it says.
    let named = unsafe {
        libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), head, &raw mut mount_id, 0)
    };
    if named < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the handle is the kernel's own.
    let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), head, libc::O_RDONLY) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel gave this descriptor to us alone.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Opens the file whose name is what the file `name` holds, from a mapping of which nothing was touched.
/// `error` is the error number that is expected, or 0.
fn open_untouched(name: &str, error: i32) -> Result<()> {
    use nix::libc;
    use std::os::fd::FromRawFd as _;
    let name = File::open(name)?;
    let (prot, flags) = (ProtFlags::READ, MapFlags::PRIVATE);
    // SAFETY: a new mapping at an address that the kernel chooses.
    let start = unsafe { rustix::mm::mmap(ptr::null_mut(), PAGE as usize, prot, flags, &name, 0)? };
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: the file, and so the mapping, holds a name that ends with a zero byte.
    let fd = unsafe { libc::openat(libc::AT_FDCWD, start.cast(), flags) };
    let found = std::io::Error::last_os_error().raw_os_error();
    if fd >= 0 {
        ensure!(error == 0, "it can be opened");
        // SAFETY: the kernel gave this descriptor to us alone.
        drop(unsafe { File::from_raw_fd(fd) });
        return Ok(());
    }
    ensure!(found == Some(error), "error {found:?}");
    Ok(())
}

fn read_some(file: &mut File) -> Result<()> {
    let read = file.read(&mut [0])?;
    ensure!(read == 1, "the file is empty");
    Ok(())
}

fn shell(script: &str) -> Result<()> {
    let status = Command::new("/bin/sh").args(["-c", script]).status()?;
    ensure!(status.success(), "{script}: {status}");
    Ok(())
}

/// Runs of pages, as in `17:3`.
fn parse(runs: &[&str]) -> Result<Vec<(u64, u64)>> {
    let run = |text: &&str| {
        let (first, count) = text.split_once(':').context("no colon in a run")?;
        Ok((first.parse()?, count.parse()?))
    };
    runs.iter().map(run).collect()
}

fn touch(method: &str, path: &str, runs: &[(u64, u64)]) -> Result<()> {
    let mut file = File::open(path)?;
    if let Some(advice) = method.strip_prefix("mmap-") {
        return touch_mapping(&file, advice, runs);
    }
    for &(first, count) in runs {
        let (offset, len) = (first * PAGE, (count * PAGE) as usize);
        let mut buffer = vec![0; len];
        match method {
            "read" => {
                file.seek(SeekFrom::Start(offset))?;
                file.read_exact(&mut buffer)?;
            }
            "pread" => file.read_exact_at(&mut buffer, offset)?,
            "readv" => {
                file.seek(SeekFrom::Start(offset))?;
                let (one, two) = buffer.split_at_mut(len / 2);
                let mut parts = [IoSliceMut::new(one), IoSliceMut::new(two)];
                ensure!(file.read_vectored(&mut parts)? == len, "a short read");
            }
            "sendfile" => {
                let (sink, mut at) = (File::create("/dev/null")?, offset);
                ensure!(rustix::fs::sendfile(&sink, &file, Some(&mut at), len)? == len);
            }
            "splice" => {
                let (_read, write) = rustix::pipe::pipe()?;
                let flags = rustix::pipe::SpliceFlags::empty();
                let mut at = offset;
                ensure!(
                    rustix::pipe::splice(&file, Some(&mut at), &write, None, len, flags)? == len
                );
            }
            other => bail!("unknown way to read {other}"),
        }
    }
    Ok(())
}

/// Touches one byte of every page of `runs` through a mapping of the whole file.
fn touch_mapping(file: &File, advice: &str, runs: &[(u64, u64)]) -> Result<()> {
    let len = usize::try_from(file.metadata()?.len())?;
    let populate = match advice {
        "populate" => MapFlags::POPULATE,
        _ => MapFlags::empty(),
    };
    let flags = MapFlags::PRIVATE | populate;
    // SAFETY: a new mapping at an address that the kernel chooses.
    let start = unsafe { rustix::mm::mmap(ptr::null_mut(), len, ProtFlags::READ, flags, file, 0)? };
    let advice = match advice {
        "random" => Advice::Random,
        "huge" => Advice::LinuxHugepage,
        _ => Advice::Normal,
    };
    // SAFETY: the mapping made above; none of these advices changes its contents.
    unsafe { rustix::mm::madvise(start, len, advice)? };
    for page in runs.iter().flat_map(|&(first, count)| first..first + count) {
        let at = usize::try_from(page * PAGE)?;
        ensure!(at < len, "page {page} is behind the end");
        // SAFETY: the offset lies in the mapping, and nobody truncates the file.
        std::hint::black_box(unsafe { start.cast::<u8>().add(at).read_volatile() });
    }
    // SAFETY: the mapping made above; no reference into it exists.
    unsafe { rustix::mm::munmap(start, len)? };
    Ok(())
}

/// Submits one request and waits for its result.
fn uring(entry: &io_uring::squeue::Entry) -> Result<i32> {
    let mut ring = io_uring::IoUring::new(2)?;
    // SAFETY: what the request points to lives until its completion, which is waited for here.
    unsafe { ring.submission().push(entry)? };
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().context("no completion")?.result();
    ensure!(
        result >= 0,
        "{}",
        std::io::Error::from_raw_os_error(-result)
    );
    Ok(result)
}

fn uring_open(path: &str) -> Result<File> {
    use std::os::fd::FromRawFd as _;
    let name = std::ffi::CString::new(Path::new(path).as_os_str().as_bytes())?;
    let at = io_uring::types::Fd(rustix::fs::CWD.as_raw_fd());
    let how = io_uring::types::OpenHow::new();
    let request = io_uring::opcode::OpenAt2::new(at, name.as_ptr(), &raw const how);
    let fd = uring(&request.build())?;
    // SAFETY: the kernel gave this descriptor to us alone.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn uring_read(file: &File, offset: u64) -> Result<()> {
    let mut buffer = [0_u8; PAGE as usize];
    let fd = io_uring::types::Fd(file.as_raw_fd());
    let request = io_uring::opcode::Read::new(fd, buffer.as_mut_ptr(), PAGE as u32);
    uring(&request.offset(offset).build()).map(drop)
}
