/**
 * The real `blackhole` process. It ends with its test; what it said is in every error.
 *
 * A server has an IP address of its own among those of the loopback interface, so that its ports stay its own when it is
 * killed and started again: nobody else asks for them there.
 */

import { spawn } from "node:child_process";
import { on, once } from "node:events";
import { createInterface } from "node:readline";

import { makeCertificate } from "./certificate.mjs";
import { endWithTest, guard } from "./endings.mjs";
import { BINARY } from "./project.mjs";
import { BROKER_PATIENCE, PATIENCE, until, within } from "./until.mjs";

let servers = 0;

/** The next address of this process's own, 127.X.Y.Z. */
function ownIp() {
  servers += 1;
  return `127.${0x40 | ((process.pid >> 8) & 0x3f)}.${process.pid & 0xff}.${servers}`;
}

/**
 * Starts a server with an admin address, on free ports unless the arguments name others. Resolves when it listens, and with a
 * source of events when that is up.
 *
 * @param {object} [options]
 * @param {string[]} [options.args] of the command line; without `--auth` any token is taken
 * @param {Record<string, string>} [options.env] more variables of its environment
 * @param {{ url: string }} [options.broker] to take events from; else the embedded source makes them up, unless `args` name one
 * @param {boolean} [options.tls] a port with TLS, too
 */
export async function startServer({ args = [], broker, env = {}, tls = false } = {}) {
  const server = new Server(args, broker, env, tls);
  endWithTest(() => server.kill());
  await server.start();
  return server;
}

export class Server {
  /** The address that websocket clients connect to, `IP:PORT`, after the first start. */
  address = "";
  /** The address that they connect to with TLS, if there is one, `IP:PORT`, after the first start. */
  tlsAddress = "";
  /** The admin address, `IP:PORT`, after the first start. */
  adminAddress = "";
  /** Everything on stderr so far, of all its lives. */
  log = "";
  /** @type {ReturnType<typeof makeCertificate> | undefined} */
  #certificate;
  /** @type {import("node:child_process").ChildProcessByStdio<null, import("node:stream").Readable, import("node:stream").Readable> | undefined} */
  child;

  constructor(args, broker, env, tls = false) {
    this.env = { ...process.env, ...env };
    const has = (name) => args.includes(name);
    this.ip = has("--ip") ? args[args.indexOf("--ip") + 1] : ownIp();
    this.chosen = { port: has("--port"), admin: has("--admin") };
    const source = broker ? ["--amqp", broker.url] : has("--amqp") || has("--source") ? [] : ["--source", "demo"];
    this.args = [...source, ...(has("--auth") ? [] : ["--auth", "insecure"]), ...args];
    if (!has("--ip")) this.args.push("--ip", this.ip);
    if (tls) this.#certificate = makeCertificate(this.ip);
    this.patience = broker || has("--amqp") ? BROKER_PATIENCE : PATIENCE;
  }

  /** Where websocket clients connect. */
  get wsUrl() {
    return `ws://${this.address}/`;
  }

  /** Where websocket clients connect with TLS. */
  get wssUrl() {
    return `wss://${this.tlsAddress}/`;
  }

