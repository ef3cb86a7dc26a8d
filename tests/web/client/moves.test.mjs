/**
 * The JavaScript client when the server goes away and it moves to another, which cannot resume where the first stands: both
 * connections are read for a second, and which of them brings what, and when, is the test's to say. What the application gets
 * is every event once and in order, or a gap is told.
 */

import assert from "node:assert/strict";
import { test } from "node:test";

import { until } from "../support/until.mjs";
import { BINDING, numberOf, script } from "./scripted.mjs";

/** How long both connections are read, in milliseconds. */
const OVERLAP = 1_000;
/** How many events of the second may wait. */
const WAIT_MAX = 10_000;

/** Two accounts; a session has both when two commands are confirmed. */
const BOTH = ["one", "two"];

const OTHER = "conference.*.*";

/** A cursor that no server knows any more. */
const LONG_AGO = "000000000000abcd.0.zzzzzz";

/** All numbers from one to another. */
const range = (first, last) => Array.from({ length: last - first + 1 }, (_, index) => first + index);

/**
 * A client that was live on the first connection, which has brought event 1 and goes away. The second is open, and nothing is
 * answered there. `came` is of the first account.
 *
 * @param {import("node:test").TestContext} context
 * @param {(string | undefined)[]} [accounts]
 * @param {Parameters<typeof script>[1]} [options]
 */
async function beginMove(context, accounts = [undefined], options = {}) {
  const scene = script(context, options);
  const lists = accounts.map((account) => scene.listen({ account }).came);
  const first = await scene.opened(0);
  for (const account of accounts) first.confirm({ account });
  first.events([1], { account: accounts[0] });
  first.goAway();
  const second = await scene.opened(1);
  return { ...scene, came: lists[0], first, second };
}

/** The same, and the second has taken over: it stands at 3, and nobody but the first can bring 2. */
async function beginOverlap(context, options = {}) {
  const scene = await beginMove(context, [undefined], options);
  scene.second.confirm({ at: 3, why: "unknown" });
  assert.deepEqual([scene.first.isRead, scene.second.isRead], [true, true]);
  return scene;
}

/** Nothing was told but events. */
function assertQuiet({ gap, error, ended }) {
  assert.deepEqual([gap, error, ended], [[], [], []]);
}

/** The gaps that were told, without their times. */
const gapsOf = ({ gap }) => gap.map(({ reason, why }) => [reason, why]);

test("while both are read the first sets the pace, and then the second goes on", async (context) => {
  const { client, told, pass, came, first, second } = await beginOverlap(context);
  second.events([4, 5, 6]);
  first.events([2, 3]);
  assert.deepEqual(came, [1, 2, 3]);
  assert.equal(numberOf(client.cursor), 3);
  first.events([4]);
  assert.deepEqual(came, range(1, 4));
  second.events([7]);
  first.events([5, 6, 7, 8]);
  second.events([8, 9]);
  assert.deepEqual([came, first.isRead], [range(1, 8), true]);
  pass(OVERLAP);
  second.events([10]);
  assert.deepEqual([came, first.isRead, numberOf(client.cursor)], [range(1, 10), false, 10]);
  assertQuiet(told);
});

test("two publishers, whose events the first brings in another order: each keeps its own", async (context) => {
  const { told, pass, came, first, second } = await beginOverlap(context);
  // 4 is of one, 5 and 6 are of the other.
  second.events([4, 6]);
  first.events([2, 4, 5, 6]);
  pass(OVERLAP);
  second.events([7]);
  assert.deepEqual(came, [1, 2, 4, 5, 6, 7]);
  assertQuiet(told);
});

test("the second is lost while some of it waits: the first has brought the same", async (context) => {
  const [account] = BOTH;
  const { client, told, came, first, second } = await beginMove(context, BOTH);
  second.confirm({ account, at: 3, why: "unknown" });
  second.events([4, 5], { account });
  first.events([2, 3, 5], { account });
  second.lose();
  first.events([6], { account });
  assert.deepEqual([came, numberOf(client.cursor)], [[1, 2, 3, 5, 6], 6]);
  assertQuiet(told);
});

