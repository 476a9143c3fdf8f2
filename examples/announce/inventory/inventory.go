// Package inventory holds what is told to the inventory and what its answer means: what needs no machine, and is tested by `go test`.
package inventory

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// Machine is what the inventory is told.
type Machine struct {
	Name      string   `json:"name"`
	Labels    []string `json:"labels"`
	Executors uint32   `json:"executors"`
	OS        string   `json:"os"`
	Arch      string   `json:"arch"`
}

// Place is where a machine is put: below the inventory's URL, by its name.
func Place(base string, machine Machine) (string, error) {
	parsed, err := url.Parse(base)
	if err != nil || parsed.Host == "" || (parsed.Scheme != "http" && parsed.Scheme != "https") {
		return "", fmt.Errorf("the setting `inventory` is the URL of a service, and not %q", base)
	}
	return parsed.JoinPath("machines", url.PathEscape(machine.Name)).String(), nil
}

// Body is the machine as the inventory takes it.
func Body(machine Machine) ([]byte, error) {
	return json.Marshal(machine)
}

// Meaning is what an answer means for the machine.
type Meaning int

const (
	// Known: the inventory has the machine.
	Known Meaning = iota
	// Later: the inventory may take it another time.
	Later
	// Never: the inventory does not want it.
	Never
)

// Of says what an answer's status means. What can not be read is no answer.
func Of(status string) Meaning {
	code, err := strconv.Atoi(strings.TrimSpace(status))
	switch {
	case err != nil:
		return Later
	case code >= 200 && code < 300:
		return Known
	case code >= 400 && code < 500 && code != 408 && code != 429:
		return Never
	default:
		return Later
	}
}
