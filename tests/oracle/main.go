// Command oracle checks esgz's images with the reference implementation of eStargz, with Go's
// archive/tar and with Go's compress/gzip. Every subcommand prints JSON on stdout; a failure is
// one line on stderr and exit code 1 (2 for wrong usage).
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
)

const usage = `usage:
  oracle verify BLOB --toc-digest DIGEST [--source BLOB] [--shared-members]
  oracle image LAYOUT [--tag TAG] [--source LAYOUT [--source-tag TAG]] [--plain] [--shared-members]
  oracle build SOURCE OUT [--prioritized FILE] [--level N] [--chunk-size N] [--min-chunk-size N]
  oracle compress SOURCE OUT [--level N] [--klauspost]
  oracle compare BLOB SOURCE [--prioritized FILE] [--chunk-size N] [--min-chunk-size N]
  oracle extract BLOB DIR
  oracle layer-list BLOB
  oracle read BLOB --toc-digest DIGEST [--shared-members]
  oracle prefetch BLOB --toc-digest DIGEST
  oracle batch < REQUESTS      one JSON array of arguments a line; one JSON object a line comes back`

var errUsage = errors.New(usage)

func main() {
	err := printed(os.Args[1:])
	if err == nil {
		return
	}
	if errors.Is(err, errUsage) || errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	fmt.Fprintln(os.Stderr, "oracle: "+oneLine(err))
	os.Exit(1)
}

// oneLine is an error's text, whatever a library put into it.
func oneLine(err error) string {
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

func printed(args []string) error {
	if len(args) == 1 && args[0] == "batch" {
		return batch(os.Stdin, os.Stdout)
	}
	result, err := run(args)
	if err != nil {
		return err
	}
	output := json.NewEncoder(os.Stdout)
	if lines, ok := result.([]listedHeader); ok {
		for _, line := range lines {
			if err := output.Encode(line); err != nil {
				return err
			}
		}
		return nil
	}
	return output.Encode(result)
}

func run(args []string) (any, error) {
	if len(args) == 0 {
		return nil, errUsage
	}
	commands := map[string]func([]string) (any, error){
		"verify":     verifyCommand,
		"image":      imageCommand,
		"build":      buildCommand,
		"compress":   compressCommand,
		"compare":    compareCommand,
		"extract":    extractCommand,
		"layer-list": listCommand,
		"read":       readCommand,
		"prefetch":   prefetchCommand,
	}
	command, ok := commands[args[0]]
	if !ok {
		return nil, errUsage
	}
	return command(args[1:])
}

// parse reads flags that may stand before, between and behind the want positional arguments.
func parse(flags *flag.FlagSet, args []string, want int) ([]string, error) {
	flags.SetOutput(new(strings.Builder))
	var positional []string
	for {
		if err := flags.Parse(args); err != nil {
			return nil, fmt.Errorf("%w (%w)", errUsage, err)
		}
		if flags.NArg() == 0 {
			break
		}
		positional = append(positional, flags.Arg(0))
		args = flags.Args()[1:]
	}
	if len(positional) != want {
		return nil, errUsage
	}
	return positional, nil
}
