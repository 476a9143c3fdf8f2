// Runs the built module against an empty directory: `muster module build && npm test`.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

// The program `muster`; another one than that of the PATH is named by MUSTER.
const muster = process.env.MUSTER ?? 'muster';
const component = new URL('../module-name.wasm', import.meta.url).pathname;

// Runs the module below a directory; what it said at its end.
function run(root, ...options) {
  const done = spawnSync(muster, ['module', 'try', component, '--root', root, '--json', ...options], { encoding: 'utf8' });
  if (done.error) throw done.error;
  const last = done.stdout.trim().split('\n').at(-1);
  assert.ok(last.startsWith('{'), done.stderr);
  return JSON.parse(last);
}

test('the settings are written as lines', (t) => {
  const root = mkdtempSync(join(tmpdir(), 'module-name-'));
  t.after(() => rmSync(root, { recursive: true }));
  assert.equal(run(root, '--set', 'jdk=17', '--set', 'lang=C').verdict, 'provisioned');
  assert.equal(readFileSync(join(root, 'settings.conf'), 'utf8'), 'jdk = 17\nlang = C\n');
});

test('a setting of two lines is refused for good', (t) => {
  const root = mkdtempSync(join(tmpdir(), 'module-name-'));
  t.after(() => rmSync(root, { recursive: true }));
  const { verdict, reason } = run(root, '--set', 'jdk=1\n7');
  assert.equal(verdict, 'refused-never');
  assert.match(reason, /`jdk`/);
});
