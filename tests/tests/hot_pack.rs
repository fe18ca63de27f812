//! Hot packs (docs/hot-pack.md): what the reference's readers ask of them, and what conversions make.

mod hot_pack {
    mod conversions;
    mod eager;
    mod properties;
    mod rules;
}
