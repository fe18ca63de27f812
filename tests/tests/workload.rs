//! The workload's surroundings and the end of its run: the flags that ctr-remote has, its manual's examples, and
//! those beyond.

mod workload {
    mod ends;
    mod terminal;

    use super::{USAGE, WORKLOAD, command, has_file, output_of, run, with_busybox};
}

use std::fs;
use std::process::Stdio;

use esgz_tests::conversion::Conversion;
use esgz_tests::esgz::{Esgz, Finished};
use esgz_tests::layout::LayoutBuilder;
use esgz_tests::{find_program, machine, privileged, skipped};
use serde_json::{Value, json};

const USAGE: i32 = 2;

const WORKLOAD: i32 = 3;

fn command(conversion: &Conversion, script: &str, args: &[&str]) -> Esgz {
    conversion
        .record_run("profile")
        .args(["--json", "--entrypoint", "[\"/bin/sh\",\"-c\"]", "--args"])
        .arg(json!([script]).to_string())
        .args(args)
}

fn run(conversion: &Conversion, script: &str, args: &[&str]) -> Finished {
    conversion
        .finish(command(conversion, script, args).run())
        .unwrap()
}

/// What the script prints; of a call that succeeds.
fn output_of(conversion: &Conversion, script: &str, args: &[&str]) -> String {
    run(conversion, script, args).success().unwrap().stderr
}

/// The image with busybox, or says that the test is skipped.
fn with_busybox(name: &str, applets: &[&str]) -> Option<LayoutBuilder> {
    let image = machine::with_busybox(applets);
    if image.is_none() {
        skipped(name, "busybox is not installed");
    }
    image
}

fn has_file(profile: &Value, path: &str) -> bool {
    let files = profile["files"].as_array().unwrap();
    files.iter().any(|file| file["path"] == path)
}

#[test]
fn host_files_are_mounted() {
    let Some(_turn) = privileged::workload("workload::host_files_are_mounted") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let directory = conversion.path("shared");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), "of the host\n").unwrap();
    let mount = |options: &str| {
        let source = directory.display();
        format!("type=bind,src={source},dst=/opt/host,options={options}")
    };
    // What the shell complains of comes by another pipe, at any time.
    let script = "cat /opt/host/file; { echo new > /opt/host/new; } 2> /dev/null || echo read-only";
    let read_only = output_of(&conversion, script, &["--mount", &mount("rbind:ro")]);
    assert!(
        read_only.starts_with("of the host\n") && read_only.ends_with("read-only\n"),
        "{read_only}"
    );
    assert!(!directory.join("new").exists());
    // It is not the image's.
    let profile = conversion.json("profile");
    assert!(!has_file(&profile, "opt/host/file"), "{profile:#}");
    let mounted = profile["mounted"].as_array().unwrap();
    let rows: Vec<_> = mounted
        .iter()
        .map(|row| (&row["path"], &row["mount"], &row["opened"]))
        .collect();
    let expected = (&json!("opt/host/file"), &json!("/opt/host"), &json!(true));
    assert_eq!(rows, [expected], "{profile:#}");
    let tmpfs = "--mount=type=tmpfs,source=tmpfs,destination=/opt/tmp,options=size=65536k:nosuid";
    let args = ["--mount", &mount("bind:rw"), tmpfs];
    let writable = output_of(
        &conversion,
        &format!("{script}; echo x > /opt/tmp/x"),
        &args,
    );
    assert_eq!(writable, "of the host\n");
    assert_eq!(fs::read_to_string(directory.join("new")).unwrap(), "new\n");
    let gone = run(
        &conversion,
        "true",
        &["--mount=type=bind,src=/gone/x,dst=/d"],
    );
    gone.failed_with(USAGE, &["/gone/x"]).unwrap();
    let unknown = command(&conversion, "true", &["--mount=type=bind,from=/,dst=/d"]).run();
    assert_eq!(unknown.code, Some(USAGE));
}

