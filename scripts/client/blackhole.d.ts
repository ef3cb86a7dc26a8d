/** Types of `blackhole.mjs`: a client of the Blackhole event server. */

/** One text frame of the server that carries an event, with the members that the protocol names. */
export interface PlatformEvent<Body = Record<string, unknown>> {
  readonly action: "event";
  /** Such as `CHANNEL_CREATE`. */
  readonly name: string;
  readonly routing_key: string;
  /** What was published; with `style: "piston"`, which is the default. */
  readonly args?: Body;
  /** What was published, its keys made plain; with `style: "kazoo"`. */
  readonly data?: Body;
  /** The place of this event; missing where the server keeps no history. */
  readonly cursor?: string;
  /** The binding that it matched, as it was asked for. */
  readonly subscribed_key: string;
  /** The same with the account. */
  readonly subscription_key: string;
  readonly request_id?: string;
  /** It was missed, and comes now. */
  readonly replayed?: true;
}

/** A frame that tells something of the session. */
export interface Notice {
  readonly action: "notice";
  readonly name: "gap" | "resumed" | "going_away" | "subscriptions_ended" | (string & {});
  readonly data: Readonly<Record<string, unknown>>;
}

/** The answer to a command. */
export interface Reply {
  readonly action: "reply";
  readonly request_id: string;
  readonly status: "success" | "error";
  readonly data: {
    readonly subscribed?: readonly string[];
    readonly unsubscribed?: readonly string[];
    readonly response?: string;
    readonly cursor?: string;
    readonly resumed?: boolean;
    readonly errors?: readonly string[];
    readonly [more: string]: unknown;
  };
}

/** Events were lost, or may have been. */
export interface Gap {
  /**
   * - `slow_consumer`: the server dropped `dropped` events, because this client read too slowly.
   * - `event_source`: the server had no broker for `seconds`.
   * - `resume`: the server cannot send what was missed; `why` says for what reason. `shared`: another subscription has one of
   *   the bindings already, so the cursor that was given to `subscribe` does not count for it.
   * - `reconnect`: the connection was away, or another took over from it, and the server keeps no history.
   * - `slow_reader`: the loop over a subscription is too slow: its queue was full, and the `dropped` oldest were let go.
   */
  readonly reason: "slow_consumer" | "event_source" | "resume" | "reconnect" | "slow_reader" | (string & {});
  readonly why?: "expired" | "unknown" | "too_many" | "outage" | "invalid" | "shared" | (string & {});
  readonly dropped?: number;
  readonly seconds?: number;
  /** Unix milliseconds of this client's clock between which the events were published, where it was a lost connection. */
  readonly from?: number;
  readonly to?: number;
  /** Whose queue was full, or whose `resume` did not count. */
  readonly subscription?: Subscription;
}

/** What was missed has come. */
export interface Resumed {
  /** How many event frames the server sent again. */
  readonly events: number;
  /** How many were left out, because the application had them or they are of before its subscribe; live ones meanwhile, too. */
  readonly doubles: number;
}

/** Where the client stands. */
export type State =
  /** The first connection is being made, or its subscriptions are not confirmed yet. */
  | { readonly name: "connecting" }
  /** Connected again; what was missed is coming. */
  | { readonly name: "resuming" }
  /** Events come as they are published. */
  | { readonly name: "live" }
  /** There is no connection. The next try comes in `inMs` (0: it is being made). */
  | { readonly name: "reconnecting"; readonly why: string; readonly tries: number; readonly inMs: number }
  /** The server does not want this client, and trying again is of no use. Final. */
  | { readonly name: "refused"; readonly why: string; readonly code?: number }
  /** `close()` was called, or the signal was aborted. Final. */
  | { readonly name: "closed" };

