/**
 * The harness itself: the real server between a real broker and a websocket, the same addresses after a kill, and nothing left
 * behind.
 */

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";

import { startBroker, withoutBroker } from "./support/broker.mjs";
import { withoutBrowser } from "./support/browser.mjs";
import { endWithTest } from "./support/endings.mjs";
import { projectFile } from "./support/project.mjs";
import { ACCOUNT, connectPublisher, FIXTURES, publishCall } from "./support/publisher.mjs";
import { startServer } from "./support/server.mjs";
import { until } from "./support/until.mjs";

/** A websocket that keeps what it is sent. */
async function connect(url) {
  const socket = new WebSocket(url);
  const frames = [];
  socket.onmessage = ({ data }) => frames.push(JSON.parse(data));
  await once(socket, "open");
  return { socket, frames };
}

test("a published event reaches a websocket, before and after the server is killed", { skip: withoutBroker() }, async () => {
  const broker = await startBroker();
  const server = await startServer({ broker });
  const publisher = await connectPublisher(broker);
  const addresses = [server.wsUrl, server.adminUrl];
  for (const life of [1, 2]) {
    const { socket, frames } = await connect(server.wsUrl);
    const data = { account_id: ACCOUNT, binding: "call.CHANNEL_CREATE.*" };
    socket.send(JSON.stringify({ action: "subscribe", auth_token: "any", data }));
    await until(() => frames.length === 1, { what: "the reply" });
    assert.equal(frames[0].status, "success");
    await publishCall(publisher, "CHANNEL_CREATE", FIXTURES[0].body);
    await until(() => frames.length === 2, { what: "the event" });
    assert.deepEqual(frames[1].args, FIXTURES[0].body);
    assert.equal(await server.metric("frames_delivered_total"), 1, `life ${life}`);
    await server.kill();
    await until(() => socket.readyState === WebSocket.CLOSED);
    await server.start();
    assert.deepEqual([server.wsUrl, server.adminUrl], addresses);
  }
  assert.equal(await server.stop(), 0);
});

test("a wait that is in vain says what it waited for and what it saw", async () => {
  await assert.rejects(until(() => 0, { deadline: 20, what: "a number" }), /not within 20 ms: a number\nlast seen: 0/);
  await assert.rejects(until(() => JSON.parse("{"), { deadline: 20 }), /SyntaxError/);
});

test("a server and a browser end with the process that started them, however that ends", { skip: withoutBrowser() }, async () => {
  const program = `
    import { startBrowser } from "${projectFile("tests/web/support/browser.mjs")}";
    import { startServer } from "${projectFile("tests/web/support/server.mjs")}";
    const [server, browser] = await Promise.all([startServer(), startBrowser()]);
    console.log("pids", server.pid, browser.process().pid);
    ENDING`;
  /** @type {[string, NodeJS.Signals?][]} */
  const endings = [["process.exit(3)"], ["throw new Error()"], ["setInterval(() => {}, 1000)", "SIGKILL"]];
  for (const [ending, signal] of endings) {
    const child = spawn(process.execPath, ["--input-type=module", "--eval", program.replace("ENDING", ending)]);
    endWithTest(async () => child.kill("SIGKILL"));
    let said = "";
    child.stdout.on("data", (text) => (said += text));
    const pids = await until(() => /^pids (\d+) (\d+)$/m.exec(said), { what: "the process ids" });
    if (signal) child.kill(signal);
    await until(() => child.exitCode !== null || child.signalCode !== null, { what: `the end after ${ending}` });
    for (const pid of pids?.slice(1) ?? []) {
      await until(() => spawnSync("kill", ["-0", pid]).status !== 0, { what: `the end of ${pid} after ${ending}` });
    }
  }
});