/// As in ctr-remote's manual, with the C compiler of this machine instead of an image with Go's.
#[test]
fn a_mounted_source_is_compiled() {
    let name = "workload::a_mounted_source_is_compiled";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    let Some(gcc) = find_program("gcc") else {
        skipped(name, "gcc is not installed");
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let source = conversion.path("hello.c");
    fs::write(
        &source,
        "#include <stdio.h>\nint main(void) { puts(\"hello world\"); return 0; }\n",
    )
    .unwrap();
    // The compiler comes from the host, as it is far larger than a test's image may be.
    let mut args = vec![format!(
        "--mount=type=bind,source={},destination=/hello.c,options=bind:ro",
        source.display()
    )];
    for directory in ["/usr", "/lib", "/lib64", "/bin"] {
        if fs::symlink_metadata(directory).is_ok() {
            args.push(format!(
                "--mount=type=bind,source={directory},destination={directory},options=rbind:ro"
            ));
        }
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let script = format!("{} -o /tmp/hello /hello.c && /tmp/hello", gcc.display());
    let mut args = args;
    args.push("--period=60");
    assert_eq!(output_of(&conversion, &script, &args), "hello world\n");
    let profile = conversion.json("profile");
    // All that was read is the host's.
    assert_eq!(profile["complete"], true);
    assert!(!has_file(&profile, "hello.c"), "{profile:#}");
}

#[test]
fn variables_come_from_files() {
    let Some(_turn) = privileged::workload("workload::variables_come_from_files") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let file = conversion.path("variables");
    fs::write(&file, "# comment\nA=of file\n\nB=b c\r\nIN_IMAGE=no\n").unwrap();
    let file = file.display().to_string();
    let args = ["--env-file", &*file, "--env", "A=of flag"];
    let printed = output_of(&conversion, "echo \"$A|$B|$IN_IMAGE\"", &args);
    assert_eq!(printed, "of flag|b c|no\n");
    let gone = run(&conversion, "true", &["--env-file", "/gone/file"]);
    gone.failed_with(USAGE, &["/gone/file"]).unwrap();
}

#[test]
fn names_are_resolved_as_wanted() {
    let Some(_turn) = privileged::workload("workload::names_are_resolved_as_wanted") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let args = [
        "--dns-nameservers=1.1.1.1,9.9.9.9",
        "--dns-search-domains=a.example,b.example",
        "--dns-options=ndots:2,rotate",
        "--add-hosts=db:10.0.0.7,web:::1",
    ];
    let printed = output_of(&conversion, "cat /etc/resolv.conf /etc/hosts", &args);
    let resolv_conf = "nameserver 1.1.1.1\nnameserver 9.9.9.9\nsearch a.example b.example\noptions ndots:2 rotate\n";
    assert!(printed.starts_with(resolv_conf), "{printed}");
    assert!(printed.ends_with("10.0.0.7\tdb\n::1\tweb\n"), "{printed}");
    // Whatever the caller's umask is, every user reads them.
    let script = "umask 077; exec \"$0\" \"$@\"";
    let esgz = command(
        &conversion,
        "cat /etc/hosts /etc/resolv.conf",
        &["--user", "app"],
    );
    let esgz = esgz.into_command();
    let mut shell = std::process::Command::new("/bin/sh");
    shell
        .args(["-c", script])
        .arg(esgz.get_program())
        .args(esgz.get_args())
        .stdin(Stdio::null());
    let output = shell.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(
        errors.contains("localhost") && errors.contains("nameserver 8.8.8.8"),
        "{errors}"
    );
}

#[test]
fn the_hosts_network_and_an_own_one() {
    let name = "workload::the_hosts_network_and_an_own_one";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let script = "cat /proc/self/net/dev /etc/hosts";
    let own = output_of(&conversion, script, &[]);
    let of_host = output_of(&conversion, script, &["--net-host"]);
    let interfaces = |text: &str| -> Vec<String> {
        let names = text
            .lines()
            .filter_map(|line| line.split_once(": "))
            .map(|(name, _)| name.trim());
        names.map(str::to_owned).collect()
    };
    assert_eq!(interfaces(&own), ["lo"]);
    let table = fs::read_to_string("/proc/self/net/dev").unwrap();
    assert_eq!(interfaces(&of_host), interfaces(&table));
    let hosts = fs::read_to_string("/etc/hosts").unwrap();
    assert!(of_host.ends_with(&hosts), "{of_host}");
}
