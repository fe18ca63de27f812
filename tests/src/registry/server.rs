//! The registry itself.

mod manifests;

use std::collections::{HashMap, HashSet};
use std::io::{self, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::layout::{Layout, digest};
use crate::registry::http::{Answer, Request, parameters};

/// Who may use the registry.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Access {
    /// Everybody.
    #[default]
    Open,
    /// Who sends this as `Authorization` with every request.
    Basic(String),
    /// Who has a token from `/token`, which wants this as `Authorization`, or nothing at all.
    Token {
        /// For the token server.
        authorization: Option<String>,
        /// How often a token may be used before it is refused.
        uses: u32,
    },
    /// Who has a token from `/token`, which wants this as `refresh_token` of a form (OAuth 2.0).
    Refresh(String),
}

/// Where blobs are really kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `http://host:port`, of a server that does not ask who one is.
    pub to: String,
    /// What stands behind the `?` of the address, as a signature does.
    pub query: String,
}

/// How the registry behaves.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// Who may use it.
    pub access: Access,
    /// The first request for everything is answered so: status, `Retry-After`.
    pub stumbles: Option<(u16, &'static str)>,
    /// Uploads in parts are refused with this status.
    pub refuses_chunks: Option<u16>,
    /// Blobs are sent in other bytes than were asked for.
    pub changes_blobs: bool,
    /// Blobs are redirected.
    pub redirect: Option<Redirect>,
    /// A pause after so many bytes of every blob that is sent.
    pub pause: Option<(usize, Duration)>,
    /// Of the blob with this digest the second half is sent when another blob has been uploaded, when
    /// [`Server::release`] says so, or after a long time.
    pub holds: Option<String>,
    /// Manifests are sent in other bytes than were asked for.
    pub changes_manifests: bool,
    /// Manifests are refused with this status.
    pub refuses_manifests: Option<u16>,
    /// Uploads go to this address, `http://host:port`; see [`Server::beside`].
    pub uploads_to: Option<String>,
    /// Blobs are sent from their first byte on, whatever part is asked for.
    pub ignores_ranges: bool,
    /// It lists what refers to a manifest, so many in one answer; without, it does not know the question.
    pub lists_referrers: Option<usize>,
    /// A manifest under a tag is only replaced by who names what is there (`If-Match`).
    pub minds_conditions: bool,
}

/// A request that came, or may not have come to its end.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The server's.
    pub address: SocketAddr,
    /// `GET`, …
    pub method: String,
    /// Without what is behind the `?`.
    pub path: String,
    /// What is behind the `?`.
    pub query: String,
    /// The header of this name.
    pub authorization: Option<String>,
    /// The header of this name.
    pub range: Option<String>,
    /// What it was answered.
    pub status: u16,
}

#[derive(Debug, Default)]
struct State {
    /// By repository and digest.
    blobs: HashMap<(String, String), Vec<u8>>,
    /// By repository and tag or digest.
    manifests: HashMap<(String, String), (Vec<u8>, String)>,
    uploads: HashMap<String, Vec<u8>>,
    /// With the uses that are left.
    tokens: HashMap<String, u32>,
    stumbled: HashSet<String>,
    uploaded: usize,
    released: bool,
    waited_in_vain: bool,
    count: u64,
    seen: Vec<Seen>,
}

/// A registry on a port of this machine, until the end of the process.
#[derive(Clone, Debug)]
pub struct Server {
    address: SocketAddr,
    behaviour: Arc<Behaviour>,
    state: Arc<Mutex<State>>,
    tls: Option<Arc<ServerConfig>>,
}

/// How long [`Behaviour::holds`] holds a blob at most.
const LONGEST_HOLD: Duration = Duration::from_secs(30);

impl Server {
    /// # Panics
    /// When there is no free port.
    pub fn start(behaviour: Behaviour) -> Self {
        Self::listen(behaviour, Arc::default(), None)
    }

