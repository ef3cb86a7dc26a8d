/**
 * The JavaScript client when its connection is cut at every place: after each number of frames, so also between two frames of
 * one event, and between the commands of two accounts. Server and RabbitMQ are real, and somebody publishes all the time. The
 * server is there all the time, so that nothing may be lost or doubled, and no gap told.
 */

import assert from "node:assert/strict";
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

import { startBroker, withoutBroker } from "../support/broker.mjs";
import { startCutter } from "../support/cutter.mjs";
import { endWithTest } from "../support/endings.mjs";
import { ownFolder } from "../support/project.mjs";
import { connectPublisher, publishCall } from "../support/publisher.mjs";
import { startServer } from "../support/server.mjs";
import { BROKER_PATIENCE, until } from "../support/until.mjs";
import { follow } from "./follower.mjs";

const skip = withoutBroker();
const broker = /** @type {Awaited<ReturnType<typeof startBroker>>} */ (skip ? undefined : await startBroker());

const [ONE, TWO] = ["1", "2"].map((digit) => digit.padStart(32, "0"));
/** How many connections of a client are cut, before one is left alone. */
const CUTS = 6;

/** The subscriptions of a scene: bindings by their beginning, each of an account; undefined is the token's own. */
const BOTH = "call.CHANNEL_CREATE";
const ANY = "call.*";

let scenes = 0;

/** Publishes numbers all the time, each once for either account. */
async function publishNumbers() {
  const channel = await connectPublisher(broker);
  const call = `cut-${(scenes += 1)}`;
  const numbers = { call, last: 0, end: async () => 0 };
  let isOver = false;
  const begun = performance.now();
  const run = (async () => {
    while (!isOver) {
      // Slower than one event in a millisecond: see Numbers of unbroken.test.mjs.
      while (performance.now() - begun < 4 * numbers.last) await pause(1);
      const next = numbers.last + 1;
      await Promise.all(
        [ONE, TWO].map((account) => {
          return publishCall(channel, "CHANNEL_CREATE", { "Call-ID": call, Number: next, "Custom-Channel-Vars": { "Account-ID": account } });
        }),
      );
      numbers.last = next;
    }
  })();
  numbers.end = async () => {
    isOver = true;
    await run;
    return numbers.last;
  };
  // With a test that has failed its channel ends under it.
  run.catch(() => {});
  endWithTest(() => void (isOver = true));
  return numbers;
}

/** A server that takes two tokens for one who is ONE and may see TWO. */
async function startWithTokens(args = []) {
  const folder = ownFolder("cut");
  endWithTest(async () => rmSync(folder, { recursive: true, force: true }));
  const file = join(folder, "tokens.json");
  const identity = { account_id: ONE, descendants: [TWO] };
  writeFileSync(file, JSON.stringify({ first: identity, second: identity }));
  return startServer({ broker, args: ["--auth", `tokens:${file}`, ...args] });
}

/** A client that subscribes to all of these, at once, and keeps the numbers that came to each. */
async function followAll(url, numbers, wanted, options = {}) {
  const followed = follow(url, { token: "first", account: undefined, pauseMs: 2, pauseMaxMs: 10, ...options });
  const lists = await Promise.all(
    wanted.map(async ([beginning, account]) => {
      /** @type {number[]} */
      const came = [];
      await followed.client.subscribe(`${beginning}.${numbers.call}`, {
        account,
        onEvent: ({ args }) => void came.push(/** @type {any} */ (args).Number),
      });
      // Whoever has subscribed gets what is published from now on.
      return { came, first: numbers.last + 1 };
    }),
  );
  return { ...followed, lists };
}

