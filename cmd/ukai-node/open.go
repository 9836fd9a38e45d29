package main

import (
	"context"
	"fmt"
	"log/slog"

	"ukai"
	"ukai/node/wire"
)

// openNode opens the node that the configuration describes.
func openNode(context.Context, config, []wire.MeshKey, string, *slog.Logger) (parts, error) {
	return parts{}, fmt.Errorf("start: %w", ukai.ErrUnsupported)
}
