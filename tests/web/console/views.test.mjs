// The console's views of the server in a real browser, on a real server: its figures, its sessions, and a trace.

import assert from "node:assert/strict";
import { test } from "node:test";
import { SCREENS, openPage, screenshot, show, startBrowser, violations, withoutBrowser } from "../support/browser.mjs";
import { startServer } from "../support/server.mjs";
import { BROKER_PATIENCE, until } from "../support/until.mjs";
import { joinCrowd } from "./crowd.mjs";

// No server here pings in the time of a test: a crowd does not answer.

const ACCOUNT = "00000000000000000000000000000001";

/** A name that tries to be more than text. */
const HOSTILE = "<b id=hole>bold</b>\u202E <script>hole()</script>";

const subscribe = (binding = "call.*.*", name = "client") => ({
  action: "subscribe", auth_token: "any", data: { account_id: ACCOUNT, binding, name },
});

/** Opens a view; `text(selector)` is what an element says, `says(selector, pattern)` waits for it. */
async function openView(browser, server, view) {
  const { page, faults, asked } = await openPage(browser);
  await page.goto(`${server.adminUrl}#${view}`);
  const text = (selector) => page.evaluate((selector) => document.querySelector(selector)?.textContent ?? "", selector);
  const says = (selector, pattern) =>
    until(async () => pattern.test(await text(selector)), { deadline: BROKER_PATIENCE, what: `${selector} says ${pattern}` }).catch(async (error) => {
      throw new Error(`${error.message}\nit says: ${await text(selector).catch(() => "nothing")}\nfaults: ${faults}`);
    });
  return { page, faults, asked, text, says };
}

/** A button in a part of the page, by what it says or is called. */
const button = (part, name) => `${part} ::-p-aria([name="${name}"][role="button"])`;

/**
 * Leaves pictures of a view on all screens, and has axe look at each. Another kind of screen loads the page anew; `filled` waits
 * until there is something to see.
 */
