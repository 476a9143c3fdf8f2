// A team's module: stops the old agent, mirrors the bundle `tools` to the machine and launches the agent out of it.
// Every setting `env.X` of the label's policy becomes the variable `X` of the agent.

import registration from 'muster:provision/registration@0.1.0';
import settings from 'muster:provision/settings@0.1.0';
import bits from 'muster:provision/bits@0.1.0';
import log from 'muster:provision/log@0.1.0';
import agent from 'muster:provision/agent@0.1.0';

function provision() {
  const tools = `${registration.root()}/tools`;

  log.step('stop the old agent');
  log.write('info', agent.stop() ? 'the old agent was stopped' : 'no agent was running');

  log.step('mirror the tools');
  const bundle = bits.open('tools');
  if (!bundle) throw never("the label's policy does not grant the bundle `tools`");
  const change = agent.mirror(bundle, tools);
  log.write(
    'info',
    `${change.filesChanged()} of ${change.files()} files changed, ${change.filesRemoved()} removed, ${change.bytesSent()} bytes sent`,
  );

  log.step('launch');
  const command = new agent.Command(`${tools}/bin/ci-agent`, ['--name', registration.name()]);
  for (const [setting, value] of settings.all()) {
    if (setting.startsWith('env.')) command.env(setting.slice('env.'.length), value);
  }
  agent.launch(command);
}

const never = (reason) => ({ tag: 'never', val: reason });

// Makes any exception a refusal. The engine takes `later`, `never` and `other` alone: another exception, a TypeError say, would end the
// run as a trap, without its message. An error of a call arrives as an exception whose payload is the WIT variant; what the policy forbids
// will not be allowed by trying again.
function refusing(main) {
  return () => {
    try {
      main();
    } catch (thrown) {
      if (['later', 'never', 'other'].includes(thrown?.tag)) throw thrown;
      const { tag, val } = thrown?.payload ?? {};
      if (tag === 'denied') throw never(val);
      throw { tag: 'other', val: tag ? [tag, val].filter(Boolean).join(': ') : `${thrown}\n${thrown?.stack ?? ''}`.trim() };
    }
  };
}

export const provisioning = { provision: refusing(provision) };