test("of two accounts, each is in order, wherever the other is", async (context) => {
  const [account, other] = BOTH;
  const { told, pass, first, second } = await beginMove(context, BOTH);
  const others = () => told.event.filter(({ request_id: id }) => id.endsWith(other)).map(({ args }) => args.number);
  second.confirm({ account, at: 3, why: "unknown" });
  second.events([4], { account });
  second.confirm({ account: other, at: 6, why: "unknown" });
  second.events([7], { account: other });
  first.events([4], { account });
  first.events([5, 7], { account: other });
  pass(OVERLAP);
  assert.deepEqual(others(), [5, 7]);
  assertQuiet(told);
});

test("the first brings nothing more: what waits is handed on after a second", async (context) => {
  const { told, pass, came, first, second } = await beginOverlap(context);
  second.events([4, 5]);
  pass(OVERLAP - 1);
  assert.deepEqual([came, first.isRead], [[1], true]);
  pass(1);
  second.events([6]);
  assert.deepEqual([came, first.isRead], [[1, 4, 5, 6], false]);
  assertQuiet(told);
});

test("the second account is confirmed 12 seconds later: nothing comes twice", async (context) => {
  const [account] = BOTH;
  const { told, pass, came, first, second } = await beginMove(context, BOTH);
  second.confirm({ account, at: 3, why: "unknown" });
  for (const number of range(2, 9)) {
    first.events([number], { account });
    if (number > 3) second.events([number], { account });
  }
  // Longer than it is known what was had.
  pass(12_000);
  second.confirm({ account: BOTH[1], at: 12_000, why: "unknown" });
  first.events([12_001], { account });
  second.events([12_001], { account });
  pass(OVERLAP);
  second.events([13_002], { account });
  assert.deepEqual([came, first.isRead], [[...range(1, 9), 12_001, 13_002], false]);
  assertQuiet(told);
});

test("the cursor is not beyond what was handed on, when who takes it closes the client", async (context) => {
  const { client, told, pass, came, second } = await beginOverlap(context);
  client.on("event", ({ args }) => /** @type {any} */ (args).number === 5 && client.close());
  second.events(range(4, 9));
  assert.equal(numberOf(client.cursor), 1);
  pass(OVERLAP);
  assert.deepEqual(told.event.map(({ args }) => args.number), [1, 4, 5]);
  assert.deepEqual([came, client.state.name, numberOf(client.cursor)], [[1, 4], "closed", 5]);
  assertQuiet(told);
});

test("the cursor is not beyond what was handed on, when who hears of the gap closes the client", async (context) => {
  const { client, told, came, first, second } = await beginOverlap(context);
  client.on("gap", () => void client.close());
  second.events(range(4, 9));
  first.lose();
  assert.deepEqual([came, client.state.name, gapsOf(told)], [[1], "closed", [["resume", "unknown"]]]);
  assert.ok(numberOf(client.cursor) <= 1, client.cursor);
});

test("the cursor is not beyond what was handed on, when only the second has cursors", async (context) => {
  const { client, opened, listen } = script(context);
  const { came } = listen();
  const first = await opened(0);
  first.hasHistory = false;
  first.confirm();
  first.events([1]);
  first.goAway();
  const second = await opened(1);
  second.confirm({ at: 3 });
  second.events([4, 5]);
  // The place of a reply is in front of both; before, there was none.
  const isBeyond = () => numberOf(client.cursor) > /** @type {number} */ (came.at(-1));
  assert.ok(!isBeyond(), client.cursor);
  await client.close();
  assert.ok(!isBeyond(), client.cursor);
});

test("a second move waits for the end of the first", async (context) => {
  const { told, pass, opened, connections, came, first, second } = await beginOverlap(context);
  second.events([4]);
  second.goAway();
  pass(OVERLAP - 1);
  assert.equal(connections.length, 2);
  first.events([2, 3, 4, 6]);
  second.events([6]);
  pass(1);
  const third = await opened(2);
  third.confirm({ at: 7, why: "unknown" });
  assert.deepEqual([first, second, third].map(({ isRead }) => isRead), [false, true, true]);
  third.events([8]);
  second.events([7, 8]);
  pass(OVERLAP);
  third.events([9]);
  assert.deepEqual([first, second, third].map(({ isRead }) => isRead), [false, false, true]);
  assert.deepEqual(came, [1, 2, 3, 4, 6, 7, 8, 9]);
  assertQuiet(told);
});

