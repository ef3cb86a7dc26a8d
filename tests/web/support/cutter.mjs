/**
 * A TCP proxy in front of servers, which cuts connections after so many websocket frames of the server: the client has
 * exactly those and no more. It ends with its test.
 */

import { once } from "node:events";
import { connect, createServer } from "node:net";

import { endWithTest } from "./endings.mjs";

/** The length of the frame that begins here (RFC 6455 5.2; a server's are not masked); undefined: that has not come yet. */
function frameLength(bytes) {
  if (bytes.length < 2) return undefined;
  const short = bytes[1] & 0x7f;
  if (short < 126) return 2 + short;
  if (short === 126) return bytes.length < 4 ? undefined : 4 + bytes.readUInt16BE(2);
  return bytes.length < 10 ? undefined : 10 + Number(bytes.readBigUInt64BE(2));
}

/**
 * Starts it, at a free port.
 *
 * @param {string[]} addresses of the servers, `IP:PORT`; each connection goes to the next of them
 * @param {(number: number) => number} frames after how many the connection of this number, from 1 on, is cut; Infinity: never
 */
export async function startCutter(addresses, frames) {
  const sockets = new Set();
  const keep = (socket) => {
    sockets.add(socket);
    socket.on("error", () => {}).on("close", () => sockets.delete(socket)).unref();
  };
  const cutter = { wsUrl: "", connections: 0, cuts: 0, cut: () => sockets.forEach((socket) => socket.destroy()) };
  const proxy = createServer({ noDelay: true }, (client) => {
    const number = (cutter.connections += 1);
    const [host, port] = addresses[(number - 1) % addresses.length].split(":");
    const server = connect({ host, port: Number(port), noDelay: true });
    keep(client);
    keep(server);
    client.on("data", (bytes) => server.write(bytes)).on("close", () => server.destroy());
    let left = frames(number);
    let isUpgraded = false;
    let bytes = Buffer.alloc(0);
    const pass = (length) => {
      const passed = bytes.subarray(0, length);
      bytes = bytes.subarray(length);
      return passed;
    };
    server.on("close", () => client.destroy()).on("data", (more) => {
      bytes = Buffer.concat([bytes, more]);
      if (!isUpgraded) {
        const end = bytes.indexOf("\r\n\r\n");
        if (end < 0) return;
        isUpgraded = true;
        client.write(pass(end + 4));
      }
      for (let length = frameLength(bytes); length !== undefined && bytes.length >= length; length = frameLength(bytes)) {
        left -= 1;
        if (left > 0) {
          client.write(pass(length));
          continue;
        }
        cutter.cuts += 1;
        // What was passed arrives; then the end, without a word.
        server.removeAllListeners("close").removeAllListeners("data").destroy();
        client.end(pass(length));
        return;
      }
    });
  });
  const [host] = addresses[0].split(":");
  proxy.listen(0, host).unref();
  await once(proxy, "listening");
  endWithTest(() => {
    proxy.close();
    cutter.cut();
  });
  cutter.wsUrl = `ws://${host}:${/** @type {import("node:net").AddressInfo} */ (proxy.address()).port}/`;
  return cutter;
}
