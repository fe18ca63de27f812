//! The runtime's side of the Container Network Interface (specification 1.0.0, of which 0.3 and 0.4 are
//! subsets here): network configurations, and their plugins' ADD and DEL.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::cancel::Cancelled;
use crate::runtime::RuntimeError;
use crate::runtime::cgroup::ProgramCgroup;
use crate::runtime::options::CniOptions;
use crate::runtime::step::{self, End, Limit};

/// The file in which a run keeps what DEL needs.
const ATTACHED: &str = "cni.json";

/// A network: its plugins in the order of ADD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Configuration {
    name: String,
    version: String,
    plugins: Vec<Map<String, Value>>,
}

/// The network that brings the loopback interface up.
pub(super) fn loopback() -> Configuration {
    let plugin = json!({ "type": "loopback" });
    Configuration {
        name: "cni-loopback".to_owned(),
        version: "0.3.1".to_owned(),
        plugins: plugin.as_object().cloned().into_iter().collect(),
    }
}

/// The first configuration in `directory`, by file name, as containerd chooses its default network.
pub(super) fn first_configuration(directory: &Path) -> Result<Configuration, RuntimeError> {
    let is_configuration = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("conf" | "conflist" | "json"))
    };
    let entries = fs::read_dir(directory).map_err(|source| {
        RuntimeError::io("reading the CNI configurations in", directory, source)
    })?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(is_configuration)
        .collect();
    files.sort();
    let first = files.first().ok_or_else(|| {
        let none = io::Error::other("there is none");
        RuntimeError::io("reading the CNI configurations in", directory, none)
    })?;
    let text = fs::read(first).map_err(|source| RuntimeError::io("reading", first, source))?;
    parse(&text).map_err(|reason| {
        RuntimeError::io(
            "reading the CNI configuration",
            first,
            io::Error::other(reason),
        )
    })
}

/// A list of plugins, or the older form of a single one.
fn parse(text: &[u8]) -> Result<Configuration, String> {
    let document: Map<String, Value> =
        serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let text_of = |key: &str| document.get(key).and_then(Value::as_str).map(str::to_owned);
    let name = text_of("name").filter(|name| !name.is_empty());
    let name = name.ok_or("it has no name")?;
    let version = text_of("cniVersion").unwrap_or_else(|| "0.1.0".to_owned());
    let plugins = match document.get("plugins") {
        Some(Value::Array(plugins)) => {
            let objects = plugins.iter().map(|plugin| plugin.as_object().cloned());
            objects
                .collect::<Option<Vec<_>>>()
                .ok_or("a plugin is no object")?
        }
        Some(_) => return Err("its plugins are no list".to_owned()),
        None => vec![document.clone()],
    };
    if plugins.is_empty() {
        return Err("it has no plugins".to_owned());
    }
    for plugin in &plugins {
        // The type is the program's name, not a path.
        let kind = plugin
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if kind.is_empty() || kind.contains('/') || kind.starts_with('.') {
            return Err(format!("a plugin's type is \"{kind}\""));
        }
    }
    Ok(Configuration {
        name,
        version,
        plugins,
    })
}

impl Configuration {
    /// What a plugin reads on stdin (specification, "Deriving execution configuration from plugin
    /// configuration"). No capability is provided, so `runtimeConfig` is left out.
    fn for_plugin(&self, plugin: &Map<String, Value>, previous: Option<&Value>) -> Value {
        let mut derived = plugin.clone();
        derived.shift_remove("capabilities");
        derived.insert("cniVersion".to_owned(), json!(self.version));
        derived.insert("name".to_owned(), json!(self.name));
        if let Some(previous) = previous {
            derived.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(derived)
    }

    /// DEL gets the result of ADD since 0.4.0.
    fn deletes_with_result(&self) -> bool {
        let mut numbers = self
            .version
            .split('.')
            .map(|part| part.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (0, 4)
    }
}

/// How plugins are called.
#[derive(Clone, Copy, Debug)]
pub(super) struct Called<'a> {
    /// The run's directory of state, for what plugins read and write.
    pub(super) state: &'a Path,
    /// Where they run.
    pub(super) cgroup: &'a ProgramCgroup,
    /// How long one may take.
    pub(super) limit: Limit<'a>,
}

/// The connections of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Attached {
    container: String,
    namespace: PathBuf,
    plugin_dirs: Vec<PathBuf>,
    attachments: Vec<Attachment>,
}

/// One interface of a container. Its plugins may have been called, or not yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Attachment {
    configuration: Configuration,
    interface: String,
    /// What the last plugin's ADD said.
    result: Option<Value>,
}

impl Attached {
    pub(super) fn new(options: &CniOptions, container: &str, namespace: &Path) -> Self {
        Self {
            container: container.to_owned(),
            namespace: namespace.to_owned(),
            plugin_dirs: options.plugin_dirs.clone(),
            attachments: Vec::new(),
        }
    }

