/**
 * A server that does what a test says, for sequences that no real one can be made to do at will: a WebSocket of which the test
 * is the other end. Time passes for the client when the test says so, and each frame is taken before the next line runs.
 */

import assert from "node:assert/strict";

import { until } from "../support/until.mjs";
import { follow } from "./follower.mjs";

/** What is subscribed to, if nothing else is said. */
export const BINDING = "call.*.*";

/**
 * Whose command, or event, it is; undefined: that of no account, and of any binding.
 *
 * @typedef {{ account?: string | undefined, binding?: string | undefined }} Of
 */

/** When it all begins, in Unix milliseconds. */
const BEGIN = Date.UTC(2024, 0, 1);

/** The number of the event of which this is the cursor; 0: the place is that of a reply. */
export const numberOf = (cursor) => Number.parseInt(cursor, 16);

/** One connection of a client, each to a process of its own. */
export class Connection {
  readyState = 0;
  onopen = onNothing();
  onmessage = onNothing();
  onerror = onNothing();
  onclose = onNothing();
  /** Without one, no frame has a cursor. */
  hasHistory = true;
  /** Commands without an answer. */
  #commands = /** @type {any[]} */ ([]);
  /** Bindings in force, of all accounts. */
  #bindings = /** @type {string[]} */ ([]);
  #mark;

  constructor(/** @type {number} */ number) {
    this.#mark = "abcdef"[number].repeat(6);
  }

  // ---- The end of the client ----

  send(/** @type {string} */ text) {
    this.#commands.push(JSON.parse(text));
  }

  close() {
    if (this.readyState === 3) return;
    this.readyState = 3;
    queueMicrotask(() => this.onclose?.({ code: 1000 }));
  }

  // ---- The end of the test ----

  /** Whether the client still reads it. */
  get isRead() {
    return this.readyState === 1 && this.onmessage !== null;
  }

  open() {
    this.readyState = 1;
    this.onopen?.({});
  }

  lose(code = 1006) {
    this.readyState = 3;
    this.onclose?.({ code });
  }

  /** The first command of this kind that has no answer yet. */
  find(action, /** @type {Of} */ { account, binding } = {}) {
    return this.#commands.find((command) => {
      const { account_id: of, bindings = [] } = command.data ?? {};
      return command.action === action && of === account && (binding === undefined || bindings.includes(binding));
    });
  }

  /**
   * Confirms a subscribe. `at`: the place of the session, in milliseconds from the beginning. `resumed`: what was missed comes.
   * `why`: it does not, for this reason.
   *
   * @param {Of & { at?: number, resumed?: boolean, why?: string | undefined }} [options]
   */
  confirm({ at = 0, account, binding, resumed, why } = {}) {
    const command = this.#take("subscribe", { account, binding });
    this.#bindings.push(...command.data.bindings);
    const data = { subscribed: this.#bindings, cursor: this.#cursor(0, at), resumed: why === undefined ? resumed : false };
    this.#frame({ action: "reply", request_id: command.request_id, status: "success", data });
    if (why !== undefined) this.notice("gap", { reason: "resume", why });
  }

  /** Refuses a subscribe. */
  refuse(error, /** @type {Of} */ of = {}) {
    const { request_id } = this.#take("subscribe", of);
    this.#frame({ action: "reply", request_id, status: "error", data: { errors: [error] } });
  }

  /** Answers a ping. */
  pong() {
    this.#frame({ action: "reply", request_id: this.#take("ping").request_id, status: "success", data: { response: "pong" } });
  }

  /** Confirms an unsubscribe without an account: of the bindings of all accounts. */
  release() {
    const { request_id, data } = this.#take("unsubscribe");
    this.#bindings = this.#bindings.filter((one) => !data.bindings.includes(one));
    this.#frame({ action: "reply", request_id, status: "success", data: { unsubscribed: data.bindings } });
  }

  notice(name, data = {}) {
    this.#frame({ action: "notice", name, data });
  }

  goAway() {
    this.notice("going_away", { within_ms: 1 });
  }

  /**
   * Brings the events of these numbers, each published so many milliseconds after the beginning.
   *
   * @param {number[]} numbers
   * @param {Of & { replayed?: boolean }} [options]
   */
  events(numbers, { account, binding = BINDING, replayed } = {}) {
    for (const number of numbers) {
      this.#frame({
        action: "event",
        name: "SCRIPTED",
        routing_key: "call.SCRIPTED.1",
        subscribed_key: binding,
        subscription_key: binding,
        request_id: account === undefined ? "1" : `1@${account}`,
        cursor: this.#cursor(number, number),
        replayed,
        args: { number },
      });
    }
  }

  /** ID.TIME.MARK (PROTOCOL 10). */
  #cursor(number, ms) {
    return this.hasHistory ? `${number.toString(16).padStart(16, "0")}.${(BEGIN + ms).toString(36)}.${this.#mark}` : undefined;
  }

  #take(action, /** @type {Of} */ of = {}) {
    const command = this.find(action, of);
    assert.ok(command, `no ${action} of ${JSON.stringify(of)} waits for an answer`);
    this.#commands.splice(this.#commands.indexOf(command), 1);
    return command;
  }

  #frame(frame) {
    this.onmessage?.({ data: JSON.stringify(frame) });
  }
}

/** A listener to be. */
function onNothing() {
  return /** @type {((event: any) => void) | null} */ (null);
}

/**
 * A client of a server that does what the test says.
 *
 * @param {import("node:test").TestContext} context
 * @param {Partial<import("../../../scripts/client/blackhole.mjs").ConnectOptions>} [options]
 */
export function script(context, options = {}) {
  context.mock.timers.enable({ apis: ["setTimeout", "Date"], now: BEGIN });
  const pass = (/** @type {number} */ ms) => context.mock.timers.tick(ms);
  /** @type {Connection[]} */
  const connections = [];
  class WebSocket extends Connection {
    constructor() {
      super(connections.length);
      connections.push(this);
    }
  }
  const followed = follow("ws://scripted/", { account: undefined, WebSocket, pauseMs: 1, pauseMaxMs: 1, ...options });
  return {
    ...followed,
    /** Lets time pass, in milliseconds. */
    pass,
    connections,
    /** Waits until the client makes its connection of this number, and opens it. */
    opened: async (/** @type {number} */ number) => {
      // A new try comes a millisecond after the one before.
      const what = () => `connection ${number} of ${connections.length}`;
      await until(() => connections.length > number || void pass(1), { what });
      connections[number].open();
      return connections[number];
    },
    /**
     * Subscribes. Gives the numbers that come, and what waits for the confirmation.
     *
     * @param {Of & { resume?: string }} [options]
     */
    listen: ({ binding = BINDING, ...more } = {}) => {
      /** @type {number[]} */
      const came = [];
      const onEvent = (/** @type {any} */ { args }) => void came.push(args.number);
      return { came, confirmed: followed.client.subscribe(binding, { ...more, onEvent }) };
    },
  };
}
