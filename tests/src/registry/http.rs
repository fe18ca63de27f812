//! Just enough of HTTP/1.1: requests with a `Content-Length`, answers of known length.

use std::io::{self, BufRead, Read, Write};

/// A request, without its body.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// The next request; `None` when the peer is done.
    pub(super) fn read(stream: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, target) = (words.next(), words.next());
        let (Some(method), Some(target)) = (method, target) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        Ok(Some(Self {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            headers,
        }))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn parameters(&self, name: &str) -> Vec<String> {
        parameters(&self.query, name)
    }

    /// The body, or what came of it before the connection was cut.
    pub(super) fn body(&self, stream: &mut impl BufRead) -> (Vec<u8>, io::Result<()>) {
        let length = self
            .header("content-length")
            .and_then(|text| text.parse().ok());
        let length: u64 = length.unwrap_or(0);
        let mut body = Vec::new();
        let read = stream.take(length).read_to_end(&mut body);
        let whole = match read {
            Ok(read) if read as u64 == length => Ok(()),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => Err(error),
        };
        (body, whole)
    }
}

/// What a query, or a form that was sent, has under this name.
pub(super) fn parameters(query: &str, name: &str) -> Vec<String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| decoded(value))
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                let digits = String::from_utf8_lossy(&digits).into_owned();
                bytes.push(u8::from_str_radix(&digits, 16).unwrap_or(b'?'));
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn new(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    pub(super) fn header(mut self, name: &str, value: impl AsRef<str>) -> Self {
        let value = value.as_ref().to_owned();
        self.headers.push((name.to_owned(), value));
        self
    }

    pub(super) fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            ..self
        }
    }

    /// Writes it, with a pause after every `pause_after` bytes of the body.
    pub(super) fn write(
        &self,
        stream: &mut impl Write,
        is_head: bool,
        pause: Option<(usize, std::time::Duration)>,
    ) -> io::Result<()> {
        stream.write_all(self.head().as_bytes())?;
        if is_head {
            return stream.flush();
        }
        match pause {
            None => stream.write_all(&self.body)?,
            Some((length, pause)) => {
                for part in self.body.chunks(length) {
                    stream.write_all(part)?;
                    stream.flush()?;
                    std::thread::sleep(pause);
                }
            }
        }
        stream.flush()
    }

    /// Writes it, and calls `between` when half of the body has been sent.
    pub(super) fn write_halves(
        &self,
        stream: &mut impl Write,
        between: impl FnOnce(),
    ) -> io::Result<()> {
        let (first, second) = self.body.split_at(self.body.len() / 2);
        stream.write_all(self.head().as_bytes())?;
        stream.write_all(first)?;
        stream.flush()?;
        between();
        stream.write_all(second)?;
        stream.flush()
    }

    fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} x\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.status != 204 {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        head
    }
}