async function look(page, name, filled) {
  for (const [screen, size] of Object.entries(SCREENS)) {
    await show(page, size);
    await filled();
    await page.evaluate(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
    await screenshot(page, `${name}-${screen}`);
    assert.deepEqual(await violations(page), [], `${name} on ${screen}`);
  }
  await show(page, SCREENS.wide);
  await filled();
}

/** What reads how long a page has been busy with what, in the time of its own thread: what else the machine does does not count. */
async function meter(page) {
  const debug = await page.createCDPSession();
  await debug.send("Performance.enable", { timeDomain: "threadTicks" });
  return async () => {
    const { metrics } = await debug.send("Performance.getMetrics");
    return Object.fromEntries(metrics.map(({ name, value }) => [name, value]));
  };
}

test("the figures of the server move, are told in words, and say when there are none", { skip: withoutBrowser() }, async () => {
  const server = await startServer({ args: ["--demo-rate", "50", "--ping-interval-ms", "600000"] });
  await joinCrowd(server, 2, () => subscribe());
  const browser = await startBrowser();
  const { page, faults, asked, says } = await openView(browser, server, "server");
  const tile = (at, part) => `.plots > li:nth-child(${at}) ${part}`;
  await says(tile(1, ".plot-value"), /^2$/);
  await says(tile(2, ".plot-value"), /^[1-9]/);
  await says(tile(3, ".plot-value"), /^[1-9]/);
  await says(tile(4, ".plot-value"), /s$/);
  await says(tile(5, ".plot-value"), /s$/);
  await says(tile(6, ".plot-value"), /B$/);
  await says(tile(7, ".plot-value"), /MiB$/);
  await says(tile(8, ".plot-value"), /%$/);
  await says(tile(7, ".plot-trend"), /^(steady|rising|falling)/);
  const path = await page.$eval(tile(3, ".plot-line"), (line) => line.getAttribute("d") ?? "");
  assert.match(path, /^M[\d.]+ [\d.]+(L[\d.]+ [\d.]+)+$/);
  await look(page, "server", () => says(tile(3, ".plot-trend"), / (within|for) \d/));
  assert.deepEqual(faults, []);
  assert.deepEqual([...asked], [new URL(server.adminUrl).origin], "it asks nobody else");

  await page.click(button("#server", "Pause"));
  await says("#server-live", /^Paused$/);
  await page.click(button("#server", "Pause"));
  await says("#server-live", /^Live/);
  await server.kill();
  await says("#server-live", /^No figures for .*: The server does not answer$/);
  await says(tile(1, ".plot-value"), /^–$/);
  await server.start();
  await says("#server-live", /^Live/);
  await says(tile(1, ".plot-value"), /^0$/);
});

test("sessions are found, sorted, kicked and traced", { skip: withoutBrowser() }, async () => {
  const server = await startServer({ args: ["--demo-rate", "20", "--ping-interval-ms", "600000"] });
  const [first] = await joinCrowd(server, 1, () => subscribe("call.*.*", HOSTILE));
  await joinCrowd(server, 3, (at) => subscribe("fax.status.*", `idle-${at}`));
  const own = `${first.localAddress}:${first.localPort}`;
  const browser = await startBrowser();
  const { page, faults, text, says } = await openView(browser, server, "sessions");
  await says("#sessions", /4 sessions/);
  await says("#sessions .window", /<b id=hole>bold<\/b>/);
  assert.equal(await page.$("#hole"), null, "a name is text");
  await look(page, "sessions", () => says("#sessions .window", /<b id=hole>/));

  // Found and read at one moment: an element may be another row's at the next.
  const ids = () =>
    page.evaluate(() => [...document.querySelectorAll("#sessions .window [role=row] [data-column=id]")].map(({ textContent }) => textContent));
  await page.click(button("#sessions", "Frames"));
  await until(async () => (await ids())[0] === own && (await ids()).length === 4, {
    deadline: BROKER_PATIENCE, what: "the one with the most frames comes first",
  });
  assert.equal(await page.$eval("#sessions [data-column=frames][aria-sort]", (head) => head.getAttribute("aria-sort")), "descending");
  await page.type("#sessions input[type=search]", "IDLE-2");
  await says("#sessions", /1 of 4 sessions/);
  // The rows are drawn in the next frame.
  await until(async () => (await ids()).length === 1, { deadline: BROKER_PATIENCE, what: "the one that is found" });
  const [kicked] = await ids();
  await page.click(button("#sessions", `Kick ${kicked}`));
  await page.waitForSelector("dialog[open]");
  assert.deepEqual(await violations(page), []);
  await page.click(button("dialog[open]", "Kick"));
  await says("#toasts", /1 session kicked/);
  await says("#sessions", /No session fits/);
  assert.equal(await server.metric('closes_total{reason="operator"}'), 1);
  await page.$eval("#sessions input[type=search]", (input) => {
    /** @type {HTMLInputElement} */ (input).value = "";
    input.dispatchEvent(new Event("input"));
  });
  await until(async () => (await ids()).length === 3 && !(await ids()).includes(kicked), { deadline: BROKER_PATIENCE, what: "all but the kicked one" });

  // What a key is pressed on stays what it was pressed on, while the table is listed anew.
  await page.focus(button("#sessions", `Kick ${own}`));
  await joinCrowd(server, 2, (at) => subscribe("fax.status.*", `late ${at}`));
  await until(async () => (await ids()).length === 5, { deadline: BROKER_PATIENCE, what: "the new ones are in the table" });
  assert.equal(await page.evaluate(() => document.activeElement?.getAttribute("aria-label")), `Kick ${own}`);

  await page.click(button("#sessions", `Trace ${own}`));
  await says("#trace .pill", /^Looking$/);
  await says("#trace .window", /looking.*the session is here, 1 binding, source up/);
  await says("#trace .window", /matched.*→ call\.\*\.\*: 1 queued/);
  assert.match(page.url(), /#trace\?session=/);
  assert.equal(await server.metric("trace_looks"), 1);
  await look(page, "trace", async () => {
    await page.click(button("#trace", "Start"));
    await says("#trace .window", /matched/);
  });
  // Its events come too fast for what is in sight.
  await page.type("#trace input[type=search]", "closed");
  first.destroy();
  await says("#trace .window", /closed.*(lost|peer)/);
  await page.click(button("#trace", "Stop"));
  await says("#trace .pill", /^Stopped$/);
  await server.until("the look is over", async () => (await server.metric("trace_looks")) === 0);
  const lines = await text("#trace .stream-foot");
  assert.match(lines, /^\d+ of \d+ lines/);
  assert.deepEqual(faults, []);
});

test("a trace says why an event did not arrive, and begins again after a crash", { skip: withoutBrowser() }, async () => {
  const server = await startServer({ args: ["--demo-rate", "20", "--ping-interval-ms", "600000"] });
  const browser = await startBrowser();
  const { page, faults, text, says } = await openView(browser, server, "trace?key=from.a.link");
  const field = (name) => page.$eval(`#trace input[name=${name}]`, (input) => /** @type {HTMLInputElement} */ (input).value);
  assert.equal(await field("key"), "from.a.link");
  await says("#trace .pill", /^Not looking$/);
  await page.goto(`${server.adminUrl}#trace?event=CHANNEL_CREATE`);
  assert.deepEqual([await field("key"), await field("event")], ["", "CHANNEL_CREATE"]);
  await page.click(button("#trace", "Start"));
  await says("#trace .wrong", /a session, an account or a key/);
  assert.equal(await server.metric("trace_looks_total"), 0, "no address begins a look");
  await page.type("#trace input[name=account]", "no account");
  await page.keyboard.press("Enter");
  await says("#trace .wrong", /account/);
  await says("#trace .pill", /^Refused$/);
  await page.$eval("#trace input[name=account]", (input) => (/** @type {HTMLInputElement} */ (input).value = ""));
  await page.type("#trace input[name=key]", "call.CHANNEL_CREATE.*");
  await page.keyboard.press("Enter");
  await says("#trace .pill", /^Looking$/);
  await says("#trace .window", /not matched.*nobody bound the key/);

  await page.click(button("#trace", "Pause"));
  const paused = await text("#trace .window");
  await page.focus("#trace .window");
  await page.keyboard.press("Home");
  await says("#trace .detail", /Nobody asked for it/);
  await says("#trace .detail pre", /"why": "nobody bound the key"/);
  assert.equal(await page.$$eval("#trace [role=option][aria-selected=true]", (rows) => rows.length), 1);
  assert.deepEqual(await violations(page), []);
  await says("#trace .stream-foot", /paused, newer ones wait/);
  assert.equal(await text("#trace .window"), paused);
  await page.keyboard.press("Escape");
  assert.equal(await page.$eval("#trace .detail", (detail) => /** @type {HTMLElement} */ (detail).hidden), true);
  await page.click(button("#trace", "Pause"));
  // A refusal is a fault of the user's, which the browser notes.
  assert.deepEqual(faults.filter((fault) => !fault.includes("400 (Bad Request)")), []);

  await server.kill();
  await says("#trace .pill", /^Lost; looking again soon$|^Connecting$/);
  await server.start();
  await says("#trace .pill", /^Looking$/);
  await says("#trace .window", /not matched.*lost/);
});

test("10,000 sessions are looked through without a stutter", { skip: withoutBrowser() }, async (t) => {
  const count = 10_000;
  const server = await startServer({ args: ["--ping-interval-ms", "600000"] });
  await joinCrowd(server, count, (at) => subscribe("fax.status.*", `client ${at}`));
  const browser = await startBrowser();
  const { page, faults, says } = await openView(browser, server, "sessions");
  await says("#sessions", /10,000 sessions/);
  // So that what is measured is the list, and not a listing.
  await page.click(button("#sessions", "Pause"));
  const measured = await meter(page);
  const before = await measured();
  const jumps = 200;
  const seen = await page.$eval("#sessions .window", async (viewport, jumps) => {
    let drawn = 0;
    const ids = new Set();
    const frame = () => new Promise((next) => requestAnimationFrame(next));
    for (let at = 0; at <= jumps; at += 1) {
      viewport.scrollTop = (viewport.scrollHeight * at) / jumps;
      await frame();
      await frame();
      const rows = viewport.querySelectorAll("[role=row]");
      drawn = Math.max(drawn, rows.length);
      const { top, height } = viewport.getBoundingClientRect();
      const inSight = document.elementFromPoint(400, top + height / 2)?.closest("[role=row]");
      if (inSight) ids.add(inSight.querySelector("[data-column=id]")?.textContent);
    }
    const last = Number([...viewport.querySelectorAll("[role=row]")].at(-1)?.getAttribute("aria-rowindex"));
    return { drawn, ids: ids.size, last };
  }, jumps);
  const after = await measured();
  assert.ok(seen.drawn < 60, `${seen.drawn} rows in the document`);
  assert.equal(seen.ids, jumps + 1, "each jump shows other rows, and no blank");
  assert.equal(seen.last, count + 1, "the last row is there, behind the head");
  /** Milliseconds of one of `times` doings. */
  const cost = (name, [from, to], times) => (1000 * (to[name] - from[name])) / times;
  const [script, style, layout] = ["ScriptDuration", "RecalcStyleDuration", "LayoutDuration"].map((name) => cost(name, [before, after], jumps));
  t.diagnostic(`a jump: ${script.toFixed(2)} ms of script, ${style.toFixed(2)} of style, ${layout.toFixed(2)} of layout`);
  // Less than a frame at 60 a second, though all rows change.
  assert.ok(script + style + layout < 12, `${script} ${style} ${layout}`);

  const columns = ["name", "frames", "id", "bindings"];
  await page.evaluate(async (columns) => {
    for (const column of columns) {
      /** @type {HTMLElement} */ (document.querySelector(`#sessions [data-column=${column}] button`)).click();
      await new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next)));
    }
  }, columns);
  const sorted = cost("TaskDuration", [after, await measured()], columns.length);
  t.diagnostic(`sorting: ${sorted.toFixed(1)} ms`);
  assert.ok(sorted < 100, `${sorted}`);
  assert.deepEqual(faults, []);
});

