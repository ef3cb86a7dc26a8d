/**
 * The console as its user has it: in a browser, by the roles and names of what is there.
 */

import { byRole, openPage } from "../support/browser.mjs";
import { until } from "../support/until.mjs";

/** Opens the console of a server in a new tab; resolves when it has learned how the server stands. */
export async function openConsole(browser, server, { screen, query = "", ready = "Server ready" } = /** @type {any} */ ({})) {
  const console = new Console(await openPage(browser, screen), server);
  await console.page.goto(`${server.adminUrl}${query}`);
  if (ready) await console.until(ready, async () => (await console.serverState()) === ready);
  return console;
}

export class Console {
  constructor({ page, faults, asked }, server) {
    /** @type {import("puppeteer-core").Page} */
    this.page = page;
    /** @type {string[]} */
    this.faults = faults;
    /** @type {Set<string>} */
    this.asked = asked;
    this.server = server;
  }

  byRole(role, name) {
    return byRole(this.page, role, name);
  }

  press(name) {
    return this.byRole("button", name).click();
  }

  /** What an element says; "" while it is not there. */
  text(selector) {
    return this.page.evaluate((selector) => document.querySelector(selector)?.textContent ?? "", selector);
  }

  /** What all elements say that are there and seen. At one moment: between two, a list gives its elements to other rows. */
  texts(selector) {
    return this.page.evaluate((selector) => {
      const elements = [...document.querySelectorAll(selector)].filter((element) => element.checkVisibility());
      return elements.map(({ textContent }) => textContent ?? "");
    }, selector);
  }

  serverState() {
    return this.text("#server-word");
  }

  state() {
    return this.text("#client-word");
  }

  /** As `until`, with what the page shows in the error. */
  async until(what, condition, deadline = this.server.patience) {
    try {
      return await until(condition, { deadline, what });
    } catch (error) {
      const shown = await this.page.evaluate(() => document.body.innerText).catch(String);
      throw new Error(`${error.message}\nthe page shows:\n${shown}\nfaults: ${this.faults.join("\n")}`, { cause: error });
    }
  }

  /** Goes to one of the views by its tab. */
  async open(view) {
    await this.byRole("tab", view).click();
    await this.until(`the view ${view}`, () => this.page.$eval(`#${view.toLowerCase()}`, (panel) => panel.checkVisibility()));
  }

  /** Types into a field, in the place of what is there. */
  async type(selector, text) {
    await this.page.locator(selector).click({ count: 3 });
    await this.page.keyboard.press("Backspace");
    await this.page.keyboard.type(text);
  }

  /** Connects with this token; resolves when it is live. */
  async connect(token, account = "") {
    await this.type("#events input[name=token]", token);
    await this.type("#events input[name=account]", account);
    await this.press("Connect");
    await this.until("Live", async () => (await this.state()) === "Live");
  }

  /** Takes away all bindings that are wanted. */
  async unbind() {
    const remove = "#events ul.bound button";
    while (await this.page.$(remove)) await this.page.locator(remove).click();
  }

  /** Asks for a binding; resolves when the server has answered. */
  async bind(binding) {
    await this.type("#events input[aria-label^='A binding']", binding);
    await this.press("Add");
    await this.until(`an answer for ${binding}`, async () => /live|refused|\d/.test((await this.binding(binding)).count));
  }

  /** What the list of bindings says of one: its state or count, and why it was refused. */
  async binding(binding) {
    const items = await this.page.evaluate(() =>
      [...document.querySelectorAll("#events ul.bound > li")].map((item) =>
        ["code", ".count", ".wrong"].map((part) => item.querySelector(part)?.textContent ?? ""),
      ),
    );
    const [, count = "", why = ""] = items.find(([name]) => name === binding) ?? [];
    return { count, why };
  }

  /** The entries that the list of events draws, from the top: kind, name and what they are about. */
  entries() {
    return this.page.evaluate(() => {
      const at = (row) => Number(row.getAttribute("aria-posinset"));
      const rows = [...document.querySelectorAll("#event-list [role=option]")].sort((one, other) => at(one) - at(other));
      return rows.map((row) => [".tag", ".name", ".about"].map((part) => row.querySelector(part)?.textContent ?? "").join(" | "));
    });
  }
}
