/**
 * Tests that leave themselves out where what they need is not installed. `scripts/test` installs all of it and sets
 * BLACKHOLE_LEAVE_NOTHING_OUT: then nothing may be left out.
 */

import { accessSync, constants } from "node:fs";

/**
 * For the option `skip` of a test: why it is left out when one of these programs is missing, else false. Throws where nothing
 * may be left out.
 *
 * @param {string[]} programs by their paths
 * @returns {string | false}
 */
export function without(...programs) {
  const missing = programs.filter((program) => {
    try {
      accessSync(program, constants.X_OK);
      return false;
    } catch {
      return true;
    }
  });
  if (missing.length === 0) return false;
  const why = `missing: ${missing.join(", ")}; scripts/setup installs it`;
  if (process.env.BLACKHOLE_LEAVE_NOTHING_OUT) throw new Error(why);
  return why;
}
