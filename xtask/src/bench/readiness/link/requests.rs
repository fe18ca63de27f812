//! Requests of HTTP/1.1 in what a client sends, however it is cut. Bodies are taken for headers: a client that only
//! pulls sends none.

/// One request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::bench::readiness) struct Request {
    /// When its header was complete, since whatever the one who asks began with.
    pub(in crate::bench::readiness) seconds: f64,
    /// Method and target.
    pub(in crate::bench::readiness) line: String,
    /// Value of `Range`; empty without.
    pub(in crate::bench::readiness) range: String,
}

/// Longer lines are cut off: what a client sends does not decide about memory.
const LONGEST_LINE_BYTES: usize = 8 << 10;

/// The state between two pieces of a connection.
#[derive(Default)]
pub(super) struct Requests {
    /// The line that is not over.
    line: Vec<u8>,
    /// The request whose header is not over.
    open: Option<Request>,
}

impl Requests {
    /// Calls `found` for each request whose header ends in `bytes`.
    pub(super) fn read(&mut self, bytes: &[u8], mut found: impl FnMut(Request)) {
        for &byte in bytes {
            if byte != b'\n' {
                if self.line.len() < LONGEST_LINE_BYTES {
                    self.line.push(byte);
                }
                continue;
            }
            let line = String::from_utf8_lossy(&self.line).trim_end().to_owned();
            self.line.clear();
            if let Some(request) = line.strip_suffix(" HTTP/1.1") {
                self.open = Some(Request {
                    line: request.to_owned(),
                    ..Request::default()
                });
            } else if line.is_empty() {
                self.open.take().into_iter().for_each(&mut found);
            } else if let Some(request) = &mut self.open
                && let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("range")
            {
                value.trim().clone_into(&mut request.range);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_however_they_are_cut() {
        let text = b"GET /a HTTP/1.1\r\nHost: a\r\nrange: bytes=0-9\r\n\r\nHEAD /b HTTP/1.1\r\nX: HTTP/1.1x\r\n\r\n";
        for cut in 0..text.len() {
            let mut requests = Requests::default();
            let mut found = Vec::new();
            for part in [&text[..cut], &text[cut..]] {
                requests.read(part, |request| found.push((request.line, request.range)));
            }
            let expected = [("GET /a", "bytes=0-9"), ("HEAD /b", "")];
            let expected = expected.map(|(line, range)| (line.to_owned(), range.to_owned()));
            assert_eq!(found, expected, "cut at {cut}");
        }
    }
}
