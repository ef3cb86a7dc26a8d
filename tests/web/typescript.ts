/**
 * The types of the JavaScript client, as an application in TypeScript uses them. Nothing here runs: that it compiles is the test,
 * and that the lines below `@ts-expect-error` do not.
 */

import { BlackholeError, connect } from "../../scripts/client/blackhole.mjs";
import type { Client, Gap, PlatformEvent, State, Subscription } from "../../scripts/client/blackhole.mjs";

interface Call {
  "Call-ID": string;
  "Caller-ID-Number"?: string;
}

const abort = new AbortController();
const client: Client = connect(["wss://a.example.com", new URL("wss://b.example.com")], {
  token: async ({ reason }) => ({ token: reason, expires: new Date() }),
  account: "4b8c6fec4b2597882c0390202d195419",
  signal: abort.signal,
  WebSocket,
});

const cursors: (string | undefined)[] = [];
const listened: Subscription = await client.subscribe("call.CHANNEL_CREATE.*", { onEvent: ({ cursor }) => cursors.push(cursor) });
const calls = await client.subscribe<Call>(["call.CHANNEL_ANSWER.*", "call.CHANNEL_DESTROY.*"] as const, { signal: abort.signal });
for await (const event of calls) {
  const id: string | undefined = event.args?.["Call-ID"];
  if (id !== undefined && event.replayed) break;
}
const { reason }: { readonly reason: string } = await listened.closed;

client.on("event", (event: PlatformEvent, subscriptions) => subscriptions.map(({ bindings }) => [event.name, bindings.length, reason]));
client.on("gap", ({ dropped, why }: Gap) => [dropped, why]);
const stop: () => void = client.on("state", (state: State) => {
  switch (state.name) {
    case "reconnecting":
      return state.inMs + state.tries;
    case "refused":
      return state.code;
    case "connecting":
    case "resuming":
    case "live":
    case "closed":
      return state.name;
    default:
      // Every state is above.
      return state satisfies never;
  }
});
stop();

try {
  await client.ping({ timeoutMs: 100 });
} catch (error) {
  if (error instanceof BlackholeError && error.code === "timeout") console.log(error.errors.join(), error.closeCode);
}

// @ts-expect-error A token is needed.
connect("ws://x", {});
// @ts-expect-error There is no such style.
connect("ws://x", { token: "t", style: "other" });
// @ts-expect-error There is no such event.
client.on("message", () => {});
// @ts-expect-error A state is read only.
client.state.name = "live";
// @ts-expect-error Only a connection that is to come has a time.
client.state.inMs;
// @ts-expect-error What was published may be there as `data` instead.
calls.values().next().then(({ value }) => (value as PlatformEvent<Call>).args["Call-ID"]);

await client.close();
