//! `--progress`: what stderr shows while an image is converted.

use std::fs::File;
use std::io::Read as _;
use std::process::Stdio;

use esgz_tests::archive::Entry;
use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::esgz::Esgz;
use esgz_tests::layout::{Layer, LayoutBuilder};
use nix::pty::{Winsize, openpty};

fn image() -> Conversion {
    let noise = |len: usize| -> Vec<u8> {
        let next = |state: &mut u32| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some((*state >> 24) as u8)
        };
        std::iter::repeat_with({
            let mut state = 1;
            move || next(&mut state).unwrap_or(0)
        })
        .take(len)
        .collect()
    };
    let layer = |name, len| Layer::new(&[Entry::file(name, noise(len))], Compression::Gzip(6));
    Conversion::of(
        &LayoutBuilder::new()
            .layer(layer("small", 3000))
            .layer(layer("large", 3 << 20)),
    )
}

/// Level, then stage, then the digest as it is shown, then `done` or the size.
fn words(stderr: &str) -> Vec<[String; 4]> {
    let word = |line: &str, n| line.split_whitespace().nth(n).unwrap_or("").to_owned();
    stderr
        .lines()
        .map(|line| [0, 1, 2, 3].map(|n| word(line, n)))
        .collect()
}

#[test]
fn plain_lines_tell_each_step_in_order() {
    let conversion = image();
    let short = |n| conversion.source.layer_digest(n)[..19].to_owned();
    let (small, large) = (short(0), short(1));
    let args = ["--progress=plain", "--log-level=info", "--threads=1"];
    let run = conversion.command("one-pass").args(args).run();
    let run = run.success().unwrap();
    let found: Vec<String> = words(&run.stderr)
        .into_iter()
        .map(|[_, stage, digest, done]| format!("{stage} {digest} {}", done == "done"))
        .collect();
    let expected =
        [&small, &large].map(|digest| [false, true].map(|done| format!("encode {digest} {done}")));
    assert_eq!(found, expected.concat(), "{}", run.stderr);

    let record = conversion.record(&[(1, "large")]);
    let run = conversion
        .command("plain")
        .args(args)
        .arg("--record-in")
        .arg(&record)
        .run();
    let run = run.success().unwrap();
    let found = words(&run.stderr);
    let steps: Vec<(&str, &str, bool)> = found
        .iter()
        .map(|[level, stage, digest, done]| {
            assert_eq!(level, "INFO", "{}", run.stderr);
            (&**stage, &**digest, done == "done")
        })
        .collect();
    // The largest layer is scanned first; they are converted base first.
    let mut expected = Vec::new();
    for (stage, digest) in [
        ("scan", &large),
        ("scan", &small),
        ("encode", &small),
        ("encode", &large),
    ] {
        expected.extend([(stage, &**digest, false), (stage, &**digest, true)]);
    }
    assert_eq!(steps, expected, "{}", run.stderr);
    let tar_bytes = "3.0 MiB";
    assert!(run.stderr.contains(&format!("encode {large} {tar_bytes}")));

    let output = conversion.output("plain").reference();
    let verify = Esgz::new("verify").arg(&output).arg("--log-level=info");
    let verify = verify.run().success().unwrap();
    let stages: Vec<String> = words(&verify.stderr)
        .into_iter()
        .map(|[_, stage, _, _]| stage)
        .collect();
    assert_eq!(stages, ["verify"; 4], "auto is plain in a pipe");
}

#[test]
fn none_and_a_higher_log_level_are_silent() {
    let conversion = image();
    let silent = [
        ["--progress=none", "--log-level=info"],
        ["--progress=plain", "--log-level=warn"],
    ];
    for (args, name) in silent.iter().zip(["none", "warn"]) {
        let run = conversion.command(name).args(args).run();
        assert_eq!(run.success().unwrap().stderr, "", "{args:?}");
    }
    let run = conversion.command("bad").arg("--progress=loud").run();
    assert_eq!(run.code, Some(2), "{}", run.stderr);
}

