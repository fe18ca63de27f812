package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"sort"
	"strings"
	"sync"

	"github.com/containerd/stargz-snapshotter/cache"
	"github.com/containerd/stargz-snapshotter/estargz"
	fsreader "github.com/containerd/stargz-snapshotter/fs/reader"
	"github.com/containerd/stargz-snapshotter/metadata"
	"github.com/containerd/stargz-snapshotter/metadata/memory"
	"github.com/opencontainers/go-digest"
)

// An extent is a stretch of a blob's uncompressed stream.
type extent struct {
	start, end int64
}

func (e extent) holds(other extent) bool { return e.start <= other.start && other.end <= e.end }

// checkPlaces checks that every chunk of the TOC lies where its file's own tar entry has it, or in a
// pack, in which it does not stand at the start of a gzip member.
func checkPlaces(stream *blobStream, toc *estargz.JTOC, report *verifyReport) error {
	var size, landmark int64
	var file *node
	packed := map[string]bool{}
	// Names in JSON are UTF-8.
	nodes := make(map[string]*node, len(stream.model.nodes))
	for name, node := range stream.model.nodes {
		nodes[jsonText(name)] = node
	}
	name := ""
	for _, entry := range toc.Entries {
		if entry.Type != "chunk" {
			name = clean(entry.Name)
			file, size = nodes[name], entry.Size
			if name == estargz.PrefetchLandmark {
				landmark = entry.Offset
			}
		}
		if entry.Type != "chunk" && (entry.Type != "reg" || entry.Size == 0) || file == nil {
			continue
		}
		length := entry.ChunkSize
		if length == 0 {
			length = size - entry.ChunkOffset
		}
		start, ok := stream.uncompressed(entry.Offset)
		if !ok {
			return fmt.Errorf("%q: offset %d starts no gzip member", name, entry.Offset)
		}
		found := extent{start + entry.InnerOffset, start + entry.InnerOffset + length}
		if found.start == file.payload+entry.ChunkOffset {
			continue
		}
		inPack := func(pack extent) bool { return pack.holds(found) }
		if !containsFunc(stream.model.packs, inPack) {
			return fmt.Errorf("%q: chunk at offset %d of the file is at %d of the stream, neither in its entry nor in a pack", name, entry.ChunkOffset, found.start)
		}
		if entry.InnerOffset == 0 {
			return fmt.Errorf("%q: chunk at offset %d of the file starts a gzip member of a pack", name, entry.ChunkOffset)
		}
		packed[name] = true
		report.PackedChunks++
		if entry.Offset < landmark {
			report.PackedBytes += length
			if entry.ChunkOffset == 0 {
				return fmt.Errorf("%q: its first chunk lies before the landmark", name)
			}
		}
	}
	for name := range packed {
		report.PackedFiles = append(report.PackedFiles, name)
	}
	sort.Strings(report.PackedFiles)
	return nil
}

func containsFunc(extents []extent, is func(extent) bool) bool {
	for _, extent := range extents {
		if is(extent) {
			return true
		}
	}
	return false
}

// uncompressed is the place in the stream of the gzip member that starts at an offset of the blob.
func (s *blobStream) uncompressed(offset int64) (int64, bool) {
	i := sort.Search(len(s.members), func(i int) bool { return s.members[i].start >= offset })
	if i == len(s.members) || s.members[i].start != offset {
		return 0, false
	}
	return s.members[i].uncompressed, true
}

// readThroughMount reads the files that have chunks in packs as the snapshotter's file system does, in
// reads that begin and end anywhere, and compares each with the digest that the TOC has of it.
func readThroughMount(reader fsreader.Reader, toc *estargz.JTOC, names []string) error {
	digests := map[string]*estargz.TOCEntry{}
	for _, entry := range toc.Entries {
		if entry.Type == "reg" {
			digests[clean(entry.Name)] = entry
		}
	}
	for _, name := range names {
		id, err := lookup(reader.Metadata(), name)
		if err != nil {
			return err
		}
		file, err := reader.OpenFile(id)
		if err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
		contents, entry := sha256.New(), digests[name]
		buffer := make([]byte, 3<<20+4097)
		for offset := int64(0); offset < entry.Size; {
			part := buffer[:min(int64(len(buffer)), entry.Size-offset)]
			n, err := file.ReadAt(part, offset)
			if err != nil && !errors.Is(err, io.EOF) || n != len(part) {
				return fmt.Errorf("%q: %d of %d bytes read at offset %d: %w", name, n, len(part), offset, err)
			}
			contents.Write(part)
			offset += int64(n)
		}
		if got := "sha256:" + hex.EncodeToString(contents.Sum(nil)); got != entry.Digest {
			return fmt.Errorf("%q: read through the snapshotter's reader it has digest %s, want %s", name, got, entry.Digest)
		}
	}
	return nil
}

