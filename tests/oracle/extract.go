package main

import (
	"archive/tar"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

type extractReport struct {
	Entries int `json:"entries"`
}

// extractCommand unpacks a blob of any compression into an existing directory, as a runtime without
// lazy pulling would. It needs root.
func extractCommand(args []string) (any, error) {
	positional, err := parse(flag.NewFlagSet("extract", flag.ContinueOnError), args, 2)
	if err != nil {
		return nil, err
	}
	stream, err := inflate(positional[0])
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	reader := tar.NewReader(stream)
	var report extractReport
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return report, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: tar entry %d: %w", positional[0], report.Entries, err)
		}
		if header.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := extractEntry(positional[1], header, reader); err != nil {
			return nil, fmt.Errorf("%q: %w", header.Name, err)
		}
		report.Entries++
	}
}

func extractEntry(root string, header *tar.Header, contents io.Reader) error {
	path := filepath.Join(root, clean(header.Name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	kind, ok := kindOf(header.Typeflag)
	if !ok {
		return fmt.Errorf("unexpected type %q", header.Typeflag)
	}
	info, err := os.Lstat(path)
	if err == nil && !(kind == "dir" && info.IsDir()) {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	if err := makeEntry(root, path, kind, header, contents); err != nil || kind == "hardlink" {
		return err
	}
	if err := os.Lchown(path, header.Uid, header.Gid); err != nil {
		return err
	}
	if kind != "symlink" {
		if err := syscall.Chmod(path, uint32(header.Mode&0o7777)); err != nil {
			return err
		}
	}
	modified := unix.NsecToTimespec(header.ModTime.UnixNano())
	times := []unix.Timespec{modified, modified}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW)
}

func makeEntry(root, path, kind string, header *tar.Header, contents io.Reader) error {
	switch kind {
	case "dir":
		return os.MkdirAll(path, 0o755)
	case "symlink":
		return os.Symlink(header.Linkname, path)
	case "hardlink":
		return os.Link(filepath.Join(root, clean(header.Linkname)), path)
	case "reg":
		file, err := os.Create(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(file, contents)
		return errors.Join(err, file.Close())
	}
	modes := map[string]uint32{"char": syscall.S_IFCHR, "block": syscall.S_IFBLK, "fifo": syscall.S_IFIFO}
	major, minor := uint64(header.Devmajor), uint64(header.Devminor)
	device := minor&0xff | major&0xfff<<8 | minor&^0xff<<12 | major&^0xfff<<32
	return syscall.Mknod(path, modes[kind]|0o600, int(device))
}