test("a second move waits for the first, which is lost: the gap is told, and the second move goes on", async (context) => {
  const { told, pass, opened, came, first, second } = await beginOverlap(context);
  second.events([4]);
  second.goAway();
  first.lose();
  assert.deepEqual([came, gapsOf(told)], [[1, 4], [["resume", "unknown"]]]);
  const third = await opened(2);
  third.confirm({ at: 5, why: "unknown" });
  third.events([7]);
  second.events([6, 7]);
  pass(OVERLAP);
  third.events([8]);
  assert.deepEqual([came, second.isRead, told.gap.length, told.error], [[1, 4, 6, 7, 8], false, 1, []]);
});

test("the second goes away before it has taken over: the client moves on from there", async (context) => {
  const { told, opened, first, second } = await beginMove(context);
  second.goAway();
  second.confirm({ resumed: true });
  second.notice("resumed", { events: 0 });
  assert.equal(first.isRead, false);
  const third = await opened(2);
  third.confirm({ resumed: true });
  third.notice("resumed", { events: 0 });
  assert.deepEqual([second.isRead, third.isRead], [false, true]);
  assertQuiet(told);
});

test("subscribed anew while both are read: what the first brings is not meant", async (context) => {
  const { told, pass, listen, client, first, second } = await beginOverlap(context);
  const [old] = client.subscriptions;
  void old.unsubscribe();
  const { came, confirmed } = listen();
  second.release();
  await until(() => second.find("subscribe"));
  second.confirm({ at: 6 });
  await confirmed;
  second.events([7]);
  first.events([2, 4, 5, 6, 7]);
  pass(OVERLAP);
  assert.deepEqual(came, [7]);
  assertQuiet(told);
});

test("a new binding, confirmed by the first and later by the second: what came between is brought", async (context) => {
  const { told, pass, listen, first, second } = await beginMove(context);
  const { came, confirmed } = listen({ binding: OTHER });
  await until(() => first.find("subscribe") && second.find("subscribe", { binding: OTHER }));
  second.confirm({ binding: BINDING, at: 1, resumed: true });
  second.notice("resumed", { events: 0 });
  first.confirm({ binding: OTHER, at: 2 });
  await confirmed;
  second.confirm({ binding: OTHER, at: 4 });
  first.events([3], { binding: OTHER });
  second.events([5], { binding: OTHER });
  pass(OVERLAP);
  assert.deepEqual(came, [3, 5]);
  assertQuiet(told);
});

test("a new binding, confirmed by the first, which is lost, and later by the second: the gap is told", async (context) => {
  const { told, listen, first, second } = await beginMove(context);
  const { came, confirmed } = listen({ binding: OTHER });
  await until(() => first.find("subscribe") && second.find("subscribe", { binding: OTHER }));
  first.confirm({ binding: OTHER, at: 2 });
  await confirmed;
  first.lose();
  second.confirm({ binding: BINDING, at: 1, resumed: true });
  second.notice("resumed", { events: 0 });
  second.confirm({ binding: OTHER, at: 4_000 });
  second.events([5_000], { binding: OTHER });
  assert.deepEqual([came, gapsOf(told)], [[5_000], [["reconnect", undefined]]]);
});

test("the first never had the binding: the gap is told at once", async (context) => {
  const { told, opened, listen } = script(context);
  const { came } = listen();
  const before = await opened(0);
  before.confirm();
  before.events([1]);
  before.lose();
  const first = await opened(1);
  first.refuse("event source unavailable");
  first.goAway();
  const second = await opened(2);
  second.confirm({ at: 30, why: "expired" });
  assert.deepEqual([gapsOf(told), first.isRead], [[["resume", "expired"]], false]);
  second.events([40]);
  assert.deepEqual(came, [1, 40]);
});

