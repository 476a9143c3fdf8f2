// The script runner: one component that is every plain script's module. It reads the script's text, runs it from top to bottom, and says
// where it threw. What a script can call is set up here, once: the engine is frozen with it, and thawed for each run.
//
// What goes to the engine is checked first. It takes a value of another type for its own fault, and ends the run without saying where.

import source from 'muster:script/source@0.1.0';
import registration from 'muster:provision/registration@0.1.0';
import settings from 'muster:provision/settings@0.1.0';
import secrets from 'muster:provision/secrets@0.1.0';
import bits from 'muster:provision/bits@0.1.0';
import log from 'muster:provision/log@0.1.0';
import agent from 'muster:provision/agent@0.1.0';

const LEVELS = ['debug', 'info', 'warn', 'error'];

// What a script may throw, or have thrown for it.

class AgentError extends Error {
  constructor({ tag, val }) {
    super(val ? `${tag}: ${val}` : tag);
    this.name = 'AgentError';
    this.tag = tag;
  }
}

class Refusal extends Error {
  constructor(tag, val, reason) {
    super(reason);
    this.name = 'Refusal';
    this.refusal = { tag, val };
  }
}

// Arguments: what each function takes, and how it is handed on.

function kind(value) {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'an array';
  return value === undefined ? 'nothing' : `${typeof value === 'object' ? 'an' : 'a'} ${typeof value}`;
}

const wrong = (what, takes, name, value) => new TypeError(`${what} takes ${takes} as \`${name}\`, not ${kind(value)}`);

function string(what, name, value) {
  if (typeof value !== 'string') throw wrong(what, 'a string', name, value);
  return value;
}

function strings(what, name, value) {
  if (!Array.isArray(value) || !value.every((item) => typeof item === 'string')) throw wrong(what, 'an array of strings', name, value);
  return value;
}

function whole(what, name, value, most) {
  if (!Number.isInteger(value) || value < 0 || value > most) throw wrong(what, `a whole number from 0 to ${most}`, name, value);
  return value;
}

function content(what, name, value) {
  if (typeof value === 'string') return bytes(value);
  if (!(value instanceof Uint8Array)) throw wrong(what, 'a string or a Uint8Array', name, value);
  return value;
}

function of(type, what, takes, name, value) {
  if (!(value instanceof type)) throw wrong(what, takes, name, value);
  return value;
}

// An error of a call arrives with the contract's variant as its payload.
function asked(call) {
  try {
    return call();
  } catch (thrown) {
    throw typeof thrown?.payload?.tag === 'string' ? new AgentError(thrown.payload) : thrown;
  }
}

// UTF-8: the engine has neither TextEncoder nor TextDecoder.

function bytes(string_) {
  const encoded = unescape(encodeURIComponent(string('bytes', 'string', string_)));
  const made = new Uint8Array(encoded.length);
  for (let at = 0; at < encoded.length; at += 1) made[at] = encoded.charCodeAt(at);
  return made;
}

function text(array) {
  of(Uint8Array, 'text', 'a Uint8Array', 'bytes', array);
  const parts = [];
  for (let at = 0; at < array.length; at += 4096) parts.push(String.fromCharCode(...array.subarray(at, at + 4096)));
  const latin = parts.join('');
  try {
    return decodeURIComponent(escape(latin));
  } catch {
    throw new TypeError('text takes UTF-8, and these bytes are none');
  }
}

// What scripts call.

class Command extends agent.Command {
  constructor(program, args = []) {
    super(string('agent.Command', 'program', program), strings('agent.Command', 'args', args));
  }

  env(name, value) {
    super.env(string('Command.env', 'name', name), string('Command.env', 'value', value));
  }

  secretEnv(name, value) {
    const secret = of(secrets.Secret, 'Command.secretEnv', 'a secret of `secrets.open`', 'value', value);
    super.secretEnv(string('Command.secretEnv', 'name', name), secret);
  }

