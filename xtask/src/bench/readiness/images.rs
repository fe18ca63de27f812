//! What is started: images of Debian's packages, as people ship them, and what is given.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::layout::{LayerWriter, finish_image};
use crate::shell::target_dir;
use crate::{corpus, prerequisites};

/// When an image's container has done what is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// Its command has ended, with success.
    Exit,
    /// It has answered its first request on this port.
    Http(u16),
}

impl Ready {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Http(_) => "first HTTP answer",
        }
    }
}

/// An image and how it is known to be ready.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Image {
    pub(super) name: String,
    pub(super) ready: Ready,
    content: Content,
}

#[derive(Clone, Debug, PartialEq)]
enum Content {
    /// A row of [`MADE`].
    Made(&'static Made),
    /// Of `cargo xtask corpus`.
    Corpus(&'static str),
    /// A layout that is there.
    Given { layout: PathBuf, tag: String },
}

/// An image of Debian packages and files of its own.
#[derive(Debug, PartialEq)]
struct Made {
    name: &'static str,
    packages: &'static [&'static str],
    files: &'static [(&'static str, &'static str)],
    env: &'static [&'static str],
    entrypoint: &'static [&'static str],
    ready: Ready,
}

const MADE: [Made; 5] = [
    Made {
        name: "jvm",
        packages: &["openjdk-17-jre-headless", "tomcat10"],
        files: &[],
        env: &[
            "CATALINA_HOME=/usr/share/tomcat10",
            "CATALINA_BASE=/var/lib/tomcat10",
            "CATALINA_TMPDIR=/tmp",
        ],
        entrypoint: &["/usr/share/tomcat10/bin/catalina.sh", "run"],
        ready: Ready::Http(8080),
    },
    Made {
        name: "node",
        packages: &["nodejs", "node-express"],
        files: &[(
            "app/server.js",
            "const app = require('express')();\n\
             app.get('/', (request, response) => response.json({ready: true}));\n\
             app.listen(8080);\n",
        )],
        env: &["NODE_PATH=/usr/share/nodejs", "NODE_ENV=production"],
        entrypoint: &["node", "/app/server.js"],
        ready: Ready::Http(8080),
    },
    Made {
        name: "nginx",
        packages: &["nginx-light"],
        files: &[],
        env: &[],
        entrypoint: &["nginx", "-g", "daemon off;"],
        ready: Ready::Http(80),
    },
    Made {
        name: "python",
        packages: &["python3-flask", "python3-sqlalchemy", "gunicorn"],
        files: &[(
            "app/app.py",
            "from flask import Flask, jsonify\n\
             from sqlalchemy import create_engine, text\n\
             app = Flask(__name__)\n\
             engine = create_engine('sqlite://')\n\
             @app.route('/')\n\
             def index():\n    \
                 with engine.connect() as connection:\n        \
                     return jsonify(ready=connection.execute(text('select 1')).scalar())\n",
        )],
        env: &["PYTHONDONTWRITEBYTECODE=1"],
        entrypoint: &["gunicorn", "--chdir=/app", "--bind=0.0.0.0:8080", "app:app"],
        ready: Ready::Http(8080),
    },
    Made {
        name: "gcc",
        packages: &["gcc", "libc6-dev"],
        files: &[(
            "src/main.c",
            "#include <math.h>\n#include <pthread.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n\
             #include <sys/socket.h>\nint main(void) { puts(strerror((int) sqrt(4))); return 0; }\n",
        )],
        env: &[],
        entrypoint: &[
            "sh",
            "-c",
            "gcc -O2 -g /src/main.c -o /tmp/main -lm && /tmp/main",
        ],
        ready: Ready::Exit,
    },
];

impl Image {
    /// The set, the large one last.
    pub(super) fn all() -> Vec<Self> {
        let mut all: Vec<Self> = MADE.iter().map(Self::made).collect();
        all.push(Self {
            name: "torch".to_owned(),
            ready: Ready::Exit,
            content: Content::Corpus("torch"),
        });
        all
    }

    fn made(made: &'static Made) -> Self {
        Self {
            name: made.name.to_owned(),
            ready: made.ready,
            content: Content::Made(made),
        }
    }

    /// One of the set.
    pub(super) fn named(name: &str) -> Result<Self> {
        let all = Self::all();
        let names: Vec<String> = all.iter().map(|image| image.name.clone()).collect();
        let found = all.into_iter().find(|image| image.name == name);
        found.with_context(|| format!("no image {name:?}; there are: {}", names.join(", ")))
    }

