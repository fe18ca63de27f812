//! The profile: what a workload touched, in order.