/** Why something failed. */
export type ErrorCode =
  /** The signal was aborted; `cause` is its reason. */
  | "aborted"
  /** The client was closed. */
  | "closed"
  /** A listener of the application threw; `cause` is what it threw. */
  | "listener"
  /** A frame that is none of the protocol's. */
  | "protocol"
  /** The server does not want this client; `closeCode` says how it closed, if it did. */
  | "refused"
  /** The server answered with errors; `errors` are its texts. */
  | "rejected"
  /** The token function threw; `cause` is what it threw. */
  | "token"
  /** More than 1,000 commands wait. */
  | "too_many_requests"
  /** No answer in time. */
  | "timeout"
  /** The server could not do it in time, and says why in `errors`. */
  | "unavailable";

export class BlackholeError extends Error {
  constructor(
    code: ErrorCode,
    message: string,
    more?: { readonly errors?: readonly string[]; readonly closeCode?: number | undefined; readonly cause?: unknown },
  );
  readonly name: "BlackholeError";
  readonly code: ErrorCode;
  /** The server's own texts. */
  readonly errors: readonly string[];
  readonly closeCode?: number;
}

/** Why a token is asked for. */
export interface TokenRequest {
  /**
   * - `connect`: for the first connection.
   * - `expires`: the last one expires soon.
   * - `refused`: the server did not take the last one, or ended the session because it had expired.
   */
  readonly reason: "connect" | "expires" | "refused";
}

/** `expires`: when, in Unix seconds or as a Date; else the `exp` of a JWT is taken. */
export type Token = string | { readonly token: string; readonly expires?: number | Date | undefined };

export type TokenSource = Token | ((request: TokenRequest) => Token | Promise<Token>);

/** What this client needs of a websocket; that of browsers, Node 22, Deno, Bun and the package `ws` have it. */
export interface WebSocketLike {
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  readonly readyState: number;
  send(text: string): void;
  close(code?: number, reason?: string): void;
}

export interface ConnectOptions {
  /** A function is asked for the first token, before `expires`, and after a refusal. */
  token: TokenSource;
  /** The account of subscriptions that name none; unset: the token's own. */
  account?: string | undefined;
  /** Shape of events; unset: what the server is configured to. */
  style?: "piston" | "kazoo" | undefined;
  /** Shown with the session in the server's listings. */
  name?: string | undefined;
  /** The same; JSON of 4 KiB at most. */
  metadata?: unknown;
  /** Whether missed events are asked for after a lost connection. Default true. */
  resume?: boolean | undefined;
  /** The constructor of websockets, where the runtime has no `WebSocket` of its own. */
  WebSocket?: (new (url: string) => WebSocketLike) | undefined;
  /** Closes the client. */
  signal?: AbortSignal | undefined;
  /** Time for a command, with all that it needs, a connection too. Default 30,000; 0: for ever. */
  timeoutMs?: number | undefined;
  /** Time for a connection to be made. Default 10,000. */
  connectMs?: number | undefined;
  /** Time between pings. Default 20,000. */
  pingMs?: number | undefined;
  /** Time for anything to come after a ping; else the connection is given up. Default 10,000. */
  pongMs?: number | undefined;
  /** The first pause before a new try is a random time up to this; each further one up to twice as long. Default 500. */
  pauseMs?: number | undefined;
  /** The most that it can be. Default 30,000. */
  pauseMaxMs?: number | undefined;
  /** How long before its end a token is renewed, at least; up to half as much again, by chance. Default 60,000. */
  refreshMs?: number | undefined;
  /** Events that wait in one subscription for its loop, however large they are. Default 1,000. */
  queueMax?: number | undefined;
}

export interface SubscribeOptions<Body = Record<string, unknown>> {
  /** Unset: that of the client. `*`: all accounts, for superduper admins. Write one account always in the same way. */
  account?: string | undefined;
  /** A cursor of before, to begin behind it instead of now. Not for bindings that another subscription has: a gap tells. */
  resume?: string | undefined;
  /** Takes the events; there is no queue and no loop then. What it throws, or rejects with, is told as `error`. */
  onEvent?: ((event: PlatformEvent<Body>, subscription: Subscription<Body>) => unknown) | undefined;
  /** Ends the wait for the confirmation; after it, the subscription. */
  signal?: AbortSignal | undefined;
  /** Instead of the client's. */
  timeoutMs?: number | undefined;
  /** Instead of the client's. */
  queueMax?: number | undefined;
}

