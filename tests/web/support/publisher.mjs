/**
 * Publishes events as the platform's applications do: JSON to topic exchanges that are not durable.
 */

import amqp from "amqplib";

import { endWithTest } from "./endings.mjs";
import { readProjectFile } from "./project.mjs";
import { BROKER_PATIENCE, within } from "./until.mjs";

/** The account of the fixture events. */
export const ACCOUNT = "4b8c6fec4b2597882c0390202d195419";

/** An account that has nothing to do with it. */
export const OTHER_ACCOUNT = "0123456789abcdef0123456789abcdef";

/** The call of the fixture events. */
export const CALL_ID = "at6dmu4ffk97vnlp6qfq";

/** The platform's example events in the order of a call: their names, and the bodies as they are published. */
export const FIXTURES = ["create", "answer", "destroy"].map((stage) => {
  return { name: `CHANNEL_${stage.toUpperCase()}`, body: JSON.parse(readProjectFile(`tests/fixtures/events/channel_${stage}.json`)) };
});

/** A channel of a broker. It is closed with its test. */
export async function connectPublisher(/** @type {{ url: string }} */ broker) {
  const connection = await amqp.connect(broker.url);
  // A broker that is killed under it is no fault of the test's.
  connection.on("error", () => {});
  const channel = await connection.createConfirmChannel();
  channel.on("error", () => {});
  // As a server: a connection that is left at the end of a file must not keep its process.
  /** @type {any} */ (connection).connection.stream.unref();
  let open = true;
  connection.on("close", () => (open = false));
  endWithTest(async () => {
    if (open) await connection.close().catch(() => {});
  });
  return channel;
}

/**
 * Publishes one event; resolves when the broker has it.
 *
 * @param {import("amqplib").ConfirmChannel} channel of `connectPublisher`
 * @param {string} exchange
 * @param {string} key the routing key
 * @param {object} body
 */
export async function publish(channel, exchange, key, body) {
  await within(channel.assertExchange(exchange, "topic", { durable: false }), "the exchange", BROKER_PATIENCE);
  channel.publish(exchange, key, Buffer.from(JSON.stringify(body)), { contentType: "application/json" });
  await within(channel.waitForConfirms(), "the confirm", BROKER_PATIENCE);
}

/**
 * Publishes a call event; resolves when the broker has it.
 *
 * @param {import("amqplib").ConfirmChannel} channel of `connectPublisher`
 * @param {string} name such as `CHANNEL_CREATE`
 * @param {object} [body] what differs from the body of a small event of `ACCOUNT`
 */
export function publishCall(channel, name, body = {}) {
  const event = {
    "Event-Category": "call_event", "Event-Name": name, "Call-ID": CALL_ID, "Custom-Channel-Vars": { "Account-ID": ACCOUNT }, ...body,
  };
  return publish(channel, "callevt", `call.${name}.${event["Call-ID"].replaceAll(".", "%2E")}`, event);
}
