//! Glob patterns over paths. Pure, and linear in the path's length for any pattern.
//!
//! `*` and `?` stop at a slash; `[ab]`, `[a-z]` and `[!a]` name characters; `**` as a whole component
//! stands for any number of components, none among them; `\` takes the next character's meaning away.

use std::ops::RangeInclusive;

/// A pattern, ready to match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Glob(Vec<Token>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// This character; a byte that is no UTF-8 is a character of its own.
    Is(char),
    /// `?`
    Any,
    /// `[…]`
    Class {
        ranges: Vec<RangeInclusive<char>>,
        negated: bool,
    },
    /// `*`
    Run,
    /// `**/`: the start of a component, which may be skipped; always followed by [`Token::Within`].
    Components,
    /// The inside of a component that `**/` stands for.
    Within,
    /// The end of a last `**`.
    Rest,
}

impl Glob {
    /// Every text is a pattern: a `[` without its `]` is a character.
    pub(super) fn new(pattern: &[u8]) -> Self {
        let text: Vec<char> = characters(pattern).collect();
        let mut tokens = Vec::new();
        let mut at = 0;
        while at < text.len() {
            let begins_component = at == 0 || text[at - 1] == '/';
            match text[at] {
                '*' if begins_component && text[at..].starts_with(&['*', '*', '/']) => {
                    tokens.extend([Token::Components, Token::Within]);
                    at += 3;
                    continue;
                }
                '*' if begins_component && text[at..] == ['*', '*'] => {
                    // At least one character: `opt/**` is what lies in `opt`.
                    tokens.extend([Token::Any, Token::Rest]);
                    at += 1;
                }
                '*' => tokens.push(Token::Run),
                '?' => tokens.push(Token::Any),
                '[' => match class(&text[at + 1..]) {
                    Some((token, len)) => {
                        tokens.push(token);
                        at += len;
                    }
                    None => tokens.push(Token::Is('[')),
                },
                '\\' if at + 1 < text.len() => {
                    at += 1;
                    tokens.push(Token::Is(text[at]));
                }
                literal => tokens.push(Token::Is(literal)),
            }
            at += 1;
        }
        Self(tokens)
    }

    /// The text that every match begins with.
    pub(super) fn prefix(&self) -> Vec<u8> {
        let literal = self.0.iter().map_while(|token| match token {
            Token::Is(c) if *c != UNREADABLE => Some(*c),
            _ => None,
        });
        literal.collect::<String>().into_bytes()
    }

    /// Whether the whole path matches.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        // The set of tokens that may come next; all are followed at once.
        let mut next = vec![false; self.0.len() + 1];
        next[0] = true;
        self.skip_empty(&mut next);
        for c in characters(path) {
            let mut after = vec![false; next.len()];
            for (at, token) in self.0.iter().enumerate().filter(|&(at, _)| next[at]) {
                match token {
                    Token::Is(literal) => after[at + 1] |= *literal == c,
                    Token::Any | Token::Components => after[at + 1] |= c != '/',
                    Token::Class { ranges, negated } => {
                        let listed = ranges.iter().any(|range| range.contains(&c));
                        after[at + 1] |= c != '/' && listed != *negated;
                    }
                    Token::Run => after[at] |= c != '/',
                    Token::Within if c == '/' => after[at - 1] = true,
                    Token::Within | Token::Rest => after[at] = true,
                }
            }
            self.skip_empty(&mut after);
            next = after;
        }
        next[self.0.len()]
    }

    /// Where a token may stand for nothing, the one behind it may come next, too.
    fn skip_empty(&self, next: &mut [bool]) {
        for (at, token) in self.0.iter().enumerate() {
            match token {
                Token::Run | Token::Rest => next[at + 1] |= next[at],
                Token::Components => next[at + 2] |= next[at],
                _ => {}
            }
        }
    }
}

/// Stands for a byte that is no UTF-8.
const UNREADABLE: char = char::REPLACEMENT_CHARACTER;

fn characters(text: &[u8]) -> impl Iterator<Item = char> {
    text.utf8_chunks().flat_map(|chunk| {
        let unreadable = chunk.invalid().iter().map(|_| UNREADABLE);
        chunk.valid().chars().chain(unreadable)
    })
}

/// The class behind a `[`, and how many characters it takes; `None` if it does not end.
fn class(text: &[char]) -> Option<(Token, usize)> {
    let negated = matches!(text.first(), Some('!' | '^'));
    let start = usize::from(negated);
    // A `]` at the start is a member.
    let end = start + 1 + text.get(start + 1..)?.iter().position(|&c| c == ']')?;
    let mut members = &text[start..end];
    let mut ranges = Vec::new();
    while let Some((&first, rest)) = members.split_first() {
        match rest {
            ['-', last, behind @ ..] => {
                ranges.push(first..=*last);
                members = behind;
            }
            rest => {
                ranges.push(first..=first);
                members = rest;
            }
        }
    }
    Some((Token::Class { ranges, negated }, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_paths() {
        let check = |pattern: &str, yes: &[&str], no: &[&str]| {
            let glob = Glob::new(pattern.as_bytes());
            for path in yes {
                assert!(glob.matches(path.as_bytes()), "{pattern} misses {path}");
                assert!(path.as_bytes().starts_with(&glob.prefix()), "{pattern}");
            }
            for path in no {
                assert!(!glob.matches(path.as_bytes()), "{pattern} matches {path}");
            }
        };
        check(
            "usr/bin/*",
            &["usr/bin/a", "usr/bin/.b"],
            &["usr/bin", "usr/bin/a/b"],
        );
        check(
            "usr/lib/**/*.so",
            &["usr/lib/a.so", "usr/lib/x/y/a.so"],
            &["usr/libx/a.so", "usr/lib/a.so.1"],
        );
        check("**/*.py", &["a.py", "x/a.py", "x/y/a.py"], &["a.pyc", "py"]);
        check(
            "var/**/app.*.log",
            &["var/app.1.log", "var/x/app..log"],
            &["var/xapp.1.log", "var/app.log"],
        );
        check("opt/**", &["opt/a", "opt/a/b"], &["opt", "optx/a"]);
        check("**", &["a", "a/b"], &[]);
        check("img_[ab].png", &["img_a.png"], &["img_c.png", "img_.png"]);
        check("[a-c0]x[!a-z]", &["bx1", "0xA"], &["dx1", "axb", "ax/"]);
        check("[]x]", &["]", "x"], &["[", "[]x]"]);
        check("usr/bin/[", &["usr/bin/["], &["usr/bin/a"]);
        check("a\\*b", &["a*b"], &["axb"]);
        check("a**b", &["ab", "axxb"], &["a/b"]);
        check("gr?n", &["gr\u{fc}n"], &["grn"]);
        check(
            "a/**/b/**/c",
            &["a/b/c", "a/x/b/y/z/c"],
            &["a/xb/c", "a/bc"],
        );
        check("", &[""], &["a"]);
    }

    #[test]
    fn a_hard_pattern_takes_no_long_time() {
        let glob = Glob::new("*a".repeat(40).as_bytes());
        assert!(!glob.matches(format!("{}b", "a".repeat(3000)).as_bytes()));
    }
}
