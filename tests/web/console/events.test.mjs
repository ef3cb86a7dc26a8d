// The console's view of events in a real browser, on a real server: from the first look to events, what is told of losses and
// refusals, and that neither a crowd of events nor hostile ones do harm.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createWriteStream, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { SCREENS, openPage, screenshot, show, startBrowser, violations, withoutBrowser } from "../support/browser.mjs";
import { endWithTest } from "../support/endings.mjs";
import { ownFolder } from "../support/project.mjs";
import { startServer } from "../support/server.mjs";
import { BROKER_PATIENCE, until } from "../support/until.mjs";

const ACCOUNT = "00000000000000000000000000000001";

/** A folder for this test. */
function folderOfTest() {
  const folder = ownFolder("console");
  endWithTest(async () => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** A server whose events are those that the test writes, one JSON object a line. */
async function startPlayed(args = []) {
  const pipe = join(folderOfTest(), "events");
  execFileSync("mkfifo", [pipe]);
  const server = await startServer({ args: ["--source", `replay:${pipe}`, ...args] });
  const play = createWriteStream(pipe, { flags: "r+" });
  endWithTest(async () => void play.destroy());
  /** Publishes call events with these bodies. */
  const publish = (...bodies) => {
    const lines = bodies.map((body) => {
      const whole = { "Event-Name": "CHANNEL_CREATE", "Account-ID": ACCOUNT, ...body };
      return JSON.stringify({ exchange: "callevt", routing_key: `call.${whole["Event-Name"]}.${whole["Call-ID"] ?? "a"}`, body: whole });
    });
    play.write(`${lines.join("\n")}\n`);
  };
  return { server, publish };
}

/** Opens the console. */
async function openConsole(browser, server, fragment = "", screen = SCREENS.wide) {
  const { page, faults, asked } = await openPage(browser, screen);
  await page.goto(`${server.adminUrl}${fragment}`);
  const text = (selector) => page.$eval(selector, (element) => element.textContent ?? "");
  const says = (selector, pattern, deadline = BROKER_PATIENCE) =>
    until(async () => pattern.test(await text(selector)), { deadline, what: `${selector} says ${pattern}` }).catch(async (error) => {
      throw new Error(`${error.message}\nit says: ${await text(selector).catch(() => "nothing")}\nfaults: ${faults}`);
    });
  const press = (name, part = "") => page.click(`${part} ::-p-aria([name="${name}"][role="button"])`);
  // At one moment: `$$eval` finds the rows first and reads them later, when they may have been used for others.
  const rows = () =>
    page.evaluate(() => [...document.querySelectorAll("#event-list .event")].map((row) => [...row.children].map((cell) => cell.textContent ?? "")));
  /** Replaces what a field says. */
  const fill = async (selector, value) => {
    await page.click(selector, { count: 3 });
    await page.keyboard.press("Backspace");
    await page.type(selector, value);
  };
  return { page, faults, asked, text, says, press, rows, fill };
}

/** Leaves pictures on all screens, and has axe look at each. */
async function look(page, name) {
  for (const [screen, size] of Object.entries(SCREENS)) {
    await show(page, { ...size, touch: false });
    await page.evaluate(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
    await screenshot(page, `${name}-${screen}`);
    assert.deepEqual(await violations(page), [], `${name} on ${screen}`);
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.equal(overflow, 0, `${name} on ${screen} is wider than the screen`);
  }
  await show(page, SCREENS.wide);
}

test("one press shows events, which are read, filtered, paused, copied and saved", { skip: withoutBrowser() }, async () => {
  const server = await startServer({ args: ["--demo-rate", "20"] });
  const browser = await startBrowser();
  await browser.defaultBrowserContext().overridePermissions(new URL(server.adminUrl).origin, ["clipboard-read", "clipboard-write"]);
  const { page, faults, asked, text, says, press, rows, fill } = await openConsole(browser, server);
  await says("#server-word", /^Server ready$/);
  await says("#client-word", /^Not connected$/);
  await says("#events .empty", /as it happens.*Connect/);
  await says(".bound", /call\.\*\.\*not connected/);
  assert.equal(await page.$eval("input[name=address]", (input) => /** @type {HTMLInputElement} */ (input).value), `ws://${server.address}`);
  assert.equal(await page.$eval("input[name=account]", (input) => /** @type {HTMLInputElement} */ (input).value), ACCOUNT);
  await look(page, "events-first");

  await page.click("#events .empty button");
  await says("#client-word", /^Live$/);
  await until(async () => (await rows()).filter(([, kind]) => kind === "event").length > 8, { what: "events come" });
  await says(".bound .count", /^[\d,]+$/);
  await says(".stream-foot", /[1-9]\d*\.\d events\/s/);
  const [at, kind, name, about] = (await rows())[0];
  assert.match(at, /^\d\d:\d\d:\d\d\.\d{3}$/);
  assert.deepEqual([kind, /^CHANNEL_(CREATE|ANSWER|DESTROY)$/.test(name), / → /.test(about)], ["event", true, true], name + about);
  const times = (await rows()).map(([time]) => time);
  assert.deepEqual(times, [...times].sort().reverse(), "the newest is first");

  await press("Pause");
  await says("#events button[aria-pressed=true]", /^Go on \([\d,]+ new\)$/);
  const still = await rows();
  await says("#events button[aria-pressed=true]", /^Go on \(([2-9]|\d{2,}) new\)$/);
  assert.deepEqual(await rows(), still, "the list stands still");
  await press("Events");
  await fill("#events input[type=search]", "channel_destroy demo");
  await until(async () => (await rows()).every(([, , name]) => name === "CHANNEL_DESTROY") && (await rows()).length > 0, { what: "the filter" });
  await says(".stream-foot", /of [\d,]+ shown/);
  await fill("#events input[type=search]", "nothing-has-this");
  await says("#events .empty", /Nothing fits the filter/);
  await press("Show all");
  await until(async () => (await rows()).length === still.length, { what: "all are shown again" });

  // By keyboard: the first entry, its JSON, and back.
  await page.focus("#event-list");
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("ArrowDown");
  await page.waitForSelector(".detail:not([hidden])");
  const active = await page.$eval("#event-list", (list) => list.getAttribute("aria-activedescendant"));
  assert.equal(await page.$eval(`#${active}`, (row) => row.getAttribute("aria-selected")), "true");
  const shown = JSON.parse(await text(".detail pre"));
  assert.deepEqual([shown.action, shown.subscribed_key], ["event", "call.*.*"]);
  assert.equal(shown.name, still[1][2]);
  await says(".detail .facts", new RegExp(`Account${ACCOUNT}Cursor`));
  await look(page, "events-detail");
  await press("Copy", ".detail");
  await says("#toasts", /JSON copied/);
  await page.bringToFront();
  const copied = await until(() => page.evaluate(() => navigator.clipboard.readText()), { what: "a text on the clipboard" });
  assert.deepEqual(JSON.parse(copied), shown);
  await page.focus("#event-list");
  await page.keyboard.press("Escape");
  await page.waitForSelector(".detail[hidden]");

  const folder = folderOfTest();
  const debug = await page.createCDPSession();
  await debug.send("Browser.setDownloadBehavior", { behavior: "allow", downloadPath: folder });
  await press("Save", ".stream-tools");
  const file = await until(() => readdirSync(folder).find((name) => name.endsWith(".jsonl")) ?? "", { what: "a file" });
  const saved = readFileSync(join(folder, file), "utf8").trimEnd().split("\n").map((line) => JSON.parse(line));
  assert.ok(saved.some(({ action }) => action === "event") && saved.some(({ action }) => action === "reply"), file);

  const before = await text(".bound .count");
  await page.click("#events button[aria-pressed=true]");
  await until(async () => (await rows())[0][0] > still[0][0], { what: "the list goes on" });
  await until(async () => (await text(".bound .count")) !== before, { what: "the count goes on" });
  await press("Clear");
  await until(async () => !(await rows()).some(([time]) => time === still[0][0]), { what: "the old ones are gone" });

  // Views by keyboard, as tabs.
  await page.focus("#tab-events");
  await page.keyboard.press("ArrowRight");
  await page.waitForSelector("#server:not([hidden])");
  assert.match(page.url(), /#server$/);
  await page.keyboard.press("Home");
  await page.waitForSelector("#events:not([hidden])");
  await press("Disconnect");
  await says("#client-word", /^Not connected$/);
  await server.until("the session is gone", async () => (await server.metric("sessions")) === 0);
  assert.deepEqual(faults, []);
  assert.deepEqual([...asked], [new URL(server.adminUrl).origin], "it asks nobody else");
});

test("what the address fills in, bindings on offer, refusals and an end are told", { skip: withoutBrowser() }, async () => {
  const server = await startServer();
  const browser = await startBrowser();
  const other = "00000000000000000000000000000002";
  const { page, faults, says, press, fill } = await openConsole(browser, server, `#account=${other}&binding=call.CHANNEL_CREATE.*`);
  await says(".bound", /^call\.CHANNEL_CREATE\.\*not connected$/);
  assert.equal(await page.$eval("input[name=account]", (input) => /** @type {HTMLInputElement} */ (input).value), other);
  await says("#server-word", /^Server ready$/);
  assert.equal(await server.metric("sessions"), 0, "nothing connects by itself");
  await press("Connect", ".side");
  await says("#client-word", /^Live$/);
  await says(".bound", /live$/);
  await says("#events .waiting", /waiting for the first event.*Trace this account/);

  await fill("#events .side input:not([name])", "call.CHANNEL_CRATE.*");
  await press("Add");
  await says(".bound", /call\.CHANNEL_CRATE\.\*event CHANNEL_CRATE not supportedrefused/);
  await says("#event-list", /error.*event CHANNEL_CRATE not supported/);
  await press("Remove call.CHANNEL_CRATE.*");
  await page.click("#events .side summary:not(form summary)");
  await fill("#events .side input:not([name])", "conference command");
  await says(".offer", /^conference.*conference\.command\.\{CONFERENCE_ID\}/);
  await press("conference.command.{CONFERENCE_ID}");
  await says(".side .card:last-child > .body > .wrong", /Put the id in the place of \{CONFERENCE_ID\}/);
  await page.keyboard.type("room1");
  await page.keyboard.press("Enter");
  await says(".bound", /conference\.command\.room1live/);
  await look(page, "events-bindings");

  await server.page("modules/bh_conference?action=stop", { method: "POST" });
  await says(".bound", /conference\.command\.room1Ended: the server has switched this family off/);
  await says("#event-list", /subscriptions_ended/);
  assert.deepEqual(faults, []);
});

test("a server that dies is told of, and so is what was missed when it is back", { skip: withoutBrowser() }, async () => {
  const server = await startServer({ args: ["--demo-rate", "20"] });
  const browser = await startBrowser();
  const { page, says, press, rows } = await openConsole(browser, server);
  await says("#server-word", /^Server ready$/);
  await press("Connect", ".side");
  await until(async () => (await rows()).some(([, kind]) => kind === "event"), { what: "events come" });
  await server.kill();
  await says("#client-word", /^Reconnecting/);
  await says("#server-word", /^The server does not answer$/);
  await says("#event-list", /state.*Reconnecting/);
  await screenshot(page, "events-reconnecting");
  assert.deepEqual(await violations(page), []);
  await server.start();
  await says("#client-word", /^Live$/);
  await says("#server-word", /^Server ready$/);
  await says(".side .note", /Events were lost, or may have been while the connection was away: (the server does not know that time|that is longer ago than the server remembers)/);
  // Only what is seen is drawn, and the events that come push it out of sight.
  await press("Notices", ".stream-tools");
  await says("#event-list", /notice.*gap/);
  await screenshot(page, "events-gap");
  assert.deepEqual(await violations(page), []);
});

test("the admin token is asked for, tokens are refused in words, and none is anywhere but in memory", { skip: withoutBrowser() }, async () => {
  const folder = folderOfTest();
  const [adminToken, token] = ["very-secret-admin", "very-secret-client"];
  writeFileSync(join(folder, "admin"), adminToken);
  writeFileSync(join(folder, "tokens.json"), JSON.stringify({ [token]: { account_id: ACCOUNT } }));
  const server = await startServer({ args: ["--admin-token", join(folder, "admin"), "--auth", `tokens:${join(folder, "tokens.json")}`] });
  const browser = await startBrowser();
  const { page, says, press, rows, fill } = await openConsole(browser, server);
  await page.waitForSelector("dialog[open]");
  await screenshot(page, "admin-token");
  assert.deepEqual(await violations(page), []);
  await page.type("#token-input", "wrong");
  await page.keyboard.press("Enter");
  await says("#token-wrong", /not this server's admin token/);
  await page.type("#token-input", adminToken);
  await page.keyboard.press("Enter");
  await says("#server-word", /^Server ready$/);
  await says("#token-hint", /tokens file/);

  await page.type("input[name=token]", "unknown-token");
  await press("Connect", ".side");
  await says("#client-word", /^Refused$/);
  await says(".side .wrong", /refused.*failed to authenticate token/);
  assert.deepEqual(await violations(page), []);
  await fill("input[name=account]", " ");
  await page.keyboard.press("Backspace");
  await fill("input[name=token]", token);
  await press("Connect", ".side");
  await says("#client-word", /^Live$/);
  await until(async () => (await rows()).some(([, kind]) => kind === "event"), { what: "events of the token's own account" });

  const kept = await page.evaluate(() => [
    location.href,
    document.documentElement.outerHTML,
    document.cookie,
    JSON.stringify({ ...localStorage }),
    JSON.stringify({ ...sessionStorage }),
    history.length > 0 ? JSON.stringify(history.state) : "",
  ]);
  for (const secret of [adminToken, token]) {
    assert.ok(!kept.join().includes(secret), "a token is in the page");
    assert.ok(!server.log.includes(secret), "a token is in the log");
  }
  await page.reload();
  await page.waitForSelector("dialog[open]");
  await says("#client-word", /^Not connected$/);
});

test("hostile events are text and nothing else, however large", { skip: withoutBrowser() }, async () => {
  const { server, publish } = await startPlayed();
  const browser = await startBrowser();
  const { page, faults, text, says, press, rows, fill } = await openConsole(browser, server, `#account=${ACCOUNT}`);
  await says("#server-word", /^Server ready$/);
  await press("Connect", ".side");
  await says(".bound", /live$/);
  const script = "<img src=x onerror=hole()><script>hole()</script>";
  publish({ "Caller-ID-Name": `${script}\u202Eevil\u2066`, "Callee-ID-Number": "</script><b id=hole>", "Call-ID": "hostile" });
  await until(async () => (await rows()).some(([, , , about]) => about.includes(script)), { what: "it is shown as text" });
  const about = (await rows())[0][3];
  assert.ok(!/[\u202a-\u202e\u2066-\u2069]/.test(about) && about.includes("\\u202eevil\\u2066"), about);
  await page.click(".event");
  const pre = await text(".detail pre");
  assert.ok(!/[\u202a-\u202e\u2066-\u2069]/.test(pre), "marks are seen");
  assert.equal(JSON.parse(pre).args["Caller-ID-Name"], `${script}\u202Eevil\u2066`, "and the JSON is what it was");
  assert.equal(await page.$("#hole, .event img, .detail img, .event script, .detail script"), null);
  await screenshot(page, "events-hostile");
  assert.deepEqual(await violations(page), []);

  const large = "x".repeat(1_000_000);
  publish({ "Call-ID": "large", "Caller-ID-Name": "large", Filler: large });
  await until(async () => (await rows())[0][3].startsWith("large"), { what: "the large one" });
  await page.click(".event");
  await says(".detail pre", /more characters; Copy and Save have them all/);
  assert.ok((await text(".detail pre")).length < 410_000);
  // Forty of them are more than is kept: the oldest go, and that is told. One after another, because the server closes a
  // session that does not read so much at once.
  for (let at = 0; at < 40; at += 1) {
    publish({ "Call-ID": `large-${at}`, "Caller-ID-Name": `large ${at}`, Filler: large });
    await until(async () => (await rows())[0][3].startsWith(`large ${at} `), { what: `large ${at}` });
  }
  await says(".stream-foot", /[1-9]\d* older ones let go/);
  // A word that no cursor can have in it: they are in the text as well, of digits and letters without a hyphen.
  await fill("#events input[type=search]", "large-39");
  await until(async () => (await rows()).length === 1, { what: "one fits" });
  assert.deepEqual(faults, []);
});

test("ten thousand entries and a hundred events a second leave the page most of its time", { skip: withoutBrowser() }, async () => {
  const { server, publish } = await startPlayed();
  const browser = await startBrowser();
  const { page, faults, says, press, rows } = await openConsole(browser, server, `#account=${ACCOUNT}`);
  await says("#server-word", /^Server ready$/);
  await press("Connect", ".side");
  await says(".bound", /live$/);
  let published = 0;
  const publishSome = (count) => {
    publish(...Array.from({ length: count }, () => ({ "Call-ID": `call-${(published += 1)}`, "Caller-ID-Name": `caller ${published}`, Filler: "y".repeat(700) })));
  };
  for (let at = 0; at < 110; at += 1) {
    publishSome(100);
    await until(async () => (await rows())[0]?.[3].startsWith(`caller ${published} `), { deadline: BROKER_PATIENCE, what: `event ${published}` });
  }
  await says(".stream-foot", /10,000 kept/);
  await says(".stream-foot", /1,00\d older ones let go/);

  const debug = await page.createCDPSession();
  await debug.send("Performance.enable", { timeDomain: "threadTicks" });
  const used = async () => {
    const { metrics } = await debug.send("Performance.getMetrics");
    return metrics.find(({ name }) => name === "TaskDuration")?.value ?? 0;
  };
  const [began, usedBefore, first] = [performance.now(), await used(), published];
  await until(
    () => {
      const due = Math.floor((performance.now() - began) / 10) - (published - first);
      if (due > 0) publishSome(due);
      return published - first >= 500;
    },
    { deadline: BROKER_PATIENCE, what: "five seconds of a hundred a second" },
  );
  await until(async () => (await rows())[0]?.[3].startsWith(`caller ${published} `), { deadline: BROKER_PATIENCE, what: "the last of them" });
  const seconds = (performance.now() - began) / 1000;
  const share = ((await used()) - usedBefore) / seconds;
  console.log(`${((share * 100).toFixed(1))} % of the page's thread at ${((published - first) / seconds).toFixed(0)} events/s with 10,000 entries`);
  assert.ok(share < 0.6, `${share}`);
  assert.ok((await page.$$(".event")).length < 100, "only what is seen is drawn");

  // What is being read stays in its place while others come.
  await page.$eval("#event-list", (list) => (list.scrollTop = 5000));
  const top = () =>
    page.$eval("#event-list", (list) => {
      const edge = list.getBoundingClientRect().top;
      const seen = [...list.querySelectorAll(".event")].find((row) => row.getBoundingClientRect().top >= edge);
      return seen?.children[3].textContent;
    });
  const reading = await until(top, { what: "an entry at the top" });
  publishSome(100);
  await says(".stream-foot", /1,[67]\d\d older ones let go/);
  // The list is drawn a frame later than its foot.
  await until(async () => (await top()) === reading, { what: `${reading} at the top still` });
  assert.deepEqual(faults, []);
});
