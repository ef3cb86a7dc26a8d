// Server-sent events by hand: what the standard says of lines and fields, wherever the stream is cut.

import assert from "node:assert/strict";
import { test } from "node:test";
import { consoleModule } from "./support.mjs";

const { SSE_CHARACTERS_MAX, SseParser, sseEvents } = await consoleModule(
  ["sse.js"],
  ["SSE_CHARACTERS_MAX", "SseParser", "sseEvents"],
);

const TEXT = "\uFEFF: hello\r\nevent: looking\ndata: {\"at\":1}\n\nevent:bound\rdata:a\rdata: b\rid: 7\r\r"
  + "\n: only a comment\n\ndata\n\nevent: lost\n\nretry: 1\ndata:  two blanks\n\nevent: unfinished\ndata: x\n";
const EVENTS = [
  ["looking", "{\"at\":1}"],
  ["bound", "a\nb"],
  ["message", ""],
  ["message", " two blanks"],
];

function pairs(events) {
  return events.map(({ word, data }) => [word, data]);
}

test("events are the same wherever the text is cut", () => {
  assert.deepEqual(pairs(new SseParser().feed(TEXT)), EVENTS);
  for (let cut = 0; cut <= TEXT.length; cut += 1) {
    const parser = new SseParser();
    const events = [...parser.feed(TEXT.slice(0, cut)), ...parser.feed(""), ...parser.feed(TEXT.slice(cut))];
    assert.deepEqual(pairs(events), EVENTS, `cut at ${cut}`);
  }
  const parser = new SseParser();
  assert.deepEqual(pairs([...TEXT].flatMap((letter) => parser.feed(letter))), EVENTS);
});

test("an event that is too large is cut, said to be cut, and the next one is whole", () => {
  const long = "x".repeat(SSE_CHARACTERS_MAX);
  const [line, lines, next] = new SseParser().feed(
    `data: ${long}\n\n${`data: ${long.slice(0, SSE_CHARACTERS_MAX / 2)}\n`.repeat(3)}\ndata: y\n\n`,
  );
  for (const event of [line, lines]) {
    assert.equal(event.isCut, true);
    assert.ok(event.data.length <= SSE_CHARACTERS_MAX);
  }
  assert.deepEqual(next, { word: "message", data: "y", isCut: false });
});

test("a body is read as UTF-8, letters that are cut in two included", async () => {
  const bytes = new TextEncoder().encode("event: é\ndata: 😀\n\n");
  const body = new ReadableStream({
    start(controller) {
      for (const byte of bytes) controller.enqueue(Uint8Array.of(byte));
      controller.close();
    },
  });
  const events = [];
  for await (const event of sseEvents(body)) events.push(event);
  assert.deepEqual(pairs(events), [["é", "😀"]]);
});
