// Package provision tells an inventory over HTTP that the machine is there.
//
// The setting `inventory` is the URL of the service. The machine is put below it with its name, labels and what it is, so that telling it
// twice is telling it once. The call is made by curl on the machine: modules have no network of their own.
package provision

import (
	"fmt"
	"strings"

	agent "provisioner/gen/imports/muster_provision_agent"
	log "provisioner/gen/imports/muster_provision_log"
	refusal "provisioner/gen/imports/muster_provision_provisioning"
	registration "provisioner/gen/imports/muster_provision_registration"
	settings "provisioner/gen/imports/muster_provision_settings"
	wit "provisioner/gen/wit/types"

	"provisioner/inventory"
)

type done = wit.Result[wit.Unit, refusal.Refusal]

const (
	curl           = "/usr/bin/curl"
	secondsAtMost  = 20
	secondsToRetry = 60
)

// Provision brings the machine to what it must be. It is called once.
func Provision() done {
	machine := inventory.Machine{
		Name:      registration.Name(),
		Labels:    registration.Labels(),
		Executors: registration.Executors(),
		OS:        registration.Os(),
		Arch:      registration.Arch(),
	}
	place, err := inventory.Place(settings.Get("inventory").SomeOr(""), machine)
	if err != nil {
		return never(err.Error())
	}
	body, err := inventory.Body(machine)
	if err != nil {
		return never(err.Error())
	}

	log.Step("tell the inventory")
	// What was answered goes to standard output, with the status on a line of its own at its end.
	command := agent.MakeCommand(curl, []string{
		"--silent", "--show-error", "--max-time", fmt.Sprint(secondsAtMost), "--request", "PUT", "--header", "Content-Type: application/json",
		"--data-binary", "@-", "--write-out", "\n%{http_code}", "--url", place,
	})
	command.Stdin(body)
	ran := agent.Run(command)
	if ran.IsErr() {
		return of(ran.Err())
	}
	output := ran.Ok()
	if output.Status() != 0 {
		return later("the inventory is not reached: " + strings.TrimSpace(string(output.Stderr())))
	}
	answer := string(output.Stdout())
	cut := strings.LastIndex(answer, "\n")
	status, said := answer[cut+1:], strings.TrimSpace(answer[:max(cut, 0)])
	switch inventory.Of(status) {
	case inventory.Known:
		log.Write(log.Level_Info, "the inventory has the machine")
		return wit.Ok[wit.Unit, refusal.Refusal](wit.Unit{})
	case inventory.Never:
		return never(fmt.Sprintf("the inventory does not take the machine: %s %s", status, said))
	default:
		return later(fmt.Sprintf("the inventory can not take the machine now: %s %s", status, said))
	}
}

func refused(why refusal.Refusal) done {
	return wit.Err[wit.Unit](why)
}

func never(reason string) done {
	return refused(refusal.MakeRefusalNever(reason))
}

func later(reason string) done {
	return refused(refusal.MakeRefusalLater(wit.Tuple2[string, uint32]{F0: reason, F1: secondsToRetry}))
}

// of says what a call that was not done means: what the policy forbids will not be allowed by trying again.
func of(err agent.Error) done {
	other := func(what string) done { return refused(refusal.MakeRefusalOther(wit.Some(what))) }
	switch err.Tag() {
	case agent.Error_Denied:
		return never(err.Denied())
	case agent.Error_NotFound:
		return other("not found: " + err.NotFound())
	case agent.Error_Invalid:
		return other("invalid: " + err.Invalid())
	case agent.Error_Unreachable:
		return other("unreachable: " + err.Unreachable())
	case agent.Error_TimedOut:
		return other("curl took too long")
	case agent.Error_OverBudget:
		return other("over budget: " + err.OverBudget())
	default:
		return other(err.Other().SomeOr("the call failed"))
	}
}
