package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"path"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
)

// xattrPrefix starts the PAX keys of extended attributes.
const xattrPrefix = "SCHILY.xattr."

// packPrefix starts the names of the hot packs: entries of the tar that extractors skip and that
// the TOC does not list.
const packPrefix = ".wh..wh.esgz."

// A node is what an extractor would make of one entry of a layer.
type node struct {
	kind     string // as TOC entries name it
	mode     int64
	uid, gid int
	uname    string
	gname    string
	modTime  time.Time
	link     string
	major    int64
	minor    int64
	size     int64
	payload  int64 // where its contents begin in the stream
	sha256   string
	xattrs   map[string]string
}

// A model is a layer's tar with the last entry of every name, and what eStargz adds to it.
type model struct {
	nodes     map[string]*node
	landmarks []string // in order, every one that was found
	first     string   // the first name that is no pack
	last      string   // the last name
	packs     []extent // their contents
	toc       int      // number of TOC entries
}

func clean(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

func kindOf(flag byte) (string, bool) {
	kinds := map[byte]string{
		tar.TypeReg: "reg", '\x00': "reg", tar.TypeCont: "reg", tar.TypeGNUSparse: "reg",
		tar.TypeLink: "hardlink", tar.TypeSymlink: "symlink", tar.TypeChar: "char",
		tar.TypeBlock: "block", tar.TypeDir: "dir", tar.TypeFifo: "fifo",
	}
	kind, ok := kinds[flag]
	return kind, ok
}

// readModel reads a tar to the end of its stream. File contents are hashed, not kept.
func readModel(stream io.Reader) (*model, error) {
	m := &model{nodes: map[string]*node{}}
	global := map[string]string{}
	// archive/tar reads no byte before it is asked for it.
	counter := &byteCounter{}
	reader := tar.NewReader(io.TeeReader(stream, counter))
	buffer := make([]byte, 1<<20)
	for {
		header, err := reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("tar entry behind %q: %w", m.last, err)
		}
		if header.Typeflag == tar.TypeXGlobalHeader {
			for key, value := range header.PAXRecords {
				global[key] = value
			}
			continue
		}
		kind, ok := kindOf(header.Typeflag)
		if !ok {
			return nil, fmt.Errorf("tar entry %q: unexpected type %q", header.Name, header.Typeflag)
		}
		name := clean(header.Name)
		m.last = name
		special := true
		switch {
		case name == estargz.TOCTarName:
			m.toc++
		case name == estargz.PrefetchLandmark, name == estargz.NoPrefetchLandmark:
			m.landmarks = append(m.landmarks, name)
		case strings.HasPrefix(name, packPrefix):
			m.packs = append(m.packs, extent{counter.n, counter.n + header.Size})
		default:
			special = false
		}
		if m.first == "" && !strings.HasPrefix(name, packPrefix) {
			m.first = name
		}
		if special {
			continue
		}
		n := newNode(header, kind, global)
		n.payload = counter.n
		if kind == "reg" {
			hash := sha256.New()
			written, err := io.CopyBuffer(hash, reader, buffer)
			if err != nil {
				return nil, fmt.Errorf("contents of tar entry %q: %w", header.Name, err)
			}
			n.size = written
			n.sha256 = hex.EncodeToString(hash.Sum(nil))
		}
		m.nodes[name] = n
	}
	// The rest is padding, or whatever a careless tool appended; it counts for the DiffID only.
	_, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{stream}, buffer)
	return m, err
}

func newNode(header *tar.Header, kind string, global map[string]string) *node {
	n := &node{
		kind: kind, mode: header.Mode, uid: header.Uid, gid: header.Gid,
		uname: header.Uname, gname: header.Gname, modTime: header.ModTime,
		xattrs: map[string]string{},
	}
	switch kind {
	case "symlink":
		n.link = header.Linkname
	case "hardlink":
		n.link = clean(header.Linkname)
	case "char", "block":
		n.major, n.minor = header.Devmajor, header.Devminor
	}
	apply := func(key, value string) {
		switch {
		case strings.HasPrefix(key, xattrPrefix):
			n.xattrs[strings.TrimPrefix(key, xattrPrefix)] = value
		case key == "uid":
			n.uid, _ = strconv.Atoi(value)
		case key == "gid":
			n.gid, _ = strconv.Atoi(value)
		case key == "uname":
			n.uname = value
		case key == "gname":
			n.gname = value
		case key == "mtime":
			if seconds, err := strconv.ParseInt(value, 10, 64); err == nil {
				n.modTime = time.Unix(seconds, 0)
			}
		}
	}
	// archive/tar hands global records over and does not apply them.
	for key, value := range global {
		if _, own := header.PAXRecords[key]; !own {
			apply(key, value)
		}
	}
	for key, value := range header.PAXRecords {
		if strings.HasPrefix(key, xattrPrefix) {
			apply(key, value)
		}
	}
	return n
}

// differences collects what two sides disagree on, in words.
type differences struct {
	found []string
}

