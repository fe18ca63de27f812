package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
)

// A stream is a blob's uncompressed contents, and the file behind it.
type stream struct {
	io.Reader
	io.Closer
}

// inflate opens a blob and returns its uncompressed stream, whatever compression it has.
func inflate(path string) (*stream, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	buffered := bufio.NewReaderSize(file, 1<<20)
	magic, _ := buffered.Peek(4)
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return &stream{&memberReader{input: &countingReader{buffered: buffered}}, file}, nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18}):
		decoder, err := zstd.NewReader(buffered, zstd.WithDecoderMaxMemory(1<<30))
		if err != nil {
			file.Close()
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return &stream{decoder, file}, nil
	default:
		return &stream{buffered, file}, nil
	}
}

// countingReader counts what was consumed; it is an io.ByteReader, so that flate reads no byte
// behind a member's end.
type countingReader struct {
	buffered *bufio.Reader
	consumed int64
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.buffered.Read(p)
	r.consumed += int64(n)
	return n, err
}

func (r *countingReader) ReadByte() (byte, error) {
	b, err := r.buffered.ReadByte()
	if err == nil {
		r.consumed++
	}
	return b, err
}

// A member is one gzip member of a blob.
type member struct {
	start        int64 // offset of its header in the blob
	uncompressed int64 // offset of its first byte in the uncompressed stream
}

// memberReader inflates a blob member by member and notes where each one starts.
type memberReader struct {
	input   *countingReader
	zip     *gzip.Reader
	open    bool
	members []member
	output  int64
}

func (r *memberReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if !r.open {
			start := r.input.consumed
			var err error
			if r.zip == nil {
				r.zip, err = gzip.NewReader(r.input)
			} else {
				err = r.zip.Reset(r.input)
			}
			if errors.Is(err, io.EOF) && start > 0 {
				return 0, io.EOF
			}
			if err != nil {
				return 0, fmt.Errorf("gzip member at offset %d: %w", start, err)
			}
			r.zip.Multistream(false)
			r.open = true
			r.members = append(r.members, member{start: start, uncompressed: r.output})
		}
		n, err := r.zip.Read(p)
		r.output += int64(n)
		if err == io.EOF {
			r.open = false
		} else if err != nil {
			return n, fmt.Errorf("gzip member at offset %d: %w", r.members[len(r.members)-1].start, err)
		}
		if n > 0 {
			return n, nil
		}
	}
}
