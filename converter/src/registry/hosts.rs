//! Where a registry is really asked: `hosts.toml`, a file for each registry (containerd, docs/hosts.md).
//!
//! Enters: the directory, the registry's name and what the flags say. Leaves: the registry itself, and mirrors
//! that are asked before it. What is not named here (`dial_timeout`, Docker's pattern of certificate
//! files) has no meaning.

use std::io;
use std::path::{Path, PathBuf};

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::{Table, Value};

use crate::registry::{RegistryError, Security};

/// The registry itself and its mirrors, in the order in which they are asked.
#[derive(Debug)]
pub(super) struct Hosts {
    pub(super) mirrors: Vec<Host>,
    pub(super) server: Host,
}

/// A server.
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// Scheme, name and port.
    pub(super) base: Url,
    /// What stands before a repository in paths, without a slash at its end.
    pub(super) prefix: String,
    /// What it is trusted with.
    pub(super) serves: Serves,
    pub(super) security: Security,
    /// For every request.
    pub(super) headers: HeaderMap,
    pub(super) proxy: Option<Url>,
}

/// What is asked of a server when an image is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Serves {
    /// What a tag means, and what has a digest.
    Tags,
    /// What has a digest.
    Digests,
    /// Nothing.
    Nothing,
}

/// A table of the file, as far as it is understood; the one of the whole file is the registry's own.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fields {
    server: Option<String>,
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany<PathBuf>>,
    client: Option<OneOrMany<OneOrMany<PathBuf>>>,
    skip_verify: Option<bool>,
    header: Table,
    override_path: bool,
    proxy: Option<String>,
    host: Table,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

impl Hosts {
    /// For the registry `name`. Without a file in `dir` it is asked itself, as `flags` say.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub(super) fn read(
        dir: Option<&Path>,
        name: &str,
        flags: &Security,
    ) -> Result<Self, RegistryError> {
        let found = dir.map(|dir| find(dir, name)).transpose()?.flatten();
        let Some((path, text)) = found else {
            let server = itself(name, Fields::default(), flags, Path::new(""));
            return Ok(Self {
                mirrors: Vec::new(),
                server: server.map_err(|reason| bad(Path::new(name), reason))?,
            });
        };
        Self::parse(&text, name, flags, &path).map_err(|reason| bad(&path, reason))
    }

    fn parse(text: &str, name: &str, flags: &Security, path: &Path) -> Result<Self, String> {
        // The error's own text shows lines of the file, and a header may hold a secret.
        let mut file: Fields = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        let dir = path.parent().unwrap_or(Path::new(""));
        let mut mirrors = Vec::new();
        for (address, fields) in std::mem::take(&mut file.host) {
            let fields: Fields = fields
                .try_into()
                .map_err(|error: toml::de::Error| error.message().to_owned())?;
            let security = Security {
                authorities: flags.authorities.clone(),
                ..Security::default()
            };
            mirrors.push(host(&address, fields, security, dir)?);
        }
        Ok(Self {
            mirrors,
            server: itself(name, file, flags, dir)?,
        })
    }
}

