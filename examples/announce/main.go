// A module for Muster. What it does is in the package provision; gen is made from wit/provision.wit.
package main

import _ "provisioner/gen/exports/wit_exports"

// A module has no program of its own: the server calls what it exports.
func main() {}