func lookup(metadata metadata.Reader, name string) (uint32, error) {
	id := metadata.RootID()
	for _, part := range strings.Split(name, "/") {
		var err error
		if id, _, err = metadata.GetChild(id, part); err != nil {
			return 0, fmt.Errorf("%q: %w", name, err)
		}
	}
	return id, nil
}

// readCommand only reads a blob with the reference's readers, and checks nothing that they do not.
func readCommand(args []string) (any, error) {
	flags := flag.NewFlagSet("read", flag.ContinueOnError)
	tocDigest := flags.String("toc-digest", "", "")
	shared := flags.Bool("shared-members", false, "")
	positional, err := parse(flags, args, 1)
	if err != nil {
		return nil, err
	}
	file, size, err := openSection(positional[0])
	if err != nil {
		return nil, err
	}
	defer file.Close()
	blob := io.NewSectionReader(file, 0, size)
	report := &verifyReport{}
	toc, err := readTOC(blob, &verifyReport{TOCDigest: *tocDigest})
	if err != nil {
		return nil, err
	}
	if err := readThroughLibrary(blob, toc, *tocDigest, *shared, report); err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range toc.Entries {
		if entry.Type == "reg" && entry.Size > 0 {
			names = append(names, clean(entry.Name))
		}
	}
	return report, readAsSnapshotter(blob, toc, *tocDigest, names)
}

type prefetchReport struct {
	CompressedBytes int64 `json:"compressedBytes"` // fetched in one request
	Chunks          int   `json:"chunks"`          // inflated and cached
	Bytes           int64 `json:"bytes"`           // of these
}

// prefetchCommand does what the snapshotter does when a layer is mounted, and says what it costs.
func prefetchCommand(args []string) (any, error) {
	flags := flag.NewFlagSet("prefetch", flag.ContinueOnError)
	tocDigest := flags.String("toc-digest", "", "")
	positional, err := parse(flags, args, 1)
	if err != nil {
		return nil, err
	}
	file, size, err := openSection(positional[0])
	if err != nil {
		return nil, err
	}
	defer file.Close()
	md, err := memory.NewReader(io.NewSectionReader(file, 0, size))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", positional[0], err)
	}
	defer md.Close()
	counter := &countingCache{}
	reader, err := fsreader.NewReader(md, counter, digest.Digest(*tocDigest))
	if err != nil {
		return nil, err
	}
	if _, err := reader.VerifyTOC(digest.Digest(*tocDigest)); err != nil {
		return nil, err
	}
	report := prefetchReport{}
	if id, _, err := md.GetChild(md.RootID(), estargz.PrefetchLandmark); err == nil {
		if report.CompressedBytes, err = md.GetOffset(id); err != nil {
			return nil, err
		}
		filter := func(offset int64) bool { return offset < report.CompressedBytes }
		if err := reader.Cache(fsreader.WithFilter(filter)); err != nil {
			return nil, fmt.Errorf("%s: prefetch: %w", positional[0], err)
		}
	}
	report.Chunks, report.Bytes = counter.chunks, counter.bytes
	return report, nil
}

// countingCache keeps nothing and counts what it is given.
type countingCache struct {
	discardCache
	mutex  sync.Mutex
	chunks int
	bytes  int64
}

func (c *countingCache) Add(string, ...cache.Option) (cache.Writer, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.chunks++
	return countingWriter{cache: c}, nil
}

type countingWriter struct {
	discardWriter
	cache *countingCache
}

func (w countingWriter) Write(p []byte) (int, error) {
	w.cache.mutex.Lock()
	defer w.cache.mutex.Unlock()
	w.cache.bytes += int64(len(p))
	return len(p), nil
}
