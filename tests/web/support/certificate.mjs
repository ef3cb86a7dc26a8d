/**
 * A certificate of one's own for servers with TLS, made with `openssl`. Its files go with the run.
 */

import { spawnSync } from "node:child_process";
import { createHash, X509Certificate } from "node:crypto";
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";

import { endWithTest, guard } from "./endings.mjs";
import { ownFolder } from "./project.mjs";

/**
 * A certificate for `localhost` and this address, signed by itself: whoever is to trust it trusts the file `cert`.
 *
 * @param {string} ip
 */
export function makeCertificate(ip) {
  const folder = ownFolder("certificate");
  const removed = guard("folder", folder);
  endWithTest(async () => {
    rmSync(folder, { recursive: true, force: true });
    removed();
  });
  const [cert, key] = ["cert.pem", "key.pem"].map((name) => join(folder, name));
  const kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "9", "-subj", "/CN=localhost"];
  const names = ["-addext", `subjectAltName=DNS:localhost,IP:${ip}`];
  const made = spawnSync("openssl", ["req", "-x509", ...kind, ...names, "-keyout", key, "-out", cert], { encoding: "utf8" });
  if (made.status !== 0) throw new Error(`openssl: ${made.error ?? made.stderr}`);
  const spki = new X509Certificate(readFileSync(cert)).publicKey.export({ type: "spki", format: "der" });
  /** As Chromium wants to be told of a key that it is to trust. */
  const pin = createHash("sha256").update(spki).digest("base64");
  return { cert, key, pin };
}