    /// `NAME=oci:DIR[:TAG]`: its own command, to its end.
    pub(super) fn given(text: &str) -> Result<Self> {
        let usage = || format!("{text:?} is not NAME=oci:DIR[:TAG]");
        let (name, reference) = text.split_once('=').with_context(usage)?;
        let path = reference.strip_prefix("oci:").with_context(usage)?;
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        ensure!(!name.is_empty() && name.chars().all(is_plain), usage());
        let (layout, tag) = match path.rsplit_once(':') {
            Some((layout, tag)) if !tag.contains('/') => (layout, tag),
            _ => (path, "latest"),
        };
        Ok(Self {
            name: name.to_owned(),
            ready: Ready::Exit,
            content: Content::Given {
                layout: layout.into(),
                tag: tag.to_owned(),
            },
        })
    }

    /// Its layout, which is made unless it is there, and its tag.
    pub(super) fn layout(&self) -> Result<(PathBuf, String)> {
        let (layout, tag) = match &self.content {
            Content::Made(made) => (make(made)?, "latest".to_owned()),
            Content::Corpus(name) => {
                corpus::run(&[(*name).to_owned()])?;
                let layout = target_dir().join("corpus").join(name).join("layout");
                (layout, "latest".to_owned())
            }
            Content::Given { layout, tag } => (layout.clone(), tag.clone()),
        };
        ensure!(
            layout.join("index.json").exists(),
            "{} is no image layout",
            layout.display()
        );
        Ok((layout, tag))
    }
}

/// Makes an image in `target/bench/readiness/images/NAME/source`. What it was made of stands beside it: a changed row
/// is made anew.
fn make(made: &Made) -> Result<PathBuf> {
    let dir = target_dir().join("bench/readiness/images").join(made.name);
    let layout = dir.join("source");
    let recipe = dir.join("recipe");
    let wanted = format!("{made:?}\n");
    if layout.join("index.json").exists()
        && fs::read_to_string(&recipe).is_ok_and(|it| it == wanted)
    {
        return Ok(layout);
    }
    prerequisites::install("debootstrap", "debootstrap")?;
    let base = corpus::base(&target_dir().join("corpus"))?;
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    let installed = corpus::upper(&dir, "installed", &[&base], |root| {
        corpus::install_debian(root, made.packages)?;
        for (name, text) in made.files {
            let path = root.join(name);
            let parent = path.parent().context("a file has a directory")?;
            fs::create_dir_all(parent)?;
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    })?;
    let mut layers = Vec::new();
    for tree in [&base, &installed] {
        println!("compressing {}", tree.display());
        let mut layer = LayerWriter::create(&layout)?;
        layer.tree(tree, Path::new(""), &|_| false)?;
        layers.push(layer.finish()?);
    }
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let env: Vec<&str> = [path, "LANG=C.UTF-8"]
        .into_iter()
        .chain(made.env.iter().copied())
        .collect();
    let config = json!({"Env": env, "Entrypoint": made.entrypoint, "WorkingDir": "/"});
    finish_image(&layout, &layers, &config)?;
    // Only the layout is used from here on.
    fs::remove_dir_all(dir.join("installed"))?;
    fs::write(&recipe, wanted).with_context(|| format!("cannot write {}", recipe.display()))?;
    Ok(layout)
}

/// The bytes of an image's configuration and layers, as its layout has them.
pub(super) fn image_bytes(layout: &Path) -> Result<u64> {
    let mut document = read_json(&layout.join("index.json"))?;
    // An index within an index may list this image for one platform.
    for _ in 0..4 {
        if let Some(layers) = document["layers"].as_array() {
            let blobs = layers.iter().chain([&document["config"]]);
            return Ok(blobs.filter_map(|blob| blob["size"].as_u64()).sum());
        }
        let digest = document["manifests"][0]["digest"].as_str();
        let hex = digest
            .and_then(|digest| digest.strip_prefix("sha256:"))
            .with_context(|| format!("{} names no image", layout.display()))?;
        document = read_json(&layout.join("blobs/sha256").join(hex))?;
    }
    bail!("{} names no image", layout.display())
}

fn read_json(path: &Path) -> Result<Value> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_images_are_understood() {
        let image = Image::given("mine=oci:/a/b:c").unwrap();
        assert_eq!(
            image.content,
            Content::Given {
                layout: "/a/b".into(),
                tag: "c".to_owned()
            }
        );
        assert_eq!(
            image.layout().unwrap_err().to_string(),
            "/a/b is no image layout"
        );
        assert!(
            Image::given("mine=oci:/a:1/b").unwrap().content
                == Content::Given {
                    layout: "/a:1/b".into(),
                    tag: "latest".to_owned()
                }
        );
        for bad in ["mine", "mine=/a", "=oci:/a", "My=oci:/a", "a/b=oci:/a"] {
            assert!(Image::given(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_set_has_different_names() {
        let all = Image::all();
        for image in &all {
            assert_eq!(Image::named(&image.name).unwrap(), *image);
        }
        let error = Image::named("perl").unwrap_err().to_string();
        assert!(
            error.contains("jvm, node, nginx, python, gcc, torch"),
            "{error}"
        );
    }
}