  directory(path) {
    super.directory(string('Command.directory', 'path', path));
  }

  stdin(bytes) {
    super.stdin(content('Command.stdin', 'bytes', bytes));
  }

  timeoutMs(limit) {
    super.timeoutMs(whole('Command.timeoutMs', 'limit', limit, Number.MAX_SAFE_INTEGER));
  }
}

const { read } = bits.Bundle.prototype;
bits.Bundle.prototype.read = function (path) {
  return read.call(this, string('Bundle.read', 'path', path));
};

const command = (what, value) => of(Command, what, 'an `agent.Command`', 'command', value);
const bundle = (what, value) => of(bits.Bundle, what, 'a bundle of `bits.open`', 'bundle', value);
const path = (what, value) => string(what, 'path', value);
const destination = (what, value) => string(what, 'destination', value);

const offered = {
  registration: { ...registration, attribute: (name) => registration.attribute(string('registration.attribute', 'name', name)) },
  settings: { ...settings, get: (name) => settings.get(string('settings.get', 'name', name)) },
  secrets: { ...secrets, open: (name) => secrets.open(string('secrets.open', 'name', name)) },
  bits: { ...bits, open: (name) => bits.open(string('bits.open', 'name', name)) },
  log: {
    write: (level, message) => {
      if (!LEVELS.includes(level)) throw new TypeError(`log.write takes one of ${LEVELS.join(', ')} as \`level\``);
      log.write(level, String(message));
    },
    step: (title) => log.step(String(title)),
  },
  agent: {
    Command,
    Output: agent.Output,
    Change: agent.Change,
    probe: (given) => asked(() => agent.probe(command('agent.probe', given))),
    readFile: (given) => asked(() => agent.readFile(path('agent.readFile', given))),
    exists: (given) => asked(() => agent.exists(path('agent.exists', given))),
    run: (given) => asked(() => agent.run(command('agent.run', given))),
    writeFile: (given, contents, mode = 0o644) => {
      const what = 'agent.writeFile';
      const [checked, permissions] = [content(what, 'contents', contents), whole(what, 'mode', mode, 0xffffffff)];
      return asked(() => agent.writeFile(path(what, given), checked, permissions));
    },
    remove: (given) => asked(() => agent.remove(path('agent.remove', given))),
    push: (given, to) => asked(() => agent.push(bundle('agent.push', given), destination('agent.push', to))),
    mirror: (given, to) => asked(() => agent.mirror(bundle('agent.mirror', given), destination('agent.mirror', to))),
    stop: () => asked(() => agent.stop()),
    launch: (given) => asked(() => agent.launch(command('agent.launch', given))),
  },
  text,
  bytes,
  never: (reason) => {
    throw new Refusal('never', String(reason), reason);
  },
  later: (reason, seconds) => {
    throw new Refusal('later', [String(reason), whole('later', 'seconds', seconds, 0xffffffff)], reason);
  },
  refuse: (reason) => {
    throw new Refusal('other', String(reason), reason);
  },
  console: { debug: told('debug'), log: told('info'), info: told('info'), warn: told('warn'), error: told('error') },
};

function told(level) {
  const shown = (value) => {
    if (typeof value === 'string' || value instanceof Error) return String(value);
    try {
      return JSON.stringify(value) ?? String(value);
    } catch {
      return String(value);
    }
  };
  return (...values) => log.write(level, values.map(shown).join(' '));
}

for (const [name, value] of Object.entries(offered)) {
  Object.defineProperty(globalThis, name, { value: typeof value === 'object' ? Object.freeze(value) : value, writable: true, configurable: true });
}
// The engine's own numbers would be the same in every run.
Math.random = source.random;

// The script: read, run, and told of.

const OPENS = '"use strict";\n';
// What the engine puts before the text of a function, and what stands before the script's: the script's first line is the one after.
const LINES_BEFORE = 3;
const sourceOf = Function.prototype.call.bind(Function.prototype.toString);

