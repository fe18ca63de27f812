package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"sort"

	"github.com/containerd/stargz-snapshotter/estargz"
)

type verifyReport struct {
	Entries          int      `json:"entries"` // of the TOC, without chunks and landmark
	Files            int      `json:"files"`
	Bytes            int64    `json:"bytes"`
	Chunks           int      `json:"chunks"`
	Members          int      `json:"members"`
	Packs            int      `json:"packs"`
	PackedFiles      []string `json:"packedFiles"`  // that have chunks in packs
	PackedChunks     int      `json:"packedChunks"` // in all packs
	PackedBytes      int64    `json:"packedBytes"`  // before the landmark
	Digest           string   `json:"digest"`
	DiffID           string   `json:"diffID"`
	Size             int64    `json:"size"`
	UncompressedSize int64    `json:"uncompressedSize"`
	TOCDigest        string   `json:"tocDigest"`
	TOCOffset        int64    `json:"tocOffset"`
	Landmark         string   `json:"landmark"` // prefetch or no-prefetch
	LandmarkOffset   int64    `json:"landmarkOffset"`
	Prioritized      []string `json:"prioritized"`
	Compared         bool     `json:"compared"` // with a source
}

func verifyCommand(args []string) (any, error) {
	flags := flag.NewFlagSet("verify", flag.ContinueOnError)
	tocDigest := flags.String("toc-digest", "", "")
	source := flags.String("source", "", "")
	shared := flags.Bool("shared-members", false, "")
	positional, err := parse(flags, args, 1)
	if err != nil {
		return nil, err
	}
	if *tocDigest == "" {
		return nil, errUsage
	}
	report, err := verify(positional[0], *tocDigest, *source, *shared)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", positional[0], err)
	}
	return report, nil
}

