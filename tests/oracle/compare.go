package main

import (
	"archive/tar"
	"bytes"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/containerd/stargz-snapshotter/estargz"
)

type compareReport struct {
	Entries     int      `json:"entries"`     // of the tar, landmark included
	Rows        int      `json:"rows"`        // of the TOC
	SameOffsets int      `json:"sameOffsets"` // headers at the same place of the uncompressed stream
	Missed      []string `json:"missed,omitempty"`
}

// A place is where an entry lies in an uncompressed stream.
type place struct {
	header  *tar.Header
	offset  int64 // of its first header block
	payload int64 // of its contents
}

// compareCommand compares a blob, header by header and row by row, with what the reference makes of
// the same source and list.
func compareCommand(args []string) (any, error) {
	flags := flag.NewFlagSet("compare", flag.ContinueOnError)
	options := newBuildFlags(flags)
	positional, err := parse(flags, args, 2)
	if err != nil {
		return nil, err
	}
	report := compareReport{}
	blob, err := options.build(positional[1], &report.Missed)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	theirs, err := io.ReadAll(blob)
	if err != nil {
		return nil, err
	}
	ours, err := os.ReadFile(positional[0])
	if err != nil {
		return nil, err
	}
	err = compareBlobs(ours, theirs, *options.minChunkSize > 0, &report)
	if err != nil {
		return nil, fmt.Errorf("%s against the reference: %w", positional[0], err)
	}
	return report, nil
}

func compareBlobs(ours, theirs []byte, sharedMembers bool, report *compareReport) error {
	var d differences
	our, err := places(ours)
	if err != nil {
		return err
	}
	their, err := places(theirs)
	if err != nil {
		return fmt.Errorf("reference: %w", err)
	}
	comparePlaces(&d, our, their, report)
	ourTOC, err := tocOf(ours)
	if err != nil {
		return err
	}
	theirTOC, err := tocOf(theirs)
	if err != nil {
		return fmt.Errorf("reference: %w", err)
	}
	compareRows(&d, ourTOC, theirTOC, sharedMembers, report)
	return d.err("differs")
}

// places reads a blob's tar up to the TOC, which is left out.
func places(blob []byte) ([]place, error) {
	zip, err := new(estargz.GzipDecompressor).Reader(bytes.NewReader(blob))
	if err != nil {
		return nil, err
	}
	defer zip.Close()
	counter := &byteCounter{}
	reader := tar.NewReader(io.TeeReader(zip, counter))
	var found []place
	for end := int64(0); ; {
		header, err := reader.Next()
		if err != nil {
			return nil, fmt.Errorf("tar entry %d: %w", len(found), err)
		}
		if clean(header.Name) == estargz.TOCTarName {
			return found, nil
		}
		found = append(found, place{header: header, offset: end, payload: counter.n})
		end = counter.n
		if header.Typeflag == tar.TypeReg {
			end += (header.Size + 511) &^ 511
		}
	}
}

func comparePlaces(d *differences, our, their []place, report *compareReport) {
	if len(our) != len(their) {
		d.add("%d tar entries, the reference has %d", len(our), len(their))
		return
	}
	forbids := len(our) > 0 && clean(our[len(our)-1].header.Name) == estargz.NoPrefetchLandmark
	if forbids {
		their = landmarkLast(their)
	}
	// Headers are the source's here and encoded anew there: what is longer moves all that follows.
	shift := int64(0)
	for i, ours := range our {
		theirs := their[i]
		// The reference ends the prefetch before the first entry where no listed path exists.
		landmark := forbids && i == len(our)-1
		if !(landmark && clean(theirs.header.Name) == estargz.PrefetchLandmark) {
			compareHeaders(d, i, ours.header, theirs.header)
		}
		if ours.offset != theirs.offset+shift {
			d.add("%q: header at offset %d, expected %d", ours.header.Name, ours.offset, theirs.offset+shift)
		}
		if ours.offset == theirs.offset {
			report.SameOffsets++
		}
		shift += (ours.payload - ours.offset) - (theirs.payload - theirs.offset)
	}
	report.Entries = len(our)
}

// landmarkLast moves a landmark in front, where the reference has it if nothing is prefetched, behind the rest.
func landmarkLast(places []place) []place {
	first, rest := places[0], slices.Clone(places[1:])
	if len(rest) == 0 || !slices.Contains(landmarks, clean(first.header.Name)) {
		return places
	}
	size := rest[0].offset
	for i := range rest {
		rest[i].offset -= size
		rest[i].payload -= size
	}
	last := rest[len(rest)-1]
	first.offset = last.payload
	if last.header.Typeflag == tar.TypeReg {
		first.offset += (last.header.Size + 511) &^ 511
	}
	first.payload += first.offset
	return append(rest, first)
}

