package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"
)

// An answer is what a request of a batch came to.
type answer struct {
	Result any    `json:"result,omitempty"`
	Error  string `json:"error,omitempty"`
}

// batch runs many commands in one process, several at once, and answers in the requests' order.
func batch(input io.Reader, output io.Writer) error {
	var requests [][]string
	decoder := json.NewDecoder(bufio.NewReader(input))
	for {
		var request []string
		if err := decoder.Decode(&request); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		requests = append(requests, request)
	}
	answers := make([]answer, len(requests))
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, request := range requests {
		group.Go(func() error {
			result, err := run(request)
			answers[i].Result = result
			if err != nil {
				answers[i] = answer{Error: oneLine(err)}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	encoder := json.NewEncoder(output)
	for _, answer := range answers {
		if err := encoder.Encode(answer); err != nil {
			return err
		}
	}
	return nil
}
