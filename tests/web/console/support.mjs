/**
 * Loads scripts of the console as the page does: all files are one module, in which a name at the top of one file is a name in
 * all.
 */

import { readProjectFile } from "../support/project.mjs";

/**
 * The things called `names` at the top of these files of `src/console/js`. What runs may use only what the files have.
 *
 * @param {string[]} files
 * @param {string[]} names
 * @returns {Promise<any>}
 */
export async function consoleModule(files, names) {
  const texts = files.map((file) => readProjectFile(`src/console/js/${file}`).replace(/^export /gm, ""));
  const module = `${texts.join("")}\nexport { ${names.join(", ")} };\n`;
  return import(`data:text/javascript;base64,${Buffer.from(module).toString("base64")}`);
}
