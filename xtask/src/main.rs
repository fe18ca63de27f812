//! Workspace tasks: `cargo xtask bpf [--write]`.

mod bpf;

fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("bpf") => bpf::run(),
        other => anyhow::bail!("unknown task {}; known: bpf", other.unwrap_or("(none)")),
    }
}
