//! A registry in memory (OCI distribution specification), which misbehaves as a test wants it to, and a
//! proxy that cuts connections.

mod http;
mod proxy;
mod server;
mod tls;

pub use proxy::{CuttingProxy, Direction};
pub use server::{Access, Behaviour, Redirect, Seen, Server};
pub use tls::Certificates;
