/**
 * The console from end to end: a real browser, a live server, a private RabbitMQ. What each view does by itself is tested beside
 * this, in `events.test.mjs` and `views.test.mjs`.
 */

import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";

import { startBroker, withoutBroker } from "../support/broker.mjs";
import { screenshot, startBrowser, violations, withoutBrowser } from "../support/browser.mjs";
import { endWithTest } from "../support/endings.mjs";
import { projectFile } from "../support/project.mjs";
import { ACCOUNT, connectPublisher, FIXTURES, OTHER_ACCOUNT, publishCall } from "../support/publisher.mjs";
import { startServer } from "../support/server.mjs";
import { until } from "../support/until.mjs";
import { openConsole } from "./console.mjs";

const TOKEN = "token-of-the-account";
const TOKENS = ["--auth", `tokens:${projectFile("tests/fixtures/tokens.json")}`];

/** What a browser itself says of tries to reach a server that is not there. */
const AWAY = /ERR_(CONNECTION_(REFUSED|RESET|CLOSED)|EMPTY_RESPONSE|INCOMPLETE_CHUNKED_ENCODING|NETWORK_IO_SUSPENDED)/;

/** Beside that nothing went wrong in the page, and it asked nobody but its server. */
function assertClean({ faults, asked, server }) {
  assert.deepEqual(faults.filter((fault) => !AWAY.test(fault)), []);
  const others = [...asked].filter((origin) => origin !== new URL(server.adminUrl).origin && !/^(data|blob):|^null$/.test(origin));
  assert.deepEqual(others, []);
}

/** A websocket client in this process, subscribed; with what it was sent, and how it was closed. */
async function connectClient(server, name) {
  const socket = new WebSocket(server.wsUrl);
  const client = { socket, frames: /** @type {any[]} */ ([]), closed: /** @type {any} */ (null) };
  socket.onmessage = ({ data }) => client.frames.push(JSON.parse(data));
  socket.onclose = ({ code, reason }) => (client.closed = { code, reason });
  await once(socket, "open");
  socket.send(JSON.stringify({ action: "subscribe", auth_token: TOKEN, data: { binding: "call.CHANNEL_CREATE.*", name } }));
  await until(() => client.frames.length === 1, { what: "the reply" });
  endWithTest(async () => socket.close());
  return client;
}

const skip = withoutBrowser() || withoutBroker();

test("what is published appears, and after the server was killed, what was missed does too", { skip }, async () => {
  const broker = await startBroker();
  const server = await startServer({ broker, args: [...TOKENS, "--history", "stream:blackhole.history", "--history-overlap-ms", "100"] });
  const publisher = await connectPublisher(broker);
  const console = await openConsole(await startBrowser(), server);
  const { page } = console;
  const publishNumber = (number) => publishCall(publisher, "CHANNEL_CREATE", { "Caller-ID-Name": `caller ${number}`, To: "1001" });
  const events = async () => (await console.entries()).filter((entry) => entry.startsWith("event"));
  const eventOf = (number) => `event | CHANNEL_CREATE | caller ${number} → 1001`;

  await console.unbind();
  await console.connect(TOKEN);
  await console.bind("call.CHANNEL_CREATE.*");
  assert.equal((await console.binding("call.CHANNEL_CREATE.*")).count, "live");
  await server.untilStreamed();
  await publishNumber(1);
  await console.until("the first event", async () => (await events()).length === 1);
  assert.deepEqual(await events(), [eventOf(1)]);

  // A refusal of the server stands where it was asked for, in its words.
  await console.bind("call.NO_SUCH_EVENT.*");
  assert.deepEqual(await console.binding("call.NO_SUCH_EVENT.*"), { count: "refused", why: "event NO_SUCH_EVENT not supported" });
  await console.press("Remove call.NO_SUCH_EVENT.*");

  await server.kill();
  await console.until("a state that says so", async () => (await console.state()).startsWith("Reconnecting"));
  await console.until("the server's state, too", async () => (await console.serverState()) === "The server does not answer");
  await screenshot(page, "console-reconnecting");
  assert.deepEqual(await violations(page), []);
  for (const number of [2, 3, 4]) await publishNumber(number);
  await server.start();
  // However often it tried to come back, and told so.
  await console.press("Events");
  await console.until("what was missed", async () => (await events()).length === 4);
  await console.until("live again", async () => (await console.state()) === "Live");
  await publishNumber(5);
  await console.until("what is new", async () => (await events()).length === 5);
  assert.deepEqual(await events(), [5, 4, 3, 2, 1].map(eventOf), "newest first, each once");
  assert.match(await console.text("#events"), /Resumed: [34] events that were missed have come/);
  await console.press("Events");
  await console.press("Notices");
  await console.until("the one notice", async () => /^notice \| resumed \| /.test((await console.entries()).join("\n")));
  assert.equal((await console.entries()).length, 1);
  await console.press("Notices");
  await console.until("the server's state", async () => (await console.serverState()) === "Server ready");

  // With the broker, the events of its time are lost for certain, and said to be.
  await broker.command("kill9");
  await console.until("the source is missed", async () => /away/i.test(await console.serverState()));
  await broker.start();
  await server.until("ready", async () => (await server.page("readyz")).status === 200);
  const again = await connectPublisher(broker);
  await publishCall(again, "CHANNEL_CREATE", { "Caller-ID-Name": "caller 6", To: "1001" });
  await console.until("the gap, and what came after", async () => {
    const [first = "", second = ""] = await console.entries();
    return first === eventOf(6) && /^notice \| gap \| Events were lost, or may have been: the server had no broker for /.test(second);
  });

  // Nowhere but in the field and the memory of the page.
  const kept = await page.evaluate(() => [location.href, document.documentElement.outerHTML, JSON.stringify([localStorage, sessionStorage]), document.cookie]);
  for (const text of kept) assert.ok(!text.includes(TOKEN));
  assert.ok(!server.log.includes(TOKEN));
  assertClean(console);
});