test("the first is in the middle of a replay: the gap is told at once", async (context) => {
  const { told, pass, opened, listen } = script(context);
  const { came } = listen();
  const before = await opened(0);
  before.confirm();
  before.events([1]);
  before.lose();
  const first = await opened(1);
  first.confirm({ at: 1, resumed: true });
  first.events([2], { replayed: true });
  first.goAway();
  const second = await opened(2);
  second.confirm({ at: 30, why: "unknown" });
  assert.deepEqual([gapsOf(told), first.isRead], [[["resume", "unknown"]], false]);
  second.events([40]);
  pass(OVERLAP);
  second.events([2_000]);
  assert.deepEqual([came, gapsOf(told).length], [[1, 2, 40, 2_000], 1]);
});

test("neither has what a subscribe in the move is to begin with: the gap is told at once, and once", async (context) => {
  const { told, pass, listen, came, first, second } = await beginMove(context);
  const { confirmed } = listen({ binding: OTHER, resume: LONG_AGO });
  await until(() => first.find("subscribe") && second.find("subscribe", { binding: OTHER }));
  second.confirm({ at: 3, resumed: true });
  second.notice("resumed", { events: 0 });
  second.confirm({ at: 3, binding: OTHER, why: "expired" });
  assert.deepEqual([gapsOf(told), first.isRead], [[["resume", "expired"]], false]);
  await confirmed;
  second.events([4]);
  pass(OVERLAP);
  assert.deepEqual([came, told.gap.length, told.error], [[1, 4], 1, []]);
});

/**
 * The second has to be asked again, in the overlap, for what it has had: the server takes the binding of all accounts when it
 * is unsubscribed without one. So there is a replay of 7 on the second, where 4 to 6 wait.
 */
async function replayInOverlap(context) {
  const account = BOTH[0];
  const scene = script(context);
  const { confirmed } = scene.listen();
  const { came } = scene.listen({ account });
  const first = await scene.opened(0);
  for (const one of [undefined, account]) first.confirm({ account: one });
  first.events([1], { account });
  first.goAway();
  const second = await scene.opened(1);
  for (const one of [undefined, account]) second.confirm({ account: one, at: 3, why: "unknown" });
  second.events([4, 5, 6], { account });
  const own = await confirmed;
  void own.unsubscribe();
  second.release();
  second.confirm({ account, at: 6, resumed: true });
  second.events([7], { account, replayed: true });
  second.notice("resumed", { events: 1 });
  second.events([8], { account });
  return { ...scene, account, came, first, second };
}

test("a replay on the second does not overtake what waits there", async (context) => {
  const { told, pass, account, came, second } = await replayInOverlap(context);
  assert.deepEqual(came, [1]);
  pass(OVERLAP);
  second.events([9], { account });
  assert.deepEqual(came, [1, ...range(4, 9)]);
  assertQuiet(told);
});

test("a replay on the second does not overtake what the first brings late", async (context) => {
  const { told, pass, account, came, first, second } = await replayInOverlap(context);
  first.events(range(2, 8), { account });
  assert.deepEqual(came, range(1, 8));
  pass(OVERLAP);
  second.events([9], { account });
  assert.deepEqual(came, range(1, 9));
  assertQuiet(told);
});

for (const [name, why] of [["before its reply", undefined], ["when it could not resume", "unknown"]]) {
  test(`the token ends while the second is asked, ${name}: another one is used on a new connection`, async (context) => {
    const [account, other] = BOTH;
    /** @type {string[]} */
    const asked = [];
    const token = ({ reason }) => {
      asked.push(reason);
      return `token ${asked.length}`;
    };
    const { told, opened, becomes, came, first, second } = await beginMove(context, BOTH, { token });
    if (why !== undefined) second.confirm({ account, at: 3, why });
    first.lose(4401);
    // They may be under way.
    if (why === undefined) second.confirm({ account, at: 3, resumed: true });
    second.confirm({ account: other, at: 3, resumed: true });
    for (let times = 0; times < 2; times += 1) second.notice("resumed", { events: 0 });
    second.events([4], { account });
    const third = await opened(2);
    assert.equal(third.find("subscribe", { account })?.auth_token, "token 2");
    for (const one of BOTH) {
      third.confirm({ account: one, at: 1, resumed: true });
      third.events(range(2, 4), { account: one, replayed: true });
      third.notice("resumed", { events: 3 });
    }
    third.events([5], { account });
    await becomes("live");
    assert.deepEqual([asked, came, second.isRead], [["connect", "refused"], range(1, 5), false]);
    assertQuiet(told);
  });
}

