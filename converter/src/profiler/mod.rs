//! Watches with eBPF which bytes of which files a cgroup's tasks touch.
