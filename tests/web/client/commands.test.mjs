/**
 * The JavaScript client: its commands, and what the promises of them mean. The server is real, its events are made up.
 */

import assert from "node:assert/strict";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { test } from "node:test";

import { BlackholeError, connect } from "../../../scripts/client/blackhole.mjs";
import { endWithTest } from "../support/endings.mjs";
import { ownFolder } from "../support/project.mjs";
import { startServer } from "../support/server.mjs";
import { until } from "../support/until.mjs";
import { follow, rejection } from "./follower.mjs";

/**
 * @template [Body=Record<string, unknown>]
 * @typedef {import("../../../scripts/client/blackhole.mjs").PlatformEvent<Body>} PlatformEvent
 */

/** The first account of the embedded source. */
const DEMO = "1".padStart(32, "0");
const DEMO_2 = "2".padStart(32, "0");

/** How many subscribes of this result the server has had. */
const subscribes = (server, result) => server.metric(`commands_total{action="subscribe",result="${result}"}`);

test("a subscribe resolves when events come, and an unsubscribe when none come any more", async () => {
  const server = await startServer({ args: ["--demo-rate", "200"] });
  const { client, told, states } = follow(server.wsUrl, { account: DEMO, name: "a name", metadata: { of: "a test" } });
  const subscription = await client.subscribe(["call.CHANNEL_CREATE.*", "call.CHANNEL_CREATE.*", "call.CHANNEL_ANSWER.*"]);
  assert.deepEqual(subscription.bindings, ["call.CHANNEL_CREATE.*", "call.CHANNEL_ANSWER.*"]);
  assert.deepEqual(states(), ["live"]);
  assert.deepEqual(client.subscriptions, [subscription]);
  const [session] = await server.data("v2/sessions");
  assert.deepEqual([session.name, session.bindings], ["a name", subscription.bindings]);

  const names = new Set();
  for await (const { action, name, args, cursor } of subscription) {
    assert.deepEqual([action, args?.["Event-Name"]], ["event", name]);
    assert.match(String(cursor), /^[0-9a-f]{16}[.][0-9a-z]+[.][0-9a-z]{6}$/);
    if (names.add(name).size === 2) break;
  }
  assert.deepEqual([...names].sort(), ["CHANNEL_ANSWER", "CHANNEL_CREATE"]);
  // Leaving the loop has unsubscribed, and said so.
  assert.deepEqual(await subscription.closed, { reason: "unsubscribed", bindings: subscription.bindings, errors: [] });
  await until(async () => (await server.metric("subscriptions")) === 0);
  assert.deepEqual(client.subscriptions, []);
  const came = told.event.length;
  assert.ok((await client.ping()) > 0);
  assert.equal(told.event.length, came);
  await client.close();
  await until(async () => (await server.metric("sessions")) === 0);
  assert.deepEqual([states(), told.error, told.gap, told.ended], [["live", "closed"], [], [], []]);
});

test("a loop may end and the subscription go on", async () => {
  const server = await startServer({ args: ["--demo-rate", "200"] });
  const { client } = follow(server.wsUrl, { account: DEMO });
  const subscription = await client.subscribe("call.*.*");
  const cursors = [];
  for (const count of [5, 10]) {
    for await (const { cursor } of subscription.values({ preventCancel: true })) {
      if (cursors.push(cursor) === count) break;
    }
  }
  assert.equal(new Set(cursors).size, 10);
  const iterator = subscription[Symbol.asyncIterator]();
  while (subscription.queued > 0) await iterator.next();
  const last = iterator.next();
  assert.match((await rejection(iterator.next())).message, /one loop at a time/);
  await subscription.unsubscribe();
  assert.ok("value" in (await last));
  while (subscription.queued > 0) await iterator.next();
  assert.deepEqual(await iterator.next(), { value: undefined, done: true });
});

