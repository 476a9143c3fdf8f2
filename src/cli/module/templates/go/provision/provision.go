// Package provision writes the label's settings to the file settings.conf below the agent's root.
package provision

import (
	agent "provisioner/gen/imports/muster_provision_agent"
	log "provisioner/gen/imports/muster_provision_log"
	refusal "provisioner/gen/imports/muster_provision_provisioning"
	settings "provisioner/gen/imports/muster_provision_settings"
	wit "provisioner/gen/wit/types"

	"provisioner/lines"
)

type done = wit.Result[wit.Unit, refusal.Refusal]

// Provision brings the machine to what it must be. It is called once.
func Provision() done {
	log.Step("write the settings")
	var all [][2]string
	for _, setting := range settings.All() {
		all = append(all, [2]string{setting.F0, setting.F1})
	}
	text, err := lines.Of(all)
	if err != nil {
		return refused(refusal.MakeRefusalNever(err.Error()))
	}
	written := agent.WriteFile("settings.conf", []byte(text), 0o644)
	if written.IsErr() {
		return refused(of(written.Err()))
	}
	note := "the settings were there already"
	if written.Ok().Changed() {
		note = "the settings were written"
	}
	log.Write(log.Level_Info, note)
	return wit.Ok[wit.Unit, refusal.Refusal](wit.Unit{})
}

func refused(why refusal.Refusal) done {
	return wit.Err[wit.Unit](why)
}

// of says what a call that was not done means: what the policy forbids will not be allowed by trying again.
func of(err agent.Error) refusal.Refusal {
	other := func(what string) refusal.Refusal { return refusal.MakeRefusalOther(wit.Some(what)) }
	switch err.Tag() {
	case agent.Error_Denied:
		return refusal.MakeRefusalNever(err.Denied())
	case agent.Error_NotFound:
		return other("not found: " + err.NotFound())
	case agent.Error_Invalid:
		return other("invalid: " + err.Invalid())
	case agent.Error_Unreachable:
		return other("unreachable: " + err.Unreachable())
	case agent.Error_TimedOut:
		return other("a command took too long")
	case agent.Error_OverBudget:
		return other("over budget: " + err.OverBudget())
	default:
		return other(err.Other().SomeOr("the call failed"))
	}
}
