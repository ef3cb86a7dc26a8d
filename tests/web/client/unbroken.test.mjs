/**
 * The JavaScript client when the server goes: killed, drained, replaced, frozen, or ending the session. Somebody publishes all
 * the time to a real RabbitMQ. What the application gets is every event once and in order, or a gap is told.
 */

import assert from "node:assert/strict";
import { existsSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

import { startBroker, withoutBroker } from "../support/broker.mjs";
import { connectPublisher, publishCall } from "../support/publisher.mjs";
import { without } from "../support/left_out.mjs";
import { startServer } from "../support/server.mjs";
import { BROKER_PATIENCE, until } from "../support/until.mjs";
import { follow } from "./follower.mjs";

const skip = withoutBroker();

/** Of all scenes but one; it ends with this file. */
const broker = /** @type {Awaited<ReturnType<typeof startBroker>>} */ (skip ? undefined : await startBroker());

/** Publishes numbers, one after the other, all the time; each kind of scene its own call, so that scenes share the broker. */
class Numbers {
  static scenes = 0;
  call = `scene-${(Numbers.scenes += 1)}`;
  binding = `call.CHANNEL_CREATE.${this.call}`;
  last = 0;
  #isOver = false;

  /** `more`: members of each body. */
  constructor(channel, more) {
    this.channel = channel;
    this.body = { "Call-ID": this.call, ...more };
    this.run = this.#publish();
  }

  /** The events of one scene, on a channel of its own. */
  static async begin(more = {}) {
    return new Numbers(await connectPublisher(broker), more);
  }

  async #publish() {
    const begun = performance.now();
    while (!this.#isOver) {
      // Faster than one in a millisecond, and the times of a process run ahead of its clock (PROTOCOL 10), which others do not
      // take beyond their overlap.
      while (performance.now() - begun < 2 * this.last) await pause(1);
      await publishCall(this.channel, "CHANNEL_CREATE", { ...this.body, Number: this.last + 1 });
      this.last += 1;
    }
  }

  /** Resolves when so many more have been published. */
  async more(count) {
    const until_ = this.last + count;
    await until(() => this.last >= until_, { deadline: BROKER_PATIENCE, what: `${count} more events are published` });
  }

  /** Resolves when they have been published for so many milliseconds more. */
  async longer(ms) {
    const begun = performance.now();
    while (performance.now() - begun < ms) await this.more(1);
  }

  async end() {
    this.#isOver = true;
    await this.run;
    return this.last;
  }
}

/** A client that has subscribed to the numbers, and those that came. */
async function followNumbers(url, numbers, options = {}) {
  const followed = follow(url, options);
  /** @type {number[]} */
  const came = [];
  const subscription = await followed.client.subscribe(numbers.binding, {
    onEvent: ({ args }) => void came.push(/** @type {any} */ (args).Number),
  });
  const first = numbers.last;
  await until(() => came.length > 0, { deadline: BROKER_PATIENCE });
  // Another process begins so much before the place that is lost, and may bring what is of before the subscribe.
  await numbers.longer(300);
  return {
    ...followed,
    subscription,
    came,
    /** Waits until the client has got over it, ends the publishing, and returns what came that should be all. */
    async all() {
      await numbers.more(50);
      const last = await numbers.end();
      await until(() => came.at(-1) === last, { deadline: BROKER_PATIENCE, what: () => `${last}; came: ${came.slice(-5)}` });
      assert.ok(came[0] <= first + 2, `the first is ${came[0]}, subscribed at ${first}`);
      return came;
    },
  };
}

/** Every number from the first to the last, once, in order. `told` is for the error. */
function assertUnbroken(came, told) {
  const { gap, resumed, error } = told;
  const why = JSON.stringify({ gap, resumed, error, from: came[0], to: came.at(-1), states: told.state });
  const all = Array.from({ length: came.at(-1) - came[0] + 1 }, (_, index) => came[0] + index);
  const lost = all.filter((number) => !came.includes(number));
  const twice = came.filter((number, index) => came.indexOf(number) !== index);
  assert.ok(lost.length === 0 && twice.length === 0, `lost ${lost.length}: ${lost.slice(0, 9)}, twice ${twice.length}: ${twice.slice(0, 9)}; ${why}`);
  const place = came.findIndex((number, index) => number !== all[index]);
  assert.ok(place < 0, `out of order: ${came.slice(Math.max(place - 3, 0), place + 9)}; ${why}`);
}