test("subscribes in one go are one command, and a bad one is refused alone and whole", async () => {
  const server = await startServer();
  const { client, told } = follow(server.wsUrl, { account: DEMO });
  const good = ["call.CHANNEL_CREATE.*", "call.*.*"].map((binding) => client.subscribe(binding));
  await Promise.all(good);
  assert.equal(await subscribes(server, "ok"), 1);

  const bad = client.subscribe(["call.CHANNEL_DESTROY.*", "call.NO.*", "nothing.at.all"]);
  const beside = client.subscribe("call.CHANNEL_ANSWER.*");
  const error = await rejection(bad);
  assert.ok(error instanceof BlackholeError && error instanceof Error);
  assert.equal(error.code, "rejected");
  assert.deepEqual(error.errors, ["event NO not supported", "no available subscriptions to requested binding"]);
  await beside;
  assert.equal(await server.metric("subscriptions"), 3);
  assert.deepEqual([client.subscriptions.length, told.error.length, told.ended.length], [3, 0, 0]);

  for (const bindings of /** @type {any[]} */ (["", [], undefined, [3]])) {
    assert.match((await rejection(client.subscribe(bindings))).message, /bindings/);
  }
});

test("two subscriptions of one binding share it, and each gets every event once", async () => {
  const server = await startServer({ args: ["--demo-rate", "100"] });
  const { client } = follow(server.wsUrl, { account: DEMO });
  const cursors = /** @type {Record<string, (string | undefined)[]>} */ ({ first: [], second: [] });
  const take = (name) => ({ onEvent: (/** @type {PlatformEvent} */ { cursor }) => cursors[name].push(cursor) });
  const first = await client.subscribe("call.*.*", take("first"));
  const second = await client.subscribe("call.*.*", take("second"));
  assert.equal(await server.metric("subscriptions"), 1);
  const from = cursors.first.length;
  await until(() => cursors.second.length >= 20);
  assert.deepEqual(cursors.first.slice(from), cursors.second);
  assert.equal(new Set(cursors.first).size, cursors.first.length);
  await first.unsubscribe();
  assert.equal(await server.metric("subscriptions"), 1);
  const [had, so] = [cursors.first.length, cursors.second.length];
  await until(() => cursors.second.length >= so + 5);
  assert.equal(cursors.first.length, had);
  await second.unsubscribe();
  assert.equal(await server.metric("subscriptions"), 0);
});

test("one binding of two accounts is two, and ends alone", async () => {
  const server = await startServer({ args: ["--demo-rate", "100", "--demo-accounts", "2"] });
  const { client } = follow(server.wsUrl, { account: DEMO });
  const accounts = /** @type {Record<string, Set<string>>} */ ({ [DEMO]: new Set(), [DEMO_2]: new Set() });
  const take = (account) => ({
    account,
    onEvent: (/** @type {PlatformEvent<any>} */ { args }) => accounts[account].add(args["Custom-Channel-Vars"]["Account-ID"]),
  });
  const [one, two] = await Promise.all([DEMO, DEMO_2].map((account) => client.subscribe("call.*.*", take(account))));
  assert.equal(await server.metric("subscriptions"), 2);
  await until(() => accounts[DEMO].size > 0 && accounts[DEMO_2].size > 0);
  await one.unsubscribe();
  assert.equal(await server.metric("subscriptions"), 1);
  assert.deepEqual([[...accounts[DEMO]], [...accounts[DEMO_2]]], [[DEMO], [DEMO_2]]);
  await two.unsubscribe();
});

/** A token of an account of its own that may see a second one. */
function ownTokens() {
  const file = join(ownFolder("tokens"), "tokens.json");
  writeFileSync(file, JSON.stringify({ good: { account_id: DEMO, descendants: [DEMO_2] } }));
  return file;
}

test("the token's own account is one account, named or not, and the others stay when it ends", async () => {
  const server = await startServer({ args: ["--demo-rate", "100", "--demo-accounts", "2", "--auth", `tokens:${ownTokens()}`] });
  const { client } = follow(server.wsUrl, { token: "good", account: undefined });
  const cursors = /** @type {Record<string, (string | undefined)[]>} */ ({ unnamed: [], named: [], other: [] });
  const take = (name, account) => {
    return client.subscribe("call.*.*", { account, onEvent: ({ cursor }) => void cursors[name].push(cursor) });
  };
  const unnamed = await take("unnamed", undefined);
  const named = await take("named", DEMO);
  const other = await take("other", DEMO_2);
  assert.equal(await server.metric("subscriptions"), 2);
  await until(() => cursors.named.length >= 10 && cursors.other.length >= 10);
  assert.deepEqual(cursors.named, cursors.unnamed.slice(-cursors.named.length));
  assert.equal(new Set([...cursors.unnamed, ...cursors.other]).size, cursors.unnamed.length + cursors.other.length);

  // The server takes an unsubscribe without an account for all accounts.
  await unnamed.unsubscribe();
  await until(async () => (await server.metric("subscriptions")) === 2);
  const [had, so] = [cursors.named.length, cursors.other.length];
  await until(() => cursors.named.length > had + 5 && cursors.other.length > so + 5);
  await named.unsubscribe();
  await until(async () => (await server.metric("subscriptions")) === 1);
  await other.unsubscribe();
});