/// The registry's file, and where it is.
fn find(dir: &Path, name: &str) -> Result<Option<(PathBuf, String)>, RegistryError> {
    let with_port = name
        .rsplit_once(':')
        .map(|(name, port)| format!("{name}_{port}_"));
    let names = with_port
        .into_iter()
        .chain([name.to_owned(), "_default".to_owned()]);
    for name in names {
        let path = dir.join(name).join("hosts.toml");
        match std::fs::read_to_string(&path) {
            Ok(text) => return Ok(Some((path, text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(RegistryError::File { path, source }),
        }
    }
    Ok(None)
}

fn itself(name: &str, mut fields: Fields, flags: &Security, dir: &Path) -> Result<Host, String> {
    let address = fields.server.take().unwrap_or_else(|| {
        let scheme = if flags.is_plain(name) {
            "http"
        } else {
            "https"
        };
        // Docker Hub's registry has another name than its images.
        let host = if name == "docker.io" {
            "registry-1.docker.io"
        } else {
            name
        };
        format!("{scheme}://{host}")
    });
    let own = host(&address, fields, flags.clone(), dir)?;
    Ok(Host {
        serves: Serves::Tags,
        ..own
    })
}

/// `security` is what holds unless the file says something else.
fn host(address: &str, fields: Fields, security: Security, dir: &Path) -> Result<Host, String> {
    let base = if address.contains("://") {
        Url::parse(address)
    } else {
        Url::parse(&format!("https://{address}"))
    };
    let base = base
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"));
    let mut base = base.ok_or_else(|| "a host has no valid address".to_owned())?;
    let path = base.path().trim_end_matches('/');
    let prefix = if fields.override_path || path.ends_with("/v2") {
        path.to_owned()
    } else {
        format!("{path}/v2")
    };
    base.set_path("");
    base.set_query(None);
    let can = |capability: &str| match &fields.capabilities {
        Some(list) => list.iter().any(|listed| listed == capability),
        None => true,
    };
    let serves = match (can("pull"), can("resolve")) {
        (true, true) => Serves::Tags,
        (true, false) => Serves::Digests,
        (false, _) => Serves::Nothing,
    };
    let mut authorities = security.authorities;
    let listed = fields.ca.map_or_else(Vec::new, OneOrMany::into_vec);
    authorities.extend(listed.into_iter().map(|path| dir.join(path)));
    let identity = match fields.client {
        Some(client) => Some(identity(client, dir)?),
        None => security.identity,
    };
    Ok(Host {
        security: Security {
            plain_http: base.scheme() == "http",
            skip_verify: fields.skip_verify.unwrap_or(security.skip_verify),
            authorities,
            identity,
        },
        prefix,
        serves,
        headers: headers(&fields.header)?,
        proxy: match &fields.proxy {
            Some(proxy) => Some(Url::parse(proxy).map_err(|_| "proxy has no valid address")?),
            None => None,
        },
        base,
    })
}

/// Certificate and key, which may be in one file.
fn identity(
    client: OneOrMany<OneOrMany<PathBuf>>,
    dir: &Path,
) -> Result<(PathBuf, PathBuf), String> {
    let mut pairs: Vec<Vec<PathBuf>> = client
        .into_vec()
        .into_iter()
        .map(OneOrMany::into_vec)
        .collect();
    let (Some(pair), true) = (pairs.pop(), pairs.is_empty()) else {
        return Err("client has to name one certificate".to_owned());
    };
    let (certificate, key) = match pair.as_slice() {
        [both] => (both, both),
        [both, nothing] if nothing.as_os_str().is_empty() => (both, both),
        [certificate, key] => (certificate, key),
        _ => return Err("client has to name a certificate and its key".to_owned()),
    };
    Ok((dir.join(certificate), dir.join(key)))
}

fn headers(table: &Table) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, values) in table {
        let bad = || format!("header {name} is not valid");
        let values = match values {
            Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        let name: HeaderName = name.parse().map_err(|_| bad())?;
        for value in values {
            let value = value.as_str().ok_or_else(bad)?;
            let mut value = HeaderValue::from_str(value).map_err(|_| bad())?;
            value.set_sensitive(true);
            headers.append(name.clone(), value);
        }
    }
    Ok(headers)
}

fn bad(path: &Path, reason: String) -> RegistryError {
    RegistryError::Hosts {
        path: path.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Hosts, String> {
        let path = Path::new("/etc/certs.d/r.example/hosts.toml");
        Hosts::parse(text, "r.example:5000", &Security::default(), path)
    }

    #[test]
    fn hosts_are_read_in_their_order() {
        let hosts = parse(
            r#"
            skip_verify = true
            [host."https://z.example"]
              capabilities = ["pull"]
              ca = "z.crt"
              client = [["c.cert", "c.key"]]
            [host."http://a.example:80/proxy/v2"]
              header = { x-one = "1", x-two = ["2", "3"] }
              proxy = "http://proxy.example:8080"
            [host."b.example/root"]
              override_path = true
              capabilities = ["push"]
              client = "/both.pem"
            "#,
        )
        .unwrap();
        let shown: Vec<_> = hosts
            .mirrors
            .iter()
            .map(|host| (host.base.as_str(), host.prefix.as_str(), host.serves))
            .collect();
        let expected = [
            ("https://z.example/", "/v2", Serves::Digests),
            ("http://a.example/", "/proxy/v2", Serves::Tags),
            ("https://b.example/", "/root", Serves::Nothing),
        ];
        assert_eq!(shown, expected);
        let [first, second, third] = hosts.mirrors.as_slice() else {
            panic!("{:?}", hosts.mirrors)
        };
        let dir = Path::new("/etc/certs.d/r.example");
        assert_eq!(first.security.authorities, [dir.join("z.crt")]);
        let pair = (dir.join("c.cert"), dir.join("c.key"));
        assert_eq!(first.security.identity, Some(pair));
        assert!(!first.security.skip_verify);
        assert_eq!(second.headers.get_all("x-two").iter().count(), 2);
        assert!(
            !format!("{second:?}").contains("\"3\""),
            "headers are hidden"
        );
        assert!(second.proxy.is_some());
        let both = PathBuf::from("/both.pem");
        assert_eq!(third.security.identity, Some((both.clone(), both)));
        assert_eq!(hosts.server.base.as_str(), "https://r.example:5000/");
        assert!(hosts.server.security.skip_verify);
    }

    #[test]
    fn another_server_takes_the_registrys_place() {
        let hosts = parse("server = \"http://other.example:1\"").unwrap();
        assert_eq!(hosts.server.base.as_str(), "http://other.example:1/");
        assert!(hosts.server.security.plain_http && hosts.mirrors.is_empty());
        let hub = Hosts::read(None, "docker.io", &Security::default()).unwrap();
        assert_eq!(hub.server.base.as_str(), "https://registry-1.docker.io/");
    }

    #[test]
    fn what_is_wrong_is_said_without_secrets() {
        for text in [
            "server = \"ftp://x\"",
            "[host.\"https://\"]",
            "client = [\"a\", \"b\"]",
            "client = [[\"a\", \"b\", \"c\"]]",
            "proxy = \"none\"",
            "server = 1",
            "[header]\nx-token = { a = \"hunter2\" }",
            "[header]\nx-token = \"hunter2",
        ] {
            let reason = parse(text).unwrap_err();
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }
}
