/**
 * The protocol for machines, `scripts/protocol`, as its users read it: AsyncAPI's own parser, from the file and from the admin
 * address of a server, and another validator than that of the Rust tests, by which real frames are held against the schemas.
 */

import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { after, test } from "node:test";

import { fromFile, fromURL, Parser } from "@asyncapi/parser";
import { Ajv2020 } from "ajv/dist/2020.js";

import { projectFile, readProjectFile } from "../support/project.mjs";
import { startServer } from "../support/server.mjs";
import { until } from "../support/until.mjs";

const FILE = "scripts/protocol/asyncapi.json";
const SCHEMAS = "scripts/protocol/schemas";

/** What the parser says against a document, but for its advice to take the newest version of AsyncAPI. */
const faults = (diagnostics) =>
  diagnostics
    .filter(({ code }) => code !== "asyncapi-latest-version")
    .map(({ severity, code, message, path }) => `${severity} ${code}: ${message} (${path.join("/")})`);

/** The names of the messages, sorted, and of their payloads' members. */
const told = (document) =>
  Object.fromEntries(
    document
      .messages()
      .all()
      .map((message) => [message.id(), Object.keys(message.payload()?.properties() ?? {})])
      .sort(),
  );

test("AsyncAPI's parser takes the file, with the schemas that it refers to", async () => {
  const { document, diagnostics } = await fromFile(new Parser(), projectFile(FILE)).parse();
  assert.deepEqual(faults(diagnostics), []);
  assert.ok(document);
  const messages = told(document);
  assert.ok(Object.keys(messages).length >= 13, `${Object.keys(messages)}`);
  for (const [name, members] of Object.entries(messages)) assert.ok(members.includes("action"), name);
  const receives = document.operations().filterByReceive();
  assert.deepEqual(receives.map((operation) => operation.id()).sort(), ["ping", "subscribe", "unsubscribe"]);
  for (const operation of receives) assert.equal(operation.reply()?.messages().length, 2);
});

test("the parser refuses what is not AsyncAPI, so that it says something when it does not", async () => {
  for (const spoil of [
    (file) => delete file.channels.session,
    (file) => (file.operations.ping.action = "request"),
    (file) => (file.components.messages.ping.payload.$ref = "schemas/nothing.json"),
    (file) => (file.info.title = 7),
  ]) {
    const file = JSON.parse(readProjectFile(FILE));
    spoil(file);
    const { diagnostics } = await new Parser().parse(JSON.stringify(file), { source: projectFile(FILE) });
    const errors = diagnostics.filter(({ severity }) => severity === 0);
    assert.notEqual(errors.length, 0, `${spoil}`);
  }
});

test("a server gives the same at its admin address", async () => {
  const server = await startServer();
  const { document, diagnostics } = await fromURL(new Parser(), `${server.adminUrl}protocol/asyncapi.json`).parse();
  assert.deepEqual(faults(diagnostics), []);
  const here = await fromFile(new Parser(), projectFile(FILE)).parse();
  assert.deepEqual(told(document), told(here.document));
});

/** All schemas, read strictly: a keyword that says nothing is an error. */
function readSchemas() {
  const ajv = new Ajv2020({ allErrors: true, strict: true, strictRequired: false, allowUnionTypes: true });
  for (const name of readdirSync(projectFile(SCHEMAS))) ajv.addSchema(JSON.parse(readProjectFile(`${SCHEMAS}/${name}`)), name);
  return ajv;
}

test("a strict reader of JSON Schema takes every schema, and every example fits its own", () => {
  const ajv = readSchemas();
  for (const name of readdirSync(projectFile(SCHEMAS))) assert.ok(ajv.getSchema(name), name);
  const { messages } = JSON.parse(readProjectFile(FILE)).components;
  for (const [name, { examples }] of Object.entries(messages))
    for (const { payload } of examples) assert.ok(ajv.validate(`${name}.json`, payload), `${name}: ${ajv.errorsText()}`);
});

test("what a server sends, in both styles, fits the schemas", async () => {
  const server = await startServer({ args: ["--demo-rate", "50"] });
  const ajv = readSchemas();
  for (const style of ["piston", "kazoo"]) {
    const socket = new WebSocket(`${server.wsUrl}?style=${style}`);
    after(() => socket.close());
    /** @type {any[]} */
    const frames = [];
    socket.onmessage = ({ data }) => frames.push(JSON.parse(data));
    socket.onopen = () => {
      const commands = [
        { action: "subscribe", auth_token: "any", data: { account_id: `${"0".repeat(31)}1`, binding: "call.*.*", resume: true } },
        { action: "ping", request_id: "p" },
        { action: "subscribe", request_id: "e", data: { binding: "call.NOTHING.*" } },
      ];
      for (const command of commands) {
        assert.ok(ajv.validate("command.json", command), ajv.errorsText());
        socket.send(JSON.stringify(command));
      }
    };
    await until(() => frames.length >= 20, { what: "20 frames" });
    const kinds = new Set(frames.map(({ action, status }) => `${action} ${status ?? ""}`));
    assert.deepEqual([...kinds].sort(), ["event ", "reply error", "reply success"]);
    for (const frame of frames) {
      assert.ok(ajv.validate("server-frame.json", frame), `${JSON.stringify(frame)}: ${ajv.errorsText()}`);
      if (frame.action === "event") assert.ok(ajv.validate(`event-${style}.json`, frame));
    }
  }
});
