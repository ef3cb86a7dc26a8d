/**
 * The JavaScript client (`scripts/client/blackhole.mjs`) in a browser, loaded as a module from a page of another origin than the
 * server's: nothing lost and nothing doubled when the server is killed under it. All else of the client is tested in Node.
 */

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { test } from "node:test";

import { startBroker, withoutBroker } from "./support/broker.mjs";
import { openPage, startBrowser, withoutBrowser } from "./support/browser.mjs";
import { endWithTest } from "./support/endings.mjs";
import { readProjectFile } from "./support/project.mjs";
import { ACCOUNT, connectPublisher, publishCall } from "./support/publisher.mjs";
import { startServer } from "./support/server.mjs";
import { until } from "./support/until.mjs";

const PAGE = '<!doctype html><html lang="en"><link rel="icon" href="data:,"><title>Module</title>';

/** A site that has the module and an empty page; its address. */
async function startSite() {
  const files = {
    "/": ["text/html; charset=utf-8", PAGE],
    "/blackhole.mjs": ["text/javascript; charset=utf-8", readProjectFile("scripts/client/blackhole.mjs")],
  };
  const site = createServer(({ url }, response) => {
    const [type, text] = files[url ?? ""] ?? [];
    response.writeHead(type ? 200 : 404, type && { "Content-Type": type }).end(text);
  });
  await once(site.listen(0, "127.0.0.1"), "listening");
  endWithTest(async () => {
    site.closeAllConnections();
    site.close();
  });
  return `http://127.0.0.1:${/** @type {import("node:net").AddressInfo} */ (site.address()).port}/`;
}

const skip = withoutBrowser() || withoutBroker();
test("the module runs in a browser, and brings what was missed when the server is killed", { skip }, async () => {
  const broker = await startBroker();
  const server = await startServer({ broker, args: ["--history", "stream:blackhole.history", "--history-overlap-ms", "100"] });
  const publisher = await connectPublisher(broker);
  const { page, faults } = await openPage(await startBrowser());
  await page.goto(await startSite());
  await page.evaluate(async (url, account) => {
    const { connect } = await import(/** @type {any} */ ("/blackhole.mjs"));
    /** @type {Record<string, any[]>} */
    const told = { state: [], event: [], error: [], gap: [], resumed: [] };
    const client = connect(url, { token: "any", account, pauseMs: 50, pauseMaxMs: 200 });
    for (const kind of ["state", "gap", "resumed", "error"]) {
      client.on(kind, (it) => told[kind].push(it.name ?? it.message ?? JSON.stringify(it)));
    }
    const subscription = await client.subscribe("call.CHANNEL_CREATE.*");
    Object.assign(globalThis, { told, client, subscription });
    (async () => {
      for await (const event of subscription) told.event.push(event.args.Number);
    })();
  }, server.wsUrl, ACCOUNT);
  const told = () => page.evaluate(() => /** @type {any} */ (globalThis).told);
  const numbers = async (count) => {
    await until(async () => (await told()).event.length >= count, { what: `${count} events`, deadline: server.patience });
    return (await told()).event;
  };
  const publishNumbers = async (from, to) => {
    for (let number = from; number <= to; number += 1) await publishCall(publisher, "CHANNEL_CREATE", { Number: number });
  };

  await server.untilStreamed();
  await publishNumbers(1, 3);
  assert.deepEqual(await numbers(3), [1, 2, 3]);
  await server.kill();
  await publishNumbers(4, 6);
  await until(async () => (await told()).state.includes("reconnecting"));
  await server.start();
  assert.deepEqual(await numbers(6), [1, 2, 3, 4, 5, 6]);
  await publishNumbers(7, 7);
  assert.deepEqual(await numbers(7), [1, 2, 3, 4, 5, 6, 7]);

  await until(async () => (await told()).state.at(-1) === "live", { what: "live" });
  const { gap, resumed, error } = await told();
  assert.deepEqual([gap, error], [[], []]);
  assert.equal(resumed.length, 1);
  await page.evaluate(() => /** @type {any} */ (globalThis).client.close());
  await server.until("no session is left", async () => (await server.metric("sessions")) === 0);
  // The tries while the server was away are told by the browser itself.
  assert.deepEqual(faults.filter((fault) => !/ERR_CONNECTION_(REFUSED|RESET)/.test(fault)), []);
});
