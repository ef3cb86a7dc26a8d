/**
 * A client of `scripts/client/blackhole.mjs` that keeps what it was told, and is closed with its test.
 */

import { connect } from "../../../scripts/client/blackhole.mjs";
import { endWithTest } from "../support/endings.mjs";
import { PATIENCE, until } from "../support/until.mjs";
import { ACCOUNT } from "../support/publisher.mjs";

/** What is kept, by the names of `Client.on`. */
const KINDS = /** @type {const} */ (["state", "event", "gap", "resumed", "ended", "notice", "reply", "error"]);

/**
 * Connects with the account of the fixtures, and quickly again.
 *
 * @param {string | string[]} url
 * @param {Partial<import("../../../scripts/client/blackhole.mjs").ConnectOptions>} [options]
 */
export function follow(url, options = {}) {
  const client = connect(url, { token: "any", account: ACCOUNT, pauseMs: 50, pauseMaxMs: 200, ...options });
  /** @type {Record<typeof KINDS[number], any[]>} */
  const told = { state: [], event: [], gap: [], resumed: [], ended: [], notice: [], reply: [], error: [] };
  for (const kind of KINDS) client.on(kind, (/** @type {any[]} */ ...[value]) => told[kind].push(value));
  endWithTest(() => client.close());
  return {
    client,
    told,
    /** The names of the states so far. */
    states: () => told.state.map(({ name }) => name),
    /** Waits for a state. */
    becomes: (name, deadline = PATIENCE) => {
      return until(() => client.state.name === name, { deadline, what: () => `${name}; told: ${JSON.stringify(told.state)}` });
    },
  };
}

/** What a rejected promise was rejected with. */
export async function rejection(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("it was not rejected");
}
