/**
 * The end of what a test has started: with its test, and however the process of its test file ends.
 *
 * For the second there is a guard, a process of its own that reads from a pipe what runs. When the pipe ends, it ends the rest.
 */

import { spawn } from "node:child_process";
import { after } from "node:test";

import { projectFile } from "./project.mjs";

const GUARD = `
  declare -A left
  while read -r kind name; do
    if [ "$kind" = ended ]; then unset "left[$name]"; else left[$name]=$kind; fi
  done
  for name in "\${!left[@]}"; do
    case \${left[$name]} in
    process) kill -9 "$name" ;;
    broker) for command in kill9 stop; do "$0" --dir "$name" "$command"; done ;;
    esac
  done
  for name in "\${!left[@]}"; do
    # Somebody may be writing there with his last breath.
    for try in {1..50}; do
      if [[ \${left[$name]} != process ]] && { ! rm -rf "$name" || [ -e "$name" ]; }; then sleep .1; else break; fi
    done
  done`;

/** @type {import("node:stream").Writable | undefined} */
let pipe;

function tellGuard(line) {
  if (!pipe) {
    // In a session of its own: Ctrl-C on a terminal is for the tests, and is what the guard is there for.
    const guard = spawn("bash", ["-c", GUARD, projectFile("scripts/broker")], { detached: true, stdio: ["pipe", "ignore", "ignore"] });
    guard.unref();
    /** @type {import("node:net").Socket} */ (guard.stdin).unref();
    pipe = guard.stdin;
  }
  pipe.write(`${line}\n`);
}

/**
 * Lets the guard end this when the process does. What comes back is to be called when it has ended before.
 *
 * @param {"process" | "broker" | "folder"} kind
 * @param {string | number} name a process id or a folder
 */
export function guard(kind, name) {
  tellGuard(`${kind} ${name}`);
  return () => tellGuard(`ended ${name}`);
}

/**
 * Ends something with the test that runs, or with the file when none does. `end` must bear that the test has ended it
 * before, or that what it hangs on has.
 *
 * @param {() => unknown} end
 */
export function endWithTest(end) {
  after(async () => void (await end()));
}