test("what is not answered in time, or aborted, is rejected and not wanted any more", async () => {
  const server = await startServer();
  const { client } = follow(server.wsUrl, { account: DEMO });
  await client.ping();
  await server.kill("SIGSTOP");
  const controller = new AbortController();
  const late = [client.ping({ timeoutMs: 50 }), client.subscribe("call.*.1", { timeoutMs: 50 })];
  const aborted = [client.ping(controller), client.subscribe("call.*.2", controller), client.authenticate("new", controller)];
  const why = new Error("enough");
  for (const promise of late) assert.equal((await rejection(promise)).code, "timeout");
  controller.abort(why);
  for (const promise of aborted) {
    const { code, cause } = await rejection(promise);
    assert.deepEqual([code, cause], ["aborted", why]);
  }
  assert.equal((await rejection(client.ping({ signal: AbortSignal.abort() }))).code, "aborted");
  await server.kill("SIGCONT");
  const kept = new AbortController();
  const subscription = await client.subscribe("call.*.3", kept);
  await until(async () => (await server.metric("subscriptions")) === 1);
  // Later the signal ends the subscription.
  kept.abort();
  assert.equal((await subscription.closed).reason, "unsubscribed");
  await until(async () => (await server.metric("subscriptions")) === 0);
});

test("commands wait for a connection, within a bound, and are rejected when it is closed", async () => {
  const server = await startServer();
  await server.kill();
  const { client, told } = follow(server.wsUrl, { account: DEMO });
  const pings = Array.from({ length: 1_000 }, () => client.ping({ timeoutMs: 0 }));
  assert.equal((await rejection(client.ping())).code, "too_many_requests");
  assert.equal((await rejection(client.subscribe("call.*.*"))).code, "too_many_requests");
  await until(() => client.state.name === "reconnecting" && client.state.tries >= 2);
  const state = told.state[0];
  assert.ok(state.name === "reconnecting" && state.why.length > 0 && state.inMs <= 50, JSON.stringify(state));
  await client.close();
  for (const ping of pings) assert.equal((await rejection(ping)).code, "closed");
  for (const promise of [client.ping(), client.subscribe("call.*.*"), client.authenticate("x")]) {
    assert.equal((await rejection(promise)).code, "closed");
  }
  assert.equal(client.state.name, "closed");
  await client.close();
});

test("a rejection that nobody hears, and a listener that throws, stop nothing", async () => {
  const server = await startServer({ args: ["--demo-rate", "100"] });
  const { client, told } = follow(server.wsUrl, { account: DEMO });
  // The runner fails a test with an unhandled rejection.
  void client.subscribe("nothing.at.all");
  void client.ping({ timeoutMs: 1 });
  client.on("event", () => {
    throw new Error("of an event");
  });
  client.on("state", async () => {
    throw new Error("of a state");
  });
  client.on("error", () => {
    throw new Error("of an error");
  });
  const said = [];
  const { error } = console;
  console.error = (...values) => said.push(...values);
  try {
    const events = [];
    await client.subscribe("call.*.*", {
      onEvent: (event) => {
        events.push(event);
        throw new Error("of a subscription");
      },
    });
    await until(() => events.length >= 3);
  } finally {
    console.error = error;
  }
  for (const text of ["of an event", "of a state", "of a subscription"]) {
    assert.ok(told.error.some(({ code, cause }) => code === "listener" && cause.message === text), text);
  }
  assert.ok(said.some(({ code, cause }) => code === "listener" && cause.message === "of an error"));
  assert.equal(client.state.name, "live");
});

test("a loop that is too slow loses the oldest, and is told before it goes on", async () => {
  const server = await startServer({ args: ["--demo-rate", "500"] });
  const { client, told } = follow(server.wsUrl, { account: DEMO, queueMax: 10 });
  const subscription = await client.subscribe("call.*.*");
  await until(() => subscription.dropped >= 20);
  assert.deepEqual([subscription.queued, told.gap], [10, []]);
  const { value } = await subscription.values().next();
  const had = told.event.findIndex(({ cursor }) => cursor === value?.cursor);
  const [gap] = told.gap;
  assert.deepEqual(gap, { reason: "slow_reader", dropped: had, subscription });
  assert.equal(told.gap.length, 1);
});

