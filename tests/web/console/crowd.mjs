// Very many websocket clients in one process: each is a socket, an upgrade, and one command; what comes is thrown away.

import { once } from "node:events";
import { createConnection } from "node:net";
import { endWithTest } from "../support/endings.mjs";

/** Connects that are under way at once: a listener's queue takes so many. */
const AT_ONCE = 200;

/** A masked text frame of a client; the mask is of zeros. */
function textFrame(text) {
  const payload = Buffer.from(text);
  const length = payload.length < 126 ? [0x80 | payload.length] : [0x80 | 126, payload.length >> 8, payload.length & 0xff];
  return Buffer.concat([Buffer.from([0x81, ...length, 0, 0, 0, 0]), payload]);
}

/** One client: resolves when its command is answered. */
async function join(server, command) {
  const [host, port] = server.address.split(":");
  const socket = createConnection({ host, port: Number(port), noDelay: true });
  socket.on("error", () => {});
  await once(socket, "connect");
  socket.write(
    `GET / HTTP/1.1\r\nHost: ${server.address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n` +
      "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
  );
  socket.write(textFrame(JSON.stringify(command)));
  let said = "";
  while (!said.includes('"status":"success"')) {
    const [piece] = await once(socket, "data");
    said += piece;
    if (!said.startsWith("HTTP/1.1 101") || said.includes('"status":"error"')) throw new Error(`refused: ${said}`);
  }
  socket.resume();
  return socket;
}

/**
 * Lets `count` clients join; they leave with the test. `commandOf(at)`: what the `at`th says first.
 *
 * @param {{ address: string }} server
 * @param {number} count
 * @param {(at: number) => object} commandOf
 */
export async function joinCrowd(server, count, commandOf) {
  /** @type {import("node:net").Socket[]} */
  const sockets = [];
  endWithTest(async () => sockets.forEach((socket) => socket.destroy()));
  let next = 0;
  const keepJoining = async () => {
    while (next < count) {
      next += 1;
      sockets.push(await join(server, commandOf(next - 1)));
    }
  };
  await Promise.all(Array.from({ length: Math.min(AT_ONCE, count) }, keepJoining));
  return sockets;
}