const STREAM = ["--history", "stream:blackhole.history"];

/**
 * Waits until a new process can resume here out of the stream. A mark must be in it that names all that was subscribed before
 * this call, which the second from now on does, and stands before the place by more than the overlap (2 s): while the stream
 * is read, marks come quicker than that.
 */
async function proven(server, numbers) {
  const marks = await server.metric("amqp_stream_markers_total");
  await server.until("two marks", async () => (await server.metric("amqp_stream_markers_total")) >= marks + 2);
  await numbers.longer(2_500);
}

test("killed and started again, with a stream: nothing is lost or doubled", { skip }, async () => {
  const server = await startServer({ broker, args: STREAM });
  const numbers = await Numbers.begin();
  const { told, becomes, client, all, states } = await followNumbers(server.wsUrl, numbers);
  // Its bindings come again in one command.
  const more = Array.from({ length: 20 }, (_, index) => `call.CHANNEL_ANSWER.none-${index}`);
  for (const binding of more) await client.subscribe(binding);
  for (const life of [1, 2]) {
    await proven(server, numbers);
    await server.kill();
    await becomes("reconnecting", server.patience);
    await numbers.more(20);
    await server.start();
    await becomes("live", server.patience);
    const subscribed = await server.metric('commands_total{action="subscribe",result="ok"}');
    assert.deepEqual([subscribed, await server.metric("subscriptions")], [1, 21], `life ${life}`);
  }
  assertUnbroken(await all(), told);
  assert.deepEqual([told.gap, told.error, told.ended], [[], [], []]);
  assert.equal(told.resumed.length, 2);
  assert.ok(told.resumed.every(({ events }) => events >= 20), JSON.stringify(told.resumed));
  assert.deepEqual(states().filter((name) => name !== "reconnecting"), ["live", "resuming", "live", "resuming", "live"]);
});

test("killed and started again, without: the gap is told with its time, and nothing is doubled", { skip }, async () => {
  const server = await startServer({ broker });
  const numbers = await Numbers.begin();
  const { told, becomes, all } = await followNumbers(server.wsUrl, numbers);
  const before = Date.now();
  await server.kill();
  await becomes("reconnecting", server.patience);
  await numbers.more(20);
  await server.start();
  // What is published before it is back does not come.
  await becomes("live", server.patience);
  const came = await all();
  assert.equal(told.gap.length, 1, JSON.stringify(told.gap));
  const [{ reason, why, from, to }] = told.gap;
  assert.deepEqual([reason, why], ["resume", "expired"]);
  assert.ok(from <= to && to >= before && from >= before - 5_000, `${from} ${before} ${to}`);
  assert.deepEqual(came, [...new Set(came)].sort((one, other) => one - other));
  assert.ok(came.length < Number(came.at(-1)) - came[0] + 1, "what was published meanwhile is lost");
  assert.ok(told.notice.some(({ name, data }) => name === "gap" && data.reason === "resume"));
});

test("killed, and there is no history: the gap is told by the client", { skip }, async () => {
  const server = await startServer({ broker, args: ["--history-bytes", "0"] });
  const numbers = await Numbers.begin();
  const { told, becomes, client, all } = await followNumbers(server.wsUrl, numbers);
  assert.equal(client.cursor, undefined);
  await server.kill();
  await becomes("reconnecting", server.patience);
  await numbers.more(5);
  await server.start();
  // What is published before it is back does not come.
  await becomes("live", server.patience);
  const came = await all();
  assert.deepEqual(told.gap.map(({ reason }) => reason), ["reconnect"]);
  assert.ok(told.gap[0].from <= told.gap[0].to);
  assert.deepEqual(came, [...new Set(came)]);
});

