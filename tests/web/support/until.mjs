/**
 * Waiting for conditions. Every wait has a deadline and says what it waited for; there is no other kind of wait in the tests.
 */

import { setTimeout as pause } from "node:timers/promises";

/** Longest wait for anything that is to happen without a broker or a browser, in milliseconds. */
export const PATIENCE = 20_000;

/** Longest wait for what needs a broker or a browser to start, to be missed or to be found again, in milliseconds. */
export const BROKER_PATIENCE = 90_000;

/** Between two looks, in milliseconds. */
const GLANCE = 10;

/**
 * Looks again and again until `condition` gives something true, which is returned. A condition that throws is not yet met.
 * Rejects at the deadline, with `what` (a text, or what gives one), what was seen last, and the last error as its cause.
 *
 * @template T
 * @param {() => T | Promise<T>} condition
 * @param {{ deadline?: number, what?: string | (() => string) }} [options] `deadline` in milliseconds from now
 * @returns {Promise<T>}
 */
export async function until(condition, { deadline = PATIENCE, what = String(condition) } = {}) {
  const end = performance.now() + deadline;
  for (;;) {
    let seen, cause;
    try {
      // What is asked may never answer, and may hold no process: one ends when nothing is left that does.
      seen = await within(Promise.resolve(condition()), "an answer", Math.max(end - performance.now(), GLANCE));
      if (seen) return seen;
    } catch (error) {
      cause = error;
    }
    if (performance.now() >= end) {
      const said = typeof what === "string" ? what : what();
      throw new Error(`not within ${deadline} ms: ${said}\nlast seen: ${cause ?? JSON.stringify(seen)}`, { cause });
    }
    await pause(GLANCE);
  }
}

/**
 * What the promise gives, if it does so by the deadline. Until then the process goes on, whatever else holds it.
 *
 * @template T
 * @param {PromiseLike<T>} promise
 * @param {string} what
 * @param {number} [deadline] in milliseconds from now
 * @returns {Promise<T>}
 */
export function within(promise, what, deadline = PATIENCE) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${deadline} ms: ${what}`)), deadline);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
