//! Runs the image's workload in a container made by an OCI runtime.
