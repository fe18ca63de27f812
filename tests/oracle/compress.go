package main

import (
	"compress/gzip"
	"flag"
	"fmt"
	"io"
	"os"

	kgzip "github.com/klauspost/compress/gzip"
)

type compressReport struct {
	Size int64 `json:"size"`
}

// compressCommand compresses a file as Go's standard library does, which docker and containerd use, or as
// klauspost's does, which buildkit and podman use.
func compressCommand(args []string) (any, error) {
	flags := flag.NewFlagSet("compress", flag.ContinueOnError)
	level := flags.Int("level", 6, "")
	klauspost := flags.Bool("klauspost", false, "")
	positional, err := parse(flags, args, 2)
	if err != nil {
		return nil, err
	}
	size, err := compress(positional[0], positional[1], *level, *klauspost)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", positional[0], err)
	}
	return compressReport{size}, nil
}

func compress(from, to string, level int, klauspost bool) (int64, error) {
	source, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer source.Close()
	target, err := os.Create(to)
	if err != nil {
		return 0, err
	}
	defer target.Close()
	var writer io.WriteCloser
	if klauspost {
		writer, err = kgzip.NewWriterLevel(target, level)
	} else {
		writer, err = gzip.NewWriterLevel(target, level)
	}
	if err != nil {
		return 0, err
	}
	if _, err := io.Copy(writer, source); err != nil {
		return 0, err
	}
	if err := writer.Close(); err != nil {
		return 0, err
	}
	return target.Seek(0, io.SeekCurrent)
}
