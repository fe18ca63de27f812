//! The container's /etc/hosts and /etc/resolv.conf, as ctr-remote gives them. Pure.

/// Contents of /etc/hosts.
pub(super) const HOSTS: &str = "127.0.0.1\tlocalhost\n\
::1\tlocalhost ip6-localhost ip6-loopback\n\
fe00::0\tip6-localnet\n\
ff00::0\tip6-mcastprefix\n\
ff02::1\tip6-allnodes\n\
ff02::2\tip6-allrouters\n";

/// Contents of /etc/resolv.conf.
pub(super) const RESOLV_CONF: &str = "nameserver 8.8.8.8\n";
