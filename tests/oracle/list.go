package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
)

type listedHeader struct {
	Name       string            `json:"name"`
	Typeflag   string            `json:"typeflag"`
	Size       int64             `json:"size"`
	Mode       int64             `json:"mode"`
	UID        int               `json:"uid"`
	GID        int               `json:"gid"`
	Uname      string            `json:"uname,omitempty"`
	Gname      string            `json:"gname,omitempty"`
	ModTime    string            `json:"modTime"`
	Linkname   string            `json:"linkName,omitempty"`
	Devmajor   int64             `json:"devMajor,omitempty"`
	Devminor   int64             `json:"devMinor,omitempty"`
	PAXRecords map[string]string `json:"pax,omitempty"`
	SHA256     string            `json:"sha256,omitempty"`
}

// listCommand lists the tar headers of a blob in order; printed, each is a JSON object on a line of
// its own.
func listCommand(args []string) (any, error) {
	positional, err := parse(flag.NewFlagSet("layer-list", flag.ContinueOnError), args, 1)
	if err != nil {
		return nil, err
	}
	stream, err := inflate(positional[0])
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	reader := tar.NewReader(stream)
	lines := []listedHeader{}
	last := ""
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return lines, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: tar entry behind %q: %w", positional[0], last, err)
		}
		last = header.Name
		line := listedHeader{
			Name: header.Name, Typeflag: string(rune(header.Typeflag)), Size: header.Size,
			Mode: header.Mode, UID: header.Uid, GID: header.Gid,
			Uname: header.Uname, Gname: header.Gname,
			ModTime: header.ModTime.UTC().Format("2006-01-02T15:04:05.999999999Z07:00"), Linkname: header.Linkname,
			Devmajor: header.Devmajor, Devminor: header.Devminor, PAXRecords: header.PAXRecords,
		}
		if kind, _ := kindOf(header.Typeflag); kind == "reg" {
			hash := sha256.New()
			if _, err := io.Copy(hash, reader); err != nil {
				return nil, fmt.Errorf("%s: contents of %q: %w", positional[0], header.Name, err)
			}
			line.SHA256 = hex.EncodeToString(hash.Sum(nil))
		}
		lines = append(lines, line)
	}
}