func compareHeaders(d *differences, index int, ours, theirs *tar.Header) {
	check := func(what string, got, want any) {
		if got != want {
			d.add("tar entry %d (%q): %s %v, the reference has %v", index, ours.Name, what, got, want)
		}
	}
	check("name", ours.Name, theirs.Name)
	check("type", ours.Typeflag, theirs.Typeflag)
	check("size", ours.Size, theirs.Size)
	check("mode", ours.Mode, theirs.Mode)
	check("owner", fmt.Sprint(ours.Uid, ":", ours.Gid), fmt.Sprint(theirs.Uid, ":", theirs.Gid))
	check("owner's name", ours.Uname+":"+ours.Gname, theirs.Uname+":"+theirs.Gname)
	check("link", ours.Linkname, theirs.Linkname)
	check("device", fmt.Sprint(ours.Devmajor, ":", ours.Devminor), fmt.Sprint(theirs.Devmajor, ":", theirs.Devminor))
	check("mtime", ours.ModTime.UnixNano(), theirs.ModTime.UnixNano())
	xattr := func(header *tar.Header) string {
		return fmt.Sprintf("%q", slices.Sorted(func(yield func(string) bool) {
			for key, value := range header.PAXRecords {
				if key == xattrPrefix || len(key) <= len(xattrPrefix) || key[:len(xattrPrefix)] != xattrPrefix {
					continue
				}
				if !yield(key + "=" + value) {
					return
				}
			}
		}))
	}
	check("xattrs", xattr(ours), xattr(theirs))
}

func tocOf(blob []byte) (*estargz.JTOC, error) {
	section := io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob)))
	offset, footer, err := estargz.OpenFooter(section)
	if err != nil {
		return nil, err
	}
	toc, _, err := new(estargz.GzipDecompressor).ParseTOC(io.NewSectionReader(section, offset, section.Size()-offset-footer))
	return toc, err
}

var landmarks = []string{estargz.NoPrefetchLandmark, estargz.PrefetchLandmark}

func compareRows(d *differences, ours, theirs *estargz.JTOC, sharedMembers bool, report *compareReport) {
	if len(ours.Entries) != len(theirs.Entries) {
		d.add("%d TOC rows, the reference has %d", len(ours.Entries), len(theirs.Entries))
		return
	}
	end := len(ours.Entries) - 1
	forbids := end >= 0 && ours.Entries[end].Name == estargz.NoPrefetchLandmark
	their := theirs.Entries
	if forbids && slices.Contains(landmarks, their[0].Name) {
		their = append(slices.Clone(their[1:]), their[0])
	}
	for i, row := range ours.Entries {
		want := their[i]
		check := func(what string, got, want any) {
			if got != want {
				d.add("TOC row %d (%q): %s %v, the reference has %v", i, row.Name, what, got, want)
			}
		}
		if !(forbids && i == end && want.Name == estargz.PrefetchLandmark) {
			check("name", row.Name, want.Name)
		}
		check("type", row.Type, want.Type)
		check("size", row.Size, want.Size)
		check("modtime", row.ModTime3339, want.ModTime3339)
		check("linkName", row.LinkName, want.LinkName)
		check("mode", row.Mode, want.Mode)
		check("uid", row.UID, want.UID)
		check("gid", row.GID, want.GID)
		check("userName", row.Uname, want.Uname)
		check("groupName", row.Gname, want.Gname)
		check("devMajor", row.DevMajor, want.DevMajor)
		check("devMinor", row.DevMinor, want.DevMinor)
		check("digest", row.Digest, want.Digest)
		check("chunkOffset", row.ChunkOffset, want.ChunkOffset)
		check("chunkSize", row.ChunkSize, want.ChunkSize)
		check("chunkDigest", row.ChunkDigest, want.ChunkDigest)
		if !sharedMembers {
			check("innerOffset", row.InnerOffset, want.InnerOffset)
		}
		if !maps.EqualFunc(row.Xattrs, want.Xattrs, bytes.Equal) {
			d.add("TOC row %d (%q): xattrs %q, the reference has %q", i, row.Name, row.Xattrs, want.Xattrs)
		}
	}
	report.Rows = len(ours.Entries)
}