test("no history, and two accounts are subscribed in the move: nothing is lost without a gap", async (context) => {
  const { told, pass, opened, listen } = script(context);
  const first = await opened(0);
  first.hasHistory = false;
  first.pong();
  first.goAway();
  const second = await opened(1);
  second.hasHistory = false;
  const [account, other] = BOTH;
  const { came, confirmed } = listen({ account });
  listen({ account: other });
  await until(() => first.find("subscribe", { account: other }) && second.find("subscribe", { account: other }));
  second.confirm({ account });
  first.confirm({ account });
  await confirmed;
  const gaps = told.gap.length;
  second.events([1], { account });
  second.confirm({ account: other });
  first.events([1], { account });
  second.events([2], { account });
  pass(OVERLAP);
  second.events([3], { account });
  assert.deepEqual(came.filter((number) => number > 1), [2, 3]);
  assert.ok(came.includes(1) || told.gap.length > gaps, JSON.stringify([came, told.gap]));
  assert.deepEqual([told.error, told.ended], [[], []]);
});

test("from no history to one, with two accounts: nothing is lost without a gap", async (context) => {
  const { told, pass, opened, listen } = script(context);
  const [account, other] = BOTH;
  const { came } = listen({ account });
  listen({ account: other });
  const first = await opened(0);
  first.hasHistory = false;
  for (const one of BOTH) first.confirm({ account: one });
  first.goAway();
  const second = await opened(1);
  second.confirm({ account, at: 0 });
  for (const number of [1, 2, 3]) {
    first.events([number], { account });
    second.events([number], { account });
  }
  second.events([4], { account });
  second.confirm({ account: other, at: 5 });
  pass(OVERLAP);
  second.events([2_000], { account });
  // What the first brings has no ids. It goes on behind 1 and 2, so those are its own, and what waits of them is left out.
  assert.deepEqual(came.filter((number) => number < 3), [1, 2]);
  const isWhole = [1, 2, 3, 4, 2_000].every((number) => came.includes(number)) && new Set(came).size === came.length;
  assert.ok(told.gap.length > 0 || isWhole, JSON.stringify([came, told.gap]));
  assert.deepEqual([told.error, told.ended, came.at(-1)], [[], [], 2_000]);
});

test("what waits comes before the end of its subscription", async (context) => {
  const { told, pass, came, first, second } = await beginOverlap(context);
  second.events([4, 5]);
  assert.deepEqual(came, [1]);
  second.notice("subscriptions_ended", { reason: "rights", bindings: [BINDING] });
  assert.deepEqual(came, [1, 4, 5]);
  first.events([4, 5, 6]);
  pass(OVERLAP);
  assert.deepEqual([came, told.gap, told.error], [[1, 4, 5], [], []]);
  assert.deepEqual(told.ended, [{ reason: "rights", bindings: [BINDING], errors: [] }]);
});

test("the first refuses what the second has confirmed: nothing ends", async (context) => {
  const { client, told, pass, listen, first, second } = await beginMove(context);
  const { came, confirmed } = listen({ binding: OTHER });
  await until(() => first.find("subscribe") && second.find("subscribe", { binding: OTHER }));
  second.confirm({ at: 3, why: "unknown" });
  second.confirm({ at: 3, binding: OTHER });
  const subscription = await confirmed;
  first.refuse("event conference not supported");
  pass(OVERLAP);
  second.events([2_000], { binding: OTHER });
  assert.deepEqual([came, client.subscriptions.length, subscription.bindings], [[2_000], 2, [OTHER]]);
  assertQuiet(told);
});

