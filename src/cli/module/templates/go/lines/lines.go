// Package lines holds what needs no machine, so that `go test ./lines` can test it anywhere.
package lines

import (
	"fmt"
	"strings"
)

// Of gives names and values as a file has them, a line each.
func Of(settings [][2]string) (string, error) {
	var text strings.Builder
	for _, setting := range settings {
		if strings.Contains(setting[1], "\n") {
			return "", fmt.Errorf("the setting `%s` has more than one line", setting[0])
		}
		fmt.Fprintf(&text, "%s = %s\n", setting[0], setting[1])
	}
	return text.String(), nil
}
