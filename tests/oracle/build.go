package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
)

type buildReport struct {
	TOCDigest        string   `json:"tocDigest"`
	DiffID           string   `json:"diffID"`
	Size             int64    `json:"size"`
	UncompressedSize int64    `json:"uncompressedSize"`
	Missed           []string `json:"missed,omitempty"`
}

// buildFlags are the options of the reference implementation's Build.
type buildFlags struct {
	prioritized  *string
	level        *int
	chunkSize    *int
	minChunkSize *int
}

func newBuildFlags(flags *flag.FlagSet) buildFlags {
	return buildFlags{
		prioritized:  flags.String("prioritized", "", ""),
		level:        flags.Int("level", 6, ""),
		chunkSize:    flags.Int("chunk-size", 0, ""),
		minChunkSize: flags.Int("min-chunk-size", 0, ""),
	}
}

// build makes an eStargz blob of a file with the reference implementation. Listed paths that the
// source lacks are added to missed.
func (f buildFlags) build(path string, missed *[]string) (*estargz.Blob, error) {
	// One worker: more of them cut the blob in ways that depend on the machine.
	options := []estargz.Option{
		estargz.WithCompressionLevel(*f.level), estargz.WithChunkSize(*f.chunkSize),
		estargz.WithMinChunkSize(*f.minChunkSize), estargz.WithParallelism(1),
	}
	if *f.prioritized != "" {
		paths, err := readLines(*f.prioritized)
		if err != nil {
			return nil, err
		}
		options = append(options, estargz.WithPrioritizedFiles(paths), estargz.WithAllowPrioritizeNotFound(missed))
	}
	source, size, err := openSection(path)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	blob, err := estargz.Build(io.NewSectionReader(source, 0, size), options...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return blob, nil
}

// buildCommand makes an eStargz blob with the reference implementation.
func buildCommand(args []string) (any, error) {
	flags := flag.NewFlagSet("build", flag.ContinueOnError)
	options := newBuildFlags(flags)
	positional, err := parse(flags, args, 2)
	if err != nil {
		return nil, err
	}
	var report buildReport
	blob, err := options.build(positional[0], &report.Missed)
	if err != nil {
		return nil, err
	}
	output, err := os.Create(positional[1])
	if err != nil {
		return nil, err
	}
	report.Size, err = io.Copy(output, blob)
	if err := errors.Join(err, blob.Close(), output.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", positional[1], err)
	}
	report.TOCDigest = blob.TOCDigest().String()
	report.DiffID = blob.DiffID().String()
	if report.UncompressedSize, err = blob.UncompressedSize(); err != nil {
		return nil, err
	}
	return report, nil
}

func readLines(path string) ([]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var lines []string
	scanner := bufio.NewScanner(file)
	for scanner.Scan() {
		if line := strings.TrimSpace(scanner.Text()); line != "" {
			lines = append(lines, line)
		}
	}
	return lines, scanner.Err()
}

func openSection(path string) (*os.File, int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, info.Size(), nil
}
