package volume

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"time"
)

var verbose = flag.Bool("volume.log", false, "print what the nodes log")

func testLog(n *testNode) *slog.Logger {
	if !*verbose {
		return nil
	}
	w := n.w
	h := slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.String("at", w.clock().Round(time.Millisecond).String())
		}
		return a
	}})
	return slog.New(h).With("node", fmt.Sprintf("n%d", n.n))
}
