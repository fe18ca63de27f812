//! One image on its way through `esgz`, in a directory of its own.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::esgz::{Esgz, Finished};
use crate::layout::{Layout, LayoutBuilder};
use crate::residue::residue;

/// A source image, and room for outputs and scratch files.
#[derive(Debug)]
pub struct Conversion {
    dir: TempDir,
    /// The source image.
    pub source: Layout,
}

impl Conversion {
    /// Writes the source image.
    ///
    /// # Panics
    /// When the temporary directory cannot be written.
    pub fn of(image: &LayoutBuilder) -> Self {
        // Built now: what a test measures is not to hold that.
        crate::esgz::binary();
        // Not /tmp, which may be a tmpfs: the kernel reports no page of a file there.
        let dir = tempfile::tempdir_in("/var/tmp").expect("a temporary directory can be made");
        let source = image.write(&dir.path().join("source"));
        fs::create_dir(dir.path().join("scratch")).expect("the temporary directory is writable");
        Self { dir, source }
    }

    /// A path in the temporary directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The layout called `name` as a destination, tagged `esgz`.
    pub fn output(&self, name: &str) -> Layout {
        Layout {
            dir: self.path(name),
            tag: Some("esgz".to_owned()),
        }
    }

    /// `esgz convert` from the source to the output `name`, to be given more arguments.
    pub fn command(&self, name: &str) -> Esgz {
        self.esgz("convert").arg(self.output(name).reference())
    }

    /// `esgz optimize` from the source to the output `name`, to be given more arguments.
    pub fn optimize(&self, name: &str) -> Esgz {
        self.esgz("optimize").arg(self.output(name).reference())
    }

    /// `esgz record` of the source into the file `name`, to be given more arguments.
    pub fn record_run(&self, name: &str) -> Esgz {
        self.esgz("record").arg("--output").arg(self.path(name))
    }

    fn esgz(&self, subcommand: &str) -> Esgz {
        Esgz::new(subcommand)
            .arg("--scratch")
            .arg(self.path("scratch"))
            .arg(self.source.reference())
    }

    /// The JSON document in the file `name`.
    ///
    /// # Panics
    /// When there is none.
    pub fn json(&self, name: &str) -> Value {
        let bytes = fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Converts the source into the output `name`.
    ///
    /// # Errors
    /// When it fails, or leaves something in the scratch directory.
    pub fn convert(&self, name: &str, args: &[&str]) -> Result<Layout, String> {
        self.finish(self.command(name).args(args).run().success()?)?;
        Ok(self.output(name))
    }

    /// The call's result, unless it left something behind.
    ///
    /// # Errors
    /// When it did.
    pub fn finish(&self, finished: Finished) -> Result<Finished, String> {
        let left = residue(finished.pid, &self.path("scratch"));
        if left.is_empty() {
            Ok(finished)
        } else {
            Err(format!("{}: left {left:?}", finished.command))
        }
    }

    /// Writes a record (one object a line: path, manifestDigest, layerIndex) of `paths`, first touch
    /// first, and returns its file.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn record(&self, paths: &[(usize, &str)]) -> PathBuf {
        let manifest = self.source.manifest_digest();
        let line = |(layer, path): &(usize, &str)| {
            let line: Value =
                json!({"path": path, "manifestDigest": manifest, "layerIndex": layer});
            format!("{line}\n")
        };
        let file = self.path("record.json");
        fs::write(&file, paths.iter().map(line).collect::<String>()).expect("it is writable");
        file
    }
}

/// The names in a directory, sorted; none when there is no such directory.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
