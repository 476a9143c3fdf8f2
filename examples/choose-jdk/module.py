"""A team's module: chooses a JDK among those that the machine has, and writes where it is.

The setting `jdk` is the version that is wanted, `17` say; a newer one is taken if the setting `newer` is `yes`. What `java -version` says is
believed, not a directory's name. The choice goes to `jdk.conf` below the agent's root: `JAVA_HOME` and `JAVA_VERSION`, as a shell reads
them. Without a JDK that fits, the run is refused for an hour: somebody may install one.
"""

import posixpath
import re

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.provisioning import Refusal_Later, Refusal_Never, Refusal_Other
from wit_world.imports import agent, log, registration, settings

# Where JDKs are installed, each in a directory of its own.
HOMES = ["/usr/lib/jvm", "/opt"]


def provision() -> None:
    wanted = number(settings.get("jdk"))
    newer = settings.get("newer") == "yes"

    log.step("look for JDKs")
    found = [(version, java) for java in candidates() if (version := version_of(java)) is not None]
    fitting = [entry for entry in found if entry[0] == wanted or (newer and entry[0] > wanted)]
    if not fitting:
        there = ", ".join(f"{version} at {java}" for version, java in found) or "none"
        raise Err(Refusal_Later((f"there is no JDK {wanted}{' or newer' if newer else ''} on the machine; there is: {there}", 3600)))
    # Of the same version the first: a directory of its own tells more than /usr.
    version, java = min(fitting, key=lambda entry: entry[0])

    log.step("write the choice")
    home = posixpath.dirname(posixpath.dirname(java))
    change = agent.write_file("jdk.conf", f"JAVA_HOME='{home}'\nJAVA_VERSION={version}\n".encode(), 0o644)
    log.write(log.Level.INFO, f"JDK {version} at {home}{'' if change.changed() else ', as before'}")


def number(setting: str | None) -> int:
    if setting is None or not setting.isdecimal():
        raise Err(Refusal_Never(f"the setting `jdk` is the version that is wanted, 17 say, and not {setting!r}"))
    return int(setting)


def candidates() -> list[str]:
    """The programs that may be a `java`."""
    programs = []
    for directory in HOMES:
        listed = probe("/bin/ls", "-1", directory)
        names = sorted(listed.stdout().decode(errors="replace").splitlines()) if listed and listed.status() == 0 else []
        programs += [f"{directory}/{name}/bin/java" for name in names]
    return [*programs, f"{registration.root()}/jdk/bin/java", "/usr/bin/java"]


def version_of(java: str) -> int | None:
    """The version that a `java` says it is; none if it is none, or may not be asked."""
    output = probe(java, "-version")
    if output is None or output.status() != 0:
        return None
    # `openjdk version "17.0.9"`; Java 8 calls itself 1.8.
    said = re.search(r'version "(?:1\.)?(\d+)', output.stderr().decode(errors="replace"))
    return int(said.group(1)) if said else None


def probe(program: str, *arguments: str) -> agent.Output | None:
    """What a program answers; none if it is not there or not granted."""
    command = agent.Command(program, list(arguments))
    command.timeout_ms(20_000)
    try:
        return agent.probe(command)
    except Err as error:
        if isinstance(error.value, (agent.Error_NotFound, agent.Error_Denied, agent.Error_TimedOut)):
            return None
        raise


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
