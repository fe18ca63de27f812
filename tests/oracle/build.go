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

// buildCommand makes an eStargz blob with the reference implementation.
func buildCommand(args []string) error {
	flags := flag.NewFlagSet("build", flag.ContinueOnError)
	prioritized := flags.String("prioritized", "", "")
	level := flags.Int("level", 6, "")
	chunkSize := flags.Int("chunk-size", 0, "")
	minChunkSize := flags.Int("min-chunk-size", 0, "")
	positional, err := parse(flags, args, 2)
	if err != nil {
		return err
	}
	var report buildReport
	// One worker: more of them cut the blob in ways that depend on the machine.
	options := []estargz.Option{
		estargz.WithCompressionLevel(*level), estargz.WithChunkSize(*chunkSize),
		estargz.WithMinChunkSize(*minChunkSize), estargz.WithParallelism(1),
	}
	if *prioritized != "" {
		paths, err := readLines(*prioritized)
		if err != nil {
			return err
		}
		options = append(options, estargz.WithPrioritizedFiles(paths), estargz.WithAllowPrioritizeNotFound(&report.Missed))
	}
	source, size, err := openSection(positional[0])
	if err != nil {
		return err
	}
	defer source.Close()
	blob, err := estargz.Build(io.NewSectionReader(source, 0, size), options...)
	if err != nil {
		return fmt.Errorf("%s: %w", positional[0], err)
	}
	output, err := os.Create(positional[1])
	if err != nil {
		return err
	}
	report.Size, err = io.Copy(output, blob)
	if err := errors.Join(err, blob.Close(), output.Close()); err != nil {
		return fmt.Errorf("%s: %w", positional[1], err)
	}
	report.TOCDigest = blob.TOCDigest().String()
	report.DiffID = blob.DiffID().String()
	if report.UncompressedSize, err = blob.UncompressedSize(); err != nil {
		return err
	}
	return printJSON(report)
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
