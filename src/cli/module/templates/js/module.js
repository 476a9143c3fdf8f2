// Writes the label's settings to the file `settings.conf` below the agent's root.
//
// An interface of wit/provision.wit is a module here, a resource a class, and names are in camelCase.

import settings from 'muster:provision/settings@0.1.0';
import log from 'muster:provision/log@0.1.0';
import agent from 'muster:provision/agent@0.1.0';

function provision() {
  log.step('write the settings');
  const all = settings.all();
  const odd = all.find(([, value]) => value.includes('\n'));
  if (odd) throw never(`the setting \`${odd[0]}\` has more than one line`);
  const text = all.map(([name, value]) => `${name} = ${value}\n`).join('');
  const change = agent.writeFile('settings.conf', bytes(text), 0o644);
  log.write('info', change.changed() ? `${all.length} settings were written` : 'the settings were there already');
}

// UTF-8: the engine has no TextEncoder.
const bytes = (text) => Uint8Array.from(unescape(encodeURIComponent(text)), (character) => character.charCodeAt(0));

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
