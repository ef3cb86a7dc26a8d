/**
 * A real browser: Debian's Chromium, headless, with a profile of its own. It ends with its test.
 *
 * A page keeps what went wrong in it (errors, refusals of its Content-Security-Policy) and every address that it asked for.
 */

import { mkdirSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

import puppeteer from "puppeteer-core";

import { endWithTest, guard } from "./endings.mjs";
import { without } from "./left_out.mjs";
import { ARTEFACTS, ownFolder } from "./project.mjs";
import { BROKER_PATIENCE, PATIENCE } from "./until.mjs";

const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** For the option `skip` of a test that needs a browser. */
export const withoutBrowser = () => without(CHROMIUM);

/** What the console is looked at with: by the name of the screenshot. */
export const SCREENS = {
  phone: { width: 390, height: 844, dark: false, touch: true },
  wide: { width: 1600, height: 1000, dark: false, touch: false },
  dark: { width: 1280, height: 900, dark: true, touch: false },
};

/**
 * Starts a browser.
 *
 * @param {object} [options]
 * @param {Record<string, string>} [options.instead] addresses, `IP:PORT`, and those that the browser is to go to instead
 * @param {string[]} [options.trusted] pins of certificates that it is to trust, whoever has signed them
 */
export async function startBrowser({ instead = {}, trusted = [] } = {}) {
  const profile = ownFolder("browser");
  const removed = guard("folder", profile);
  const rules = Object.entries(instead).map(([from, to]) => `MAP ${from} ${to}`);
  const browser = await puppeteer.launch({
    executablePath: CHROMIUM,
    userDataDir: profile,
    timeout: BROKER_PATIENCE,
    protocolTimeout: BROKER_PATIENCE,
    // The sandbox is not for root, nor for every container; all pages are our own.
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", `--host-resolver-rules=${rules.join(",")}`, `--ignore-certificate-errors-spki-list=${trusted.join(",")}`],
  });
  const ended = guard("process", browser.process()?.pid ?? 0);
  endWithTest(async () => {
    await browser.close();
    ended();
    rmSync(profile, { recursive: true, force: true });
    removed();
  });
  return browser;
}

/**
 * A new tab.
 *
 * @param {import("puppeteer-core").Browser} browser
 * @param {{ width: number, height: number, dark: boolean, touch: boolean }} [screen]
 */
export async function openPage(browser, screen = SCREENS.wide) {
  const page = await browser.newPage();
  page.setDefaultTimeout(PATIENCE);
  await page.setViewport({ width: screen.width, height: screen.height, isMobile: screen.touch, hasTouch: screen.touch });
  await show(page, screen);
  /** @type {string[]} */
  const faults = [];
  /** @type {Set<string>} */
  const asked = new Set();
  page.on("pageerror", (error) => faults.push(`error: ${error}`));
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warn") faults.push(`${message.type()}: ${message.text()}`);
  });
  page.on("request", (request) => asked.add(new URL(request.url()).origin));
  return { page, faults, asked };
}

/**
 * Gives a tab another screen; whether it is touched stays, because the browser loads the page again for that.
 *
 * @param {import("puppeteer-core").Page} page
 * @param {{ width: number, height: number, dark: boolean, touch?: boolean }} screen
 */
export async function show(page, { width, height, dark }) {
  await page.setViewport({ ...page.viewport(), width, height });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }]);
}

/** Leaves a picture of what the tab shows, as `target/web/screenshots/NAME.png`. */
export async function screenshot(/** @type {import("puppeteer-core").Page} */ page, name) {
  const folder = join(ARTEFACTS, "screenshots");
  mkdirSync(folder, { recursive: true });
  await page.screenshot({ path: /** @type {`${string}.png`} */ (join(folder, `${name}.png`)) });
}

/**
 * What axe-core finds against this page as it stands, in lines; by all of its rules, the best practices among them.
 *
 * @param {import("puppeteer-core").Page} page
 * @returns {Promise<string[]>}
 */
export async function violations(page) {
  // By the debugger, which no Content-Security-Policy binds.
  await page.evaluate(AXE);
  const found = await page.evaluate(async () => {
    const { violations } = await /** @type {any} */ (globalThis).axe.run(document, { resultTypes: ["violations"] });
    return violations.map(({ id, help, nodes }) => ({ id, help, nodes: nodes.map(({ html, failureSummary }) => [html, failureSummary]) }));
  });
  return found.flatMap(({ id, help, nodes }) => nodes.map(([html, summary]) => `${id}: ${help}: ${html.slice(0, 200)}: ${summary}`));
}

/** What a tab has with this role and name, as those see it who do not see the screen. */
export function byRole(/** @type {import("puppeteer-core").Page} */ page, role, name) {
  return page.locator(`::-p-aria([name=${JSON.stringify(name)}][role="${role}"])`);
}

/**
 * The processor time of the tab's main thread, in milliseconds, while `work` is done.
 *
 * @param {import("puppeteer-core").Page} page
 * @param {() => Promise<unknown>} work
 */
export async function mainThreadTime(page, work) {
  const debug = await page.createCDPSession();
  await debug.send("Performance.enable", { timeDomain: "threadTicks" });
  const used = async () => {
    const { metrics } = await debug.send("Performance.getMetrics");
    return 1000 * (metrics.find(({ name }) => name === "TaskDuration")?.value ?? NaN);
  };
  const before = await used();
  await work();
  const after = await used();
  await debug.detach();
  return after - before;
}
