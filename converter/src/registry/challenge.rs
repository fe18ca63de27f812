//! What a registry asks for in `WWW-Authenticate` (RFC 9110, 11.6.1; the distribution project's token
//! specification). Pure.

/// How a registry wants to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token that another server gives.
    Bearer {
        /// The address of that server.
        realm: String,
        /// What the token is for, in that server's words.
        service: Option<String>,
        /// What it has to allow.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The first challenge in `header` that can be answered; a token before a password.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let mut found = None;
        for (scheme, parameters) in challenges(header) {
            let get = |key: &str| {
                let mut parameters = parameters.iter();
                let named = parameters.find(|(name, _)| name.eq_ignore_ascii_case(key));
                named.map(|(_, value)| value.clone())
            };
            if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = get("realm")
            {
                return Some(Self::Bearer {
                    realm,
                    service: get("service"),
                    scope: get("scope"),
                });
            }
            if scheme.eq_ignore_ascii_case("basic") {
                found = Some(Self::Basic);
            }
        }
        found
    }
}

type Parameters = Vec<(String, String)>;

/// Schemes with their parameters. What cannot be read ends the list.
fn challenges(header: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let end = rest.find([' ', ',', '=']).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        if word.is_empty() {
            break;
        }
        let behind = behind.trim_start_matches(' ');
        rest = match behind.strip_prefix('=') {
            Some(value) => {
                let (value, behind) = value_of(value.trim_start_matches(' '));
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.push((word.to_owned(), value));
                }
                behind
            }
            None => {
                found.push((word.to_owned(), Vec::new()));
                behind
            }
        }
        .trim_start_matches([' ', ',']);
    }
    found
}

/// A quoted text or a token, and what follows.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_understood() {
        let check = |header: &str, expected: Option<Challenge>| {
            assert_eq!(Challenge::parse(header), expected, "{header}");
        };
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        check(
            r#"Bearer realm="https://a.example/token",service="a",scope="repository:x/y:pull,push""#,
            bearer(
                "https://a.example/token",
                Some("a"),
                Some("repository:x/y:pull,push"),
            ),
        );
        check(
            r#"bearer  realm=http://a , service="say \"x\"""#,
            bearer("http://a", Some("say \"x\""), None),
        );
        check(
            r#"Basic realm="Registry, with = signs""#,
            Some(Challenge::Basic),
        );
        check("BASIC", Some(Challenge::Basic));
        check(
            r#"Basic realm="x", Bearer realm="y""#,
            bearer("y", None, None),
        );
        for none in [
            "",
            "Digest realm=\"x\"",
            "Bearer service=\"x\"",
            "=",
            "\"",
            "Negotiate",
        ] {
            check(none, None);
        }
    }
}