/// Runs the command with a terminal as stderr; gives the exit code, and all that came.
fn on_terminal(command: Esgz) -> (Option<i32>, String) {
    let size = Winsize {
        ws_row: 24,
        ws_col: 100,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = openpty(&size, None).expect("there are pseudo-terminals");
    let mut command = command.env("TERM", "xterm").into_command();
    command.stdout(Stdio::null()).stderr(terminal.slave);
    let mut child = command.spawn().expect("the esgz binary can be run");
    // With it goes the last slave of this process: the master ends with the child.
    drop(command);
    let mut shown = Vec::new();
    // When the last slave is closed, Linux gives EIO.
    let _ = File::from(terminal.master).read_to_end(&mut shown);
    let status = child.wait().expect("the child can be waited for");
    (status.code(), String::from_utf8_lossy(&shown).into_owned())
}

/// What a person sees when `shown` has been written: lines, without their ends' spaces. Knows the
/// control sequences that bars are drawn with.
fn screen(shown: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    let (mut row, mut column) = (0, 0);
    let mut rest = shown;
    while let Some(char) = rest.chars().next() {
        rest = &rest[char.len_utf8()..];
        match char {
            '\r' => column = 0,
            '\n' => {
                row += 1;
                lines.resize((row + 1).max(lines.len()), String::new());
            }
            '\x1b' => {
                let end = rest
                    .find(|c: char| c.is_ascii_alphabetic())
                    .expect("a sequence ends");
                let (number, command) = (&rest[1..end], &rest[end..=end]);
                let number = number.parse().ok();
                match command {
                    "A" => row -= number.unwrap_or(1).min(row),
                    "B" => row += number.unwrap_or(1),
                    "K" if number == Some(2) => lines[row].clear(),
                    "K" => lines[row].truncate(column),
                    "J" => {
                        lines[row].truncate(column);
                        lines.truncate(row + 1);
                    }
                    "m" => {}
                    _ => panic!("unknown sequence {:?}", &rest[..=end]),
                }
                rest = &rest[end + 1..];
                lines.resize((row + 1).max(lines.len()), String::new());
            }
            char => {
                let line = &mut lines[row];
                let mut chars: Vec<char> = line.chars().collect();
                chars.resize((column + 1).max(chars.len()), ' ');
                chars[column] = char;
                *line = chars.into_iter().collect();
                column += 1;
            }
        }
    }
    let seen = lines.iter().map(|line| line.trim_end().to_owned());
    seen.filter(|line| !line.is_empty()).collect()
}

#[test]
fn a_terminal_has_bars_and_is_clean_afterwards() {
    let conversion = image();
    let short = |n| conversion.source.layer_digest(n)[..19].to_owned();
    let record = conversion.record(&[(1, "large")]);
    let command = conversion.command("bars").arg("--log-level=info");
    let (code, shown) = on_terminal(command.arg("--record-in").arg(&record));
    assert_eq!(code, Some(0), "{shown:?}");
    for stage in ["scan  ", "encode"] {
        let bar = format!("{stage} {} [", short(1));
        assert!(shown.contains(&bar), "{bar:?} is not in {shown:?}");
    }
    assert!(shown.contains(" of 3.0 MiB, "), "{shown:?}");
    assert_eq!(screen(&shown), [""; 0], "{shown:?}");
}

/// A failure in the middle of a step: its bar goes, the error stays.
#[test]
fn an_error_stands_alone_on_the_terminal() {
    let conversion = image();
    let layer = conversion
        .source
        .blob_path(&conversion.source.layer_digest(1));
    let mut blob = std::fs::read(&layer).unwrap();
    let middle = blob.len() / 2;
    blob[middle] ^= 1;
    std::fs::write(&layer, blob).unwrap();
    let (code, shown) = on_terminal(conversion.command("bars").arg("--log-level=info"));
    assert_eq!(code, Some(6), "{shown:?}");
    assert!(shown.contains("encode sha256:"), "{shown:?}");
    let seen = screen(&shown).join("");
    assert!(seen.starts_with("esgz: "), "{seen:?}");
    assert!(!seen.contains(" left"), "{seen:?}");
}