/** Every number from the subscribe to the last, once, in order, and no gap. */
function assertWhole({ came: those, first }, last, { gap, error, state }, where) {
  // Another process may bring what is of before the subscribe, at any time. The first of all was under way then, and may be.
  const isLate = (number, index) => number === first && those.slice(0, index).some((other) => other > first);
  const came = those.filter((number, index) => number >= first && !isLate(number, index));
  assert.equal(new Set(those).size, those.length, `${where}: doubled, with those of before ${first}`);
  const all = Array.from({ length: last - came[0] + 1 }, (_, index) => came[0] + index);
  const lost = all.filter((number) => !came.includes(number));
  const twice = came.filter((number, index) => came.indexOf(number) !== index);
  const told = JSON.stringify({ lost: lost.slice(0, 9), twice: twice.slice(0, 9), first, gap, error, states: state.slice(-9) });
  assert.ok(came[0] <= first + 1, `${where}: begins at ${came[0]}; ${told}`);
  assert.deepEqual([lost.length, twice.length], [0, 0], `${where}: lost and twice; ${told}`);
  assert.deepEqual(came, all, `${where}: in order`);
  assert.deepEqual([gap, error], [[], []], where);
}

/** Waits for the end of the numbers at each subscription, and looks at them. */
async function assertAllWhole({ lists, told }, numbers, where) {
  // The first of all may have been under way at the subscribe, and need not come: there must be more.
  await until(() => lists.every(({ first }) => numbers.last > first), { deadline: BROKER_PATIENCE });
  const last = await numbers.end();
  const ends = () => JSON.stringify(lists.map(({ first, came }) => [first, came.slice(-20)]));
  const tell = () => `${where}: ${last}; first and came: ${ends()}; ${JSON.stringify(told.state.slice(-5))}`;
  // It need not be the last that comes: behind it may come what is of before the subscribe. What is lost would be waited for in
  // vain; then it is told what else is.
  await until(() => lists.every(({ came }) => came.includes(last)), { deadline: 10_000, what: tell });
  lists.forEach((list, index) => assertWhole(list, last, told, `${where}, subscription ${index}`));
}

const SCENES = {
  "two bindings that each event matches": [[BOTH, undefined], [ANY, undefined]],
  "two accounts": [[BOTH, ONE], [BOTH, TWO], [ANY, TWO]],
  "the own account by its name and without": [[BOTH, undefined], [BOTH, ONE], [BOTH, TWO]],
  "the own account without its name at last": [[BOTH, ONE], [BOTH, TWO], [ANY, ONE], [BOTH, undefined]],
};

for (const [name, wanted] of Object.entries(SCENES)) {
  test(`cut after each number of frames: ${name}`, { skip }, async () => {
    const server = await startWithTokens();
    for (let frames = 1; frames <= 9; frames += 1) {
      const numbers = await publishNumbers();
      // So that the bindings stay in force at the broker, and what is missed can be had again.
      const beside = await followAll(server.wsUrl, numbers, wanted);
      const cutter = await startCutter([server.address], (number) => (number <= CUTS ? frames : Infinity));
      const followed = await followAll(cutter.wsUrl, numbers, wanted);
      await until(() => cutter.cuts === CUTS, { deadline: BROKER_PATIENCE, what: () => `${cutter.cuts} cuts after ${frames} frames` });
      await followed.becomes("live");
      await assertAllWhole(followed, numbers, `after ${frames} frames`);
      assert.equal(cutter.connections, CUTS + 1);
      await followed.client.close();
      await beside.client.close();
    }
  });
}

for (const [name, wanted] of Object.entries(SCENES)) {
  test(`cut after some frames, and each connection is to another process: ${name}`, { skip }, async () => {
    const near = ["--history-overlap-ms", "100"];
    const servers = await Promise.all([startWithTokens(near), startWithTokens(near)]);
    for (const frames of [1, 2, 3, 5, 8, 13, 40]) {
      const numbers = await publishNumbers();
      const beside = await Promise.all(servers.map((server) => followAll(server.wsUrl, numbers, wanted)));
      // So that the history of each goes back beyond the overlap.
      const from = numbers.last;
      await until(() => numbers.last > from + 100, { deadline: BROKER_PATIENCE });
      const cutter = await startCutter(servers.map(({ address }) => address), (number) => (number <= CUTS ? frames : Infinity));
      const followed = await followAll(cutter.wsUrl, numbers, wanted);
      await until(() => cutter.cuts === CUTS, { deadline: BROKER_PATIENCE, what: () => `${cutter.cuts} cuts after ${frames} frames` });
      await followed.becomes("live");
      await assertAllWhole(followed, numbers, `after ${frames} frames`);
      await Promise.all([followed, ...beside].map(({ client }) => client.close()));
    }
  });
}

