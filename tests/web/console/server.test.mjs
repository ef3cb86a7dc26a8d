// The figures of the server as the console makes them, from pages of metrics that a real server gave.

import assert from "node:assert/strict";
import { test } from "node:test";
import { consoleModule } from "./support.mjs";
import { startServer } from "../support/server.mjs";
import { joinCrowd } from "./crowd.mjs";

const { MetricsPage, SERVER_INCIDENTS, SERVER_TILES, serverFigures, serverIncidents } = await consoleModule(
  ["ui.js", "metrics.js", "plot.js", "server.js"],
  ["MetricsPage", "SERVER_INCIDENTS", "SERVER_TILES", "serverFigures", "serverIncidents"],
);

test("every figure is on the page of a real server, and follows what happens there", async () => {
  const server = await startServer({ args: ["--demo-rate", "100"] });
  const read = async () => {
    const { text } = await server.page("metrics");
    return { at: performance.now() / 1000, metrics: new MetricsPage(text) };
  };
  const first = await read();
  await joinCrowd(server, 3, () => ({
    action: "subscribe", auth_token: "any", data: { account_id: "00000000000000000000000000000001", binding: "call.*.*" },
  }));
  const readings = [first];
  // Its own CPU is counted in hundredths of a second.
  await server.until("figures of all kinds", async () => {
    readings.push(await read());
    const { frames, lag, age, cpu } = serverFigures([first, readings.at(-1)]);
    return frames > 0 && lag.late && age.late && cpu > 0;
  });
  const last = readings[readings.length - 1];
  const figures = serverFigures([first, last]);
  assert.equal(figures.sessions, 3);
  assert.ok(figures.connectionsMax > 3);
  assert.ok(figures.events > 0 && figures.frames > 0, JSON.stringify(figures));
  assert.equal(figures.waiting, 0);
  assert.ok(figures.waitingMax > 0 && figures.memory > 1e6 && figures.cpu > 0, JSON.stringify(figures));
  for (const { title, tell, write, ceiling } of SERVER_TILES) {
    const { value, note } = tell(figures);
    assert.equal(typeof value, "number", title);
    assert.match(write(value), /\d/, title);
    assert.notEqual(note, "", title);
    if (ceiling) assert.ok(ceiling(value) >= value, title);
  }
  const alone = serverFigures([first]);
  for (const name of ["events", "frames", "cpu"]) assert.equal(alone[name], null, `one reading tells no rate: ${name}`);
  for (const { title, tell } of SERVER_TILES) assert.doesNotMatch(JSON.stringify(tell(alone)), /NaN|undefined/, title);

  for (const [name] of SERVER_INCIDENTS) {
    // Those of the broker are there only where there is one.
    if (!name.startsWith("blackhole_amqp_")) assert.notEqual(last.metrics.sum(name), null, name);
  }
  assert.deepEqual(serverIncidents(last.metrics), []);
  await fetch(`http://${server.address}/nothing`);
  const after = new MetricsPage((await server.page("metrics")).text);
  assert.deepEqual(serverIncidents(after), [{ words: "handshakes refused", total: 1 }]);
});
