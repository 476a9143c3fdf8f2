// A team's module: writes the build tools' configuration from templates and settings.
//
// The setting `templates` names files of the bundle `templates`, separated by blanks. Each is written to the same path below `etc` of the
// agent's root, with what stands between braces replaced: `{settings.NAME}` by a setting, `{agent.name}`, `{agent.root}` and
// `{agent.executors}` by what the agent said of itself. What can not be replaced is refused, before anything is written.

import registration from 'muster:provision/registration@0.1.0';
import settings from 'muster:provision/settings@0.1.0';
import bits from 'muster:provision/bits@0.1.0';
import log from 'muster:provision/log@0.1.0';
import agent from 'muster:provision/agent@0.1.0';

function provision() {
  log.step('fill in the templates');
  const paths = (settings.get('templates') ?? '').split(/\s+/).filter(Boolean);
  if (paths.length === 0) throw never('the setting `templates` names no file of the bundle `templates`');
  const bundle = bits.open('templates');
  if (!bundle) throw never("the label's policy does not grant the bundle `templates`");
  const values = known();
  const files = paths.map((path) => {
    const template = bundle.read(path);
    if (!template) throw never(`the bundle \`templates\` has no \`${path}\` of at most 1 MiB`);
    return [path, filled(path, text(template), values)];
  });

  log.step('write the configuration');
  for (const [path, content] of files) {
    const change = agent.writeFile(`etc/${path}`, bytes(content), 0o644);
    log.write('info', change.changed() ? `etc/${path} was written` : `etc/${path} was as it is to be`);
  }
}

// What can stand between braces.
function known() {
  const values = new Map([
    ['agent.name', registration.name()],
    ['agent.root', registration.root()],
    ['agent.executors', String(registration.executors())],
  ]);
  for (const [name, value] of settings.all()) values.set(`settings.${name}`, value);
  return values;
}

// A template with its places filled in. What is filled in is not looked through again.
function filled(path, template, values) {
  return template.replace(/\{((?:agent|settings)\.[^{}\s]+)\}/g, (place, name) => {
    if (!values.has(name)) throw never(`${path} has \`${place}\`, which is neither a setting nor known of the agent`);
    return values.get(name);
  });
}

// UTF-8: the engine has neither TextEncoder nor TextDecoder.
const bytes = (string) => Uint8Array.from(unescape(encodeURIComponent(string)), (character) => character.charCodeAt(0));

function text(array) {
  const parts = [];
  for (let at = 0; at < array.length; at += 4096) parts.push(String.fromCharCode(...array.subarray(at, at + 4096)));
  return decodeURIComponent(escape(parts.join('')));
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