  /** The files of the certificate of a server with TLS, and its pin. */
  get certificate() {
    if (!this.#certificate) throw new Error("it has no TLS");
    return this.#certificate;
  }

  /** The admin address, as a URL that ends in a slash. */
  get adminUrl() {
    return `http://${this.adminAddress}/`;
  }

  get pid() {
    return this.child?.pid;
  }

  /** Whether the process is there. */
  get isRunning() {
    return this.child !== undefined && this.child.exitCode === null && this.child.signalCode === null;
  }

  /** Starts it; again at the addresses of its last life. Resolves when it is ready. */
  async start() {
    if (this.isRunning) throw new Error("it runs already");
    const args = [...this.args];
    if (!this.chosen.port) args.push("--port", this.address.split(":")[1] ?? "0");
    if (!this.chosen.admin) args.push("--admin", this.adminAddress || `${this.ip}:0`);
    if (this.#certificate) {
      const { cert, key } = this.#certificate;
      args.push("--use-ssl", "--ssl-port", this.tlsAddress.split(":")[1] ?? "0", "--ssl-cert", cert, "--ssl-key", key);
    }
    const child = spawn(BINARY, args, { env: this.env, stdio: ["ignore", "pipe", "pipe"] });
    this.child = child;
    if (child.pid !== undefined) child.once("exit", guard("process", child.pid));
    // A server that is left at the end of a file must not keep its process, whose end is the server's.
    child.unref();
    for (const stream of [child.stdout, child.stderr]) /** @type {import("node:net").Socket} */ (stream).unref();
    const said = this.log.length;
    child.stderr.setEncoding("utf8").on("data", (text) => (this.log += text));
    const failed = once(child, "error").then(([error]) => Promise.reject(error));
    failed.catch(() => {});
    const ended = once(child, "close").then(() => Promise.reject(new Error(`it ended: ${this.log.slice(said)}`)));
    ended.catch(() => {});
    const lines = on(createInterface(child.stdout), "line");
    const listening = async (what) => {
      const next = lines.next().then(({ value }) => value);
      const [line] = await within(Promise.race([next, failed, ended]), "a line of stdout", this.patience);
      if (!line.startsWith(`${what} `)) throw new Error(`not \`${what} IP:PORT\`: ${line}`);
      return line.slice(what.length + 1);
    };
    this.address = await listening("listening on");
    if (this.#certificate) this.tlsAddress = await listening("listening with TLS on");
    this.adminAddress = await this.until("the admin address in the log", () => {
      return /admin pages on http:\/\/([^/\s]+)/.exec(this.log.slice(said))?.[1];
    });
    await this.until("ready", async () => (await this.page("readyz")).status === 200);
    return this;
  }

  /** Sends it a signal. Resolves at its end when that is one that ends it at once. */
  async kill(/** @type {NodeJS.Signals} */ signal = "SIGKILL") {
    this.child?.kill(signal);
    if (signal === "SIGKILL") await this.ended();
  }

  /** Resolves when the process is gone, to its exit code; null when a signal ended it. */
  async ended() {
    const { child } = this;
    if (child && this.isRunning) await within(once(child, "close"), "the end of the server", BROKER_PATIENCE);
    return child?.exitCode ?? null;
  }

  /** Ends it in order, which takes its `--drain-seconds` while clients stay; its exit code. */
  async stop() {
    this.child?.kill("SIGTERM");
    try {
      return await this.ended();
    } finally {
      this.child?.kill("SIGKILL");
    }
  }

  /** A page of the admin address. */
  async page(path, options = {}) {
    const asked = async () => {
      const response = await fetch(new URL(path, this.adminUrl), { signal: AbortSignal.timeout(PATIENCE), ...options });
      return { status: response.status, headers: response.headers, text: await response.text() };
    };
    return within(asked(), path, 2 * PATIENCE);
  }

  /** The `data` of an answer of the admin address. */
  async data(path, options = {}) {
    const { status, text } = await this.page(path, options);
    if (status !== 200) throw new Error(`${path}: ${status} ${text}`);
    return JSON.parse(text).data;
  }

  /** One metric, by its name without `blackhole_` and with its labels as they stand on the page; a family's sum without. */
  async metric(name) {
    const { text } = await this.page("metrics");
    let found = false, sum = 0;
    for (const line of text.split("\n")) {
      const sample = /^(?:blackhole_)?([^ ]+) ([^ ]+)$/.exec(line);
      if (!sample || (sample[1] !== name && sample[1].split("{")[0] !== name)) continue;
      found = true;
      sum += Number(sample[2]);
    }
    if (!found) throw new Error(`no metric ${name}`);
    return sum;
  }

  /**
   * Resolves when the stream of the history (`--history stream:NAME`) proves from now on what is subscribed: only what is
   * published after that can be resumed at another process.
   */
  async untilStreamed() {
    await this.until("the stream is bound", async () => (await this.metric("amqp_stream_bindings")) > 0);
    const markers = await this.metric("amqp_stream_markers_total");
    await this.until("two more markers", async () => (await this.metric("amqp_stream_markers_total")) >= markers + 2);
  }

  /** As `until`, with what the server said in the error. */
  until(what, condition, deadline = this.patience) {
    return until(condition, { deadline, what: () => `${what}; the server said:\n${this.log}` });
  }
}
