/**
 * The JavaScript client as it would be published: what `npm pack` makes, installed and used by name, checked by TypeScript as
 * its users would, and run with another WebSocket.
 */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";

import * as client from "../../../scripts/client/blackhole.mjs";
import { endWithTest } from "../support/endings.mjs";
import { ownFolder, projectFile, readProjectFile } from "../support/project.mjs";
import { startServer } from "../support/server.mjs";
import { BROKER_PATIENCE, until } from "../support/until.mjs";
import { follow } from "./follower.mjs";

const run = promisify(execFile);

/** The first account of the embedded source. */
const DEMO = "1".padStart(32, "0");

const FILES = ["LICENSE", "README.md", "blackhole.d.mts", "blackhole.d.ts", "blackhole.mjs", "package.json"];

const USE = `
import { connect } from "blackhole-client";
const [, , url, account] = process.argv;
const client = connect(url, { token: "any", account });
const names = new Set();
for await (const { name } of await client.subscribe("call.*.*")) if (names.add(name).size === 3) break;
console.log([...names].sort().join());
await client.close();
`;

/** What the types allow, and with an expected error what they do not. */
const TYPES = `
import { connect, BlackholeError, type Client, type Gap, type PlatformEvent, type State, type Subscription } from "blackhole-client";

interface Call { "Call-ID": string; "Event-Name": string }
const client: Client = connect(["wss://one.example", new URL("wss://two.example")], {
  token: async ({ reason }) => ({ token: reason === "expires" ? "a" : "b", expires: new Date() }),
  style: "kazoo", name: "a", metadata: { of: ["a"] }, signal: AbortSignal.timeout(1), WebSocket, queueMax: 1,
});
const calls: Subscription<Call> = await client.subscribe<Call>("call.*.*", {
  onEvent: (event, subscription) => {
    const id: string | undefined = event.args?.["Call-ID"];
    const replayed: true | undefined = event.replayed;
    return [id, replayed, subscription.dropped];
  },
});
for await (const event of calls) {
  const one: PlatformEvent<Call> = event;
  // @ts-expect-error a body of another shape
  one.args?.nothing;
  // @ts-expect-error an event is not changed
  one.name = "x";
}
const stop: () => void = client.on("state", (state: State, previous: State) => {
  if (state.name === "reconnecting") return state.inMs + state.tries;
  // @ts-expect-error not of this state
  state.inMs;
  return state.name === "refused" ? [state.why, state.code, previous] : undefined;
});
client.on("gap", ({ reason, why, dropped, from }: Gap) => [reason, why, dropped, from]);
client.on("event", (event, subscriptions) => [event.cursor, subscriptions[0]?.queued]);
client.on("ended", ({ reason, bindings, errors }, subscription) => [reason, bindings, errors, subscription]);
client.on("error", ({ code, errors, closeCode, cause }) => [code === "timeout", errors, closeCode, cause]);
// @ts-expect-error no such thing is told
client.on("nothing", () => {});
// @ts-expect-error a token is asked for
connect("wss://one.example", {});
// @ts-expect-error no such style
connect("wss://one.example", { token: "a", style: "other" });
// @ts-expect-error no such code
new BlackholeError("closed", "y").code === "nothing";
const time: number = await client.ping({ timeoutMs: 1, signal: AbortSignal.timeout(1) });
await client.authenticate("c");
stop();
await calls.unsubscribe();
const end: string = (await calls.closed).reason;
await client.close();
export { end, time };
`;

/** A folder with the package installed from what \`npm pack\` makes; and the names of its files. */
async function installed() {
  const folder = ownFolder("package");
  endWithTest(async () => rmSync(folder, { recursive: true, force: true }));
  const npm = (...args) => run("npm", [...args, "--offline", "--no-audit", "--no-fund"], { cwd: folder, timeout: BROKER_PATIENCE });
  const { stdout } = await npm("pack", projectFile("scripts/client"), "--json");
  const [{ filename, files }] = JSON.parse(stdout);
  writeFileSync(join(folder, "package.json"), JSON.stringify({ name: "app", private: true, type: "module" }));
  await npm("install", join(folder, filename));
  return { folder, files: files.map(({ path }) => path).sort() };
}

/** What TypeScript says to this file of the folder. */
async function checked(folder, file, ...options) {
  // No \`lib\` and no types of Node: what the package needs, it must bring, or every platform has it.
  const args = ["--strict", "--exactOptionalPropertyTypes", "--noEmit", "--target", "esnext", ...options, file];
  try {
    await run(projectFile("tests/web/node_modules/.bin/tsc"), args, { cwd: folder, timeout: BROKER_PATIENCE });
    return "";
  } catch (error) {
    return error.stdout || String(error);
  }
}

