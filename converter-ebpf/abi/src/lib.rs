//! Structures shared by the BPF programs and their loader.
#![no_std]
