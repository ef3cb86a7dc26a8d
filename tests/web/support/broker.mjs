/**
 * A private RabbitMQ for a test, by way of `scripts/broker`, in a folder of its own. It is stopped and removed with its test.
 */

import { execFile } from "node:child_process";
import { rmSync } from "node:fs";
import { promisify } from "node:util";

import { endWithTest, guard } from "./endings.mjs";
import { without } from "./left_out.mjs";
import { ownFolder, projectFile } from "./project.mjs";
import { BROKER_PATIENCE } from "./until.mjs";

const run = promisify(execFile);
const SCRIPT = projectFile("scripts/broker");

/** For the option `skip` of a test that needs a broker. */
export const withoutBroker = () => without(`${process.env.RABBITMQ_BIN ?? "/usr/lib/rabbitmq/bin"}/rabbitmq-server`);

/** Starts one on free ports. Resolves when it serves. */
export async function startBroker() {
  const broker = new Broker(ownFolder("broker"));
  endWithTest(() => broker.stop());
  broker.url = await broker.command("start");
  return broker;
}

export class Broker {
  url = "";

  constructor(dir) {
    this.dir = dir;
    this.ended = guard("broker", dir);
  }

  /** A command of `scripts/broker`, such as `kill9`, `pause`, `resume` or `ctl`: what it prints. */
  async command(...args) {
    const { stdout } = await run(SCRIPT, ["--dir", this.dir, ...args], { timeout: 2 * BROKER_PATIENCE });
    return stdout.trim();
  }

  /** Starts it again, on the same ports, after `kill9` or `stop-node`. */
  async start() {
    this.url = await this.command("start");
  }

  /** Ends it and removes what it wrote. Not in order: nobody will read that. */
  async stop() {
    await this.command("kill9").catch(() => {});
    await this.command("stop");
    rmSync(this.dir, { recursive: true, force: true });
    this.ended();
  }
}