test("several accounts over reconnects, and another token between them", { skip }, async () => {
  const server = await startWithTokens();
  const wanted = SCENES["the own account by its name and without"];
  const numbers = await publishNumbers();
  await followAll(server.wsUrl, numbers, wanted);
  const cutter = await startCutter([server.address], () => Infinity);
  const followed = await followAll(cutter.wsUrl, numbers, wanted);
  const { client, lists, becomes, told } = followed;
  const more = () => {
    const from = lists.map(({ came }) => came.length);
    return until(() => lists.every(({ came }, index) => came.length >= from[index] + 5), {
      what: () => `events for each, after ${cutter.connections} connections: ${JSON.stringify([from, lists.map(({ came }) => came.length), told.state.slice(-3)])}`,
    });
  };
  for (const token of ["second", "first", "second", "first"]) {
    await client.authenticate(token);
    await more();
    const before = told.state.length;
    cutter.cut();
    await until(() => told.state.length > before);
    // The token is renewed while there is no connection, too.
    const renewed = client.authenticate(token === "first" ? "second" : "first");
    await becomes("live");
    await renewed;
    await more();
  }
  await assertAllWhole(followed, numbers, "at the end");
  assert.equal(cutter.connections, 5);
});

test("the own account without its name, where two accounts have the binding already", { skip }, async () => {
  const server = await startWithTokens();
  const numbers = await publishNumbers();
  const wanted = SCENES["the own account by its name and without"];
  await followAll(server.wsUrl, numbers, wanted);
  const { client, told, lists, states } = await followAll(server.wsUrl, numbers, [[BOTH, ONE], [BOTH, TWO]]);
  /** @type {string[]} */
  const accounts = [];
  await client.subscribe(`${BOTH}.${numbers.call}`, {
    onEvent: ({ args }) => void accounts.push(/** @type {any} */ (args)["Custom-Channel-Vars"]["Account-ID"]),
  });
  await until(() => accounts.length >= 20);
  assert.deepEqual([...new Set(accounts)], [ONE]);
  // To find out which of both it is it had to begin anew.
  assert.ok(states().includes("reconnecting"), JSON.stringify(states()));
  await assertAllWhole({ lists, told }, numbers, "of both");
});

/** A WebSocket whose commands for ONE by its name go only when some frames have come. */
class Late extends WebSocket {
  send(/** @type {any} */ text) {
    if (!text.includes(`"account_id":"${ONE}"`)) return super.send(text);
    let frames = 0;
    const count = () => {
      frames += 1;
      if (frames !== 10) return;
      this.removeEventListener("message", count);
      super.send(text);
    };
    this.addEventListener("message", count);
  }
}

test("what comes before it shows that two names are one account is for both", { skip }, async () => {
  const server = await startWithTokens();
  const numbers = await publishNumbers();
  const wanted = [[BOTH, undefined], [BOTH, ONE]];
  await followAll(server.wsUrl, numbers, wanted);
  const cutter = await startCutter([server.address], () => Infinity);
  const followed = await followAll(cutter.wsUrl, numbers, wanted, { WebSocket: Late });
  // With another token it may be another account.
  await followed.client.authenticate("second");
  const before = followed.told.state.length;
  cutter.cut();
  await until(() => followed.told.state.length > before);
  await followed.becomes("live");
  await assertAllWhole(followed, numbers, "after a late command");
});
