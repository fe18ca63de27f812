//! One image on its way through `esgz convert`, in a directory of its own.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::esgz::{Esgz, Finished};
use crate::layout::{Layout, LayoutBuilder};

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
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
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
        Esgz::new("convert")
            .arg("--scratch")
            .arg(self.path("scratch"))
            .args([self.source.reference(), self.output(name).reference()])
    }

    /// Converts the source into the output `name`.
    ///
    /// # Errors
    /// When it fails, or leaves something in the scratch directory.
    pub fn convert(&self, name: &str, args: &[&str]) -> Result<Layout, String> {
        self.finish(self.command(name).args(args).run().success()?)?;
        Ok(self.output(name))
    }

    /// The call's result, unless it left something in the scratch directory.
    ///
    /// # Errors
    /// When it did.
    pub fn finish(&self, finished: Finished) -> Result<Finished, String> {
        let left = names(&self.path("scratch"));
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