test("the first confirms what the second has confirmed: no gap is told", async (context) => {
  const { told, pass, listen, first, second } = await beginMove(context);
  const { confirmed } = listen({ binding: OTHER });
  await until(() => first.find("subscribe") && second.find("subscribe", { binding: OTHER }));
  second.confirm({ at: 3, why: "unknown" });
  second.confirm({ at: 3, binding: OTHER });
  await confirmed;
  assert.ok(first.isRead);
  first.confirm({ at: 3 });
  pass(OVERLAP);
  assertQuiet(told);
});

test("a gap of the first, while both are read, is told", async (context) => {
  const { told, pass, came, first, second } = await beginOverlap(context);
  second.events([9]);
  first.events([2]);
  first.notice("gap", { reason: "slow_consumer", dropped: 6 });
  assert.deepEqual(told.gap, [{ reason: "slow_consumer", dropped: 6 }]);
  first.events([9]);
  pass(OVERLAP);
  assert.deepEqual([came, told.gap.length, told.error], [[1, 2, 9], 1, []]);
});

test("a binding that the first never had does not wait", async (context) => {
  const { told, pass, listen, came, first, second } = await beginOverlap(context);
  const { came: others, confirmed } = listen({ binding: OTHER });
  await until(() => second.find("subscribe"));
  second.confirm({ at: 4, binding: OTHER });
  await confirmed;
  second.events([5], { binding: OTHER });
  assert.deepEqual([others, first.isRead], [[5], true]);
  second.events([6]);
  first.events([2, 6]);
  pass(OVERLAP);
  assert.deepEqual([came, others], [[1, 2, 6], [5]]);
  assertQuiet(told);
});

test("too many wait for the first: they are handed on, and a gap is told", async (context) => {
  const { told, pass, came, first, second } = await beginOverlap(context);
  const last = 3 + WAIT_MAX;
  second.events(range(4, last));
  assert.deepEqual([came, told.gap, first.isRead], [[1], [], true]);
  second.events([last + 1]);
  assert.deepEqual([gapsOf(told), first.isRead, second.isRead], [[["resume", "unknown"]], false, true]);
  second.events([last + 2]);
  pass(OVERLAP);
  assert.deepEqual(came, [1, ...range(4, last + 2)]);
  assert.deepEqual([told.gap.length, told.error], [1, []]);
});

test("too many wait before the second has taken over: it is given up, and the first goes on", async (context) => {
  const [account] = BOTH;
  const { told, opened, came, first, second } = await beginMove(context, BOTH);
  second.confirm({ account, at: 3, why: "unknown" });
  const last = 3 + WAIT_MAX;
  second.events(range(4, last), { account });
  assert.deepEqual([came, second.isRead], [[1], true]);
  second.events([last + 1], { account });
  assert.deepEqual([came, first.isRead, second.isRead], [[1], true, false]);
  first.events(range(2, last + 1), { account });
  assert.deepEqual(came, range(1, last + 1));
  const third = await opened(2);
  for (const one of BOTH) {
    third.confirm({ account: one, at: last + 1, resumed: true });
    third.notice("resumed", { events: 0 });
  }
  third.events([last + 2], { account });
  assert.deepEqual([came, first.isRead], [range(1, last + 2), false]);
  assertQuiet(told);
});

test("the next one confirms a new binding before the first: no gap is told", async (context) => {
  const [account, other] = BOTH;
  const { told, pass, listen, first, second } = await beginMove(context, BOTH);
  const { confirmed } = listen({ account, binding: OTHER });
  await until(() => first.find("subscribe", { account }) && second.find("subscribe", { account, binding: OTHER }));
  second.confirm({ account, at: 3, resumed: true });
  second.confirm({ account, binding: OTHER, at: 3 });
  first.confirm({ account, binding: OTHER, at: 3 });
  await confirmed;
  second.notice("resumed", { events: 0 });
  second.confirm({ account: other, at: 4, resumed: true });
  second.notice("resumed", { events: 0 });
  pass(OVERLAP);
  assert.deepEqual([first.isRead, second.isRead], [false, true]);
  assertQuiet(told);
});
