//! The build of `containerd-client` compiles containerd's `.proto` files through the crate tonic-prost-build, which
//! wants the program `protoc`. esgz builds with Rust and a C compiler alone, so the workspace's `[patch]` puts this
//! crate in its place. It has just what containerd-client calls: `protox`, written in Rust, reads the files,
//! prost-build makes the messages, and tonic-build the clients.

use std::io;
use std::path::Path;

use proc_macro2::TokenStream;
use tonic_build::CodeGenBuilder;

pub use prost_build::Config;

/// How clients encode messages.
const CODEC: &str = "tonic_prost::ProstCodec";

/// Begins to say what is generated.
pub fn configure() -> Builder {
    Builder
}

/// What is generated: messages, and clients without a transport.
#[derive(Clone, Copy, Debug)]
pub struct Builder;

impl Builder {
    /// # Panics
    /// When servers are wanted.
    #[must_use]
    pub fn build_server(self, enable: bool) -> Self {
        assert!(!enable, "no servers are generated");
        self
    }

    /// Compiles `protos`, which lie below `includes`, and writes the code to the build's directory.
    ///
    /// # Errors
    /// When one of them cannot be read or is not valid, or the code cannot be written.
    pub fn compile_with_config<P: AsRef<Path>>(
        self,
        mut config: Config,
        protos: &[P],
        includes: &[P],
    ) -> io::Result<()> {
        let compiled = protox::compile(protos, includes).map_err(io::Error::other)?;
        config.type_attribute(".", "#[allow(clippy::all)]");
        config.service_generator(Box::new(Clients));
        config.compile_fds(compiled)
    }
}

/// Makes a client of each service.
struct Clients;

impl prost_build::ServiceGenerator for Clients {
    fn generate(&mut self, service: prost_build::Service, code: &mut String) {
        let methods = service.methods.iter().cloned().map(Method).collect();
        let service = Service { service, methods };
        let mut builder = CodeGenBuilder::new();
        builder.emit_package(true).build_transport(false);
        code.push_str(&builder.generate_client(&service, "super").to_string());
    }
}

struct Service {
    service: prost_build::Service,
    methods: Vec<Method>,
}

impl tonic_build::Service for Service {
    type Comment = String;
    type Method = Method;

    fn name(&self) -> &str {
        &self.service.name
    }

    fn package(&self) -> &str {
        &self.service.package
    }

    fn identifier(&self) -> &str {
        &self.service.proto_name
    }

    fn methods(&self) -> &[Method] {
        &self.methods
    }

    fn comment(&self) -> &[String] {
        &self.service.comments.leading
    }
}

struct Method(prost_build::Method);

impl tonic_build::Method for Method {
    type Comment = String;

    fn name(&self) -> &str {
        &self.0.name
    }

    fn identifier(&self) -> &str {
        &self.0.proto_name
    }

    fn codec_path(&self) -> &str {
        CODEC
    }

    fn client_streaming(&self) -> bool {
        self.0.client_streaming
    }

    fn server_streaming(&self) -> bool {
        self.0.server_streaming
    }

    fn comment(&self) -> &[String] {
        &self.0.comments.leading
    }

    fn deprecated(&self) -> bool {
        self.0.options.deprecated()
    }

    fn request_response_name(&self, above: &str, _: bool) -> (TokenStream, TokenStream) {
        (
            type_path(&self.0.input_type, above),
            type_path(&self.0.output_type, above),
        )
    }
}

/// A message's type, which prost names as its own module sees it, from the client's module below that.
fn type_path(name: &str, above: &str) -> TokenStream {
    let is_absolute = name == "()" || name.starts_with("::");
    let path = if is_absolute {
        name.to_owned()
    } else {
        format!("{above}::{name}")
    };
    path.parse().expect("prost names types of Rust's")
}