/** A process that begins shortly before the place where a client was elsewhere. */
const NEAR = ["--history-overlap-ms", "100"];

/** Another client that has the binding at this server, so that its history covers it. */
async function warm(server, numbers) {
  const { client } = follow(server.wsUrl);
  const seen = await client.subscribe(numbers.binding);
  for await (const _ of seen.values({ preventCancel: true })) break;
  // So that cursors, less the overlap, are of a time when it was there.
  await numbers.longer(500);
  return client;
}

test("killed, and the next address takes over: nothing is lost or doubled", { skip }, async () => {
  const servers = [await startServer({ broker, args: NEAR }), await startServer({ broker, args: NEAR })];
  const numbers = await Numbers.begin();
  await Promise.all(servers.map((server) => warm(server, numbers)));
  const { told, becomes, all } = await followNumbers(servers.map(({ wsUrl }) => wsUrl), numbers);
  await numbers.more(20);
  await servers[0].kill();
  await becomes("reconnecting");
  const came = await all();
  assertUnbroken(came, told);
  assert.deepEqual([told.gap, told.error], [[], []]);
  // The second process has begun before the place where the client was.
  const [{ events, doubles }] = told.resumed;
  assert.ok(doubles > 0 && events > doubles, JSON.stringify(told.resumed));
});

/** Variables of a process whose clock is wrong. `faketime` itself would stay between, and be killed in the server's place. */
function wrongClock(offset) {
  const libraries = readdirSync("/usr/lib").map((folder) => `/usr/lib/${folder}/faketime/libfaketimeMT.so.1`);
  return { LD_PRELOAD: libraries.filter(existsSync)[0], FAKETIME: offset, FAKETIME_DONT_FAKE_MONOTONIC: "1" };
}

test("killed, and the next address has a clock that is behind: nothing is lost or doubled", { skip: skip || without("/usr/bin/faketime") }, async () => {
  // Less than the overlap: of a place further in its future the other one knows nothing, and says so.
  const servers = [await startServer({ broker }), await startServer({ broker, env: wrongClock("-1.5s") })];
  const numbers = await Numbers.begin();
  await Promise.all(servers.map((server) => warm(server, numbers)));
  // So that the history of the second one goes back beyond the overlap.
  await numbers.longer(4_000);
  const { told, becomes, all, came } = await followNumbers(servers.map(({ wsUrl }) => wsUrl), numbers);
  await servers[0].kill();
  await becomes("reconnecting");
  await all();
  assert.deepEqual([told.gap, told.error, told.resumed.length], [[], [], 1]);
  assert.equal(new Set(came).size, came.length, "doubled");
  // What is of before the subscribe may come too.
  const meant = came.filter((number) => number >= came[0]);
  assert.deepEqual(meant, meant.map((_, index) => came[0] + index), `lost: ${Number(came.at(-1)) - came[0] + 1 - meant.length}`);
});

/** A WebSocket whose first connection brings everything a tenth of a second late. */
function lateFirst() {
  let connections = 0;
  return class extends WebSocket {
    isLate = (connections += 1) === 1;
    set onmessage(/** @type {any} */ take) {
      const late = (/** @type {any} */ event) => setTimeout(() => this.onmessage !== null && take(event), 100);
      super.onmessage = this.isLate && take !== null ? late : take;
    }
    get onmessage() {
      return super.onmessage;
    }
  };
}

/** How a server that is drained is replaced on its port, and what the client is told of it. */
const MOVES = [
  { name: "it resumes there", isWarm: true },
  { name: "it cannot resume there" },
  { name: "it resumes there, and the old connection is behind", isWarm: true, options: { WebSocket: lateFirst() } },
  { name: "it cannot resume there, and the old connection is behind", options: { WebSocket: lateFirst() } },
  { name: "without resuming", options: { resume: false } },
  { name: "there is no history", args: ["--history-bytes", "0"], hasIds: false, gaps: ["reconnect"] },
  { name: "it cannot resume there, and the old one, which is behind, is killed", options: { WebSocket: lateFirst() }, isKilled: true, gaps: ["resume"] },
];

