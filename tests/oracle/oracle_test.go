package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
)

// writeSource writes a tar with something of everything; edit may change each header and contents.
func writeSource(t *testing.T, edit func(*tar.Header, []byte) []byte) string {
	t.Helper()
	when := time.Unix(1700000000, 0)
	big := bytes.Repeat([]byte("0123456789abcdef"), 10_000)
	entries := []struct {
		header   tar.Header
		contents []byte
	}{
		{tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, nil},
		{tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, nil},
		{tar.Header{Name: "bin/old", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("first")},
		{tar.Header{Name: "bin/big", Typeflag: tar.TypeReg, Mode: 0o4755, PAXRecords: map[string]string{xattrPrefix + "user.a": "b\x00c"}}, big},
		{tar.Header{Name: "bin/hard", Typeflag: tar.TypeLink, Linkname: "bin/big"}, nil},
		{tar.Header{Name: "bin/soft", Typeflag: tar.TypeSymlink, Linkname: "../x"}, nil},
		{tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, nil},
		{tar.Header{Name: "bin/empty", Typeflag: tar.TypeReg}, nil},
		{tar.Header{Name: "bin/old", Typeflag: tar.TypeReg, Mode: 0o600}, []byte("second")},
		{tar.Header{Name: strings.Repeat("long/", 60) + "name", Typeflag: tar.TypeReg}, []byte("x")},
		{tar.Header{Name: "etc/.wh.gone", Typeflag: tar.TypeReg}, nil},
	}
	path := filepath.Join(t.TempDir(), "source.tar")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	writer := tar.NewWriter(file)
	for _, entry := range entries {
		entry.header.ModTime = when
		if edit != nil {
			entry.contents = edit(&entry.header, entry.contents)
		}
		entry.header.Size = int64(len(entry.contents))
		if err := writer.WriteHeader(&entry.header); err != nil {
			t.Fatal(err)
		}
		if _, err := writer.Write(entry.contents); err != nil {
			t.Fatal(err)
		}
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// build converts a source with the reference implementation.
func build(t *testing.T, source string, options ...estargz.Option) (path, tocDigest string) {
	t.Helper()
	file, size, err := openSection(source)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	options = append(options, estargz.WithChunkSize(50_000), estargz.WithCompressionLevel(6))
	blob, err := estargz.Build(io.NewSectionReader(file, 0, size), options...)
	if err != nil {
		t.Fatal(err)
	}
	contents, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	if err := blob.Close(); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, contents, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, blob.TOCDigest().String()
}

func TestReferenceBlobsPass(t *testing.T) {
	source := writeSource(t, nil)
	check := func(prioritized string, shared bool, options ...estargz.Option) {
		t.Helper()
		path, digest := build(t, source, options...)
		report, err := verify(path, digest, source, shared)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(report.Prioritized, " "); got != prioritized {
			t.Errorf("prioritised %q, want %q", got, prioritized)
		}
		if report.Files != 5 || report.Entries != 10 || report.Chunks != 7 || !report.Compared {
			t.Errorf("unexpected counts: %+v", report)
		}
	}
	check("", false)
	check(" bin bin/big bin/hard", false, estargz.WithPrioritizedFiles([]string{"bin/hard"}))
	check("", true, estargz.WithMinChunkSize(1<<20))
}

func TestSeededFaultsAreFound(t *testing.T) {
	source := writeSource(t, nil)
	path, digest := build(t, source)
	fails := func(what, want, path, digest, source string) {
		t.Helper()
		_, err := verify(path, digest, source, false)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", what, err, want)
		}
	}
	other := "sha256:" + strings.Repeat("0", 64)
	fails("wrong TOC digest", "TOC digest", path, other, source)

	contents, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rewrite := func(edit func([]byte) []byte) string {
		t.Helper()
		broken := filepath.Join(t.TempDir(), "broken")
		if err := os.WriteFile(broken, edit(bytes.Clone(contents)), 0o600); err != nil {
			t.Fatal(err)
		}
		return broken
	}
	for _, at := range []int{len(contents) / 4, len(contents) / 2} {
		broken := rewrite(func(b []byte) []byte { b[at] ^= 1; return b })
		fails("flipped byte", "", broken, digest, source)
	}
	fails("truncated", "", rewrite(func(b []byte) []byte { return b[:len(b)-10] }), digest, source)
	fails("not gzip", "not a gzip blob", source, digest, source)

	edits := map[string]func(*tar.Header, []byte) []byte{
		"mode": func(h *tar.Header, b []byte) []byte {
			if h.Name == "bin/empty" {
				h.Mode = 0o7777
			}
			return b
		},
		"contents": func(h *tar.Header, b []byte) []byte {
			if h.Name == "bin/big" {
				b = bytes.Clone(b)
				b[77_777] ^= 1
			}
			return b
		},
		"link": func(h *tar.Header, b []byte) []byte {
			if h.Typeflag == tar.TypeLink {
				h.Linkname = "bin/old"
			}
			return b
		},
		"device": func(h *tar.Header, b []byte) []byte { h.Devminor *= 3; return b },
		"mtime":  func(h *tar.Header, b []byte) []byte { h.ModTime = h.ModTime.Add(time.Second); return b },
		"xattr": func(h *tar.Header, b []byte) []byte {
			if h.PAXRecords != nil {
				h.PAXRecords = map[string]string{xattrPrefix + "user.a": "other"}
			}
			return b
		},
		"missing": func(h *tar.Header, b []byte) []byte {
			if h.Name == "bin/empty" {
				h.Name = "bin/new"
			}
			return b
		},
	}
	for want, edit := range edits {
		fails(want, want, path, digest, writeSource(t, edit))
	}
}

// The blob is whole and its TOC digest fits, but the TOC lies.
func TestLyingTOCIsFound(t *testing.T) {
	path, tocDigest := build(t, writeSource(t, nil))
	contents, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lie := func(what, want string, edit func(*estargz.TOCEntry)) {
		t.Helper()
		report := &verifyReport{TOCDigest: tocDigest}
		toc, err := readTOC(io.NewSectionReader(bytes.NewReader(contents), 0, int64(len(contents))), report)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range toc.Entries {
			edit(entry)
		}
		var output bytes.Buffer
		output.Write(contents[:report.TOCOffset])
		digest, err := estargz.NewGzipCompressor().WriteTOCAndFooter(&output, report.TOCOffset, toc, sha256.New())
		if err != nil {
			t.Fatal(err)
		}
		broken := filepath.Join(t.TempDir(), "lying")
		if err := os.WriteFile(broken, output.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = verify(broken, digest.String(), "", false)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want an error with %q", what, err, want)
		}
	}
	zeros := "sha256:" + strings.Repeat("0", 64)
	lie("nothing changed", "", func(*estargz.TOCEntry) {})
	lie("chunk digest", "digest", func(e *estargz.TOCEntry) {
		if e.ChunkOffset > 0 {
			e.ChunkDigest = zeros
		}
	})
	lie("file digest", "contents", func(e *estargz.TOCEntry) {
		if e.Name == "bin/big" && e.Digest != "" {
			e.Digest = zeros
		}
	})
	lie("offset", "starts no gzip member", func(e *estargz.TOCEntry) {
		if e.ChunkOffset > 0 {
			e.Offset++
		}
	})
	lie("mode", "mode", func(e *estargz.TOCEntry) {
		if e.Type == "dir" {
			e.Mode = 0o700
		}
	})
	lie("landmark", "landmark", func(e *estargz.TOCEntry) {
		if e.Name == estargz.NoPrefetchLandmark {
			e.Name = "x"
		}
	})
}