test("npm pack makes what one would publish, and it is used by its name", async () => {
  const [{ folder, files }, server] = await Promise.all([installed(), startServer({ args: ["--demo-rate", "100"] })]);
  assert.deepEqual(files, FILES);
  writeFileSync(join(folder, "use.mjs"), USE);
  const { stdout } = await run(process.execPath, ["use.mjs", server.wsUrl, DEMO], { cwd: folder, timeout: BROKER_PATIENCE });
  assert.equal(stdout, "CHANNEL_ANSWER,CHANNEL_CREATE,CHANNEL_DESTROY\n");

  writeFileSync(join(folder, "types.ts"), TYPES);
  assert.equal(await checked(folder, "types.ts", "--module", "nodenext"), "");
  assert.equal(await checked(folder, "types.ts", "--module", "esnext", "--moduleResolution", "bundler"), "");
  // By the file, as it is copied to a site.
  mkdirSync(join(folder, "site"));
  for (const name of files.filter((name) => name.startsWith("blackhole"))) {
    writeFileSync(join(folder, "site", name), readProjectFile(`scripts/client/${name}`));
  }
  writeFileSync(join(folder, "site/types.ts"), TYPES.replaceAll('"blackhole-client"', '"./blackhole.mjs"'));
  assert.equal(await checked(folder, "site/types.ts", "--module", "nodenext"), "");

  // The examples of its page, each by itself.
  const examples = [...readFileSync(join(folder, "node_modules/blackhole-client/README.md"), "utf8").matchAll(/^```js\n([^]*?)^```$/gm)];
  assert.ok(examples.length >= 3);
  for (const [index, [, text]] of examples.entries()) {
    writeFileSync(join(folder, `example-${index}.mjs`), text);
    assert.equal(await checked(folder, `example-${index}.mjs`, "--module", "nodenext", "--allowJs", "--checkJs"), "", text);
  }
});

test("the package is of this project, and stands alone", () => {
  const json = JSON.parse(readProjectFile("scripts/client/package.json"));
  assert.equal(json.version, /^version = "(.+)"$/m.exec(readProjectFile("Cargo.toml"))?.[1]);
  assert.equal(readProjectFile("scripts/client/LICENSE"), readProjectFile("LICENSE"));
  assert.deepEqual([json.dependencies, json.peerDependencies, json.scripts], [undefined, undefined, undefined]);
  // The console has the module in its page: nothing is imported, and nothing but declarations stands at the top.
  const source = readProjectFile("scripts/client/blackhole.mjs");
  assert.doesNotMatch(source, /\bimport\b *["'{(*]|\brequire\(/);
  const others = source.split("\n").filter((line) => /^[^\s]/.test(line) && !/^(export |async |class |function |const [A-Z_]+ = |\/\*\*|\/\/|[}\]);]+$)/.test(line));
  assert.deepEqual(others, []);
});

test("what the types declare is there", async () => {
  const types = readProjectFile("scripts/client/blackhole.d.ts");
  const exported = [...types.matchAll(/^export (?:class|function) (\w+)/gm)].map(([, name]) => name);
  assert.deepEqual(Object.keys(client).sort(), exported.sort());
  const members = (name) => {
    const [, body] = /** @type {RegExpExecArray} */ (new RegExp(`^export interface ${name}\\b[^]*?\\{\\n([^]*?)^\\}`, "m").exec(types));
    return [...body.matchAll(/^ {2}(?:readonly )?(\w+)[(:<]/gm)].map(([, member]) => member);
  };
  const server = await startServer();
  const { client: made } = follow(server.wsUrl, { account: DEMO });
  const subscription = await made.subscribe("call.*.*");
  for (const [of, name, least] of /** @type {[object, string, number][]} */ ([[made, "Client", 8], [subscription, "Subscription", 7]])) {
    assert.ok(members(name).length >= least, String(members(name)));
    for (const member of members(name)) assert.ok(member in of, `${name}.${member}`);
  }
  for (const symbol of [Symbol.asyncIterator, Symbol.asyncDispose]) {
    assert.ok(symbol in (symbol === Symbol.asyncDispose ? made : subscription), String(symbol));
  }
});

test("it runs with a WebSocket that it is handed, and with none says so", async () => {
  // The package `ws`, which the driver of the browser brings.
  const { WebSocket } = createRequire(createRequire(import.meta.url).resolve("puppeteer-core"))("ws");
  const server = await startServer({ args: ["--demo-rate", "100"] });
  const { client: made, becomes, told } = follow(server.wsUrl, { account: DEMO, WebSocket });
  const subscription = await made.subscribe("call.*.*");
  for await (const _ of subscription.values({ preventCancel: true })) break;
  await server.kill();
  await becomes("reconnecting");
  await server.start();
  await becomes("live");
  await until(async () => (await made.ping()) > 0);
  assert.deepEqual([told.error, told.gap.length], [[], 1]);
  await made.close();
  const { WebSocket: own } = globalThis;
  try {
    Reflect.deleteProperty(globalThis, "WebSocket");
    assert.throws(() => client.connect(server.wsUrl, { token: "any" }), /no WebSocket/);
  } finally {
    globalThis.WebSocket = own;
  }
});
