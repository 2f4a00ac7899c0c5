//go:build pinned

// Package build pins the VictoriaLogs that the tests run: go.mod names the version, go.sum has the
// checksum of all that it is built from. The import keeps `go mod tidy` from dropping it; it is
// never compiled, because a main package can't be imported.
package build

import _ "github.com/VictoriaMetrics/VictoriaLogs/app/victoria-logs"
