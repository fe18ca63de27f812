//! Files that are opened and executed in odd ways: none is missed.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use esgz::profiler::{Exactness, OpenSource};
use esgz_tests::touch::generator;

use super::bench::{PAGE, skipped};
use super::scene::{Named, Pages, READ_AHEAD_KIB, on_scene};

const SOURCES: [OpenSource; 2] = [OpenSource::Fanotify, OpenSource::SystemCalls];

/// A static program for i386 that needs nothing: it opens `path`, reads a byte, and exits with 0 if it got one.
fn program_of_32_bits(path: &str) -> Vec<u8> {
    const ADDRESS: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    #[rustfmt::skip]
    let code = |name: u32| -> Vec<u8> {
        let [a, b, c, d] = name.to_le_bytes();
        vec![
            0xb8, 5, 0, 0, 0,       // mov eax, 5 (open)
            0xbb, a, b, c, d,       // mov ebx, name
            0x31, 0xc9,             // xor ecx, ecx (O_RDONLY)
            0xcd, 0x80,             // int 0x80
            0x89, 0xc3,             // mov ebx, eax
            0x6a, 0,                // push 0
            0x89, 0xe1,             // mov ecx, esp
            0xba, 1, 0, 0, 0,       // mov edx, 1
            0xb8, 3, 0, 0, 0,       // mov eax, 3 (read)
            0xcd, 0x80,             // int 0x80
            0x83, 0xe8, 1,          // sub eax, 1
            0x89, 0xc3,             // mov ebx, eax
            0xb8, 1, 0, 0, 0,       // mov eax, 1 (exit)
            0xcd, 0x80,             // int 0x80
        ]
    };
    let name = ADDRESS + HEADERS + code(0).len() as u32;
    let size = name - ADDRESS + path.len() as u32 + 1;
    // elf(5): a 32-bit executable for EM_386, with one segment that is the whole file.
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0".to_vec();
    for number in [ADDRESS + HEADERS, 52, 0, 0] {
        elf.extend(number.to_le_bytes());
    }
    elf.extend(b"\x34\0\x20\0\x01\0\0\0\0\0\0\0");
    for number in [1, 0, ADDRESS, ADDRESS, size, size, 5, 4096] {
        elf.extend(number.to_le_bytes());
    }
    elf.extend(code(name));
    elf.extend(path.as_bytes());
    elf.push(0);
    elf
}

/// Why this kernel does not run such programs; `None` if it does.
fn no_32_bits() -> Option<String> {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = directory.path().join("program");
    std::fs::write(&path, program_of_32_bits("/proc/self/exe")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    match Command::new(&path).status() {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("a 32-bit program: {status}")),
        Err(error) => Some(format!("a 32-bit program: {error}")),
    }
}

#[test]
fn what_a_program_of_32_bits_reads_is_seen() {
    let test = "odd::what_a_program_of_32_bits_reads_is_seen";
    if let Some(reason) = no_32_bits() {
        return skipped(test, &reason);
    }
    let image = Named::default()
        .program("program", &program_of_32_bits("data"))
        .file("data", &vec![7; 3 * PAGE as usize])
        .file("other", b"x");
    on_scene(test, image, READ_AHEAD_KIB, |scene| {
        let seen = scene.observe(Exactness::Exact, "run-in @ ./program");
        assert_eq!(scene.names_in(&seen), ["program", "data"]);
        assert!(seen.files[0].executed, "{:?}", seen.files);
        assert!(seen.files[1].opened, "{:?}", seen.files);
        assert_eq!(scene.pages_of(&seen, "data"), Pages::from([0]));
    });
}

/// The interpreter of a script may be a script.
#[test]
fn a_chain_of_interpreters_is_seen() {
    let test = "odd::a_chain_of_interpreters_is_seen";
    let program = std::fs::read("/bin/true").unwrap();
    let image = Named::default()
        .program("first", b"#!./second\n")
        .program("second", b"#!./third -x\n")
        .program("third", b"#!./program\n")
        .program("program", &program)
        .file("other", b"x");
    on_scene(test, image, READ_AHEAD_KIB, |scene| {
        let seen = scene.observe(Exactness::FaultAround, "run-in @ ./first");
        let mut names = scene.names_in(&seen);
        assert_eq!(names.first(), Some(&"first"));
        names.sort_unstable();
        assert_eq!(names, ["first", "program", "second", "third"]);
        assert!(
            seen.files.iter().all(|file| file.executed),
            "{:?}",
            seen.files
        );
        assert_eq!(scene.pages_of(&seen, "first"), Pages::from([0]));
    });
}

/// The name may lie where no page is mapped yet when the system call begins.
#[test]
fn a_name_in_an_untouched_page_is_read() {
    let test = "odd::a_name_in_an_untouched_page_is_read";
    let image = Named::default().file("data", b"x");
    on_scene(test, image, READ_AHEAD_KIB, |scene| {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let [there, gone] = ["data", "gone"].map(|name| {
            let file = directory.path().join(name);
            std::fs::write(&file, format!("{}\0", scene.path(name))).unwrap();
            file.display().to_string()
        });
        let script = format!("open-untouched {there} 0\nopen-untouched {gone} 2");
        scene.bench.set_opens(OpenSource::SystemCalls);
        let seen = scene.observe(Exactness::FaultAround, &script);
        assert_eq!(scene.names_in(&seen), ["data"]);
        assert!(seen.files[0].opened && seen.files[0].ranges.is_empty());
        let missing: Vec<_> = seen
            .missing
            .iter()
            .map(|name| String::from_utf8_lossy(name))
            .collect();
        assert!(
            missing.iter().any(|name| name.ends_with("gone")),
            "{missing:?}"
        );
    });
}

#[test]
fn openat2_and_handles_are_opens() {
    let test = "odd::openat2_and_handles_are_opens";
    let body = vec![7; 3 * PAGE as usize];
    let image = Named::default()
        .file("resolved", &body)
        .file("handled", &body)
        .file("other", b"x");
    on_scene(test, image, READ_AHEAD_KIB, |scene| {
        for source in SOURCES {
            scene.bench.set_opens(source);
            let seen = scene.observe(Exactness::Exact, "openat2 @ resolved 1");
            assert_eq!(scene.names_in(&seen), ["resolved"]);
            assert!(seen.files[0].opened, "{:?}", seen.files);
            assert_eq!(scene.pages_of(&seen, "resolved"), Pages::from([1]));
        }
        // overlayfs gives handles only if it was mounted for that; the layer's own file system always does.
        let handled = scene.path("handled");
        match generator::open_by_handle(&scene.path(""), &handled) {
            Ok(_) => {
                for source in SOURCES {
                    scene.bench.set_opens(source);
                    let script = format!("open-by-handle {} {handled} 2", scene.path(""));
                    let seen = scene.observe(Exactness::Exact, &script);
                    assert_eq!(scene.names_in(&seen), ["handled"]);
                    assert!(seen.files[0].opened, "{:?}", seen.files);
                    assert_eq!(scene.pages_of(&seen, "handled"), Pages::from([2]));
                }
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                skipped(
                    test,
                    "open_by_handle_at: the root file system gives no handles",
                );
            }
        }
    });
}
