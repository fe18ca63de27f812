//! The container's /etc/hosts and /etc/resolv.conf, as ctr-remote gives them. Pure.

use std::fmt::Write as _;

use crate::runtime::options::NameResolution;

/// Contents of /etc/hosts.
const HOSTS: &str = "127.0.0.1\tlocalhost\n\
::1\tlocalhost ip6-localhost ip6-loopback\n\
fe00::0\tip6-localnet\n\
ff00::0\tip6-mcastprefix\n\
ff02::1\tip6-allnodes\n\
ff02::2\tip6-allrouters\n";

/// Contents of /etc/resolv.conf.
const RESOLV_CONF: &str = "nameserver 8.8.8.8\n";

/// Contents of /etc/hosts: the default ones, or `of_host`, and the user's lines.
pub(super) fn hosts(names: &NameResolution, of_host: Option<String>) -> String {
    let mut text = of_host.unwrap_or_else(|| HOSTS.to_owned());
    end_line(&mut text);
    for (name, address) in &names.hosts {
        let _ = writeln!(text, "{address}\t{name}");
    }
    text
}

/// Contents of /etc/resolv.conf: the user's nameservers, or else the default one or the lines `of_host`.
pub(super) fn resolv_conf(names: &NameResolution, of_host: Option<String>) -> String {
    let mut text = String::new();
    for address in &names.nameservers {
        let _ = writeln!(text, "nameserver {address}");
    }
    if text.is_empty() {
        text = of_host.unwrap_or_else(|| RESOLV_CONF.to_owned());
        end_line(&mut text);
    }
    for (key, values) in [("search", &names.search), ("options", &names.options)] {
        if !values.is_empty() {
            let _ = writeln!(text, "{key} {}", values.join(" "));
        }
    }
    text
}

fn end_line(text: &mut String) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|&item| item.to_owned()).collect()
    }

    #[test]
    fn defaults_and_additions() {
        let none = NameResolution::default();
        assert_eq!(hosts(&none, None), HOSTS);
        assert_eq!(resolv_conf(&none, None), "nameserver 8.8.8.8\n");
        assert_eq!(hosts(&none, Some("1.2.3.4 h".to_owned())), "1.2.3.4 h\n");
        let names = NameResolution {
            hosts: vec![("db".to_owned(), "::1".to_owned())],
            nameservers: list(&["1.1.1.1", "9.9.9.9"]),
            search: list(&["a.example", "b.example"]),
            options: list(&["ndots:2"]),
        };
        assert_eq!(hosts(&names, None), format!("{HOSTS}::1\tdb\n"));
        assert_eq!(
            resolv_conf(&names, Some("nameserver 10.0.0.1\n".to_owned())),
            "nameserver 1.1.1.1\nnameserver 9.9.9.9\nsearch a.example b.example\noptions ndots:2\n"
        );
    }
}
