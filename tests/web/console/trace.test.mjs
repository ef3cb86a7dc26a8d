// The lines of a trace as the console tells them, and how many it keeps.

import assert from "node:assert/strict";
import { test } from "node:test";
import { consoleModule } from "./support.mjs";
import { readProjectFile } from "../support/project.mjs";

const { TRACE_ADVICE, TRACE_CHARACTERS_MAX, TRACE_LINES_MAX, TraceLines, traceLine, traceWhole } = await consoleModule(
  ["ui.js", "trace.js"],
  ["TRACE_ADVICE", "TRACE_CHARACTERS_MAX", "TRACE_LINES_MAX", "TraceLines", "traceLine", "traceWhole"],
);

test("each line is told in words", () => {
  /** @type {[string, object, string][]} */
  const told = [
    ["looking", { session: "192.0.2.7:5", there: true, bindings: [{}, {}], keys: [], keys_without_room: 0, stopped: [], source: "up" },
      "the session is here, 2 bindings, source up"],
    ["looking", { session: "192.0.2.7:5", there: false, bindings: [], keys: [{}], keys_without_room: 2, stopped: ["bh_fax"], source: "down" },
      "the session is not here (yet), 0 bindings, 1 key to bind, no room for 2 more keys, stopped: bh_fax, source down"],
    ["bound", { exchange: "callevt", key: "call.X.*" }, "callevt call.X.*"],
    ["opened", { account_id: "ab", style: "piston" }, "account ab, style piston"],
    ["command", { action: "subscribe", bindings: ["a", "b"], outcome: "ok" }, "subscribe a, b: ok"],
    ["command", { action: "subscribe", bindings: [], outcome: "error", errors: ["no", "never"] }, "subscribe: refused: no, never"],
    ["command", { action: "subscribe", bindings: ["a"], outcome: "waits", waits_for: "broker" }, "subscribe a: waits for the broker"],
    ["matched", { routing_key: "k", subscribed_key: "call.*.*", queued: 1, dropped: 2, session: "192.0.2.7:5" },
      "k → call.*.*: 1 queued, 2 dropped"],
    ["matched", { routing_key: "k", subscribed_key: "call.*.*", queued: 7, dropped: 0, sessions: 7 }, "k → call.*.*: 7 queued, 7 sessions"],
    ["not_matched", { routing_key: "k", why: "other event word" }, "k: other event word"],
    ["written", { bytes: 12, waiting_bytes: 0 }, "12 bytes"],
    ["written", { bytes: 12, waiting_bytes: 5 }, "12 bytes, 5 wait"],
    ["subscriptions_ended", { bindings: ["a"], reason: "rights" }, "a: rights"],
    ["going_away", { within_ms: 500 }, "within 500 ms"],
    ["closed", { reason: "peer" }, "peer"],
    ["closed", { reason: "operator", code: 4000 }, "operator (4000)"],
    ["source", { state: "down" }, "down"],
    ["left_out", { lines: 3, events: 0 }, "3 lines"],
    ["ended", { why: "limit" }, "limit"],
    ["from_a_later_version", { at: 1, list: [{ a: 1, b: "x" }, 7], none: null }, "list 1 x, 7, none "],
  ];
  for (const [word, data, text] of told) {
    assert.equal(traceLine({ word, data: JSON.stringify(data), isCut: false }, 1).text, text, word);
  }
  const line = traceLine({ word: "not_matched", data: JSON.stringify({ at: 0, session: "192.0.2.7:5", routing_key: "k", why: "w" }) }, 1);
  assert.match(traceWhole(line), /^\d\d:\d\d:00\.000 {2}192\.0\.2\.7:5 {2}not matched {2}k: w$/);
});

test("what is no JSON, or was cut, is shown as it is", () => {
  for (const data of ["no JSON <b>", "7", "null"]) {
    const { text, members } = traceLine({ word: "x", data, isCut: false }, 1);
    assert.equal(text, `text ${data}`);
    assert.deepEqual(members, { text: data });
  }
  assert.equal(traceLine({ word: "x", data: '{"a":1}', isCut: true }, 1).text, 'text {"a":1}');
});

test("what to do is told for every reason that the server has", () => {
  const source = readProjectFile("src/session/trace/judge.rs");
  const words = [...source.matchAll(/^ {12}Self::\w+ => "([^"]+)",$/gm)].map(([, words]) => words);
  assert.equal(words.length, 6);
  assert.deepEqual(Object.keys(TRACE_ADVICE).sort(), words.sort());
});

test("lines are bounded in number and in length, and those that had to go are counted", () => {
  const lines = new TraceLines();
  for (let at = 1; at <= TRACE_LINES_MAX + 10; at += 1) lines.push({ word: "x", data: `{"n":${at}}`, isCut: false });
  assert.deepEqual([lines.all.length, lines.gone], [TRACE_LINES_MAX, 10]);
  assert.equal(lines.all[0].number, 11);
  const long = JSON.stringify({ text: "x".repeat(TRACE_CHARACTERS_MAX / 4) });
  for (let at = 0; at < 20; at += 1) lines.push({ word: "x", data: long, isCut: false });
  assert.ok(lines.all.length <= 4 && lines.all.length >= 3, `${lines.all.length}`);
  assert.equal(lines.gone, TRACE_LINES_MAX + 30 - lines.all.length);
  lines.clear();
  assert.deepEqual([lines.all.length, lines.gone], [0, 0]);
});
