//! Walks through the kernel's structures, with member offsets that the loader looked up in the
//! running kernel's BTF.

use aya_ebpf::Global;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::{
    bpf_get_current_task_btf, bpf_probe_read_kernel, generated::bpf_task_pt_regs,
};

macro_rules! offsets {
    ($($name:ident),* $(,)?) => { $(
        #[unsafe(no_mangle)]
        static $name: Global<u32> = Global::new(0);
    )* };
}
offsets!(
    TASK_FILES,
    TASK_MM,
    FILES_TABLE,
    TABLE_FILES,
    FILE_INODE,
    MAPPING_HOST,
    INODE_SUPER,
    INODE_NUMBER,
    SUPER_DEVICE,
    MM_EXE_FILE,
    // The byte and bit of `task_struct` that say that a program is being executed; bit 0: unknown.
    TASK_IN_EXECVE,
    IN_EXECVE_MASK,
    URING_OPCODE,
    URING_OPEN_SLOT,
    REGS_ARGUMENT_0,
    REGS_ARGUMENT_1,
);

/// A kernel address.
#[derive(Clone, Copy)]
struct Address(u64);

impl Address {
    /// Reads a `T` at `offset` behind the address.
    #[inline(always)]
    fn read<T>(self, offset: u64) -> Result<T, i32> {
        // SAFETY: the helper checks the address and fails where nothing is mapped.
        unsafe { bpf_probe_read_kernel((self.0 + offset) as *const T) }
    }

    /// Follows the pointer in the member at `offset`.
    #[inline(always)]
    fn follow(self, offset: &Global<u32>) -> Result<Self, i32> {
        self.read(u64::from(offset.load())).map(Self)
    }

    #[inline(always)]
    fn current_task() -> Self {
        // SAFETY: the helper takes no pointer.
        Self(unsafe { bpf_get_current_task_btf() } as u64)
    }
}

/// A `struct address_space`, of which the verifier knows that it is one: members are read by plain loads, where a helper
/// for each would cost as much as all the rest for a task that is not watched.
#[derive(Clone, Copy)]
pub(crate) struct Mapping(*const u8);

/// A `struct inode`, likewise.
#[derive(Clone, Copy)]
pub(crate) struct Host(*const u8);

impl Mapping {
    /// # Safety
    /// `mapping` is one, as an argument of a tracepoint with types gives it.
    #[inline(always)]
    pub(crate) unsafe fn new(mapping: *const u8) -> Self {
        Self(mapping)
    }

    #[inline(always)]
    pub(crate) fn host(self) -> Host {
        // SAFETY: see `new`; the loader looked the offset up, and the verifier compares it with the member.
        Host(unsafe { member(self.0, &MAPPING_HOST) })
    }
}

impl Host {
    /// The `s_dev` of its super block.
    #[inline(always)]
    pub(crate) fn device(self) -> u32 {
        // SAFETY: as `Mapping::host`.
        unsafe { member(member(self.0, &INODE_SUPER), &SUPER_DEVICE) }
    }

    #[inline(always)]
    pub(crate) fn inode(self) -> u64 {
        // SAFETY: as `Mapping::host`.
        unsafe { member(self.0, &INODE_NUMBER) }
    }
}

/// The member at `offset` of a structure whose type the verifier knows.
///
/// # Safety
/// There is such a member, and it is a `T`.
#[inline(always)]
unsafe fn member<T: Copy>(structure: *const u8, offset: &Global<u32>) -> T {
    // SAFETY: the caller's. Where nothing is mapped the kernel makes the load give 0.
    unsafe {
        structure
            .add(offset.load() as usize)
            .cast::<T>()
            .read_volatile()
    }
}

/// The device and inode of the file behind descriptor `fd` of the current task.
#[inline(always)]
pub(crate) fn descriptor_inode(fd: u32) -> Result<(u32, u64), i32> {
    let table = Address::current_task()
        .follow(&TASK_FILES)?
        .follow(&FILES_TABLE)?;
    let file = table
        .follow(&TABLE_FILES)?
        .read(u64::from(fd) * 8)
        .map(Address)?;
    inode(file)
}

/// The device and inode of the program that the current task runs.
#[inline(always)]
pub(crate) fn program_inode() -> Result<(u32, u64), i32> {
    inode(
        Address::current_task()
            .follow(&TASK_MM)?
            .follow(&MM_EXE_FILE)?,
    )
}

/// Whether the current task is on its way into another program: what is read now, the kernel reads
/// in order to execute it.
#[inline(always)]
pub(crate) fn executing() -> bool {
    let mask = IN_EXECVE_MASK.load();
    if mask == 0 {
        return false;
    }
    let flags = Address::current_task().read::<u8>(u64::from(TASK_IN_EXECVE.load()));
    flags.is_ok_and(|flags| u32::from(flags) & mask != 0)
}

/// Whether the request `io_kiocb` of io_uring is an open that gives a descriptor.
#[inline(always)]
pub(crate) fn uring_opens(request: u64) -> Result<bool, i32> {
    // `enum io_uring_op`, which is part of the kernel's interface.
    const OPENAT: u8 = 18;
    const OPENAT2: u8 = 28;
    let request = Address(request);
    let opcode: u8 = request.read(u64::from(URING_OPCODE.load()))?;
    if opcode != OPENAT && opcode != OPENAT2 {
        return Ok(false);
    }
    // Else it goes into the ring's own table, and the result is no descriptor.
    let slot: u32 = request.read(u64::from(URING_OPEN_SLOT.load()))?;
    Ok(slot == 0)
}

#[inline(always)]
fn inode(file: Address) -> Result<(u32, u64), i32> {
    let inode = file.follow(&FILE_INODE)?;
    let device = inode
        .follow(&INODE_SUPER)?
        .read(u64::from(SUPER_DEVICE.load()))?;
    Ok((device, inode.read(u64::from(INODE_NUMBER.load()))?))
}

/// The first two arguments of the system call that the current task is about to leave: the kernel
/// keeps the registers that user space entered with.
#[inline(always)]
pub(crate) fn arguments() -> Result<(u64, u64), i32> {
    // SAFETY: the helper takes the current task as the other helper gave it.
    let regs = Address(unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64);
    Ok((
        regs.read(u64::from(REGS_ARGUMENT_0.load()))?,
        regs.read(u64::from(REGS_ARGUMENT_1.load()))?,
    ))
}

/// As `arguments`, but the first one only.
#[inline(always)]
pub(crate) fn first_argument() -> Result<u64, i32> {
    arguments().map(|(first, _)| first)
}

const _: () = assert!(size_of::<*const c_void>() == 8);