test("a hundred events a second are traced without a stutter", { skip: withoutBrowser() }, async (t) => {
  const server = await startServer({ args: ["--demo-rate", "100", "--ping-interval-ms", "600000"] });
  const [client] = await joinCrowd(server, 1, () => subscribe());
  const browser = await startBrowser();
  const { page, faults, text, says } = await openView(browser, server, "trace");
  await page.type("#trace input[name=session]", `${client.localAddress}:${client.localPort}`);
  await page.keyboard.press("Enter");
  await says("#trace .window", /matched/);
  const lines = async () => Number(/ of ([\d,]+) lines/.exec(await text("#trace .stream-foot"))?.[1].replace(",", ""));
  const measured = await meter(page);
  const [before, first] = [await measured(), await lines()];
  // Of each event there is a line of where it went, and one of the bytes that were written.
  await until(async () => (await lines()) >= first + 1000, { deadline: BROKER_PATIENCE, what: "1,000 more lines" });
  const [after, last] = [await measured(), await lines()];
  const cost = (1000 * (after.TaskDuration - before.TaskDuration)) / (last - first);
  t.diagnostic(`a line: ${cost.toFixed(2)} ms`);
  // Half of the page's time.
  assert.ok(cost * 200 < 500, `${cost}`);
  const drawn = await page.evaluate(() => document.querySelectorAll("#trace [role=option]").length);
  assert.ok(drawn < 60, `${drawn} rows in the document`);
  assert.deepEqual(faults, []);
});
