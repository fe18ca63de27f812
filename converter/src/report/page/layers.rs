//! What the start reads, of the image and of each layer.

use std::fmt::Write as _;

use super::Page;
use super::text::{Bytes, Count, Text, share};
use crate::report::usage::{FileUsage, LayerUsage};

/// Figures of a layer or of all.
#[derive(Clone, Copy, Default)]
struct Parts {
    file_bytes: u64,
    opened: u64,
    touched_files: u64,
    touched: u64,
    prefetched: u64,
    wasted: u64,
    missed: u64,
}

impl Parts {
    fn of<'a>(files: impl Iterator<Item = &'a FileUsage>, file_bytes: u64) -> Self {
        let mut parts = Self {
            file_bytes,
            ..Self::default()
        };
        for file in files {
            parts.opened += u64::from(file.first_touch_ms.is_some());
            parts.touched_files += u64::from(!file.touched.is_empty());
            parts.touched += file.touched_bytes();
            parts.prefetched += file.prefetched_bytes();
            parts.wasted += file.wasted_bytes();
            parts.missed += file.missed_bytes();
        }
        parts
    }

    fn track(self, whole: u64) -> String {
        let part = |class: &str, bytes: u64| {
            format!(
                "<i class=\"{class}\" style=\"width:{:.3}%\"></i>",
                share(bytes as f64, whole as f64)
            )
        };
        format!(
            "<span class=\"track\">{}{}{}</span>",
            part("touched", self.touched - self.missed),
            part("missed", self.missed),
            part("wasted", self.wasted),
        )
    }
}

pub(super) fn part(page: Page<'_>) -> String {
    let usage = page.usage;
    let file_bytes = usage.layers.iter().map(|layer| layer.file_bytes).sum();
    let all = Parts::of(usage.files.iter(), file_bytes);
    let mut html = format!(
        "<section>\n<h2>What does the start read?</h2>\n\
         <p class=\"soft\">Of {} in files, before compression.</p>\n\
         <div class=\"bars\" aria-hidden=\"true\">\n\
         <span class=\"label best\">the image</span>{}<span class=\"value\">{} read</span>\n",
        Bytes(file_bytes),
        all.track(file_bytes.max(all.touched + all.wasted)),
        Bytes(all.touched)
    );
    let parts: Vec<(&LayerUsage, Parts)> = (0..)
        .zip(&usage.layers)
        .map(|(number, layer)| (layer, Parts::of(usage.files_of(number), layer.file_bytes)))
        .collect();
    let largest =
        |(_, parts): &(&LayerUsage, Parts)| parts.file_bytes.max(parts.touched + parts.wasted);
    for (number, (layer, parts)) in parts.iter().enumerate() {
        let how = if layer.is_lazy { "" } else { ", pulled whole" };
        let _ = writeln!(
            html,
            "<span class=\"label\">layer {number}, {}{how}</span>{}<span class=\"value\">{} read</span>",
            Bytes(layer.file_bytes),
            parts.track(largest(&(*layer, *parts))),
            Bytes(parts.touched)
        );
    }
    html.push_str(
        "</div>\n<ul class=\"key\"><li><i class=\"touched\"></i>read, and prefetched</li>\
         <li><i class=\"missed\"></i>read, fetched when asked for</li>\
         <li><i class=\"wasted\"></i>prefetched, not read</li><li><i class=\"rest\"></i>neither</li></ul>\n",
    );
    html.push_str(&table(&parts, all));
    html.push_str("</section>\n");
    html
}

fn table(layers: &[(&LayerUsage, Parts)], all: Parts) -> String {
    let mut html = "<details open><summary>By layer</summary>\n\
        <p class=\"soft\">Bytes of files, uncompressed; blob and prefetch as they go through the link.</p>\n\
        <div class=\"scroll\"><table>\n<thead><tr>\
        <th scope=\"col\">layer</th><th scope=\"col\">blob</th><th scope=\"col\">files</th><th scope=\"col\">opened</th>\
        <th scope=\"col\">read</th><th scope=\"col\">bytes read</th><th scope=\"col\">prefetched</th>\
        <th scope=\"col\">not read of it</th><th scope=\"col\">missed</th><th scope=\"col\">prefetch</th></tr></thead>\n<tbody>\n"
        .to_owned();
    let mut row = |name: String, blob: u64, files: u64, prefetch: u64, parts: Parts| {
        let _ = writeln!(
            html,
            "<tr><th scope=\"row\">{name}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td>{}</td></tr>",
            Bytes(blob),
            Count(files),
            Count(parts.opened),
            Count(parts.touched_files),
            Bytes(parts.touched),
            Bytes(parts.prefetched),
            Bytes(parts.wasted),
            Bytes(parts.missed),
            Bytes(prefetch),
        );
    };
    for (number, (layer, parts)) in layers.iter().enumerate() {
        let digest = layer.digest.to_string();
        let name = format!("{number} <code>{}</code>", Text(&digest[..19]));
        row(
            name,
            layer.blob_bytes,
            layer.files,
            layer.prefetch_bytes,
            *parts,
        );
    }
    let sum =
        |figure: &dyn Fn(&LayerUsage) -> u64| layers.iter().map(|(layer, _)| figure(layer)).sum();
    row(
        "all".to_owned(),
        sum(&|layer| layer.blob_bytes),
        sum(&|layer| layer.files),
        sum(&|layer| layer.prefetch_bytes),
        all,
    );
    html.push_str("</tbody></table></div></details>\n");
    html
}
