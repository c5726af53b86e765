package blktest

import (
	"flag"
	"os"
	"testing"
)

// Main runs a package's tests, which wait most of the time: so more of them run at once than there are CPUs, unless -parallel says how many. A fuzz target's workers do not wait.
func Main(m *testing.M) {
	flag.Parse()
	leave := flag.Lookup("test.fuzz").Value.String() != ""
	flag.Visit(func(f *flag.Flag) { leave = leave || f.Name == "test.parallel" })
	if !leave {
		if err := flag.Set("test.parallel", "8"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}
