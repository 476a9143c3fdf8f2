// A plain script: brings the bundle `tools`, writes what the label's settings say, and checks that the tools start.

log.step('bring the tools');
const tools = bits.open('tools') ?? never("the label's policy does not grant the bundle `tools`");
const change = agent.mirror(tools, 'tools');
console.log(`${change.filesChanged()} files of ${change.files()} were written, ${change.filesRemoved()} removed`);

log.step('write the configuration');
const lines = settings.all().map(([name, value]) => `${name}=${value}\n`);
agent.writeFile('tools/agent.conf', `name=${registration.name()}\n${lines.join('')}`);

log.step('look at the tools');
const command = new agent.Command(`${registration.root()}/tools/bin/ci-agent`, ['--version']);
command.timeoutMs(10_000);
const output = agent.probe(command);
if (output.status() !== 0) later(`the tools do not start: ${text(output.stderr()).trim()}`, 60);
console.log(text(output.stdout()).trim());
