// Loads scripts of the console as the page does: all files are one module, in which a name at the top of one file is a
// name in all.

import { readFileSync } from "node:fs";

const SCRIPTS = new URL("../../../src/console/js/", import.meta.url);

/** The things called `names` at the top of these files, of which each uses only those that are given. */
export async function consoleModule(files, names) {
  const texts = files.map((file) => readFileSync(new URL(file, SCRIPTS), "utf8"));
  const module = `${texts.join("")}\nexport { ${names.join(", ")} };\n`;
  return import(`data:text/javascript;base64,${Buffer.from(module).toString("base64")}`);
}
