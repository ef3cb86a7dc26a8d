// The sessions of the console: order, search, and what is asked of the server, on listings of a real one.

import assert from "node:assert/strict";
import { test } from "node:test";
import { consoleModule } from "./support.mjs";
import { startServer } from "../support/server.mjs";
import { joinCrowd } from "./crowd.mjs";

const { SESSIONS_COLUMNS, sessionsFilter, sessionsFound, sessionsListed, sessionsPath, sessionsSorted } = await consoleModule(
  ["ui.js", "sessions.js"],
  ["SESSIONS_COLUMNS", "sessionsFilter", "sessionsFound", "sessionsListed", "sessionsPath", "sessionsSorted"],
);

const ROWS = [
  { id: "192.0.2.1:2", account_id: null, name: "Beta", bindings: ["call.*.*"], frames: 3, bytes: null },
  { id: "192.0.2.1:1", account_id: "ab", name: null, bindings: [], frames: 3, bytes: 9 },
  { id: "192.0.2.9:7", account_id: "aa", name: "alpha", bindings: ["fax.status.1", "x.y"], frames: 20, bytes: 10 },
];

test("rows are in order by any column, and what is not there comes last", () => {
  const order = (key, direction) => sessionsSorted(ROWS, { key, direction }).map(({ id }) => id.slice(-1)).join("");
  assert.equal(order("frames", "descending"), "712");
  assert.equal(order("frames", "ascending"), "127");
  assert.equal(order("bytes", "ascending"), "172");
  assert.equal(order("bytes", "descending"), "712");
  assert.equal(order("name", "ascending"), "721", "by letters, great or small");
  assert.equal(order("account_id", "ascending"), "712");
  assert.equal(order("bindings", "descending"), "721", "by how many there are");
  assert.equal(order("id", "ascending"), "127");
});

test("a search is by all of its words, in all that is text", () => {
  const found = (search) => sessionsFound(ROWS, search).map(({ id }) => id.slice(-1)).join("");
  assert.equal(found("  "), "217");
  assert.equal(found("192.0.2.1"), "21");
  assert.equal(found("ALPHA fax"), "7");
  assert.equal(found("alpha call"), "");
  assert.equal(found("aa"), "7");
  assert.equal(found("null"), "");
});

test("the server is asked what it can search for itself", () => {
  assert.deepEqual(sessionsFilter(" 4B8C6fec4b2597882c0390202d195419 "), { account: "4b8c6fec4b2597882c0390202d195419" });
  assert.deepEqual(sessionsFilter("192.0.2.7"), { ip: "192.0.2.7" });
  assert.deepEqual(sessionsFilter("2001:db8::1"), { ip: "2001:db8::1" });
  assert.deepEqual(sessionsFilter("call.CHANNEL_CREATE.*"), { binding: "call.CHANNEL_CREATE.*" });
  for (const text of ["", "phone", "192.0.2.7:51034", "two words", "192.0.2", "ab:cd"]) assert.deepEqual(sessionsFilter(text), {}, text);
  assert.equal(sessionsPath("/a", { limit: 5, slow: null, sort: "", binding: "a.*&b" }), "/a?limit=5&binding=a.*%26b");
  assert.equal(sessionsPath("/a", {}), "/a");
});

test("all pages of a real server are listed, and of too many those that come first", async () => {
  const server = await startServer({ args: ["--ping-interval-ms", "600000"] });
  await joinCrowd(server, 2100, (at) => ({
    action: "subscribe", auth_token: "any",
    data: { account_id: "4b8c6fec4b2597882c0390202d195419", binding: "fax.status.*", name: `client ${at}` },
  }));
  const asked = [];
  const taken = [];
  const ask = async (path) => {
    asked.push(path);
    const { status, text } = await server.page(path);
    assert.equal(status, 200, text);
    return JSON.parse(text);
  };
  const sort = { key: "frames", direction: "descending" };
  const question = { ask, sort, filter: {}, isSlowOnly: false, wasCut: false, take: (rows) => taken.push(rows.length) };
  const all = await sessionsListed(question);
  assert.equal(all.isCut, false);
  assert.equal(new Set(all.rows.map(({ id }) => id)).size, 2100);
  assert.deepEqual(taken, [1000, 2000]);
  assert.equal(asked.length, 3);
  for (const { key, write } of SESSIONS_COLUMNS) {
    assert.ok(key in all.rows[0], key);
    assert.doesNotMatch(write(all.rows[0]), /undefined|NaN|object/, key);
  }
  const first = await sessionsListed({ ...question, wasCut: true });
  assert.equal(asked.at(-1), "/v2/sessions?limit=1000&sort=frames");
  assert.deepEqual([first.rows.length, first.isCut], [1000, true]);
  const one = await sessionsListed({ ...question, wasCut: true, filter: { binding: "call.*.*" }, isSlowOnly: true });
  assert.equal(asked.at(-1), "/v2/sessions?binding=call.*.*&slow=1&limit=1000&sort=frames");
  assert.deepEqual(one, { rows: [], isCut: false });
  const byName = await sessionsListed({ ...question, wasCut: true, sort: { key: "name", direction: "ascending" } });
  assert.equal(asked.at(-1), "/v2/sessions?limit=1000&sort=age");
  assert.equal(byName.rows.length, 1000);
});
