// Where the console connects to as a client, and why a browser may not let it.

import assert from "node:assert/strict";
import { test } from "node:test";
import { consoleModule } from "./support.mjs";

const { connectionHint, websocketAddress } = await consoleModule(["ui.js", "connect.js"], ["connectionHint", "websocketAddress"]);

const HTTP = { protocol: "http:", hostname: "ops.example", origin: "http://ops.example:5559" };
const HTTPS = { protocol: "https:", hostname: "ops.example", origin: "https://ops.example" };
const TLS = { address: "0.0.0.0", port: 5556, certificate_expires: 1893456000 };

test("a page connects without TLS where it may, and with TLS where it must or nothing else is there", () => {
  const both = { address: "0.0.0.0", port: 5555, tls: TLS };
  for (const [websocket, page, expected] of [
    [both, HTTP, "ws://ops.example:5555"],
    [both, HTTPS, "wss://ops.example:5556"],
    [{ address: null, port: null, tls: TLS }, HTTP, "wss://ops.example:5556"],
    [{ address: null, port: null, tls: { ...TLS, address: "2001:db8::1" } }, HTTPS, "wss://[2001:db8::1]:5556"],
    [{ address: "192.0.2.1", port: 5555, tls: null }, HTTP, "ws://192.0.2.1:5555"],
    // A proxy before the port may take TLS off.
    [{ address: "::", port: 5555, tls: null }, HTTPS, "wss://ops.example:5555"],
    [{ address: null, port: null, tls: null }, HTTP, ""],
  ]) {
    assert.equal(websocketAddress(websocket, page), expected);
  }
});

test("what a browser does not say is guessed from the address", () => {
  const status = { websocket: { address: "0.0.0.0", port: 5555, tls: TLS, allowed_origins: [] }, draining: false };
  assert.match(connectionHint("ws://ops.example:5555", status, HTTPS), /wss:/);
  assert.match(connectionHint("wss://ops.example:5556", status, HTTP), /certificate.*https:\/\/ops\.example:5556/);
  assert.equal(connectionHint("ws://ops.example:5555", status, HTTP), null);
  const plain = { ...status, websocket: { ...status.websocket, tls: null } };
  assert.equal(connectionHint("wss://ops.example:5555", plain, HTTPS), null);
  const strict = { ...plain, websocket: { ...plain.websocket, allowed_origins: ["https://else.example"] } };
  assert.match(connectionHint("wss://ops.example:5555", strict, HTTPS), /allowed_origins/);
  // What is certain goes before what is likely.
  const both = { ...strict, websocket: { ...strict.websocket, tls: TLS } };
  assert.match(connectionHint("wss://ops.example:5556", both, HTTPS), /allowed_origins/);
});
