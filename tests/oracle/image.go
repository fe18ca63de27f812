package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/opencontainers/go-digest"
)

const (
	tocDigestAnnotation = "containerd.io/snapshot/stargz/toc.digest"
	sizeAnnotation      = "io.containers.estargz.uncompressed-size"
	refNameAnnotation   = "org.opencontainers.image.ref.name"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      digest.Digest     `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations"`
}

type document struct {
	MediaType   string            `json:"mediaType"`
	Manifests   []descriptor      `json:"manifests"`
	Config      descriptor        `json:"config"`
	Layers      []descriptor      `json:"layers"`
	Annotations map[string]string `json:"annotations"`
}

type imageReport struct {
	Manifests []manifestReport `json:"manifests"`
}

type manifestReport struct {
	Digest    string        `json:"digest"`
	MediaType string        `json:"mediaType"`
	Layers    []layerReport `json:"layers"`
}

type layerReport struct {
	Digest    string        `json:"digest"`
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"size"`
	Verify    *verifyReport `json:"verify,omitempty"`
}

// A layout is an OCI image layout directory.
type layout struct {
	dir string
}

type imageChecker struct {
	output   layout
	source   *layout
	plain    bool
	shared   bool
	verified map[string]*verifyReport
	report   imageReport
}

// imageCommand checks an image from its index down to every layer's contents.
func imageCommand(args []string) (any, error) {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	tag := flags.String("tag", "", "")
	source := flags.String("source", "", "")
	sourceTag := flags.String("source-tag", "", "")
	plain := flags.Bool("plain", false, "")
	shared := flags.Bool("shared-members", false, "")
	positional, err := parse(flags, args, 1)
	if err != nil {
		return nil, err
	}
	checker := imageChecker{
		output: layout{positional[0]}, plain: *plain, shared: *shared,
		verified: map[string]*verifyReport{},
	}
	root, err := checker.output.root(*tag)
	if err != nil {
		return nil, err
	}
	var sourceRoot *descriptor
	if *source != "" {
		checker.source = &layout{*source}
		found, err := checker.source.root(*sourceTag)
		if err != nil {
			return nil, err
		}
		sourceRoot = &found
	}
	if err := checker.walk(root, sourceRoot, 0); err != nil {
		return nil, err
	}
	return checker.report, nil
}

// root finds the one image with the given tag; no tag selects the only image.
func (l layout) root(tag string) (descriptor, error) {
	version, err := os.ReadFile(filepath.Join(l.dir, "oci-layout"))
	if err != nil {
		return descriptor{}, err
	}
	var header struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := json.Unmarshal(version, &header); err != nil || header.Version != "1.0.0" {
		return descriptor{}, fmt.Errorf("%s: oci-layout is %q", l.dir, version)
	}
	text, err := os.ReadFile(filepath.Join(l.dir, "index.json"))
	if err != nil {
		return descriptor{}, err
	}
	var index document
	if err := json.Unmarshal(text, &index); err != nil {
		return descriptor{}, fmt.Errorf("%s/index.json: %w", l.dir, err)
	}
	var found []descriptor
	for _, candidate := range index.Manifests {
		if tag == "" || candidate.Annotations[refNameAnnotation] == tag {
			found = append(found, candidate)
		}
	}
	if len(found) != 1 {
		return descriptor{}, fmt.Errorf("%s: %d images are tagged %q", l.dir, len(found), tag)
	}
	return found[0], nil
}

func (l layout) path(d descriptor) string {
	return filepath.Join(l.dir, "blobs", d.Digest.Algorithm().String(), d.Digest.Encoded())
}

// check compares a blob with its descriptor.
func (l layout) check(d descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d.Digest, err)
	}
	file, size, err := openSection(l.path(d))
	if err != nil {
		return err
	}
	defer file.Close()
	if size != d.Size {
		return fmt.Errorf("%s: %d bytes, its descriptor says %d", l.path(d), size, d.Size)
	}
	verifier := d.Digest.Verifier()
	if _, err := io.Copy(verifier, file); err != nil {
		return err
	}
	if !verifier.Verified() {
		return fmt.Errorf("%s: contents do not have the digest %s", l.path(d), d.Digest)
	}
	return nil
}

func (l layout) readJSON(d descriptor, into any) error {
	if err := l.check(d); err != nil {
		return err
	}
	text, err := os.ReadFile(l.path(d))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", l.path(d), err)
	}
	return nil
}

func (d document) isIndex() bool { return len(d.Manifests) > 0 }

func (c *imageChecker) walk(output descriptor, source *descriptor, depth int) error {
	if depth > 8 {
		return errors.New("indexes are nested too deep")
	}
	var got, want document
	if err := c.output.readJSON(output, &got); err != nil {
		return err
	}
	if got.MediaType != "" && got.MediaType != output.MediaType {
		return fmt.Errorf("%s: media type %q, its descriptor says %q", output.Digest, got.MediaType, output.MediaType)
	}
	if source != nil {
		if err := c.source.readJSON(*source, &want); err != nil {
			return err
		}
		if got.isIndex() != want.isIndex() || len(got.Manifests) != len(want.Manifests) {
			return fmt.Errorf("%s: %d manifests, the source has %d", output.Digest, len(got.Manifests), len(want.Manifests))
		}
		if !contains(got.Annotations, want.Annotations) {
			return fmt.Errorf("%s: annotations %v, the source has %v", output.Digest, got.Annotations, want.Annotations)
		}
	}
	if !got.isIndex() {
		return c.manifest(output, got, source != nil, want)
	}
	for i, child := range got.Manifests {
		var other *descriptor
		if source != nil {
			other = &want.Manifests[i]
		}
		if err := c.walk(child, other, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (c *imageChecker) manifest(output descriptor, got document, compare bool, want document) error {
	var config, sourceConfig map[string]any
	if err := c.output.readJSON(got.Config, &config); err != nil {
		return err
	}
	if compare {
		if len(got.Layers) != len(want.Layers) {
			return fmt.Errorf("%s: %d layers, the source has %d", output.Digest, len(got.Layers), len(want.Layers))
		}
		if err := c.source.readJSON(want.Config, &sourceConfig); err != nil {
			return err
		}
	}
	diffIDs := takeDiffIDs(config)
	takeDiffIDs(sourceConfig)
	if compare && !reflect.DeepEqual(config, sourceConfig) {
		return fmt.Errorf("config %s is not the source's: %v, want %v", got.Config.Digest, config, sourceConfig)
	}
	report := manifestReport{Digest: output.Digest.String(), MediaType: output.MediaType, Layers: []layerReport{}}
	layers := 0
	for i, layer := range got.Layers {
		var sourceLayer *descriptor
		if compare {
			sourceLayer = &want.Layers[i]
		}
		diffID := ""
		if isTar(layer.MediaType) {
			if layers >= len(diffIDs) {
				return fmt.Errorf("config %s: %d diff_ids, layer %d has none", got.Config.Digest, len(diffIDs), i)
			}
			diffID = diffIDs[layers]
			layers++
		}
		entry, err := c.layer(layer, sourceLayer, diffID)
		if err != nil {
			return fmt.Errorf("layer %d (%s): %w", i, layer.Digest, err)
		}
		report.Layers = append(report.Layers, entry)
	}
	if layers != len(diffIDs) {
		return fmt.Errorf("config %s: %d diff_ids for %d layers", got.Config.Digest, len(diffIDs), layers)
	}
	c.report.Manifests = append(c.report.Manifests, report)
	return nil
}

func (c *imageChecker) layer(layer descriptor, source *descriptor, diffID string) (layerReport, error) {
	entry := layerReport{Digest: layer.Digest.String(), MediaType: layer.MediaType, Size: layer.Size}
	if err := c.output.check(layer); err != nil {
		return entry, err
	}
	if diffID == "" {
		if source != nil && source.Digest != layer.Digest {
			return entry, fmt.Errorf("%s was changed, the source has %s", layer.MediaType, source.Digest)
		}
		return entry, nil
	}
	if c.plain {
		return entry, c.plainLayer(layer, diffID)
	}
	if !strings.HasSuffix(layer.MediaType, "gzip") {
		return entry, fmt.Errorf("media type %q of a gzip blob", layer.MediaType)
	}
	sourcePath := ""
	if source != nil {
		if err := c.source.check(*source); err != nil {
			return entry, err
		}
		if want := gzipMediaType(source.MediaType); layer.MediaType != want {
			return entry, fmt.Errorf("media type %q, want %q", layer.MediaType, want)
		}
		if !contains(layer.Annotations, without(source.Annotations, tocDigestAnnotation, sizeAnnotation)) {
			return entry, fmt.Errorf("annotations %v, the source has %v", layer.Annotations, source.Annotations)
		}
		sourcePath = c.source.path(*source)
	}
	tocDigest := layer.Annotations[tocDigestAnnotation]
	if tocDigest == "" {
		return entry, fmt.Errorf("no annotation %s", tocDigestAnnotation)
	}
	key := strings.Join([]string{entry.Digest, tocDigest, sourcePath}, " ")
	report, done := c.verified[key]
	if !done {
		var err error
		if report, err = verify(c.output.path(layer), tocDigest, sourcePath, c.shared); err != nil {
			return entry, err
		}
		c.verified[key] = report
	}
	entry.Verify = report
	if got, want := layer.Annotations[sizeAnnotation], fmt.Sprint(report.UncompressedSize); got != want {
		return entry, fmt.Errorf("annotation %s is %q, want %s", sizeAnnotation, got, want)
	}
	if diffID != report.DiffID {
		return entry, fmt.Errorf("diff_id is %s, the uncompressed blob has %s", diffID, report.DiffID)
	}
	return entry, nil
}

func (c *imageChecker) plainLayer(layer descriptor, diffID string) error {
	input, err := inflate(c.output.path(layer))
	if err != nil {
		return err
	}
	defer input.Close()
	verifier := digest.Digest(diffID).Verifier()
	if _, err := io.Copy(verifier, input); err != nil {
		return err
	}
	if !verifier.Verified() {
		return fmt.Errorf("the uncompressed blob does not have the diff_id %s", diffID)
	}
	return nil
}

// takeDiffIDs removes from a config what a conversion changes, and returns its diff_ids.
func takeDiffIDs(config map[string]any) []string {
	var ids []string
	if rootfs, ok := config["rootfs"].(map[string]any); ok {
		list, _ := rootfs["diff_ids"].([]any)
		for _, id := range list {
			ids = append(ids, fmt.Sprint(id))
		}
		delete(rootfs, "diff_ids")
	}
	if inner, ok := config["config"].(map[string]any); ok {
		delete(inner, "Image")
	}
	return ids
}

func isTar(mediaType string) bool {
	return strings.Contains(mediaType, ".layer.") || strings.Contains(mediaType, ".rootfs.diff.")
}

// gzipMediaType is what a layer's media type becomes when the layer is compressed with gzip.
func gzipMediaType(mediaType string) string {
	for _, suffix := range []string{"+zstd", "+gzip", ".gzip", ".zstd"} {
		mediaType = strings.TrimSuffix(mediaType, suffix)
	}
	if strings.HasPrefix(mediaType, "application/vnd.docker.") {
		return mediaType + ".gzip"
	}
	return mediaType + "+gzip"
}

func contains(all, part map[string]string) bool {
	for key, value := range part {
		if got, ok := all[key]; !ok || got != value {
			return false
		}
	}
	return true
}

func without(annotations map[string]string, keys ...string) map[string]string {
	rest := map[string]string{}
	for key, value := range annotations {
		rest[key] = value
	}
	for _, key := range keys {
		delete(rest, key)
	}
	return rest
}
