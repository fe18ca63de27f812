//! Numbers and names as a page shows them.

use std::fmt;

/// Text from elsewhere, so that it is nothing but text: no markup, no address that could be followed, nothing that
/// turns the line around.
pub(super) struct Text<'a>(pub(super) &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                ':' => f.write_str("&#58;")?,
                // Controls, and what changes the direction of what follows.
                c if c.is_control()
                    || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2028}' | '\u{2029}' | '\u{2066}'..='\u{2069}' | '\u{feff}') =>
                {
                    write!(f, "{}", c.escape_unicode())?;
                }
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

/// Bytes in decimal units, three digits of them.
pub(super) struct Bytes(pub(super) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
        if self.0 < 1000 {
            return write!(f, "{}\u{a0}B", self.0);
        }
        let mut value = self.0 as f64 / 1e3;
        let mut unit = 0;
        while value >= 999.5 && unit + 1 < UNITS.len() {
            value /= 1e3;
            unit += 1;
        }
        let decimals = if value < 9.995 {
            2
        } else {
            usize::from(value < 99.95)
        };
        write!(f, "{value:.decimals$}\u{a0}{}", UNITS[unit])
    }
}

/// Seconds, three digits of them.
pub(super) struct Seconds(pub(super) f64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = if self.0 < 9.995 {
            2
        } else {
            usize::from(self.0 < 99.95)
        };
        write!(f, "{:.decimals$}\u{a0}s", self.0)
    }
}

/// A part of a whole in per cent; what is not nothing does not look so.
pub(super) struct Percent(pub(super) u64, pub(super) u64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * self.0 as f64 / self.1.max(1) as f64;
        match percent {
            p if self.0 > 0 && p < 0.1 => write!(f, "&lt;\u{2009}0.1\u{a0}%"),
            p if p > 0.0 && p < 9.95 => write!(f, "{p:.1}\u{a0}%"),
            p => write!(f, "{p:.0}\u{a0}%"),
        }
    }
}

/// A count with thin spaces between thousands.
pub(super) struct Count(pub(super) u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                f.write_str("\u{202f}")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// So many files.
pub(super) struct Files(pub(super) u64);

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.0 == 1 { "file" } else { "files" };
        write!(f, "{}\u{a0}{noun}", Count(self.0))
    }
}

/// A share of a whole for a style sheet, in per cent.
pub(super) fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 {
        (100.0 * part / whole).clamp(0.0, 100.0)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_nothing_but_text() {
        let text = Text("a<b>&\"'\n\u{202e}http://x").to_string();
        assert_eq!(
            text,
            "a&lt;b&gt;&amp;&quot;&#39;\\u{a}\\u{202e}http&#58;//x"
        );
    }

    #[test]
    fn numbers_are_short() {
        let check = |shown: String, text: &str| assert_eq!(shown, text);
        check(Bytes(999).to_string(), "999\u{a0}B");
        check(Bytes(1500).to_string(), "1.50\u{a0}kB");
        check(Bytes(999_600).to_string(), "1.00\u{a0}MB");
        check(Bytes(296_500_000).to_string(), "296\u{a0}MB");
        check(Bytes(5_800_000_000).to_string(), "5.80\u{a0}GB");
        check(Seconds(1.234).to_string(), "1.23\u{a0}s");
        check(Seconds(14.06).to_string(), "14.1\u{a0}s");
        check(Seconds(125.3).to_string(), "125\u{a0}s");
        check(Percent(1, 100_000).to_string(), "&lt;\u{2009}0.1\u{a0}%");
        check(Percent(5, 100).to_string(), "5.0\u{a0}%");
        check(Percent(0, 0).to_string(), "0\u{a0}%");
        check(Count(1_234_567).to_string(), "1\u{202f}234\u{202f}567");
        check(Count(12).to_string(), "12");
    }
}
