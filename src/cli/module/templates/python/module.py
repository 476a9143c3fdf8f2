"""Writes the label's settings to the file `settings.conf` below the agent's root.

An interface of wit/provision.wit is a Python module here, a resource a class, and names are in snake_case.
"""

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.provisioning import Refusal_Never, Refusal_Other
from wit_world.imports import agent, log, settings


def provision() -> None:
    log.step("write the settings")
    every = settings.all()
    for name, value in every:
        if "\n" in value:
            raise Err(Refusal_Never(f"the setting `{name}` has more than one line"))
    text = "".join(f"{name} = {value}\n" for name, value in every)
    change = agent.write_file("settings.conf", text.encode(), 0o644)
    note = f"{len(every)} settings were written" if change.changed() else "the settings were there already"
    log.write(log.Level.INFO, note)


def refusal(error: agent.Error) -> Err:
    """What a call that was not done means: what the policy forbids will not be allowed by trying again."""
    if isinstance(error, agent.Error_Denied):
        return Err(Refusal_Never(error.value))
    return Err(Refusal_Other(f"{type(error).__name__}: {getattr(error, 'value', '')}"))


class Provisioning(exports.Provisioning):
    def provision(self) -> None:
        try:
            provision()
        except Err as error:
            raise refusal(error.value) if type(error.value).__module__ == agent.__name__ else error