func (d *differences) add(format string, args ...any) {
	d.found = append(d.found, fmt.Sprintf(format, args...))
}

// err is nil if both sides agree, else one error that quotes the first few differences.
func (d *differences) err(what string) error {
	if len(d.found) == 0 {
		return nil
	}
	sort.Strings(d.found)
	shown := d.found[:min(len(d.found), 6)]
	more := ""
	if len(d.found) > len(shown) {
		more = fmt.Sprintf("; and %d more", len(d.found)-len(shown))
	}
	return fmt.Errorf("%s: %s%s", what, strings.Join(shown, "; "), more)
}

// compareTar compares the tar inside an eStargz blob with the source's tar.
func compareTar(source, output *model) error {
	var d differences
	for name, want := range source.nodes {
		got, ok := output.nodes[name]
		if !ok {
			d.add("%q: missing", name)
			continue
		}
		compareNodes(&d, name, want, got)
		if want.uname != got.uname || want.gname != got.gname {
			d.add("%q: owner %q:%q, want %q:%q", name, got.uname, got.gname, want.uname, want.gname)
		}
		if want.modTime.Unix() != got.modTime.Unix() || want.modTime.Nanosecond() != got.modTime.Nanosecond() {
			d.add("%q: mtime %v, want %v", name, got.modTime.UTC(), want.modTime.UTC())
		}
	}
	for name := range output.nodes {
		if _, ok := source.nodes[name]; !ok {
			d.add("%q: not in the source", name)
		}
	}
	return d.err("tar differs from the source's")
}

// compareTOC compares the entries of a TOC with the source's tar. Names in JSON are UTF-8.
func compareTOC(source *model, entries []*estargz.TOCEntry) error {
	var d differences
	want := make(map[string]*node, len(source.nodes))
	for name, n := range source.nodes {
		want[jsonText(name)] = n
	}
	seen := map[string]bool{}
	for _, entry := range entries {
		name := clean(entry.Name)
		if entry.Type == "chunk" || name == estargz.PrefetchLandmark || name == estargz.NoPrefetchLandmark {
			continue
		}
		if seen[name] {
			d.add("%q: twice in the TOC", name)
		}
		seen[name] = true
		n, ok := want[name]
		if !ok {
			d.add("%q: in the TOC, not in the source", name)
			continue
		}
		compareNodes(&d, name, n, tocNode(&d, entry))
		if !isTOCTime(entry.ModTime3339, n.modTime) {
			d.add("%q: TOC mtime %q, want %v", name, entry.ModTime3339, n.modTime.UTC())
		}
	}
	for name := range want {
		if !seen[name] {
			d.add("%q: not in the TOC", name)
		}
	}
	return d.err("TOC differs from the source's tar")
}

// isTOCTime tells whether a TOC gives the modification time t: rounded to seconds, and for the
// first second of 1970, as the reference does it, nothing.
func isTOCTime(text string, t time.Time) bool {
	return text == t.UTC().Round(time.Second).Format(time.RFC3339) || text == "" && t.Unix() == 0
}

func tocNode(d *differences, entry *estargz.TOCEntry) *node {
	n := &node{
		kind: entry.Type, mode: entry.Mode, uid: entry.UID, gid: entry.GID, link: entry.LinkName,
		major: int64(entry.DevMajor), minor: int64(entry.DevMinor), size: entry.Size,
		xattrs: map[string]string{},
	}
	if entry.Type == "hardlink" {
		n.link = clean(entry.LinkName)
	}
	if entry.Type == "reg" {
		digest, ok := strings.CutPrefix(entry.Digest, "sha256:")
		if !ok {
			d.add("%q: no digest in the TOC", entry.Name)
		}
		n.sha256 = digest
	}
	for key, value := range entry.Xattrs {
		n.xattrs[key] = string(value)
	}
	return n
}

func compareNodes(d *differences, name string, want, got *node) {
	check := func(what string, want, got any) {
		if want != got {
			d.add("%q: %s %v, want %v", name, what, got, want)
		}
	}
	check("type", want.kind, got.kind)
	check("mode", fmt.Sprintf("%#o", want.mode), fmt.Sprintf("%#o", got.mode))
	check("uid", want.uid, got.uid)
	check("gid", want.gid, got.gid)
	check("link", jsonText(want.link), jsonText(got.link))
	check("device", fmt.Sprint(want.major, ":", want.minor), fmt.Sprint(got.major, ":", got.minor))
	check("size", want.size, got.size)
	check("contents", want.sha256, got.sha256)
	for key, value := range want.xattrs {
		if other, ok := got.xattrs[key]; !ok || other != value {
			d.add("%q: xattr %q is %q, want %q", name, key, other, value)
		}
	}
	check("number of xattrs", len(want.xattrs), len(got.xattrs))
}

// jsonText is a string as it comes back from JSON: U+FFFD for every byte that is no UTF-8.
func jsonText(text string) string {
	var b bytes.Buffer
	for _, r := range text {
		b.WriteRune(r)
	}
	return b.String()
}
