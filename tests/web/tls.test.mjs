/**
 * Browsers and Node at the TLS port: the console over `wss://` in Chromium, Node's own TLS with all its checks, its WebSocket and
 * the JavaScript client.
 */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { test } from "node:test";
import tls from "node:tls";

import { screenshot, startBrowser, withoutBrowser } from "./support/browser.mjs";
import { endWithTest } from "./support/endings.mjs";
import { projectFile } from "./support/project.mjs";
import { startServer } from "./support/server.mjs";
import { PATIENCE, within } from "./support/until.mjs";
import { openConsole } from "./console/console.mjs";

const DEMO_ACCOUNT = "00000000000000000000000000000001";
const BUSY = ["--demo-rate", "50"];

/** One request over TLS: what was agreed on, what was answered, and the ticket that came. */
async function visit(server, options) {
  const [host, port] = server.tlsAddress.split(":");
  const socket = tls.connect({ host, port: Number(port), servername: "localhost", ALPNProtocols: ["http/1.1"], ...options });
  let ticket = /** @type {Buffer | undefined} */ (undefined), answer = "";
  socket.on("session", (session) => (ticket = session));
  socket.setEncoding("utf8").on("data", (text) => (answer += text));
  socket.end("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
  await within(once(socket, "secureConnect"), "the handshake");
  const facts = [socket.getProtocol(), socket.alpnProtocol, socket.isSessionReused(), socket.authorized];
  await within(once(socket, "close"), "the end");
  return { facts, answer: answer.split("\r\n")[0], ticket };
}

test("Node agrees on both versions, trusts whom it should, and comes back with its ticket", async () => {
  const server = await startServer({ tls: true });
  const ca = readFileSync(server.certificate.cert);
  for (const version of /** @type {import("node:tls").SecureVersion[]} */ (["TLSv1.2", "TLSv1.3"])) {
    const options = { ca, minVersion: version, maxVersion: version };
    const first = await visit(server, options);
    assert.deepEqual(first.facts, [version, "http/1.1", false, true]);
    assert.equal(first.answer, "HTTP/1.1 200 OK");
    const again = await visit(server, { ...options, session: first.ticket });
    assert.deepEqual(again.facts, [version, "http/1.1", true, true]);
    assert.equal(again.answer, "HTTP/1.1 200 OK");
  }
  await assert.rejects(visit(server, {}), { code: "DEPTH_ZERO_SELF_SIGNED_CERT" });
  await assert.rejects(visit(server, { ca, servername: "elsewhere.example" }), { code: "ERR_TLS_CERT_ALTNAME_INVALID" });
  await assert.rejects(visit(server, { ca, ALPNProtocols: ["h2"] }), /no application protocol/i);
  await assert.rejects(visit(server, { ca, maxVersion: "TLSv1.1", minVersion: "TLSv1", ciphers: "ALL:@SECLEVEL=0" }), /alert (protocol version|handshake failure)/);
});

/** What this program, run by a Node that trusts the server, prints in its next lines. */
function run(server, program) {
  const env = { ...process.env, NODE_EXTRA_CA_CERTS: server.certificate.cert };
  const child = spawn(process.execPath, ["--input-type=module", "--eval", program], { env, stdio: ["ignore", "pipe", "inherit"] });
  endWithTest(async () => child.kill("SIGKILL"));
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  return async () => JSON.parse((await within(lines.next(), "the next line", PATIENCE)).value ?? '"ended"');
}

test("Node's WebSocket gets events", async () => {
  const server = await startServer({ args: BUSY, tls: true });
  const next = run(server, `
    const socket = new WebSocket("${server.wssUrl}");
    let left = 6;
    socket.onmessage = ({ data }) => {
      console.log(data);
      if (--left === 0) socket.close(1000);
    };
    socket.onclose = ({ code, wasClean }) => console.log(JSON.stringify([code, wasClean]));
    socket.onopen = () => socket.send(JSON.stringify({
      action: "subscribe", auth_token: "any", data: { account_id: "${DEMO_ACCOUNT}", binding: "call.*.*" },
    }));`);
  assert.equal((await next()).status, "success");
  let last = await next();
  let events = 0;
  for (; last.action === "event"; last = await next()) events += 1;
  assert.ok(events >= 5, `${events} events`);
  assert.deepEqual(last, [1000, true]);
});

test("the JavaScript client gets events", async () => {
  const server = await startServer({ args: BUSY, tls: true });
  const next = run(server, `
    import { connect } from "${projectFile("scripts/client/blackhole.mjs")}";
    const client = connect("${server.wssUrl}", { token: "any", account: "${DEMO_ACCOUNT}" });
    client.on("error", (error) => console.log(JSON.stringify(error.message)));
    let left = 5;
    for await (const event of await client.subscribe("call.*.*")) {
      console.log(JSON.stringify(event.name));
      if (--left === 0) break;
    }
    client.close();`);
  for (let number = 0; number < 5; number += 1) assert.match(await next(), /^CHANNEL_/);
  assert.equal(await next(), "ended");
});

test("the console gets events by wss:// in a browser", { skip: withoutBrowser() }, async () => {
  const server = await startServer({ args: BUSY, tls: true });
  const console = await openConsole(await startBrowser({ trusted: [server.certificate.pin] }), server);
  await console.type("#events input[name=address]", server.wssUrl);
  await console.connect("any", DEMO_ACCOUNT);
  await console.until("events", async () => (await console.entries()).filter((entry) => entry.startsWith("event")).length > 3);
  await screenshot(console.page, "console-wss");
  assert.deepEqual(console.faults, []);
  // A browser that does not know the certificate does not get in, and the server goes on.
  const stranger = await openConsole(await startBrowser(), server);
  await stranger.type("#events input[name=address]", server.wssUrl);
  await stranger.type("#events input[name=token]", "any");
  await stranger.press("Connect");
  await stranger.until("a refusal", async () => stranger.faults.some((fault) => fault.includes("ERR_CERT_AUTHORITY_INVALID")));
  assert.equal(await server.metric("sessions"), 1);
});
