//! Who one is to a registry: given, or from Docker's and Podman's files and their credential helpers
//! (docker's config.json; containers-auth.json(5)).

use std::io;
use std::path::PathBuf;

use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};
use serde_json::Value;

use crate::registry::{RegistryError, Secret};

/// Where credentials are found.
#[derive(Clone, Debug, Default)]
pub struct CredentialSources {
    /// User and password, which stand above all files.
    pub given: Option<(String, Secret)>,
    /// Files as Docker and Podman write them. The first that knows the registry counts; one that does not
    /// exist counts as empty.
    pub files: Vec<PathBuf>,
}

/// Who one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Login {
    Anonymous,
    Password {
        user: String,
        password: Secret,
    },
    /// Only good for getting tokens.
    IdentityToken(Secret),
}

impl CredentialSources {
    /// The files alone.
    pub(super) fn without_given(&self) -> Self {
        Self {
            given: None,
            files: self.files.clone(),
        }
    }

    /// For `repository` of `host`. May run a credential helper.
    pub(super) fn login(&self, host: &str, repository: &str) -> Result<Login, RegistryError> {
        if let Some((user, password)) = &self.given {
            return Ok(Login::Password {
                user: user.clone(),
                password: password.clone(),
            });
        }
        for path in &self.files {
            let bytes = match std::fs::read(path) {
                Ok(bytes) => bytes,
                Err(error) if is_absent(&error) => continue,
                Err(source) => {
                    return Err(RegistryError::File {
                        path: path.clone(),
                        source,
                    });
                }
            };
            let bad = |reason: &str| RegistryError::Credentials {
                host: host.to_owned(),
                reason: format!("{}: {reason}", path.display()),
            };
            let key = key(&bytes, host, repository).ok_or_else(|| bad("not a JSON object"))?;
            match get_credential_from_reader(&*bytes, &key) {
                Ok(DockerCredential::UsernamePassword(user, password)) => {
                    let password = Secret::new(password);
                    return Ok(Login::Password { user, password });
                }
                Ok(DockerCredential::IdentityToken(token)) => {
                    return Ok(Login::IdentityToken(Secret::new(token)));
                }
                Err(error) => reason(&error).map_or(Ok(()), |reason| Err(bad(&reason)))?,
            }
        }
        Ok(Login::Anonymous)
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// What is wrong, without what a helper printed; `None` if there merely are no credentials.
fn reason(error: &CredentialRetrievalError) -> Option<String> {
    match error {
        CredentialRetrievalError::NoCredentialConfigured => None,
        // docker-credential-helpers, `credentials.IsErrCredentialsNotFoundMessage`.
        CredentialRetrievalError::HelperFailure { stdout, stderr, .. }
            if [stdout, stderr]
                .iter()
                .any(|text| text.contains("credentials not found")) =>
        {
            None
        }
        CredentialRetrievalError::HelperFailure { helper, .. } => {
            Some(format!("the credential helper {helper} failed"))
        }
        CredentialRetrievalError::HelperCommunicationError => {
            Some("the credential helper cannot be run".to_owned())
        }
        CredentialRetrievalError::MalformedHelperResponse => {
            Some("the credential helper's answer cannot be understood".to_owned())
        }
        _ => Some("it cannot be understood".to_owned()),
    }
}

/// The name under which the file knows the registry: the most exact of those that it may have, or the
/// host for a helper that knows all. `None` for a file that is no object.
fn key(bytes: &[u8], host: &str, repository: &str) -> Option<String> {
    let file: Value = serde_json::from_slice(bytes).ok()?;
    file.as_object()?;
    let is_known = |key: &String| {
        let has = |list: &str| file.get(list).and_then(|list| list.get(key)).is_some();
        has("credHelpers") || has("auths")
    };
    let mut keys = Vec::new();
    let mut path = format!("{host}/{repository}");
    while path.len() > host.len() {
        keys.push(path.clone());
        path.truncate(path.rfind('/').unwrap_or(0));
    }
    let usual = if host == "docker.io" {
        "https://index.docker.io/v1/"
    } else {
        host
    };
    keys.extend([usual.to_owned(), host.to_owned()]);
    for scheme in ["https", "http"] {
        keys.extend(["", "/", "/v1/", "/v2/"].map(|end| format!("{scheme}://{host}{end}")));
    }
    if host == "docker.io" {
        keys.extend(["index.docker.io", "registry-1.docker.io"].map(str::to_owned));
    }
    Some(keys.into_iter().find(is_known).unwrap_or(usual.to_owned()))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use serde_json::json;

    use super::*;

    fn login(file: &Value, host: &str, repository: &str) -> Result<Login, RegistryError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, file.to_string()).unwrap();
        let sources = CredentialSources {
            given: None,
            files: vec![dir.path().join("missing"), path],
        };
        sources.login(host, repository)
    }

    fn auth(user: &str) -> Value {
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:pass:word"));
        json!({ "auth": auth })
    }

    #[test]
    fn files_are_searched_as_docker_and_podman_do() {
        let file = json!({"auths": {
            "https://index.docker.io/v1/": auth("hub"),
            "r.example:5000": auth("host"),
            "r.example:5000/team": auth("team"),
            "r.example:5000/team/image": auth("image"),
            "https://old.example/v1/": auth("old"),
            "id.example": {"identitytoken": "secret", "auth": auth("x")["auth"]},
        }});
        let check = |host: &str, repository: &str, user: Option<&str>| {
            let expected = user.map_or(Login::Anonymous, |user| Login::Password {
                user: user.to_owned(),
                password: Secret::new("pass:word"),
            });
            assert_eq!(login(&file, host, repository).unwrap(), expected, "{host}");
        };
        check("docker.io", "library/x", Some("hub"));
        check("r.example:5000", "x", Some("host"));
        check("r.example:5000", "team/other", Some("team"));
        check("r.example:5000", "teams/other", Some("host"));
        check("r.example:5000", "team/image", Some("image"));
        check("old.example", "x", Some("old"));
        check("other.example", "x", None);
        let token = login(&file, "id.example", "x").unwrap();
        assert_eq!(token, Login::IdentityToken(Secret::new("secret")));
    }

    #[test]
    fn what_is_broken_is_named_without_its_contents() {
        let broken = json!({"auths": {"a.example": {"auth": "hunter2"}}});
        let error = login(&broken, "a.example", "x").unwrap_err().to_string();
        assert!(
            error.contains("config.json") && !error.contains("hunter2"),
            "{error}"
        );
        assert!(login(&json!([]), "a.example", "x").is_err());
    }
}