for (const { name, isWarm = false, options = {}, args = [], hasIds = true, isKilled = false, gaps = [] } of MOVES) {
  test(`drained, and replaced on the same port, it moves before it is closed: ${name}`, { skip }, async () => {
    const end = [...NEAR, "--reuse-port", "--drain-seconds", "60", "--going-away-ms", "20000", ...args];
    const old = await startServer({ broker, args: end });
    const numbers = await Numbers.begin();
    const { told, states, all, client } = await followNumbers(old.wsUrl, numbers, options);
    const next = await startServer({ broker, args: [...end, "--ip", old.ip, "--port", old.address.split(":")[1]] });
    if (isWarm) {
      // Which of both the kernel gives a connection to is chance.
      const others = [];
      while ((await next.metric("subscriptions")) === 0) others.push(await warm(old, numbers));
    }
    await numbers.more(20);
    await old.kill("SIGTERM");
    await until(async () => (await next.metric("subscriptions")) > 0, { deadline: next.patience });
    if (isKilled) await old.kill();
    // Else all have left of themselves, long before they would have been closed.
    assert.equal(await old.ended(), isKilled ? null : 0);
    const came = await all();
    if (gaps.length === 0) assertUnbroken(came, told);
    // Without ids it changes once from one sequence to the other; with them not even that shows.
    const steps = came.filter((number, index) => number <= (came[index - 1] ?? 0));
    assert.ok(steps.length <= (hasIds ? 0 : 1), `back ${steps.length} times: ${steps.slice(0, 9)}`);
    assert.deepEqual([told.gap.map(({ reason }) => reason), told.error], [gaps, []]);
    if (!isKilled) assert.deepEqual(states(), ["live"]);
    assert.equal(told.notice.filter(({ name }) => name === "going_away").length, 1);
    assert.equal(told.resumed.length, isWarm ? 1 : 0);
    await client.close();
    await next.kill();
  });
}

test("drained, and nobody else is there: it comes back when there is somebody", { skip }, async () => {
  const server = await startServer({ broker, args: [...STREAM, "--drain-seconds", "1"] });
  const numbers = await Numbers.begin();
  const { told, becomes, all } = await followNumbers(server.wsUrl, numbers);
  await proven(server, numbers);
  await server.kill("SIGTERM");
  assert.equal(await server.ended(), 0);
  await becomes("reconnecting");
  assert.match(told.state.at(-1).why, /no connection could be made|going away \(1001\)/);
  await server.start();
  assertUnbroken(await all(), told);
  assert.deepEqual([told.gap, told.error], [[], []]);
});

test("frozen: a ping finds out, and the next address takes over", { skip }, async () => {
  const servers = [await startServer({ broker, args: NEAR }), await startServer({ broker, args: NEAR })];
  const numbers = await Numbers.begin();
  await Promise.all(servers.map((server) => warm(server, numbers)));
  const { told, becomes, all } = await followNumbers(servers.map(({ wsUrl }) => wsUrl), numbers, { pingMs: 100, pongMs: 300 });
  await servers[0].kill("SIGSTOP");
  await becomes("reconnecting");
  assert.equal(told.state.at(-1).why, "no answer to a ping");
  assertUnbroken(await all(), told);
  assert.deepEqual([told.gap, told.error], [[], []]);
});

