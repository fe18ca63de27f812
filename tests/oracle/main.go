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
  oracle layer-list BLOB`

var errUsage = errors.New(usage)

func main() {
	err := run(os.Args[1:])
	if err == nil {
		return
	}
	if errors.Is(err, errUsage) || errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	// One line, whatever a library put into its message.
	fmt.Fprintln(os.Stderr, "oracle: "+strings.ReplaceAll(err.Error(), "\n", "; "))
	os.Exit(1)
}

func run(args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	commands := map[string]func([]string) error{
		"verify":     verifyCommand,
		"image":      imageCommand,
		"build":      buildCommand,
		"layer-list": listCommand,
	}
	command, ok := commands[args[0]]
	if !ok {
		return errUsage
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

func printJSON(value any) error {
	return json.NewEncoder(os.Stdout).Encode(value)
}
