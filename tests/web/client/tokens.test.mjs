/**
 * The JavaScript client: tokens that are renewed, refused, or of another account. The server is real, and so are the tokens.
 */

import assert from "node:assert/strict";
import { createSign, generateKeyPairSync } from "node:crypto";
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { endWithTest } from "../support/endings.mjs";
import { ownFolder } from "../support/project.mjs";
import { startServer } from "../support/server.mjs";
import { until } from "../support/until.mjs";
import { follow, rejection } from "./follower.mjs";

/** Accounts of the embedded source. */
const [ONE, TWO] = ["1", "2"].map((digit) => digit.padStart(32, "0"));
const DEMO = ["--demo-rate", "100", "--demo-accounts", "2"];

const seconds = () => Date.now() / 1000;

/** A folder of this test. */
function folder() {
  const path = ownFolder("tokens");
  endWithTest(async () => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** A server that knows these tokens. */
async function startWith(tokens) {
  const file = join(folder(), "tokens.json");
  writeFileSync(file, JSON.stringify(tokens));
  return startServer({ args: [...DEMO, "--auth", `tokens:${file}`] });
}

/** Gives these tokens, one after the other and the last one again, and keeps why it was asked. */
function source(...tokens) {
  /** @type {string[]} */
  const asked = [];
  const token = async ({ reason }) => {
    asked.push(reason);
    return tokens[Math.min(asked.length, tokens.length) - 1];
  };
  return { asked, token };
}

/** Subscribes to all calls, and counts them. */
async function counted(client) {
  const counts = { events: 0 };
  await client.subscribe("call.*.*", { onEvent: () => (counts.events += 1) });
  return counts;
}

test("a token is renewed before it expires, on the same session", async () => {
  const expires = Math.ceil(seconds()) + 2;
  const server = await startWith({ short: { account_id: ONE, expires }, long: { account_id: ONE } });
  const { asked, token } = source({ token: "short", expires: new Date(expires * 1000) }, "long");
  const { client, told, states } = follow(server.wsUrl, { account: undefined, token, refreshMs: 800 });
  const counts = await counted(client);
  await until(() => asked.length === 2);
  assert.ok(seconds() < expires, "before");
  await until(() => seconds() > expires + 0.5);
  const { events } = counts;
  await until(() => counts.events > events);
  assert.deepEqual([asked, states(), told.error], [["connect", "expires"], ["live"], []]);
  assert.equal(await server.metric("sessions_opened_total"), 1);
});

test("a token that has ended by our clock is not renewed without a pause", async () => {
  const server = await startWith({ good: { account_id: ONE } });
  const { asked, token } = source({ token: "good", expires: seconds() - 3600 });
  const begun = performance.now();
  const { client, told } = follow(server.wsUrl, { account: undefined, token, refreshMs: 800 });
  await counted(client);
  await until(() => asked.length === 3);
  assert.ok(performance.now() - begun > 1_900, "a second each time");
  assert.deepEqual([told.error, client.state.name], [[], "live"]);
});

test("a JWT says itself when it expires", async () => {
  const { publicKey, privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  const pem = join(folder(), "key.pem");
  writeFileSync(pem, publicKey.export({ type: "spki", format: "pem" }));
  const jwt = (claims) => {
    const parts = [{ alg: "RS256", typ: "JWT", kid: "key" }, { iss: "kazoo", account_id: ONE, ...claims }];
    const text = parts.map((part) => Buffer.from(JSON.stringify(part)).toString("base64url")).join(".");
    return `${text}.${createSign("RSA-SHA256").update(text).sign(privateKey, "base64url")}`;
  };
  const server = await startServer({ args: [...DEMO, "--auth", `jwt:${pem}`] });
  const exp = Math.ceil(seconds()) + 2;
  const { asked, token } = source(jwt({ exp }), jwt({ exp: exp + 3600, owner_id: "ü" }));
  const { client, told } = follow(server.wsUrl, { account: undefined, token, refreshMs: 800 });
  await counted(client);
  await until(() => asked.length === 2);
  await client.ping();
  assert.ok(seconds() < exp, "before");
  assert.deepEqual([asked, told.error, await server.metric("sessions_opened_total")], [["connect", "expires"], [], 1]);
});

test("a session that has expired begins anew with another token, and has missed nothing", async () => {
  const expires = Math.ceil(seconds()) + 1;
  const server = await startWith({ short: { account_id: ONE, expires }, long: { account_id: ONE }, beside: { account_id: ONE } });
  // So that the binding stays in force.
  await counted(follow(server.wsUrl, { account: undefined, token: "beside" }).client);
  const { asked, token } = source("short", "long");
  const { client, told, states } = follow(server.wsUrl, { account: undefined, token });
  const cursors = [];
  await client.subscribe("call.*.*", { onEvent: ({ cursor }) => cursors.push(cursor) });
  await until(() => told.resumed.length === 1);
  assert.match(told.state.find(({ name }) => name === "reconnecting").why, /token expired \(4401\)/);
  assert.deepEqual([asked, states().at(-1), told.gap, told.error], [["connect", "refused"], "live", [], []]);
  assert.equal(new Set(cursors).size, cursors.length);
});

test("a token that is not taken is final, when nobody gives another that is", async () => {
  const expires = Math.ceil(seconds()) + 1;
  const server = await startWith({ short: { account_id: ONE, expires } });
  const ofFunction = source("wrong", "wrong as well");
  const cases = [{ token: "wrong" }, ofFunction];
  for (const { token } of cases) {
    const { client, told } = follow(server.wsUrl, { account: undefined, token });
    const error = await rejection(client.subscribe("call.*.*"));
    assert.deepEqual([error.code, client.state.name], ["refused", "refused"]);
    assert.match(error.message, /failed to authenticate token/);
    assert.deepEqual(told.error.map(({ code }) => code), ["refused"]);
  }
  assert.deepEqual(ofFunction.asked, ["connect", "refused"]);

  const { client, becomes } = follow(server.wsUrl, { account: undefined, token: "short" });
  const subscription = await client.subscribe("call.*.*");
  await becomes("refused");
  assert.deepEqual(client.state, { name: "refused", why: "closed by the server: token expired (4401)", code: 4401 });
  assert.equal((await subscription.closed).reason, "refused");
  assert.equal(await server.metric("sessions"), 0);
});

test("a token function that fails is asked again, and told", async () => {
  const server = await startWith({ good: { account_id: ONE } });
  let tries = 0;
  const token = () => {
    tries += 1;
    if (tries < 3) throw new Error("nobody is there");
    return { token: "good", expires: seconds() + 3600 };
  };
  const { client, told, states } = follow(server.wsUrl, { account: undefined, token });
  await counted(client);
  assert.equal(tries, 3);
  assert.deepEqual(told.error.map(({ code, cause }) => [code, cause.message]), Array(2).fill(["token", "nobody is there"]));
  assert.deepEqual([states()[0], states().at(-1)], ["reconnecting", "live"]);
});

test("a token that is not taken harms nothing that is asked for while it is on trial", async () => {
  const server = await startWith({ good: { account_id: ONE }, better: { account_id: ONE } });
  const ofFunction = source("good", "none");
  for (const token of ["good", ofFunction.token]) {
    const { client, told, states } = follow(server.wsUrl, { account: undefined, token, pingMs: 5 });
    const counts = await counted(client);
    for (let trial = 0; trial < 20; trial += 1) {
      const refused = rejection(client.authenticate("unknown"));
      const [subscription] = await Promise.all([client.subscribe(`call.*.${trial}`), client.ping()]);
      assert.deepEqual((await refused).errors, ["failed to authenticate token"]);
      await subscription.unsubscribe();
    }
    const { events } = counts;
    await until(() => counts.events > events);
    assert.deepEqual([states(), told.error, told.gap], [["live"], [], []]);
    await client.close();
  }
  assert.deepEqual([ofFunction.asked, await server.metric("sessions_opened_total")], [["connect"], 2]);
});

test("a token that is given while there is no session is tried first, and the one before it then", async () => {
  const server = await startWith({ good: { account_id: ONE } });
  const { client, told, becomes } = follow(server.wsUrl, { account: undefined, token: "good" });
  const counts = await counted(client);
  await server.kill();
  await becomes("reconnecting");
  const refused = rejection(client.authenticate("unknown"));
  await server.start();
  assert.deepEqual((await refused).errors, ["failed to authenticate token"]);
  const { events } = counts;
  await until(() => counts.events > events);
  assert.deepEqual([client.state.name, told.error], ["live", []]);
});

test("a token that is given while there is no session replaces one that has ended meanwhile", async () => {
  const expires = Math.ceil(seconds()) + 2;
  const server = await startWith({ short: { account_id: ONE, expires }, good: { account_id: ONE } });
  const { client, told, becomes } = follow(server.wsUrl, { account: undefined, token: "short" });
  const counts = await counted(client);
  await server.kill();
  await becomes("reconnecting");
  await until(() => seconds() > expires);
  const taken = client.authenticate("good");
  await server.start();
  await taken;
  const { events } = counts;
  await until(() => counts.events > events);
  assert.deepEqual([client.state.name, told.error], ["live", []]);
});

test("another token makes another identity of the session, and what that may not see ends", async () => {
  const server = await startWith({ first: { account_id: ONE, descendants: [TWO] }, second: { account_id: TWO } });
  const { client, told } = follow(server.wsUrl, { token: "first", account: undefined });
  const [one, two] = await Promise.all([ONE, TWO].map((account) => client.subscribe("call.*.*", { account })));
  const refused = await rejection(client.authenticate("unknown"));
  assert.deepEqual([refused.code, refused.errors], ["rejected", ["failed to authenticate token"]]);
  await client.authenticate("second");
  await until(() => told.ended.length === 1);
  // The notice names a binding and no account: which of both it was, the client has found out.
  const [end] = told.ended;
  assert.deepEqual(end, { reason: "refused", bindings: ["call.*.*"], errors: ["unauthorized account id"] });
  assert.deepEqual([one.bindings, two.bindings, client.subscriptions], [[], ["call.*.*"], [two]]);
  for await (const { args } of two) {
    const { "Custom-Channel-Vars": vars } = /** @type {any} */ (args);
    assert.equal(vars["Account-ID"], TWO);
    break;
  }
  assert.equal(await server.metric("sessions_opened_total"), 1);
});