test("options that cannot be are refused at once", () => {
  const cases = /** @type {[any, any, RegExp][]} */ ([
    ["ftp://127.0.0.1/", { token: "x" }, /ws:/],
    ["no address", { token: "x" }, /Invalid URL/],
    [[], { token: "x" }, /no address/],
    ["ws://127.0.0.1/", {}, /token/],
    ["ws://127.0.0.1/", { token: "" }, /token/],
    ["ws://127.0.0.1/", { token: "x", WebSocket: 3 }, /WebSocket/],
  ]);
  for (const [url, options, pattern] of cases) assert.throws(() => connect(url, options), pattern);
});

test("a signal that is aborted closes the client", async () => {
  const server = await startServer();
  const controller = new AbortController();
  const { client } = follow(server.wsUrl, { account: DEMO, signal: controller.signal });
  const loop = (async () => {
    for await (const _ of await client.subscribe("call.*.none"));
    return "ended";
  })();
  await until(async () => (await server.metric("subscriptions")) === 1);
  controller.abort();
  assert.equal(await loop, "ended");
  assert.equal(client.state.name, "closed");
  await until(async () => (await server.metric("sessions")) === 0);
  const late = follow(server.wsUrl, { signal: controller.signal });
  assert.equal(late.client.state.name, "closed");
});

test("thousands in a second, which share times: each comes", async () => {
  const server = await startServer({ args: ["--demo-rate", "3000", "--send-timeout-ms", "60000", "--max-outbox-bytes", "0"] });
  let frames = 0;
  class Counting extends WebSocket {
    constructor(url) {
      super(url);
      this.addEventListener("message", ({ data }) => void (frames += Number(JSON.parse(data).action === "event")));
    }
  }
  const { client, told } = follow(server.wsUrl, { account: DEMO, WebSocket: Counting });
  let came = 0;
  const times = new Set();
  await client.subscribe("call.*.*", {
    onEvent: ({ cursor }) => {
      came += 1;
      times.add(cursor?.split(".")[1]);
    },
  });
  // The times run ahead of the clock for a second, and then stand still.
  await until(() => frames > times.size + 1_000);
  assert.equal(came, frames);
  assert.deepEqual([told.gap, told.state.length], [[], 1]);
});

/** What no server of the protocol sends. */
const STRANGE = [
  "", "null", "7", "[]", "{}",
  '{"action":"event","cursor":7}',
  '{"action":"event","request_id":{}}',
  '{"action":"notice","name":"gap","data":null}',
  '{"action":"notice","name":"subscriptions_ended","data":{"bindings":7}}',
  '{"action":"reply"}',
  '{"action":"reply","request_id":"1","data":{"errors":"no"}}',
  '{"action":"reply","request_id":"1","status":"success","data":{"cursor":7}}',
];

test("frames of the wrong kind are told, and end neither the application nor the connection", async () => {
  const { WebSocketServer } = createRequire(createRequire(import.meta.url).resolve("puppeteer-core"))("ws");
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
  endWithTest(() => {
    for (const socket of server.clients) socket.terminate();
    server.close();
  });
  await once(server, "listening");
  server.on("connection", (socket) => STRANGE.forEach((frame) => socket.send(frame)));
  const { client, told } = follow(`ws://127.0.0.1:${server.address().port}`);
  await until(() => told.error.length >= STRANGE.length);
  assert.deepEqual(told.error.map(({ code }) => code), STRANGE.map(() => "protocol"));
  assert.deepEqual([client.state.name, server.clients.size], ["connecting", 1]);
});

test("a cursor for a binding that another subscription has already does not count, and that is told", async () => {
  const server = await startServer({ args: ["--demo-rate", "200"] });
  const { client, told } = follow(server.wsUrl, { account: DEMO });
  await client.subscribe("call.*.*");
  await until(() => told.event.length > 0);
  const [{ cursor }] = told.event;
  const second = await client.subscribe(["call.*.*"], { resume: cursor });
  assert.deepEqual(told.gap, [{ reason: "resume", why: "shared", subscription: second }]);
});