export interface RequestOptions {
  signal?: AbortSignal | undefined;
  timeoutMs?: number | undefined;
}

/** Why bindings of a subscription are not in force any more. */
export interface End {
  /**
   * - `unsubscribed`: the application did it.
   * - `closed`: the client was closed.
   * - `refused`: the server does not take the client, or these bindings, any more; `errors` are its texts.
   * - `identity`, `rights`, `module`: the server ended them, as its notice `subscriptions_ended` says.
   */
  readonly reason: "unsubscribed" | "closed" | "refused" | "identity" | "rights" | "module" | (string & {});
  readonly bindings: readonly string[];
  readonly errors: readonly string[];
}

/**
 * Bindings of one account that were asked for together. The events are taken by `onEvent`, or by one `for await` loop over
 * the subscription. Leaving the loop unsubscribes.
 */
export interface Subscription<Body = Record<string, unknown>> extends AsyncIterable<PlatformEvent<Body>> {
  /** Those that are in force. */
  readonly bindings: readonly string[];
  readonly account: string | undefined;
  /** Events that wait for the loop. */
  readonly queued: number;
  /** Events that were let go because the queue was full; each time is told as a gap, once a loop reads it. */
  readonly dropped: number;
  /** Resolves when nothing of it is in force any more. Never rejects. */
  readonly closed: Promise<End>;
  /** Never rejects: what a lost connection has, it has no more. Events that come meanwhile are left out. */
  unsubscribe(): Promise<void>;
  /** As that of ReadableStream: with `preventCancel` the subscription outlives the loop. */
  values(options?: { preventCancel?: boolean | undefined }): AsyncIterableIterator<PlatformEvent<Body>>;
  [Symbol.asyncIterator](): AsyncIterableIterator<PlatformEvent<Body>>;
}

/** What `on` takes, with the parameters of the listener. */
export interface ClientEvents {
  state: [state: State, previous: State];
  /** Each event once, whatever subscriptions it is for. */
  event: [event: PlatformEvent, subscriptions: readonly Subscription[]];
  gap: [gap: Gap];
  resumed: [resumed: Resumed];
  /** Bindings ended without `unsubscribe` or `close`. */
  ended: [end: End, subscription: Subscription];
  /** Each notice as it came. */
  notice: [notice: Notice];
  /** Each reply as it came, pings too. */
  reply: [reply: Reply];
  /** Trouble that no promise tells of, or that the client gets over by itself. Without a listener nothing happens, but for `listener`, which goes to the console. */
  error: [error: BlackholeError];
}

export interface Client {
  readonly state: State;
  /** The place of the last event, to be kept for `SubscribeOptions.resume`; undefined: none yet, or the server has no history. */
  readonly cursor: string | undefined;
  /** All that are in force, or were and will be after a reconnect. */
  readonly subscriptions: readonly Subscription[];
  /** Resolves when the server has confirmed all of it: events from then on come. All or nothing. */
  subscribe<Body = Record<string, unknown>>(
    bindings: string | readonly string[],
    options?: SubscribeOptions<Body>,
  ): Promise<Subscription<Body>>;
  /** Resolves when a server has answered, with the time that it took in milliseconds. */
  ping(options?: RequestOptions): Promise<number>;
  /** Goes on with this token, without a new connection. Rejects if the server does not take it. */
  authenticate(token: Token, options?: RequestOptions): Promise<void>;
  /** Returns what ends the listening. */
  on<Name extends keyof ClientEvents>(name: Name, listener: (...values: ClientEvents[Name]) => unknown): () => void;
  /** Ends it all: subscriptions, loops, what waits. Resolves when the connection is closed. Never rejects. */
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/**
 * Begins to connect, and goes on until `close()` or a refusal. Of several addresses each try takes the next.
 * Throws for options that cannot be; everything later is told by states, promises and `error`.
 */
export function connect(url: string | URL | readonly (string | URL)[], options: ConnectOptions): Client;