test("a session is found, traced and kicked", { skip }, async () => {
  const broker = await startBroker();
  const server = await startServer({ broker, args: TOKENS });
  const publisher = await connectPublisher(broker);
  const client = await connectClient(server, "the one to kick");
  const other = await connectClient(server, "the one that stays");
  const console = await openConsole(await startBrowser(), server);
  const { page } = console;
  const rows = () => console.texts("#sessions .window [role=row]");

  await console.open("Sessions");
  await console.until("both sessions", async () => (await rows()).length === 2);
  await console.type("#sessions input[type=search]", "to kick");
  await console.until("the one that was searched for", async () => (await rows()).length === 1);
  const [row] = await rows();
  assert.match(row, /the one to kick/);
  const [id] = await console.texts("#sessions .window [data-column=id]");

  await console.press(`Trace ${id}`);
  await console.until("the look", async () => /Looking/.test(await console.text("#trace .pill")));
  await publishCall(publisher, "CHANNEL_CREATE", FIXTURES[0].body);
  await console.until("that the event matched, and was queued", async () => {
    const lines = (await console.texts("#trace [role=option]")).join("\n");
    return /matched/.test(lines) && /queued/.test(lines) && /CHANNEL_CREATE/.test(lines);
  });
  await until(() => client.frames.length === 2, { what: "the event at the client, too" });
  await publishCall(publisher, "CHANNEL_ANSWER", { "Custom-Channel-Vars": { "Account-ID": OTHER_ACCOUNT } });
  await screenshot(page, "console-trace-session");
  assert.deepEqual(await violations(page), []);

  await console.open("Sessions");
  await console.press(`Kick ${id}`);
  await console.until("the question", () => page.$eval("dialog[open]", () => true));
  assert.deepEqual(await violations(page), []);
  await screenshot(page, "console-kick");
  await page.locator("dialog[open] button.danger").click();
  await until(() => client.closed, { what: "the end of the session" });
  assert.deepEqual(client.closed, { code: 1008, reason: "closed by the operator" });
  await console.until("its row is gone", async () => (await rows()).length === 0);
  await console.type("#sessions input[type=search]", "");
  await console.until("the other is still there", async () => (await rows()).length === 1);
  assert.equal(other.closed, null);
  await console.open("Trace");
  await console.until("the trace has the end, too", async () => /closed/.test((await console.texts("#trace [role=option]")).join("\n")));
  assertClean(console);
});