test("closed by the operator: with 1008 it comes back and has missed nothing, with 4001 it is refused", { skip }, async () => {
  const server = await startServer({ broker });
  const numbers = await Numbers.begin();
  // So that the binding stays in force at the broker; else it would after 5 s.
  await warm(server, numbers);
  const { told, becomes, all, client, came } = await followNumbers(server.wsUrl, numbers, { name: "to be kicked" });
  const kick = async (query) => {
    const { id } = (await server.data("v2/sessions")).find(({ name }) => name === "to be kicked");
    await server.data(`v2/sessions/${id}${query}`, { method: "DELETE" });
  };
  for (let kicks = 0; kicks < 3; kicks += 1) {
    await kick("");
    await until(() => told.resumed.length > kicks, { deadline: server.patience });
    await becomes("live");
  }
  assert.match(told.state.find(({ name }) => name === "reconnecting").why, /closed by the operator \(1008\)/);
  assertUnbroken(await all(), told);
  // The same process knows exactly what was missed.
  assert.deepEqual([told.gap, told.error, told.resumed.map(({ doubles }) => doubles)], [[], [], [0, 0, 0]]);

  const loop = client.subscribe("call.*.none").then(async (other) => {
    for await (const _ of other);
  });
  await until(async () => (await server.metric("subscriptions")) === 3);
  await kick("?code=4001&reason=not%20here");
  await assert.rejects(loop, ({ code, closeCode }) => code === "refused" && closeCode === 4001);
  assert.deepEqual(client.state, { name: "refused", why: "closed by the server: not here (4001)", code: 4001 });
  await assert.rejects(client.ping(), { code: "refused" });
  assert.deepEqual(told.error.map(({ code, closeCode }) => [code, closeCode]), [["refused", 4001]]);
  await until(async () => (await server.metric("sessions")) === 1);
  assert.ok(came.length > 0);
});

test("the broker is lost: what the server tells is told", { skip }, async () => {
  const own = await startBroker();
  const server = await startServer({ broker: own });
  const { told, client } = follow(server.wsUrl);
  let came = 0;
  await client.subscribe("call.*.*", { onEvent: () => (came += 1) });
  await own.command("kill9");
  await until(async () => (await server.page("readyz")).status === 503);
  const late = client.subscribe("call.*.other", { timeoutMs: 0 });
  await own.start();
  const publisher = await connectPublisher(own);
  await until(async () => {
    await publishCall(publisher, "CHANNEL_CREATE");
    return came > 0;
  }, { deadline: BROKER_PATIENCE });
  const [{ reason, seconds }] = told.gap;
  assert.equal(reason, "event_source");
  assert.ok(seconds > 0);
  // What the server could not do at that time was tried again.
  await late;
});

test("what the server does not offer any more when it is back ends, told, and the rest goes on", { skip }, async () => {
  const server = await startServer({ broker, args: STREAM });
  const numbers = await Numbers.begin();
  const { client, told, becomes, all, subscription } = await followNumbers(server.wsUrl, numbers);
  const mixed = await client.subscribe(["call.CHANNEL_ANSWER.none", "object.doc_created.user", "fax.status.1"]);
  const gone = await client.subscribe("object.doc_edited.user");
  await proven(server, numbers);
  await server.kill();
  server.args.push("--autoload-modules", "bh_call");
  await becomes("reconnecting");
  await server.start();
  await becomes("live", server.patience);
  const errors = ["no available subscriptions to requested binding"];
  const end = (binding) => ({ reason: "refused", bindings: [binding], errors });
  assert.deepEqual(told.ended, ["object.doc_created.user", "fax.status.1", "object.doc_edited.user"].map(end));
  assert.deepEqual(mixed.bindings, ["call.CHANNEL_ANSWER.none"]);
  assert.deepEqual(await gone.closed, end("object.doc_edited.user"));
  await assert.rejects(gone.values().next(), { code: "rejected", errors });
  assert.deepEqual(client.subscriptions, [subscription, mixed]);

  assertUnbroken(await all(), told);
  assert.equal((await server.page("modules/bh_call?action=stop&persist=false", { method: "POST" })).status, 200);
  await until(() => told.ended.length === 5);
  assert.deepEqual(told.ended.slice(3).map(({ reason }) => reason), ["module", "module"]);
  assert.deepEqual([client.subscriptions, client.state.name, told.gap], [[], "live", []]);
});