// verify checks one eStargz blob in full, against the source's blob if one is given. With
// sharedMembers several files may lie in one gzip member (innerOffset), which VerifyTOC of the
// reference's library, but not its snapshotter, rejects.
func verify(path, tocDigest, source string, sharedMembers bool) (*verifyReport, error) {
	file, size, err := openSection(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	section := io.NewSectionReader(file, 0, size)
	report := &verifyReport{TOCDigest: tocDigest, Size: size, Prioritized: []string{}, PackedFiles: []string{}}
	stream, err := readStream(path, report)
	if err != nil {
		return nil, err
	}
	toc, err := readTOC(section, report)
	if err != nil {
		return nil, err
	}
	if err := checkLandmark(stream.model, toc, report); err != nil {
		return nil, err
	}
	if err := checkOffsets(stream.members, toc, report); err != nil {
		return nil, err
	}
	if err := checkPlaces(stream, toc, report); err != nil {
		return nil, err
	}
	if err := compareTOC(stream.model, toc.Entries); err != nil {
		return nil, fmt.Errorf("TOC against the blob's own tar: %w", err)
	}
	if source != "" {
		input, err := inflate(source)
		if err != nil {
			return nil, err
		}
		defer input.Close()
		want, err := readModel(input)
		if err != nil {
			return nil, fmt.Errorf("source %s: %w", source, err)
		}
		if err := errors.Join(compareTar(want, stream.model), compareTOC(want, toc.Entries)); err != nil {
			return nil, err
		}
		report.Compared = true
	}
	if err := readThroughLibrary(section, toc, tocDigest, sharedMembers, report); err != nil {
		return nil, err
	}
	return report, readAsSnapshotter(section, toc, tocDigest, report.PackedFiles)
}

type blobStream struct {
	model   *model
	members []member
}

// readStream inflates the whole blob once: digests, members, and the tar inside.
func readStream(path string, report *verifyReport) (*blobStream, error) {
	input, err := inflate(path)
	if err != nil {
		return nil, err
	}
	defer input.Close()
	members, ok := input.Reader.(*memberReader)
	if !ok {
		return nil, errors.New("not a gzip blob")
	}
	diffID, size := sha256.New(), &byteCounter{}
	tail := &tailWriter{}
	model, err := readModel(io.TeeReader(members, io.MultiWriter(diffID, size, tail)))
	if err != nil {
		return nil, err
	}
	if model.toc != 1 || model.last != estargz.TOCTarName {
		return nil, fmt.Errorf("%d entries %s, the last entry is %q", model.toc, estargz.TOCTarName, model.last)
	}
	if !tail.endsWithZeros(1024) {
		return nil, errors.New("the tar does not end with two zero blocks")
	}
	report.DiffID = "sha256:" + hex.EncodeToString(diffID.Sum(nil))
	report.UncompressedSize = size.n
	report.Members = len(members.members)
	report.Packs = len(model.packs)
	report.Digest, err = fileDigest(path)
	return &blobStream{model: model, members: members.members}, err
}

// readTOC reads the TOC without the reference's reader: footer, member, tar entry, JSON.
func readTOC(blob *io.SectionReader, report *verifyReport) (*estargz.JTOC, error) {
	offset, footer, err := estargz.OpenFooter(blob)
	if err != nil {
		return nil, fmt.Errorf("footer: %w", err)
	}
	if footer != estargz.FooterSize {
		return nil, fmt.Errorf("footer has %d bytes, want %d", footer, estargz.FooterSize)
	}
	report.TOCOffset = offset
	length := blob.Size() - offset - footer
	if offset < 0 || length <= 0 {
		return nil, fmt.Errorf("footer: impossible TOC offset %d", offset)
	}
	zip, err := new(estargz.GzipDecompressor).Reader(io.NewSectionReader(blob, offset, length))
	if err != nil {
		return nil, fmt.Errorf("TOC at offset %d: %w", offset, err)
	}
	defer zip.Close()
	reader := tar.NewReader(zip)
	header, err := reader.Next()
	if err != nil {
		return nil, fmt.Errorf("TOC at offset %d: %w", offset, err)
	}
	if header.Name != estargz.TOCTarName {
		return nil, fmt.Errorf("TOC at offset %d: entry is named %q", offset, header.Name)
	}
	text, err := io.ReadAll(reader)
	if err != nil {
		return nil, fmt.Errorf("TOC at offset %d: %w", offset, err)
	}
	hash := sha256.Sum256(text)
	if got := "sha256:" + hex.EncodeToString(hash[:]); got != report.TOCDigest {
		return nil, fmt.Errorf("TOC digest is %s, want %s", got, report.TOCDigest)
	}
	// The reference hashes what its decoder consumed, others hash everything: the two must agree.
	toc, decoder := &estargz.JTOC{}, json.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(toc); err != nil {
		return nil, fmt.Errorf("TOC: %w", err)
	}
	if rest := int64(len(text)) - decoder.InputOffset(); rest != 0 {
		return nil, fmt.Errorf("TOC: %d bytes behind the JSON object", rest)
	}
	if toc.Version != 1 {
		return nil, fmt.Errorf("TOC: version %d", toc.Version)
	}
	return toc, nil
}

func checkLandmark(m *model, toc *estargz.JTOC, report *verifyReport) error {
	if len(m.landmarks) != 1 {
		return fmt.Errorf("landmarks in the tar: %q, want one", m.landmarks)
	}
	var before []string
	for _, entry := range toc.Entries {
		name := clean(entry.Name)
		switch {
		case name == estargz.PrefetchLandmark || name == estargz.NoPrefetchLandmark:
			if report.Landmark != "" {
				return errors.New("two landmarks in the TOC")
			}
			if name != m.landmarks[0] {
				return fmt.Errorf("landmark %q in the TOC, %q in the tar", name, m.landmarks[0])
			}
			if entry.Size != 1 || entry.Type != "reg" {
				return fmt.Errorf("landmark: type %s, size %d", entry.Type, entry.Size)
			}
			report.Landmark = map[string]string{
				estargz.PrefetchLandmark: "prefetch", estargz.NoPrefetchLandmark: "no-prefetch",
			}[name]
			report.LandmarkOffset = entry.Offset
		case report.Landmark == "" && entry.Type != "chunk":
			before = append(before, name)
		}
	}
	switch report.Landmark {
	case "":
		return errors.New("no landmark in the TOC")
	case "no-prefetch":
		if len(before) > 0 || m.first != estargz.NoPrefetchLandmark {
			return fmt.Errorf("%q stands before %s", m.first, estargz.NoPrefetchLandmark)
		}
	default:
		report.Prioritized = append(report.Prioritized, before...)
	}
	return nil
}

// checkOffsets checks that every offset of the TOC is the start of a gzip member, and that the offsets of
// chunks that start theirs ascend: a reader takes each for the end of what is before it.
func checkOffsets(members []member, toc *estargz.JTOC, report *verifyReport) error {
	isStart := func(offset int64) bool {
		i := sort.Search(len(members), func(i int) bool { return members[i].start >= offset })
		return i < len(members) && members[i].start == offset
	}
	if !isStart(report.TOCOffset) {
		return fmt.Errorf("TOC offset %d starts no gzip member", report.TOCOffset)
	}
	last := int64(-1)
	for _, entry := range toc.Entries {
		data := entry.Type == "chunk" || entry.Type == "reg" && entry.Size > 0
		if !data {
			continue
		}
		report.Chunks++
		if !isStart(entry.Offset) {
			return fmt.Errorf("%q: offset %d starts no gzip member", entry.Name, entry.Offset)
		}
		if entry.InnerOffset > 0 {
			continue
		}
		if entry.Offset < last {
			return fmt.Errorf("%q: offset %d lies before an earlier entry's %d", entry.Name, entry.Offset, last)
		}
		last = entry.Offset
	}
	return nil
}