    /// With TLS.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn start_tls(behaviour: Behaviour, tls: Arc<ServerConfig>) -> Self {
        Self::listen(behaviour, Arc::default(), Some(tls))
    }

    /// Another server that has the same blobs.
    ///
    /// # Panics
    /// When there is no free port.
    #[must_use]
    pub fn beside(&self, behaviour: Behaviour) -> Self {
        Self::listen(behaviour, Arc::clone(&self.state), None)
    }

    fn listen(
        behaviour: Behaviour,
        state: Arc<Mutex<State>>,
        tls: Option<Arc<ServerConfig>>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let server = Self {
            address: listener.local_addr().expect("it has an address"),
            behaviour: Arc::new(behaviour),
            state,
            tls,
        };
        let accepting = server.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = accepting.clone();
                // Who hangs up does so on purpose.
                thread::spawn(move || server.accept(stream));
            }
        });
        server
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// An image in it, as esgz names it.
    pub fn reference(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.address)
    }

    /// Puts all blobs of a layout into `repository`, and its image under `tag`.
    ///
    /// # Panics
    /// When the layout cannot be read.
    pub fn put_layout(&self, layout: &Layout, repository: &str, tag: &str) {
        let mut state = self.state();
        let dir = layout.dir.join("blobs/sha256");
        for entry in std::fs::read_dir(dir)
            .expect("a layout has blobs")
            .flatten()
        {
            let bytes = std::fs::read(entry.path()).expect("a blob can be read");
            let digest = digest(&bytes);
            let json: Option<Value> = serde_json::from_slice(&bytes).ok();
            let media_type = json.and_then(|json| json["mediaType"].as_str().map(str::to_owned));
            match media_type {
                Some(media_type) => {
                    let manifest = (bytes, media_type);
                    if digest == layout.manifest_digest() {
                        let tagged = (repository.to_owned(), tag.to_owned());
                        state.manifests.insert(tagged, manifest.clone());
                    }
                    state
                        .manifests
                        .insert((repository.to_owned(), digest), manifest);
                }
                None => {
                    state.blobs.insert((repository.to_owned(), digest), bytes);
                }
            }
        }
    }

    /// The digest of what a tag means.
    pub fn tag(&self, repository: &str, tag: &str) -> Option<String> {
        let state = self.state();
        let found = state
            .manifests
            .get(&(repository.to_owned(), tag.to_owned()));
        found.map(|(bytes, _)| digest(bytes))
    }

    /// The blobs and manifests that the tag's manifest needs and that are not there, or `tag` itself.
    pub fn missing(&self, repository: &str, tag: &str) -> Vec<String> {
        let state = self.state();
        let mut missing = Vec::new();
        let mut open = vec![tag.to_owned()];
        while let Some(reference) = open.pop() {
            let found = state
                .manifests
                .get(&(repository.to_owned(), reference.clone()));
            let Some((bytes, _)) = found else {
                missing.push(reference);
                continue;
            };
            let json: Value = serde_json::from_slice(bytes).unwrap_or_default();
            let listed = json["manifests"].as_array().into_iter().flatten();
            open.extend(listed.filter_map(|entry| entry["digest"].as_str().map(str::to_owned)));
            let layers = json["layers"].as_array().into_iter().flatten();
            for blob in layers.chain(json.get("config")) {
                let digest = blob["digest"].as_str().unwrap_or_default().to_owned();
                if !state
                    .blobs
                    .contains_key(&(repository.to_owned(), digest.clone()))
                {
                    missing.push(digest);
                }
            }
        }
        missing
    }

    /// The bytes under a tag or digest.
    pub fn manifest_bytes(&self, repository: &str, reference: &str) -> Option<Vec<u8>> {
        let key = (repository.to_owned(), reference.to_owned());
        let state = self.state();
        state.manifests.get(&key).map(|(bytes, _)| bytes.clone())
    }

    /// Puts a manifest under its digest and under `tag`; gives the digest.
    pub fn put_manifest(&self, repository: &str, tag: &str, manifest: &Value) -> String {
        let bytes = manifest.to_string().into_bytes();
        let digest = digest(&bytes);
        let media_type = manifest["mediaType"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let mut state = self.state();
        for reference in [&digest, tag] {
            let key = (repository.to_owned(), reference.to_owned());
            state
                .manifests
                .insert(key, (bytes.clone(), media_type.clone()));
        }
        digest
    }

    /// Puts a blob there; gives its digest.
    pub fn put_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        let key = (repository.to_owned(), digest.clone());
        self.state().blobs.insert(key, bytes.to_vec());
        digest
    }

    /// Uploads that were neither finished nor given up.
    pub fn open_uploads(&self) -> usize {
        self.state().uploads.len()
    }

    /// Sends what it holds.
    pub fn release(&self) {
        self.state().released = true;
    }

    /// Whether a blob was held, and nothing else was uploaded meanwhile.
    pub fn waited_in_vain(&self) -> bool {
        self.state().waited_in_vain
    }

    /// Other bytes are sent for this digest from now on.
    pub fn change_blob(&self, repository: &str, digest: &str, bytes: &[u8]) {
        let key = (repository.to_owned(), digest.to_owned());
        self.state().blobs.insert(key, bytes.to_vec());
    }

    /// Removes a blob.
    pub fn remove(&self, repository: &str, digest: &str) {
        let key = (repository.to_owned(), digest.to_owned());
        self.state().blobs.remove(&key);
    }

    /// All requests so far, to all servers that have the same blobs.
    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        match &self.tls {
            None => self.serve(stream),
            Some(tls) => {
                let session = ServerConnection::new(Arc::clone(tls)).map_err(io::Error::other)?;
                self.serve(StreamOwned::new(session, stream))
            }
        }
    }

    fn serve(&self, stream: impl io::Read + io::Write) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        while let Some(request) = Request::read(&mut reader)? {
            let (body, whole) = request.body(&mut reader);
            let answer = self.answer(&request, &body, whole.is_ok());
            self.state().seen.push(Seen {
                address: self.address,
                method: request.method.clone(),
                path: request.path.clone(),
                query: request.query.clone(),
                authorization: request.header("authorization").map(str::to_owned),
                range: request.header("range").map(str::to_owned),
                status: answer.status,
            });
            whole?;
            let is_blob = request.method == "GET" && request.path.contains("/blobs/sha256");
            let pause = self.behaviour.pause.filter(|_| is_blob);
            let stream = reader.get_mut();
            match &self.behaviour.holds {
                Some(digest) if is_blob && request.path.ends_with(digest) => {
                    answer.write_halves(stream, || self.wait_for_upload())?;
                }
                _ => answer.write(stream, request.method == "HEAD", pause)?,
            }
        }
        Ok(())
    }

    fn wait_for_upload(&self) {
        let until = Instant::now() + LONGEST_HOLD;
        while self.state().uploaded == 0 && !self.state().released {
            if Instant::now() > until {
                self.state().waited_in_vain = true;
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn answer(&self, request: &Request, body: &[u8], is_whole: bool) -> Answer {
        if request.path == "/token" {
            return self.token(request, body);
        }
        let Some(path) = request.path.strip_prefix("/v2/") else {
            return Answer::new(404);
        };
        if let Err(refusal) = self.admit(request) {
            return refusal;
        }
        if let Some((status, retry_after)) = self.behaviour.stumbles {
            let what = format!("{} {}", request.method, request.path);
            if self.state().stumbled.insert(what) {
                let message = json!({"errors": [{"code": "BUSY", "message": "later"}]});
                return Answer::new(status)
                    .header("Retry-After", retry_after)
                    .body(message.to_string());
            }
        }
        if let Some(repository) = path.strip_suffix("/tags/list") {
            return self.tags(repository);
        }
        for kind in ["/manifests/", "/blobs/uploads/", "/blobs/", "/referrers/"] {
            if let Some((repository, name)) = path.rsplit_once(kind) {
                return match kind {
                    "/manifests/" => self.manifest(request, repository, name, body),
                    "/referrers/" => self.referrers(request, repository, name),
                    "/blobs/" => self.blob(request, repository, name),
                    _ => self.upload(request, repository, name, body, is_whole),
                };
            }
        }
        Answer::new(404)
    }

    fn token(&self, request: &Request, body: &[u8]) -> Answer {
        let form = String::from_utf8_lossy(body);
        let (query, uses) = match &self.behaviour.access {
            Access::Token {
                authorization,
                uses,
            } => {
                if request.header("authorization") != authorization.as_deref() {
                    return Answer::new(401).header("WWW-Authenticate", "Basic realm=\"token\"");
                }
                (request.query.as_str(), *uses)
            }
            Access::Refresh(token) => {
                let grant = parameters(&form, "grant_type");
                let is_form = request.method == "POST" && grant == ["refresh_token"];
                if !is_form || parameters(&form, "refresh_token") != [token.as_str()] {
                    return Answer::new(401);
                }
                (&*form, u32::MAX)
            }
            Access::Open | Access::Basic(_) => return Answer::new(404),
        };
        if parameters(query, "scope").is_empty() || parameters(query, "service") != ["tests"] {
            return Answer::new(400);
        }
        let mut state = self.state();
        state.count += 1;
        let token = format!("token-number-{}-is-secret", state.count);
        state.tokens.insert(token.clone(), uses);
        Answer::new(200).body(json!({"token": token, "expires_in": 300}).to_string())
    }

    fn admit(&self, request: &Request) -> Result<(), Answer> {
        let header = request.header("authorization");
        match &self.behaviour.access {
            Access::Open => Ok(()),
            Access::Basic(wanted) if header == Some(wanted) => Ok(()),
            Access::Basic(_) => {
                Err(Answer::new(401).header("WWW-Authenticate", "Basic realm=\"tests\""))
            }
            Access::Token { .. } | Access::Refresh(_) => {
                let token = header.and_then(|header| header.strip_prefix("Bearer "));
                let mut state = self.state();
                let left = token.and_then(|token| state.tokens.get_mut(token));
                match left.filter(|left| **left > 0) {
                    Some(left) => {
                        *left -= 1;
                        Ok(())
                    }
                    None => {
                        let realm = format!("http://{}/token", self.address);
                        let challenge = format!("Bearer realm=\"{realm}\",service=\"tests\"");
                        Err(Answer::new(401).header("WWW-Authenticate", challenge))
                    }
                }
            }
        }
    }

    fn tags(&self, repository: &str) -> Answer {
        let state = self.state();
        let of_repository = state.manifests.keys().filter(|(at, _)| at == repository);
        let names = of_repository.map(|(_, name)| name);
        let tags: Vec<&String> = names.filter(|name| !name.contains(':')).collect();
        let is_known = !tags.is_empty() || state.blobs.keys().any(|(at, _)| at == repository);
        if !is_known {
            return Answer::new(404);
        }
        Answer::new(200).body(json!({"name": repository, "tags": tags}).to_string())
    }

    fn blob(&self, request: &Request, repository: &str, name: &str) -> Answer {
        let key = (repository.to_owned(), name.to_owned());
        let Some(mut bytes) = self.state().blobs.get(&key).cloned() else {
            return Answer::new(404);
        };
        if let Some(Redirect { to, query }) = &self.behaviour.redirect {
            let location = format!("{to}{}?{query}", request.path);
            return Answer::new(307).header("Location", location);
        }
        if self.behaviour.changes_blobs
            && let Some(last) = bytes.last_mut()
        {
            *last ^= 1;
        }
        let range = request
            .header("range")
            .and_then(|range| range.strip_prefix("bytes="));
        let range = range.filter(|_| !self.behaviour.ignores_ranges);
        let Some((first, last)) = range.and_then(|range| range.split_once('-')) else {
            return Answer::new(200).body(bytes);
        };
        let end = last.parse::<usize>().map_or(bytes.len(), |last| last + 1);
        match first.parse::<usize>() {
            Ok(first) if first < end && end <= bytes.len() => {
                let range = format!("bytes {first}-{}/{}", end - 1, bytes.len());
                // As registries do; the snapshotter insists on it.
                Answer::new(206)
                    .header("Content-Type", "application/octet-stream")
                    .header("Content-Range", range)
                    .body(&bytes[first..end])
            }
            _ => Answer::new(416),
        }
    }

    fn upload(
        &self,
        request: &Request,
        repository: &str,
        name: &str,
        body: &[u8],
        is_whole: bool,
    ) -> Answer {
        let mut guard = self.state();
        let state = &mut *guard;
        if request.method == "POST" {
            let (mount, from) = (request.parameters("mount"), request.parameters("from"));
            if let ([digest], [from]) = (mount.as_slice(), from.as_slice())
                && let Some(blob) = state.blobs.get(&(from.clone(), digest.clone())).cloned()
            {
                state
                    .blobs
                    .insert((repository.to_owned(), digest.clone()), blob);
                return Answer::new(201);
            }
            state.count += 1;
            let name = format!("upload-{}", state.count);
            state.uploads.insert(name.clone(), Vec::new());
            let host = self.behaviour.uploads_to.as_deref().unwrap_or_default();
            let location =
                format!("{host}/v2/{repository}/blobs/uploads/{name}?state=very-private");
            return Answer::new(202).header("Location", location);
        }
        let Some(there) = state.uploads.get_mut(name) else {
            return Answer::new(404);
        };
        let range = |there: &[u8]| format!("0-{}", there.len().max(1) - 1);
        match request.method.as_str() {
            "GET" => Answer::new(204).header("Range", range(there)),
            "DELETE" => {
                state.uploads.remove(name);
                Answer::new(204)
            }
            "PATCH" if self.behaviour.refuses_chunks.is_some() => {
                Answer::new(self.behaviour.refuses_chunks.unwrap_or(405))
            }
            "PATCH" => {
                let first = request
                    .header("content-range")
                    .and_then(|range| range.split_once('-'));
                let first = first.and_then(|(first, _)| first.parse().ok());
                if first != Some(there.len()) {
                    return Answer::new(416);
                }
                there.extend_from_slice(body);
                Answer::new(202).header("Range", range(there))
            }
            "PUT" if !is_whole => {
                there.extend_from_slice(body);
                Answer::new(400)
            }
            "PUT" => {
                there.extend_from_slice(body);
                let found = digest(there);
                if request.parameters("digest") != [found.clone()] {
                    return Answer::new(400);
                }
                state.uploaded += 1;
                let bytes = state.uploads.remove(name).unwrap_or_default();
                state.blobs.insert((repository.to_owned(), found), bytes);
                Answer::new(201)
            }
            _ => Answer::new(405),
        }
    }
}
