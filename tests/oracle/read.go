package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/containerd/stargz-snapshotter/cache"
	"github.com/containerd/stargz-snapshotter/estargz"
	fsreader "github.com/containerd/stargz-snapshotter/fs/reader"
	"github.com/containerd/stargz-snapshotter/metadata/memory"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// readThroughLibrary reads every regular file chunk by chunk with the reference's library, and
// checks every chunk's and every file's digest.
func readThroughLibrary(blob *io.SectionReader, toc *estargz.JTOC, tocDigest string, sharedMembers bool, report *verifyReport) error {
	reader, err := estargz.Open(blob)
	if err != nil {
		return fmt.Errorf("estargz.Open: %w", err)
	}
	if reader.TOCDigest().String() != tocDigest {
		return fmt.Errorf("estargz.Open: TOC digest %s, want %s", reader.TOCDigest(), tocDigest)
	}
	var verifier estargz.TOCEntryVerifier
	if !sharedMembers {
		if verifier, err = reader.VerifyTOC(digest.Digest(tocDigest)); err != nil {
			return fmt.Errorf("VerifyTOC: %w", err)
		}
	}
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, entry := range toc.Entries {
		name := clean(entry.Name)
		switch {
		case entry.Type == "chunk" || name == estargz.PrefetchLandmark || name == estargz.NoPrefetchLandmark:
			continue
		case entry.Type == "hardlink":
			if _, ok := reader.Lookup(name); !ok {
				return fmt.Errorf("%q: hardlink to %q, which the TOC lacks", name, entry.LinkName)
			}
		case entry.Type == "reg":
			report.Files++
			report.Bytes += entry.Size
			group.Go(func() error {
				if err := readFile(reader, verifier, name, entry); err != nil {
					return fmt.Errorf("%q: %w", name, err)
				}
				return nil
			})
		}
		report.Entries++
	}
	return group.Wait()
}

func readFile(reader *estargz.Reader, verifier estargz.TOCEntryVerifier, name string, entry *estargz.TOCEntry) error {
	contents := sha256.New()
	var file *io.SectionReader
	if entry.Size > 0 {
		var err error
		if file, err = reader.OpenFile(name); err != nil {
			return err
		}
		if file.Size() != entry.Size {
			return fmt.Errorf("size %d, want %d", file.Size(), entry.Size)
		}
	}
	var buffer []byte
	for offset := int64(0); offset < entry.Size; {
		chunk, ok := reader.ChunkEntryForOffset(name, offset)
		if !ok || chunk.ChunkOffset != offset || chunk.ChunkSize <= 0 || chunk.ChunkSize > entry.Size-offset {
			return fmt.Errorf("no chunk at offset %d", offset)
		}
		if int64(cap(buffer)) < chunk.ChunkSize {
			buffer = make([]byte, chunk.ChunkSize)
		}
		part := buffer[:chunk.ChunkSize]
		// A whole chunk a read: the library inflates from the chunk's start each time.
		if _, err := file.ReadAt(part, offset); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("chunk at offset %d: %w", offset, err)
		}
		contents.Write(part)
		if got := digest.FromBytes(part); chunk.ChunkDigest != got.String() {
			return fmt.Errorf("chunk at offset %d has digest %s, its TOC entry %q", offset, got, chunk.ChunkDigest)
		}
		if verifier != nil {
			check, err := verifier.Verifier(chunk)
			if err != nil {
				return fmt.Errorf("chunk at offset %d: %w", offset, err)
			}
			check.Write(part)
			if !check.Verified() {
				return fmt.Errorf("chunk at offset %d fails its verifier", offset)
			}
		}
		offset += chunk.ChunkSize
	}
	if got := "sha256:" + hex.EncodeToString(contents.Sum(nil)); got != entry.Digest {
		return fmt.Errorf("contents have digest %s, its TOC entry %q", got, entry.Digest)
	}
	return nil
}

// readAsSnapshotter does what the snapshotter does at mount and prefetch: the TOC is verified,
// then every chunk is read, verified and cached. Files with chunks in packs are read once more as the
// mounted file system does it.
func readAsSnapshotter(blob *io.SectionReader, toc *estargz.JTOC, tocDigest string, packed []string) error {
	metadata, err := memory.NewReader(blob)
	if err != nil {
		return fmt.Errorf("snapshotter: metadata: %w", err)
	}
	defer metadata.Close()
	reader, err := fsreader.NewReader(metadata, discardCache{}, digest.Digest(tocDigest))
	if err != nil {
		return fmt.Errorf("snapshotter: %w", err)
	}
	mounted, err := reader.VerifyTOC(digest.Digest(tocDigest))
	if err != nil {
		return fmt.Errorf("snapshotter: VerifyTOC: %w", err)
	}
	if err := reader.Cache(fsreader.WithReader(blob)); err != nil {
		return fmt.Errorf("snapshotter: Cache: %w", err)
	}
	if err := readThroughMount(mounted, toc, packed); err != nil {
		return fmt.Errorf("snapshotter: %w", err)
	}
	return nil
}

// discardCache takes everything and keeps nothing, so that memory stays bounded.
type discardCache struct{}

type discardWriter struct{}

func (discardCache) Add(string, ...cache.Option) (cache.Writer, error) { return discardWriter{}, nil }
func (discardCache) Get(string, ...cache.Option) (cache.Reader, error) {
	return nil, errors.New("not cached")
}
func (discardCache) Close() error { return nil }

func (discardWriter) Write(p []byte) (int, error) { return len(p), nil }
func (discardWriter) Close() error                { return nil }
func (discardWriter) Commit() error               { return nil }
func (discardWriter) Abort() error                { return nil }

type byteCounter struct{ n int64 }

func (c *byteCounter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// tailWriter counts the zeros at the end of what was written to it.
type tailWriter struct{ zeros int64 }

func (t *tailWriter) Write(p []byte) (int, error) {
	zeros := int64(0)
	for i := len(p) - 1; i >= 0 && p[i] == 0; i-- {
		zeros++
	}
	if zeros == int64(len(p)) {
		t.zeros += zeros
	} else {
		t.zeros = zeros
	}
	return len(p), nil
}

func (t *tailWriter) endsWithZeros(count int64) bool { return t.zeros >= count }

func fileDigest(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, bufio.NewReaderSize(file, 1<<20)); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(hash.Sum(nil)), nil
}
