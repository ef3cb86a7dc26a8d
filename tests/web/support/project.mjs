/**
 * Where things are. Owns no more than names of files: of the checkout, of what was built, and of what a run leaves behind.
 */

import { mkdirSync, mkdtempSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

/** The checkout. */
export const ROOT = fileURLToPath(new URL("../../../", import.meta.url));

/** A file of the checkout, by its name from there. */
export const projectFile = (name) => join(ROOT, name);

/** What a file of the checkout says. */
export const readProjectFile = (name) => readFileSync(projectFile(name), "utf8");

/** The server under test: `BLACKHOLE_BINARY`, so that a test can be shown to fail with another build, else the debug build. */
export const BINARY = process.env.BLACKHOLE_BINARY ?? projectFile("target/debug/blackhole");

/** Under `target`: what a run leaves behind, such as screenshots. */
export const ARTEFACTS = projectFile("target/web");

/** A new folder under `target` for what a test writes. Its maker removes it. */
export function ownFolder(name) {
  mkdirSync(ARTEFACTS, { recursive: true });
  return mkdtempSync(join(ARTEFACTS, `${name}.`));
}