const place = (line, column) => `${source.name()}:${line}:${column}`;

// The script as a function; or an exception whose message says where the script is wrong.
function compiled(script) {
  let made;
  try {
    made = new Function(OPENS + script);
  } catch (thrown) {
    throw new Error(misread(thrown, script, LINES_BEFORE));
  }
  if (sourceOf(made) === `function anonymous(\n) {\n${OPENS}${script}\n}`) return made;
  // It closes the function that it is the body of. As a program of its own it has a brace too many, which is told before anything is run.
  try {
    (0, eval)(script);
  } catch (thrown) {
    throw new Error(misread(thrown, script, 0));
  }
  throw new Error(`${source.name()}: SyntaxError: the braces do not match`);
}

function misread(thrown, script, before) {
  const [, line, column] = /<input>:(\d+):(\d+)/.exec(thrown?.stack ?? '') ?? [];
  if (!(thrown instanceof SyntaxError) || line === undefined) return `${source.name()}: ${shownOf(thrown)}`;
  const lines = script.split('\n');
  const at = Number(line) - before;
  if (at > lines.length) return `${place(lines.length, lines.at(-1).length + 1)}: SyntaxError: the script ends where it can not end`;
  const outside = /^\s*(import|export)\b/.test(lines[at - 1]);
  const hint = outside ? ' (a script imports and exports nothing: what it calls is there already)' : '';
  return `${place(at, column)}: SyntaxError: ${thrown.message}${hint}`;
}

// The script's own frames of a stack, as `in NAME (FILE:LINE:COLUMN)`; the outermost has no name.
function frames(stack, script) {
  const last = script.split('\n').length;
  const found = [];
  for (const [, name, line, column] of String(stack).matchAll(/^ *at (\S+) \(<input>:(\d+):(\d+)\)$/gm)) {
    const at = Number(line) - LINES_BEFORE;
    // What the script gave to `eval` has lines of its own.
    if (name === '<eval>' || at < 1 || at > last) continue;
    found.push({ at: place(at, column), name: name.replace(/^<anonymous>$/, 'a function') });
  }
  return found;
}

function shownOf(thrown) {
  try {
    const shown = String(thrown);
    return shown === '[object Object]' ? JSON.stringify(thrown) : shown;
  } catch {
    return 'an exception that can not be shown';
  }
}

// Whether it is the contract's refusal by itself.
function isRefusal(thrown) {
  switch (thrown?.tag) {
    case 'later':
      return Array.isArray(thrown.val) && typeof thrown.val[0] === 'string' && Number.isInteger(thrown.val[1]) && thrown.val[1] >= 0;
    case 'never':
    case 'other':
      return typeof thrown.val === 'string';
    default:
      return false;
  }
}

// An exception as the contract's refusal, with the place in the script before its own words. What the policy forbids will not be allowed
// by trying again.
function refusalOf(thrown, script) {
  if (thrown instanceof Refusal) return thrown.refusal;
  if (isRefusal(thrown)) return { tag: thrown.tag, val: thrown.val };
  const own = frames(thrown?.stack ?? '', script);
  const reason = `${own[0]?.at ?? source.name()}: ${shownOf(thrown)}`;
  log.write('error', reason);
  for (const frame of own.slice(1)) log.write('error', `  called at ${frame.at}`);
  return { tag: thrown instanceof AgentError && thrown.tag === 'denied' ? 'never' : 'other', val: reason };
}

export const provisioning = {
  provision() {
    const script = source.text();
    try {
      compiled(script)();
    } catch (thrown) {
      let refusal = { tag: 'other', val: `${source.name()}: an exception that can not be shown` };
      try {
        refusal = refusalOf(thrown, script);
      } catch {
        // It does not let itself be looked at.
      }
      throw refusal;
    }
  },
};

export const checking = {
  check() {
    try {
      compiled(source.text());
    } catch (thrown) {
      return shownOf(thrown?.message ?? thrown);
    }
  },
};