test("too slow for the server: it is closed, comes back, and has missed nothing", { skip }, async () => {
  const { WebSocket } = createRequire(createRequire(import.meta.url).resolve("puppeteer-core"))("ws");
  const args = ["--send-timeout-ms", "300", "--max-outbox-bytes", "0", "--history-bytes", "1000000000"];
  const server = await startServer({ broker, args });
  const numbers = await Numbers.begin({ Padding: "x".repeat(50_000) });
  await warm(server, numbers);
  const sockets = [];
  class Pausable extends WebSocket {
    constructor(url) {
      super(url);
      sockets.push(this);
    }
  }
  const { told, all } = await followNumbers(server.wsUrl, numbers, { WebSocket: Pausable });
  // What its system has taken is not much; the rest waits at the server.
  sockets[0].pause();
  const closed = () => server.metric('closes_total{reason="slow_consumer"}');
  await server.until("the session is closed", async () => (await closed()) === 1);
  sockets[0].resume();
  await until(() => told.resumed.length === 1, { deadline: server.patience });
  assertUnbroken(await all(), told);
  assert.match(told.state.find(({ name }) => name === "reconnecting").why, /slow consumer \(4408\)|lost/);
  assert.deepEqual([told.gap, told.error], [[], []]);
});

/** What can happen to a server, and its coming back. */
const HAPPENINGS = {
  kill: async (server) => {
    await server.kill();
    await server.start();
  },
  drain: async (server) => {
    await server.stop();
    await server.start();
  },
  freeze: async (server, { told }) => {
    await server.kill("SIGSTOP");
    const before = told.state.length;
    // Unless the client is at the other one.
    await Promise.race([until(() => told.state.length > before), until(async () => false, { deadline: 1_500 }).catch(() => {})]);
    await server.kill("SIGCONT");
  },
  kick: async (server) => {
    for (const { id } of await server.data("v2/sessions")) await server.data(`v2/sessions/${id}`, { method: "DELETE" });
  },
};

test("whatever happens, in any order: nothing is lost or doubled for any of its subscriptions", { skip }, async (context) => {
  const seed = Number(process.env.BLACKHOLE_SEED ?? Date.now() % 1e6);
  context.diagnostic(`BLACKHOLE_SEED=${seed}`);
  let state = seed;
  // Park and Miller's generator: a seed gives the same order again.
  const random = (below) => ((state = (state * 48_271 + 11) % 2_147_483_647) >> 8) % below;
  const args = [...STREAM, "--drain-seconds", "3"];
  const servers = [await startServer({ broker, args }), await startServer({ broker, args })];
  const numbers = await Numbers.begin();
  const followed = await followNumbers(servers.map(({ wsUrl }) => wsUrl), numbers, { pingMs: 200, pongMs: 500 });
  const { told, client, all, becomes } = followed;
  // The same events once more, by another binding, and once more by a loop.
  const others = /** @type {number[][]} */ ([[], []]);
  const number = (event) => Number(event.args.Number);
  await client.subscribe(`call.*.${numbers.call}`, { onEvent: (event) => void others[0].push(number(event)) });
  const loop = await client.subscribe(numbers.binding, { queueMax: 1e6 });
  const looped = (async () => {
    for await (const event of loop) others[1].push(number(event));
  })();
  const happened = /** @type {string[]} */ ([]);
  for (let round = 0; round < 4; round += 1) {
    await Promise.all(servers.map((server) => proven(server, numbers)));
    const names = Object.keys(HAPPENINGS);
    const [name, which] = [names[random(names.length)], random(2)];
    happened.push(`${name} ${which}`);
    await HAPPENINGS[name](servers[which], followed);
    await becomes("live", BROKER_PATIENCE);
  }
  const why = `BLACKHOLE_SEED=${seed}: ${happened}`;
  context.diagnostic(why);
  const came = await all();
  assertUnbroken(came, told);
  await until(() => others.every((list) => list.at(-1) === came.at(-1)), { deadline: BROKER_PATIENCE, what: why });
  for (const list of others) assertUnbroken(list, told);
  assert.deepEqual([told.gap, told.error], [[], []], why);
  await client.close();
  await looped;
});
