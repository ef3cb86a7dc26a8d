/**
 * The documentation's example client (`scripts/example-client.html`), opened from the disk as a newcomer does.
 */

import assert from "node:assert/strict";
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

import { startBroker, withoutBroker } from "./support/broker.mjs";
import { openPage, SCREENS, screenshot, startBrowser, violations, withoutBrowser } from "./support/browser.mjs";
import { endWithTest, guard } from "./support/endings.mjs";
import { ownFolder, projectFile, readProjectFile } from "./support/project.mjs";
import { ACCOUNT, connectPublisher, FIXTURES, publishCall } from "./support/publisher.mjs";
import { startServer } from "./support/server.mjs";
import { until } from "./support/until.mjs";

const FILE = "scripts/example-client.html";

/** The frames that a page shows, the oldest first. */
const frames = (page) => page.$$eval("#frames pre", (entries) => entries.map(({ textContent }) => JSON.parse(textContent)).reverse());
const state = (page) => page.$eval("[role=status]", ({ textContent }) => textContent);

test("word for word, it shows the events of the demo", { skip: withoutBrowser() }, async () => {
  const server = await startServer({ args: ["--demo-rate", "20"] });
  const browser = await startBrowser({ instead: { "127.0.0.1:5555": server.address } });
  const { page, faults } = await openPage(browser, SCREENS.phone);
  await page.goto(pathToFileURL(projectFile(FILE)).href);
  await until(async () => /replies: 3, events: [1-9]/.test(await state(page)), { what: "three replies and an event" });
  const seen = await frames(page);
  const replies = seen.filter(({ action }) => action === "reply");
  assert.deepEqual(replies.map(({ request_id, status }) => [request_id, status]), [
    ["calls-begin", "success"], ["calls-go-on", "success"], ["users", "success"],
  ]);
  const event = seen.find(({ action }) => action === "event");
  assert.match(event.name, /^CHANNEL_(CREATE|ANSWER|DESTROY)$/);
  assert.equal(event.args["Custom-Channel-Vars"]["Account-ID"], "00000000000000000000000000000001");
  const [session] = await server.data("v2/accounts/00000000000000000000000000000001/websockets").catch(() => []);
  assert.equal(session?.name, "example client");
  assert.deepEqual(await violations(page), []);
  await screenshot(page, "example-client");
  await until(async () => (await page.$$("#frames pre")).length === 100, { what: "no more than 100 frames" });
  await server.kill();
  await until(async () => (await state(page)).startsWith("closed, code 1006"), { what: "the end, in words" });
  assert.deepEqual(faults, []);
});

const skip = withoutBrowser() || withoutBroker();
test("with address, account and token of one's own, it shows what the platform publishes, as text", { skip }, async () => {
  const broker = await startBroker();
  const server = await startServer({ broker, args: ["--auth", `tokens:${projectFile("tests/fixtures/tokens.json")}`] });
  const own = {
    "ws://127.0.0.1:5555": server.wsUrl, "00000000000000000000000000000001": ACCOUNT, '"any"': '"token-of-the-account"',
  };
  let text = readProjectFile(FILE);
  for (const [from, to] of Object.entries(own)) {
    assert.equal(text.split(from).length, 2, `${from} is there once`);
    text = text.replace(from, to);
  }
  const folder = ownFolder("example");
  const removed = guard("folder", folder);
  endWithTest(async () => {
    rmSync(folder, { recursive: true });
    removed();
  });
  const file = join(folder, "client.html");
  writeFileSync(file, text);
  const { page, faults } = await openPage(await startBrowser());
  await page.goto(pathToFileURL(file).href);
  await until(async () => (await state(page)) === "connected; replies: 3, events: 0");
  const publisher = await connectPublisher(broker);
  const hostile = { "Caller-ID-Name": "</pre><img src=x onerror='document.title=1'>" };
  for (const { name, body } of FIXTURES) await publishCall(publisher, name, { ...body, ...hostile });
  await until(async () => (await state(page)) === "connected; replies: 3, events: 3");
  const events = (await frames(page)).filter(({ action }) => action === "event");
  assert.deepEqual(events.map(({ args }) => args), FIXTURES.map(({ body }) => ({ ...body, ...hostile })));
  assert.deepEqual(events.map(({ request_id }) => request_id), ["calls-begin", "calls-go-on", "calls-go-on"]);
  assert.equal(await page.title(), "Blackhole: example client");
  assert.equal(await page.$("img"), null);
  assert.deepEqual(faults, []);
});
