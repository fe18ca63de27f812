//! Values of the workload's flags, as text.

use std::net::IpAddr;
use std::time::Duration;

use super::List;
use crate::cli::args::parse_size;
use crate::runtime::Mount;

pub(super) fn parse_list(text: &str) -> Result<List, String> {
    serde_json::from_str(text)
        .map(List)
        .map_err(|_| "not a JSON array of strings, such as [\"sh\",\"-c\"]".to_owned())
}

pub(super) fn parse_command(text: &str) -> Result<List, String> {
    let command = if text.trim_start().starts_with('[') {
        parse_list(text)?
    } else {
        List(["/bin/sh", "-c", text].map(str::to_owned).to_vec())
    };
    if command.0.first().is_none_or(String::is_empty) || text.trim().is_empty() {
        return Err("it names no program".to_owned());
    }
    Ok(command)
}

/// Key-value pairs with commas, options with colons; a value with commas stands in quotes, as in CSV.
pub(super) fn parse_mount(text: &str) -> Result<Mount, String> {
    let mut mount = Mount {
        kind: String::new(),
        source: String::new(),
        destination: String::new(),
        options: Vec::new(),
    };
    for field in csv_fields(text)? {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| format!("\"{field}\" is not of the form KEY=VALUE"))?;
        match key {
            "type" => value.clone_into(&mut mount.kind),
            "source" | "src" => value.clone_into(&mut mount.source),
            "destination" | "dst" => value.clone_into(&mut mount.destination),
            "options" => mount.options = value.split(':').map(str::to_owned).collect(),
            _ => {
                return Err(format!(
                    "\"{key}\" is not one of type, source, destination, options"
                ));
            }
        }
    }
    mount.options.retain(|option| !option.is_empty());
    if mount.kind.is_empty() {
        return Err("it has no type".to_owned());
    }
    if !mount.destination.starts_with('/') {
        return Err("its destination is not absolute".to_owned());
    }
    Ok(mount)
}

fn csv_fields(text: &str) -> Result<Vec<String>, String> {
    let (mut fields, mut field, mut is_quoted) = (Vec::new(), String::new(), false);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if is_quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' if is_quoted || field.is_empty() => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(std::mem::take(&mut field)),
            other => field.push(other),
        }
    }
    if is_quoted {
        return Err("a quote is not closed".to_owned());
    }
    fields.push(field);
    Ok(fields)
}

pub(super) fn parse_host(text: &str) -> Result<(String, IpAddr), String> {
    let (name, address) = text.split_once(':').ok_or("not of the form NAME:ADDRESS")?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let address = address
        .parse()
        .map_err(|_| format!("\"{address}\" is no address"))?;
    Ok((parse_word(name)?, address))
}

/// Something that stands between spaces in a line.
pub(super) fn parse_word(text: &str) -> Result<String, String> {
    if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c == '\0') {
        return Err("empty, or with spaces".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn parse_url(text: &str) -> Result<String, String> {
    match text.strip_prefix("http://") {
        Some(rest) if !rest.is_empty() && !rest.starts_with('/') => Ok(text.to_owned()),
        _ => Err("not of the form http://HOST[:PORT]/…".to_owned()),
    }
}

pub(super) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

pub(super) fn parse_ring(text: &str) -> Result<u32, String> {
    let size = parse_size(text)?;
    u32::try_from(size).map_err(|_| "too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_written_as_for_ctr() {
        let mount = parse_mount("type=bind,src=/s,dst=/d,options=rbind:ro").unwrap();
        assert_eq!(
            (&*mount.kind, &*mount.source, &*mount.destination),
            ("bind", "/s", "/d")
        );
        assert_eq!(mount.options, ["rbind", "ro"]);
        let mount = parse_mount("type=tmpfs,destination=/d").unwrap();
        assert_eq!(
            (mount.source.is_empty(), mount.options.is_empty()),
            (true, true)
        );
        let mount = parse_mount("type=bind,\"source=/a,\"\"b\"\"\",destination=/d").unwrap();
        assert_eq!(mount.source, "/a,\"b\"");
        for bad in [
            "",
            "type=bind",
            "type=bind,dst=d",
            "dst=/d",
            "type=bind,dst=/d,x=1",
            "type=bind,dst=/d,ro",
            "\"type=bind,dst=/d",
        ] {
            assert!(parse_mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn values_are_checked() {
        assert_eq!(
            parse_host("db:10.0.0.1"),
            Ok(("db".to_owned(), "10.0.0.1".parse().unwrap()))
        );
        assert_eq!(
            parse_host("db:::1"),
            Ok(("db".to_owned(), "::1".parse().unwrap()))
        );
        assert_eq!(
            parse_host("db:[::1]"),
            Ok(("db".to_owned(), "::1".parse().unwrap()))
        );
        for bad in ["", "db", "db:", "db:x", ":1.1.1.1", "a b:1.1.1.1"] {
            assert!(parse_host(bad).is_err(), "{bad}");
        }
        assert!(parse_url("http://localhost:80/x").is_ok());
        for bad in ["", "localhost", "https://localhost", "http://", "http:///x"] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_command("a b").unwrap().0, ["/bin/sh", "-c", "a b"]);
        assert_eq!(parse_command("[\"a\",\"b\"]").unwrap().0, ["a", "b"]);
        for bad in ["", " ", "[]", "[1]", "[\"\"]"] {
            assert!(parse_command(bad).is_err(), "{bad}");
        }
    }
}