    /// What was written last in the directory `state`, if anything.
    pub(super) fn read(state: &Path) -> Result<Option<Self>, RuntimeError> {
        let path = state.join(ATTACHED);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| RuntimeError::io("reading", &path, io::Error::from(error))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(RuntimeError::io("reading", &path, source)),
        }
    }

    /// Keeps it in the directory `state`; the file is the old or the new one, whole.
    pub(super) fn write(&self, state: &Path) -> Result<(), RuntimeError> {
        let (path, new) = (state.join(ATTACHED), state.join("cni.json.new"));
        let json = serde_json::to_vec(self).expect("JSON values are JSON");
        fs::write(&new, json)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|source| RuntimeError::io("writing", &path, source))
    }

    pub(super) fn plan(&mut self, configuration: Configuration, interface: &str) {
        self.attachments.push(Attachment {
            configuration,
            interface: interface.to_owned(),
            result: None,
        });
    }

    /// Runs ADD of every plugin of the last attachment.
    pub(super) fn add_last(&mut self, called: &Called<'_>) -> Result<(), RuntimeError> {
        let Some(last) = self.attachments.last() else {
            return Ok(());
        };
        let mut result = None;
        for plugin in &last.configuration.plugins {
            let said = self.call("ADD", last, plugin, result.as_ref(), called)?;
            result = Some(said);
        }
        if let Some(last) = self.attachments.last_mut() {
            last.result = result;
        }
        Ok(())
    }

    /// Runs DEL of every plugin, in the opposite order. Also those whose ADD failed, or was not reached.
    ///
    /// # Errors
    /// The first failure; the others are called nevertheless.
    pub(super) fn delete_all(&self, called: &Called<'_>) -> Result<(), RuntimeError> {
        let mut result = Ok(());
        for attachment in self.attachments.iter().rev() {
            let configuration = &attachment.configuration;
            let previous = attachment
                .result
                .as_ref()
                .filter(|_| configuration.deletes_with_result());
            for plugin in configuration.plugins.iter().rev() {
                let deleted = self.call("DEL", attachment, plugin, previous, called);
                result = result.and(deleted.map(drop));
            }
        }
        result
    }

    /// Calls a plugin; returns what it says, null if that is nothing.
    fn call(
        &self,
        command: &'static str,
        attachment: &Attachment,
        plugin: &Map<String, Value>,
        previous: Option<&Value>,
        called: &Called<'_>,
    ) -> Result<Value, RuntimeError> {
        let kind = plugin
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let failed = |reason: String| RuntimeError::Network {
            plugin: kind.to_owned(),
            command,
            reason,
        };
        let io_failed = |error: io::Error| failed(error.to_string());
        let candidates = self
            .plugin_dirs
            .iter()
            .map(|directory| directory.join(kind));
        let program = { candidates }.find(|path| path.is_file()).ok_or_else(|| {
            let directories: Vec<_> = self
                .plugin_dirs
                .iter()
                .map(|d| d.display().to_string())
                .collect();
            failed(format!("it is not in {}", directories.join(", ")))
        })?;
        // Files, not pipes: a plugin may leave a process behind that keeps them.
        let [input, output, errors] =
            ["in", "out", "err"].map(|name| called.state.join(format!("cni.{name}")));
        let document = attachment.configuration.for_plugin(plugin, previous);
        fs::write(&input, document.to_string()).map_err(io_failed)?;
        let path = std::env::join_paths(&self.plugin_dirs).unwrap_or_else(|_| OsString::new());
        let mut process = Command::new(&program);
        process
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_NETNS", &self.namespace)
            .env("CNI_IFNAME", &attachment.interface)
            .env("CNI_PATH", path)
            .env_remove("CNI_ARGS")
            .stdin(File::open(&input).map_err(io_failed)?)
            .stdout(File::create(&output).map_err(io_failed)?)
            .stderr(File::create(&errors).map_or_else(|_| Stdio::null(), Stdio::from));
        crate::sys::process::begin_in_cgroup(&mut process, called.cgroup.procs()?);
        let end = step::run(&mut process, called.limit, |_| {}).map_err(io_failed)?;
        if !matches!(end, End::Exited(_)) {
            called.cgroup.kill_all();
        }
        let said: Option<Value> = fs::read(&output)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        match end {
            End::Exited(status) if status.success() => match said {
                None if command == "ADD" => {
                    Err(failed("its result is no JSON document".to_owned()))
                }
                said => Ok(said.unwrap_or(Value::Null)),
            },
            End::Exited(status) => {
                let text = |key: &str| said.as_ref()?.get(key)?.as_str().map(str::to_owned);
                let words = [text("msg"), text("details")];
                let words: Vec<String> = words
                    .into_iter()
                    .flatten()
                    .filter(|w| !w.is_empty())
                    .collect();
                if words.is_empty() {
                    let errors = fs::read_to_string(&errors).unwrap_or_default();
                    let last = errors.lines().last().unwrap_or_default();
                    return Err(failed(format!("{status} {last}").trim_end().to_owned()));
                }
                Err(failed(words.join(": ")))
            }
            End::Interrupted => Err(Cancelled.into()),
            End::TooLong => Err(failed("it did not end".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_lists_or_single_plugins() {
        let list = parse(
            br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge","x":1},{"type":"portmap","capabilities":{"portMappings":true}}]}"#,
        )
        .unwrap();
        assert_eq!((list.plugins.len(), list.deletes_with_result()), (2, true));
        let previous = json!({ "ips": [] });
        assert_eq!(
            list.for_plugin(&list.plugins[1], Some(&previous)),
            json!({"type": "portmap", "cniVersion": "1.0.0", "name": "n", "prevResult": {"ips": []}})
        );
        let single = parse(br#"{"name":"n","cniVersion":"0.3.1","type":"ptp"}"#).unwrap();
        assert_eq!(
            (single.plugins.len(), single.deletes_with_result()),
            (1, false)
        );
        for (broken, reason) in [
            ("[]", "invalid type"),
            (r#"{"plugins":[{"type":"a"}]}"#, "no name"),
            (r#"{"name":"n","plugins":[]}"#, "no plugins"),
            (r#"{"name":"n","plugins":[1]}"#, "no object"),
            (r#"{"name":"n","plugins":{}}"#, "no list"),
            (r#"{"name":"n"}"#, "type is \"\""),
            (r#"{"name":"n","type":"../x"}"#, "../x"),
        ] {
            let error = parse(broken.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{broken}: {error}");
        }
    }
}
