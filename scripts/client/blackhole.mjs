/**
 * A client of the Blackhole event server, for browsers, Node 22 and whatever else has or is handed a WebSocket. No imports,
 * no effects at the top level. Types: blackhole.d.ts. What it promises: README.md.
 *
 *     connect -> first command -> live <-> resuming
 *        ^                         |
 *        +--- pause (jitter) <--- lost        final: refused, closed
 *
 * - `BlackholeClient` owns what is wanted: subscriptions, and the *records* (`WantedBinding`: one binding of one account) that they share.
 * - `Link` owns one connection: what is in force there, and the commands that wait for their replies.
 * - `Doubles` owns what was had lately, by which an event that comes again is known.
 * - `BlackholeSubscription` owns the way to the application: a callback, or a bounded queue and one loop.
 *
 * One mechanism makes wanted and in force the same on a link (`#sync`), for the first subscribe, the later ones, a
 * reconnect and a move alike.
 *
 * Invariants: a subscribe that has rejected is not wanted any more. An event is handed on once for each subscription. The
 * cursor of a link is that of the last frame that came there, and is never beyond what was handed on. No promise of ours
 * rejects unheard. A listener that throws stops nobody. The token is in commands and nowhere else.
 */

/** Commands that wait; more are refused (`too_many_requests`). */
const COMMANDS_MAX = 1_000;
/** Events that are known to be had; beyond it the oldest are forgotten, and may come twice. */
const HAD_MAX = 50_000;
/** Time for which they are known, but for a replay, which needs them all. */
const HAD_MS = 10_000;
/** How far apart two processes take in one event that is replayed, or live. */
const REPLAYED_APART_MS = 10_000;
const LIVE_APART_MS = 2_000;
/** The MARK of events that were read from the stream: of no process, and their TIME is not their own. */
const MARK_OF_STREAM = "000000";
/** Processes of which a record knows the last event. */
const MARKS_MAX = 4;
/** How long both connections are read when the second could not resume where the first stands. */
const OVERLAP_MS = 1_000;
/** Events of the second that wait meanwhile; beyond it one of both is given up: the second, or the first that it took over from. */
const AHEAD_MAX = 10_000;
/** Events kept until it is known whether they are for another name too; beyond it the connection is given up. */
const UNPAIRED_MAX = 50_000;
/** Time for a reply; beyond it the connection is given up. */
const REPLY_MS = 30_000;
/** Time for the token function; beyond it, it is asked again. */
const TOKEN_MS = 30_000;
/** The least time to the next renewal of a token, and of one that has ended by our clock. */
const REFRESH_LEAST_MS = 100;
const REFRESH_ENDED_MS = 1_000;
/** What setTimeout can wait for. */
const TIMER_MS_MAX = 2 ** 31 - 1;

const DEFAULTS = {
  resume: true,
  timeoutMs: 30_000,
  connectMs: 10_000,
  pingMs: 20_000,
  pongMs: 10_000,
  pauseMs: 500,
  pauseMaxMs: 30_000,
  refreshMs: 60_000,
  queueMax: 1_000,
};

const TOKEN_ERRORS = ["failed to authenticate token", "authentication token required"];
const PASSING_ERRORS = ["event source unavailable", "authentication unavailable", "rate limiting threshold hit"];

/** Close codes after which the same client would only be closed again; 4000 to 4999 are too, but for those below. */
const FINAL_CODES = [1002, 1003, 1007, 1009];
const TOKEN_EXPIRED = 4401;
const SLOW_CONSUMER = 4408;

export class BlackholeError extends Error {
  constructor(code, message, { errors = [], closeCode, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "BlackholeError";
    this.code = code;
    this.errors = errors;
    if (closeCode !== undefined) this.closeCode = closeCode;
  }
}

export function connect(url, options) {
  return new BlackholeClient(url, options);
}

/** How long this is waited for, at most; 0 is for ever. */
function timer(ms, run) {
  if (!(ms > 0) || ms === Infinity) return () => {};
  const id = setTimeout(run, Math.min(ms, TIMER_MS_MAX));
  return () => clearTimeout(id);
}

/** Whether some of these texts of the server begin with one of those. */
function anyBegins(errors, beginnings) {
  return errors.some((error) => beginnings.some((beginning) => error.startsWith(beginning)));
}

/** When a token ends, in Unix milliseconds: as it was told, or as a JWT says. */
function endOf(token, expires) {
  if (expires instanceof Date) return expires.getTime();
  if (typeof expires === "number") return expires * 1000;
  const claims = token.split(".")[1];
  if (claims === undefined) return undefined;
  try {
    const { exp } = JSON.parse(atob(claims.replaceAll("-", "+").replaceAll("_", "/")));
    return typeof exp === "number" ? exp * 1000 : undefined;
  } catch {
    return undefined;
  }
}

/** Whether what is read of a frame is of its kind. Another frame is told and left out: it must not throw where nobody catches. */
function isSound(frame) {
  if (typeof frame !== "object" || frame === null) return false;
  const isText = (value) => value === undefined || typeof value === "string";
  const isTexts = (value) => value === undefined || (Array.isArray(value) && value.every((one) => typeof one === "string"));
  if (!isText(frame.request_id) || !isText(frame.cursor)) return false;
  if (frame.action === "event") return true;
  const { data } = frame;
  if (data === undefined) return frame.action === "notice";
  if (typeof data !== "object" || data === null) return false;
  return isText(data.cursor) && isTexts(data.errors) && isTexts(data.subscribed) && isTexts(data.bindings);
}

/** The token of what the application gave. */
function readToken(given) {
  const { token, expires } = typeof given === "string" ? { token: given } : (given ?? {});
  if (typeof token !== "string" || token === "") throw new TypeError("a token is a text that is not empty");
  return { text: token, ends: endOf(token, expires) };
}

/** One binding of one account, on behalf of all subscriptions that have it. */
class WantedBinding {
  constructor(account, binding) {
    this.account = account;
    this.binding = binding;
    this.key = keyOf(account, binding);
    this.subscriptions = new Set();
    /** Where it begins, or was lost, if not now; until the session has it. Others of the session may be further on by then. */
    this.from = undefined;
    /** It was in force on some link: what came since is missed. */
    this.wasLive = false;
    /** Its first place; what was published before is not meant. */
    this.since = undefined;
    /** By the MARK of a process, the TIME of its last event. */
    this.last = new Map();
  }
}

/** Every event carries the request id of its subscribe, so there is the account for which a binding was asked. */
function requestId(number, account) {
  return account === undefined ? String(number) : `${number}@${account}`;
}

function accountOf(requestId) {
  const at = requestId?.indexOf("@") ?? -1;
  return at < 0 ? undefined : requestId.slice(at + 1);
}

function keyOf(account, binding) {
  return `${account ?? ""} ${binding}`;
}

/**
 * Which events were had (PROTOCOL 10). A cursor is ID.TIME.MARK. One process (MARK) sends each record its events in the order
 * of their TIME, so there an earlier time tells, and an equal one (which events share when more than one comes in a
 * millisecond for long) together with the ID. Of two processes, or out of the stream, the ID tells, and times that are near.
 *
 * Invariant: two equal publishes, which have one ID, are two events: each that was had stands for one of each other link,
 * and for one of the stream.
 */
class Doubles {
  #had = [];
  #begin = 0;
  #byKey = new Map();

  /** Notes the event; false: the record had it, or it is of before. `keeps`: more of before is to come, so nothing is too old. */
  take(link, record, cursor, isReplayed, keeps, now) {
    const [id, timeText, mark] = cursor.split(".");
    const time = Number.parseInt(timeText, 36);
    if (id.length !== 16 || !mark || !Number.isFinite(time)) return true;
    const isExact = mark !== MARK_OF_STREAM;
    // Where the stream ends and the history of the process begins, a link brings some events out of both.
    const source = isExact ? link : -link;
    if (isExact) {
      // A replay from the place of another process begins a little before it, which may be before the subscribe. Only the
      // process of the subscribe can tell which events are: the clocks of two may be apart.
      if (isReplayed && markOf(record.since) === mark && time < timeOf(record.since)) return false;
      const last = record.last.get(mark);
      if (last !== undefined && time < last) return false;
      record.last.delete(mark);
      record.last.set(mark, time);
      if (record.last.size > MARKS_MAX) record.last.delete(record.last.keys().next().value);
    }
    const key = `${id} ${record.key}`;
    const apart = isReplayed ? REPLAYED_APART_MS : LIVE_APART_MS;
    const same = this.#byKey.get(key);
    const one = same?.find((one) => {
      const apartAtMost = isExact && one.mark === mark ? 0 : apart;
      return Math.abs(one.time - time) <= apartAtMost && !one.sources.includes(source);
    });
    if (one !== undefined) {
      one.sources.push(source);
      return false;
    }
    const had = { key, time, mark, sources: [source], at: now };
    this.#had.push(had);
    if (same === undefined) this.#byKey.set(key, [had]);
    else same.push(had);
    this.#forget(keeps ? -Infinity : now - HAD_MS);
    return true;
  }

  #forget(before) {
    while (this.#had.length - this.#begin > HAD_MAX || this.#had[this.#begin]?.at < before) {
      const { key } = this.#had[this.#begin];
      const same = this.#byKey.get(key);
      if (same.length === 1) this.#byKey.delete(key);
      else same.shift();
      this.#begin += 1;
    }
    if (this.#begin > 1_000 && this.#begin * 2 > this.#had.length) {
      this.#had.splice(0, this.#begin);
      this.#begin = 0;
    }
  }
}

/** One connection. Knows the protocol's frames, and not what they are for. */
class Link {
  static #links = 0;

  #socket;
  #waiting = new Map();
  #lastId = 0;
  #stops = [];
  #on;
  #replyMs;
  #trouble;
  /** Frames that came. */
  #heard = 0;

  number = (Link.#links += 1);
  isOpen = false;
  isOver = false;
  /** Unix milliseconds. */
  heardAt = Date.now();
  openedAt = undefined;
  /** The place of the last frame. */
  cursor = undefined;
  /** The place before it: an event has a frame for each of the session's bindings that it matches, and the last ones may be lost. */
  before = undefined;
  /** Another process begins before the place that it was asked for; until it has come by there, that stays the place. */
  held = undefined;
  /** Records in force, and those that were asked for. */
  has = new Set();
  asked = new Set();
  /** By the record, the `resume` that it was asked for with. */
  resumes = new WeakMap();
  /** Events that may be of a binding that is asked for, too. */
  unpaired = [];
  /** Notices to come which say that nothing is resumed, where nothing had to be. */
  needless = 0;
  /** What was missed is coming. */
  isReplaying = false;
  doubles = 0;
  /** It could not be resumed: what was missed before this link does not come, but from the link that it takes over from. */
  gap = undefined;
  /** Events that wait meanwhile: that one may have still to bring what is of before them. Each with its records. */
  ahead = [];
  /** It has brought events without ids. */
  isWithoutIds = false;
  /** Its server goes away. */
  isGoing = false;
  /** The reply said that it is not resumed; the notice that says why has not come yet. */
  expectsWhy = false;
  /** A command has succeeded, so the server knows who it is. */
  isKnown = false;
  /** It has the session's name and metadata. */
  isNamed = false;
  /** The account that bindings without one are of, if it is known that a named one is that. */
  ownAccount = undefined;
  /** Subscribes in a row that the server could not do now. */
  retries = 0;

  /** `on`: open, ping, event, notice, reply, strange, over. */
  constructor(WebSocket, url, { connectMs, pingMs, pongMs, replyMs }, on) {
    this.#on = on;
    this.#replyMs = replyMs;
    const socket = new WebSocket(url);
    this.#socket = socket;
    this.after(connectMs, () => this.isOpen || this.end("no connection within the time for it"));
    socket.onopen = () => {
      if (this.isOver) return;
      this.isOpen = true;
      this.heardAt = this.openedAt = Date.now();
      this.#keepAlive(pingMs, pongMs);
      on.open(this);
    };
    socket.onmessage = ({ data }) => this.#take(data);
    socket.onerror = (event) => {
      this.#trouble = event?.error?.message || event?.message || undefined;
      // A close event follows at once, but not in Node 22 where the connection could not be made.
      this.after(1, () => this.end(this.#lostWords()));
    };
    socket.onclose = (event) => {
      const { code, reason } = event ?? {};
      if (code === undefined || code === 1005 || code === 1006) this.end(this.#lostWords());
      else this.end(reason ? `closed by the server: ${reason} (${code})` : `closed by the server (${code})`, code);
    };
  }

  #lostWords() {
    const words = this.isOpen ? "the connection was lost" : "no connection could be made";
    return this.#trouble === undefined ? words : `${words}: ${this.#trouble}`;
  }

  /** Sends a command. `done` is called once: with the reply, or without when the link is over. */
  command(action, token, data, done) {
    this.#lastId += 1;
    const id = requestId(this.#lastId, data?.account_id);
    const command = { action, request_id: id };
    if (token !== undefined) command.auth_token = token;
    if (data !== undefined) command.data = data;
    const stop = timer(this.#replyMs, () => this.end(`no reply to ${action} within the time for it`));
    this.#waiting.set(id, { done, stop });
    try {
      this.#socket.send(JSON.stringify(command));
    } catch (error) {
      this.end(String(error?.message ?? error));
    }
  }

  /** Closes it in good order, and hears nothing of it any more. Resolves when it is closed. */
  leave() {
    this.#detach();
    const socket = this.#socket;
    if (socket.readyState === 3) return Promise.resolve();
    return new Promise((resolve) => {
      const stop = timer(2_000, resolve);
      socket.onclose = () => {
        stop();
        resolve();
      };
      try {
        // 0 is CONNECTING: there a code makes no sense, and the package `ws` throws.
        if (socket.readyState === 0) socket.close();
        else socket.close(1000);
      } catch {
        resolve();
      }
    });
  }

  /** It is of no use any more. */
  end(why, code) {
    if (this.isOver) return;
    this.leave();
    this.#on.over(this, why, code);
  }

  #detach() {
    this.isOver = true;
    this.isOpen = false;
    for (const stop of this.#stops) stop();
    const socket = this.#socket;
    socket.onopen = socket.onmessage = socket.onclose = null;
    // A socket that fails while it is being left: the package `ws` would throw it without a listener.
    socket.onerror = () => {};
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const { done, stop } of waiting) {
      stop();
      done(undefined);
    }
  }

  /** Unless the link is over by then. */
  after(ms, run) {
    this.#stops.push(timer(ms, run));
  }

  #keepAlive(pingMs, pongMs) {
    let stop = () => {};
    this.#stops.push(() => stop());
    const ask = () => {
      const heard = this.#heard;
      this.#on.ping(this);
      stop = timer(pongMs, () => {
        if (this.#heard === heard) this.end("no answer to a ping");
        else wait();
      });
    };
    const wait = () => {
      // Not all clients of a server at once.
      stop = timer(pingMs * (0.9 + 0.2 * Math.random()), ask);
    };
    wait();
  }

  #take(data) {
    if (this.isOver) return;
    this.#heard += 1;
    this.heardAt = Date.now();
    let frame;
    try {
      frame = JSON.parse(data);
    } catch {
      frame = undefined;
    }
    switch (isSound(frame) ? frame.action : undefined) {
      case "event":
        this.#on.event(this, frame);
        return;
      case "notice":
        this.#on.notice(this, frame);
        return;
      case "reply": {
        const waiting = this.#waiting.get(frame.request_id);
        this.#waiting.delete(frame.request_id);
        waiting?.stop();
        this.#on.reply(this, frame);
        // Here and now, not by a promise: the frames behind it may be handed to us at once.
        waiting?.done(frame);
        return;
      }
      default:
        this.#on.strange();
    }
  }
}

/** See `Subscription` of the types. The client calls `take` and `finish`. */
class BlackholeSubscription {
  #client;
  #options;
  #queue = [];
  #begin = 0;
  #untold = 0;
  #reader;
  #end;
  #error;
  #resolveClosed;

  dropped = 0;

  constructor(client, bindings, account, options) {
    this.#client = client;
    this.#options = options;
    this.bindings = bindings;
    this.account = account;
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
  }

  get queued() {
    return this.#queue.length - this.#begin;
  }

  unsubscribe() {
    return this.#client.drop(this);
  }

  take(event) {
    if (this.#end !== undefined) return;
    const { onEvent, queueMax } = this.#options;
    if (onEvent !== undefined) {
      this.#client.call(onEvent, event, this);
    } else if (this.#reader !== undefined) {
      this.#answer({ value: event, done: false });
    } else {
      this.#queue.push(event);
      if (this.queued > queueMax) {
        this.#shift();
        this.dropped += 1;
        this.#untold += 1;
      }
    }
  }

  /** Nothing more comes. What waits for the loop is still read; then it ends, or throws `error`. */
  finish(end, error) {
    if (this.#end !== undefined) return;
    this.#end = end;
    this.#error = error;
    if (this.#reader !== undefined) this.#answerEnd();
    this.#resolveClosed(end);
  }

  values({ preventCancel = false } = {}) {
    const leave = async () => {
      if (!preventCancel) await this.unsubscribe();
    };
    const iterator = {
      next: () => this.#next(),
      return: async (value) => {
        await leave();
        return { value, done: true };
      },
      [Symbol.asyncIterator]: () => iterator,
    };
    return iterator;
  }

  [Symbol.asyncIterator]() {
    return this.values();
  }

  #next() {
    if (this.#options.onEvent !== undefined) {
      return handled(Promise.reject(new TypeError("the events of this subscription go to its onEvent")));
    }
    if (this.#reader !== undefined) {
      return handled(Promise.reject(new TypeError("one loop at a time over a subscription")));
    }
    if (this.#untold > 0) {
      const dropped = this.#untold;
      this.#untold = 0;
      this.#client.tell("gap", { reason: "slow_reader", dropped, subscription: this });
    }
    if (this.queued > 0) return Promise.resolve({ value: this.#shift(), done: false });
    const answer = new Promise((resolve, reject) => {
      this.#reader = { resolve, reject };
    });
    if (this.#end !== undefined) this.#answerEnd();
    return handled(answer);
  }

  #shift() {
    const event = this.#queue[this.#begin];
    this.#queue[this.#begin] = undefined;
    this.#begin += 1;
    if (this.#begin > 64 && this.#begin * 2 > this.#queue.length) {
      this.#queue.splice(0, this.#begin);
      this.#begin = 0;
    }
    return event;
  }

  #answer(result) {
    const { resolve } = this.#reader;
    this.#reader = undefined;
    resolve(result);
  }

  #answerEnd() {
    const { resolve, reject } = this.#reader;
    this.#reader = undefined;
    if (this.#error === undefined) resolve({ value: undefined, done: true });
    else reject(this.#error);
  }
}

/** A promise that rejects in silence where nobody waits for it. Who does gets the rejection. */
function handled(promise) {
  promise.catch(() => {});
  return promise;
}

/** See `Client` of the types. */
class BlackholeClient {
  #urls;
  #options;
  #WebSocket;
  #state = { name: "connecting" };
  #listeners = new Map();
  /** The session; undefined between two. */
  #link;
  /** The one that is to take over, while the server of the first goes away. */
  #next;
  /** The one that was taken over from, while both are read. */
  #last;
  #cursor;
  #wanted = new Map();
  #subscriptions = new Map();
  #commands = new Set();
  /** Promises of the application that are not settled. */
  #waits = 0;
  #doubles = new Doubles();
  #token;
  /** Of `authenticate`, until it is settled: the `other` token, should the one in use be refused. */
  #trial;
  #tries = 0;
  #addresses = 0;
  #refusals = 0;
  /** Since when nothing came, in Unix milliseconds; undefined: nothing was missed. */
  #lostAt;
  /** What links found out of this token. */
  #ownAccount;
  #stopPause = () => {};
  #stopMove = () => {};
  #stopOverlap = () => {};
  #stopRefresh = () => {};
  #syncs = false;
  #forgetSignal = () => {};
  #hooks;

  constructor(url, options = {}) {
    const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
    this.#options = { ...DEFAULTS, ...given };
    const { token, style, signal } = this.#options;
    const urls = Array.isArray(url) ? url : [url];
    if (urls.length === 0) throw new TypeError("there is no address");
    this.#urls = urls.map((one) => addressOf(one, style));
    if (typeof token !== "function") readToken(token);
    // Throws for what is no JSON, which no command could carry.
    JSON.stringify(this.#options.metadata);
    this.#WebSocket = this.#options.WebSocket ?? globalThis.WebSocket;
    if (typeof this.#WebSocket !== "function") throw new TypeError("this runtime has no WebSocket: give one as an option");
    this.#hooks = {
      open: (link) => this.#greet(link),
      ping: (link) => this.#ping(link),
      event: (link, event) => this.#takeEvent(link, event),
      notice: (link, notice) => this.#takeNotice(link, notice),
      reply: (link, reply) => this.#takeReply(link, reply),
      strange: () => this.#emit("error", new BlackholeError("protocol", "a frame that is none of the protocol's")),
      over: (link, why, code) => this.#over(link, why, code),
    };
    if (signal?.aborted) {
      this.#finish({ name: "closed" }, "closed", []);
      return;
    }
    const abort = () => this.close();
    signal?.addEventListener("abort", abort);
    this.#forgetSignal = () => signal?.removeEventListener("abort", abort);
    // So that whoever called can listen first.
    queueMicrotask(() => this.#open());
  }

  get state() {
    return this.#state;
  }

  get cursor() {
    // While two are read, what the second has brought may wait.
    return this.#last?.cursor ?? this.#link?.cursor ?? this.#cursor;
  }

  get subscriptions() {
    return [...this.#subscriptions.keys()];
  }

  on(name, listener) {
    if (typeof listener !== "function") throw new TypeError("a listener is a function");
    const entry = { listener };
    const entries = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, entries.add(entry));
    return () => entries.delete(entry);
  }

  subscribe(bindings, options = {}) {
    return handled(
      new Promise((resolve, reject) => {
        const list = [...new Set(typeof bindings === "string" ? [bindings] : bindings)];
        if (list.length === 0 || list.some((one) => typeof one !== "string" || one === "")) {
          throw new TypeError("bindings are texts that are not empty, at least one");
        }
        const account = options.account ?? this.#options.account;
        const queueMax = options.queueMax ?? this.#options.queueMax;
        const subscription = new BlackholeSubscription(this.#inner(), list, account, { onEvent: options.onEvent, queueMax });
        const wait = this.#wait(options, "subscribe", resolve, (error) => {
          this.#remove(subscription, { reason: "refused", bindings: list, errors: error.errors ?? [] }, error);
          reject(error);
        });
        if (wait === undefined) return;
        const { signal } = options;
        if (signal !== undefined) {
          const leave = () => void subscription.unsubscribe();
          signal.addEventListener("abort", leave);
          void subscription.closed.then(() => signal.removeEventListener("abort", leave));
        }
        this.#subscriptions.set(subscription, wait);
        let isShared = false;
        for (const binding of list) {
          const key = keyOf(account, binding);
          let record = this.#wanted.get(key);
          if (record === undefined) {
            record = new WantedBinding(account, binding);
            record.from = options.resume;
            this.#wanted.set(key, record);
          } else if (options.resume !== undefined && options.resume !== record.from) {
            isShared = true;
          }
          record.subscriptions.add(subscription);
        }
        // The server sends again only for what a session does not have yet.
        if (isShared) queueMicrotask(() => this.#emit("gap", { reason: "resume", why: "shared", subscription }));
        this.#syncSoon();
      }),
    );
  }

  ping(options = {}) {
    const begun = performance.now();
    return handled(
      new Promise((resolve, reject) => {
        this.#run("ping", options, (reply) => {
          if (reply.status === "success") resolve(performance.now() - begun);
          else reject(rejection(reply));
        }, reject);
      }),
    );
  }

  authenticate(token, options = {}) {
    return handled(
      new Promise((resolve, reject) => {
        const next = readToken(token);
        const before = this.#token;
        // A session that is known goes on as it is until the server has taken the token, which one command alone carries.
        const isBeside = this.#link?.isKnown === true;
        const trial = { other: isBeside ? next : before };
        this.#trial = trial;
        if (!isBeside) this.#useToken(next);
        const end = (then) => (value) => {
          if (this.#trial === trial) this.#trial = undefined;
          then(value);
        };
        const command = this.#run("ping", options, end((reply) => {
          const errors = reply.data?.errors ?? [];
          // Whether it may see an account shows when one is named.
          const isTaken = reply.status === "success" || !anyBegins(errors, isBeside ? [...TOKEN_ERRORS, ...PASSING_ERRORS] : TOKEN_ERRORS);
          if (isTaken) {
            if (this.#token !== next) this.#useToken(next);
            // What is in force on a link stays what it was, also by the name of the own account.
            for (const link of this.#links()) {
              if (link === command?.link) continue;
              link.isKnown = false;
              if (link.isOpen) this.#ping(link);
            }
            this.#refreshLater();
            resolve();
          } else {
            if (this.#token === next) this.#useToken(before);
            reject(rejection(reply));
          }
        }), isBeside ? end(reject) : reject, next);
      }),
    );
  }

  close() {
    return Promise.all(this.#finish({ name: "closed" }, "closed", [])).then(() => undefined);
  }

  [Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]() {
    return this.close();
  }

  /** What a subscription may call. */
  #inner() {
    return {
      drop: (subscription) => this.#drop(subscription),
      call: (listener, ...values) => this.#call(listener, values),
      tell: (name, value) => this.#emit(name, value),
    };
  }

  // ---- Promises of the application ----

  /** A promise with a time-out and a signal: `resolve` and `reject` once, whichever is first. Undefined: it was rejected. */
  #wait({ signal, timeoutMs = this.#options.timeoutMs }, what, resolve, reject) {
    let isOver = false;
    const wait = { errors: [] };
    const once = (run) => (value) => {
      if (isOver) return;
      isOver = true;
      this.#waits -= 1;
      stop();
      signal?.removeEventListener("abort", abort);
      run(value);
    };
    const abort = () => wait.reject(new BlackholeError("aborted", `${what}: aborted`, { cause: signal.reason }));
    this.#waits += 1;
    wait.resolve = once(resolve);
    wait.reject = once(reject);
    const stop = timer(timeoutMs, () => {
      const { errors } = wait;
      const code = errors.length > 0 ? "unavailable" : "timeout";
      wait.reject(new BlackholeError(code, `${what}: ${errors.join("; ") || "no answer in time"}`, { errors }));
    });
    if (signal?.aborted) {
      abort();
    } else if (this.#isFinal()) {
      wait.reject(this.#finalError());
    } else if (this.#waits > COMMANDS_MAX) {
      wait.reject(new BlackholeError("too_many_requests", `${what}: more than ${COMMANDS_MAX} commands wait`));
    } else {
      signal?.addEventListener("abort", abort);
      return wait;
    }
    return undefined;
  }

  /** Runs a command on the session, or on the next one; with a token of its own, if it is to try that. */
  #run(action, options, done, reject, token) {
    let command;
    const forget = (then) => (value) => {
      this.#commands.delete(command);
      then(value);
    };
    const wait = this.#wait(options, action, forget(done), forget(reject));
    if (wait === undefined) return undefined;
    command = { action, wait, token, link: undefined };
    this.#commands.add(command);
    if (this.#link?.isOpen) this.#give(this.#link, command);
    return command;
  }

  #give(link, command) {
    if (command.link === link) return;
    command.link = link;
    link.command(command.action, command.token?.text ?? this.#tokenFor(link), undefined, (reply) => {
      if (reply !== undefined) command.wait.resolve(reply);
    });
  }

  #finalError() {
    return this.#state.name === "refused"
      ? new BlackholeError("refused", `refused: ${this.#state.why}`, { closeCode: this.#state.code })
      : new BlackholeError("closed", "the client is closed");
  }

  // ---- Telling the application ----

  #emit(name, ...values) {
    const entries = this.#listeners.get(name);
    if (entries === undefined) return;
    for (const { listener } of [...entries]) this.#call(listener, values, name);
  }

  /** What a listener throws, or rejects with, is told. */
  #call(listener, values, name) {
    const tell = (cause) => {
      const error = new BlackholeError("listener", `a listener threw: ${cause?.message ?? cause}`, { cause });
      // Not to the one that has just thrown.
      if (name !== "error" && (this.#listeners.get("error")?.size ?? 0) > 0) this.#emit("error", error);
      else globalThis.console?.error(error);
    };
    try {
      const result = listener(...values);
      if (typeof result?.then === "function") result.then(undefined, tell);
    } catch (cause) {
      tell(cause);
    }
  }

  #become(state) {
    const previous = this.#state;
    if (this.#isFinal() || (state.name === "live" && previous.name === "live")) return;
    this.#state = Object.freeze(state);
    this.#emit("state", this.#state, previous);
  }

  #isFinal() {
    return this.#state.name === "closed" || this.#state.name === "refused";
  }

  // ---- Connections ----

  #links() {
    return [this.#link, this.#next, this.#last].filter((link) => link !== undefined);
  }

  /** Makes a connection: the session, or the one that is to take over. */
  async #open(isNext = false) {
    let token;
    try {
      token = await this.#needToken();
    } catch (cause) {
      if (this.#isFinal()) return;
      this.#emit("error", new BlackholeError("token", `no token: ${cause?.message ?? cause}`, { cause }));
      if (isNext && this.#link !== undefined) this.#moveLater();
      else this.#openLater("there is no token");
      return;
    }
    const isWanted = isNext ? this.#mayMove() : this.#link === undefined;
    if (this.#isFinal() || token === undefined || !isWanted) return;
    const url = this.#urls[this.#addresses++ % this.#urls.length];
    let link;
    try {
      link = new Link(this.#WebSocket, url, { ...this.#options, replyMs: REPLY_MS }, this.#hooks);
    } catch (error) {
      if (isNext) this.#moveLater();
      else this.#openLater(String(error?.message ?? error));
      return;
    }
    if (isNext) this.#next = link;
    else this.#link = link;
  }

  /** Full jitter: all that lost one server come back spread over the whole pause. */
  #pause() {
    const { pauseMs, pauseMaxMs } = this.#options;
    const step = Math.min(pauseMaxMs, pauseMs * 2 ** Math.min(this.#tries, 30));
    this.#tries += 1;
    return Math.round(Math.random() * step);
  }

  #openLater(why) {
    const inMs = this.#pause();
    this.#stopPause();
    this.#stopPause = timer(Math.max(inMs, 1), () => {
      this.#become({ name: "reconnecting", why, tries: this.#tries, inMs: 0 });
      void this.#open();
    });
    this.#become({ name: "reconnecting", why, tries: this.#tries, inMs });
  }

  /** One move after the other: the link that was taken over from last may still be needed. */
  #mayMove() {
    return this.#link !== undefined && this.#next === undefined && this.#last === undefined;
  }

  #moveLater(withinMs = Infinity) {
    this.#stopMove();
    this.#stopMove = timer(Math.max(Math.min(this.#pause(), withinMs), 1), () => void this.#open(true));
  }

  /** A link is open: its first commands. */
  #greet(link) {
    link.cursor = this.cursor;
    link.ownAccount = this.#ownAccount;
    this.#sync(link);
    if (link.isOver) return;
    if (link.asked.size === 0) this.#ping(link);
    if (link === this.#link) for (const command of [...this.#commands]) this.#give(link, command);
  }

  #ping(link) {
    link.command("ping", this.#tokenFor(link), undefined, (reply) => {
      if (reply === undefined || this.#isDone(link)) return;
      if (reply.status === "success") {
        if (reply.data.cursor !== undefined && link.held === undefined) this.#standAt(link, reply.data.cursor);
      } else if (anyBegins(reply.data.errors ?? [], TOKEN_ERRORS)) {
        this.#refuseToken(link, reply.data.errors.join("; "));
        return;
      }
      this.#settle(link);
    });
  }

  #over(link, why, code) {
    const isSession = link === this.#link;
    if (link === this.#last) {
      this.#stopOverlap();
      this.#last = undefined;
      // It was still needed.
      this.#tellGap(this.#link);
      this.#moveIfGoing();
      return;
    }
    if (link === this.#next) {
      this.#next = undefined;
      this.#moveLater();
      return;
    }
    if (!isSession) return;
    this.#lostAt ??= link.openedAt === undefined ? undefined : link.heardAt;
    // What was still to be told of this link, or to be brought by the one that it took over from.
    this.#explain(link);
    this.#tellGap(link);
    // Who was told may have closed the client.
    if (this.#isFinal()) return;
    this.#cursor = link.cursor ?? this.#cursor;
    this.#keepPlaces(link);
    this.#noteLife(link);
    this.#stopOverlap();
    void this.#last?.leave();
    this.#last = undefined;
    this.#stopMove();
    this.#link = undefined;
    if (code === TOKEN_EXPIRED) {
      void this.#next?.leave();
      this.#next = undefined;
      this.#refuseToken(undefined, why, code);
      return;
    }
    const isFinal = FINAL_CODES.includes(code) || (code >= 4000 && code <= 4999 && code !== SLOW_CONSUMER);
    if (isFinal) {
      this.#refuse(why, code);
    } else if (this.#next !== undefined) {
      // It is on its way already.
      const next = this.#next;
      this.#link = next;
      this.#next = undefined;
      this.#forgetPlaces(next);
      this.#become({ name: "reconnecting", why, tries: this.#tries, inMs: 0 });
      if (next.isOpen) {
        for (const command of [...this.#commands]) this.#give(next, command);
        this.#tellGap(next);
        this.#settle(next);
      }
    } else {
      this.#openLater(why);
    }
  }

  /** A server that ends each session soon is not to be hammered. */
  #noteLife({ openedAt }) {
    if (openedAt !== undefined && Date.now() - openedAt >= this.#options.pauseMaxMs) this.#tries = 0;
  }

  /** What is answered there is not of interest any more. */
  #isDone(link) {
    return link.isOver || link === this.#last;
  }

  // ---- Tokens ----

  #useToken(token) {
    this.#token = token;
    this.#ownAccount = undefined;
  }

  /** The token for a command; undefined once the server knows it. */
  #tokenFor(link) {
    return link.isKnown ? undefined : this.#token?.text;
  }

  async #needToken() {
    if (this.#token === undefined) {
      const reason = this.#refusals > 0 ? "refused" : "connect";
      this.#token = await this.#askToken(reason);
      this.#refreshLater();
    }
    return this.#token;
  }

  async #askToken(reason) {
    const { token } = this.#options;
    if (typeof token !== "function") return readToken(token);
    let stop;
    const late = new Promise((_, reject) => {
      stop = timer(TOKEN_MS, () => reject(new Error("no token within the time for it")));
    });
    try {
      return readToken(await Promise.race([token({ reason }), late]));
    } finally {
      stop();
    }
  }

  #refreshLater(leastMs) {
    this.#stopRefresh();
    const ends = this.#token?.ends;
    if (typeof this.#options.token !== "function" || ends === undefined || this.#isFinal()) return;
    const { refreshMs } = this.#options;
    const early = refreshMs * (1 + Math.random() / 2);
    const left = ends - Date.now();
    // A token may live shorter than `refreshMs`, or have ended by a clock that is wrong: who gives tokens is not to be hammered.
    const least = left > 0 ? REFRESH_LEAST_MS : Math.max(REFRESH_ENDED_MS, refreshMs / 4);
    const inMs = leastMs ?? Math.max(left - early, left / 2, least);
    this.#stopRefresh = timer(inMs, () => {
      if (inMs > TIMER_MS_MAX) this.#refreshLater();
      else void this.#refresh();
    });
  }

  async #refresh() {
    try {
      const next = await this.#askToken("expires");
      if (this.#isFinal()) return;
      await this.authenticate({ token: next.text, expires: next.ends === undefined ? undefined : new Date(next.ends) });
    } catch (cause) {
      if (this.#isFinal()) return;
      const error = new BlackholeError("token", `the token is not renewed: ${cause?.message ?? cause}`, { cause });
      this.#emit("error", error);
      this.#refreshLater(Math.min(this.#options.pauseMaxMs, this.#options.refreshMs / 4) * (0.5 + Math.random() / 2));
    }
  }

  /** The server does not take the token: the one on trial is used, or that before it; or a function is asked for another, once. */
  #refuseToken(link, why, code) {
    if (link !== undefined && link === this.#next) {
      // The first one takes it.
      link.end(why);
      return;
    }
    const other = this.#trial?.other;
    if (other !== undefined) {
      this.#trial = undefined;
      this.#useToken(other);
    } else if (typeof this.#options.token !== "function" || this.#refusals > 0) {
      this.#refuse(why, code);
      return;
    } else {
      this.#refusals += 1;
      this.#useToken(undefined);
      this.#stopRefresh();
    }
    if (link === undefined) this.#openLater(why);
    else link.end(why);
  }

  // ---- What is wanted, and what is in force ----

  /** All that is asked for in one go goes into one command. */
  #syncSoon() {
    if (this.#syncs) return;
    this.#syncs = true;
    queueMicrotask(() => {
      this.#syncs = false;
      for (const link of this.#links()) {
        if (link !== this.#last) this.#sync(link);
        if (link.isOpen) this.#settle(link);
      }
    });
  }

  /** Asks for what is wanted and not in force, in one command for each account and place to begin at. */
  #sync(link) {
    if (!link.isOpen) return;
    const groups = new Map();
    // Those without an account first: then each named one shows by itself whether it is of the own account. But behind all
    // that have a place, which the server takes for the first name only.
    const turn = ({ account, wasLive, from }) => (wasLive || from !== undefined ? 0 : 2) + (account === undefined ? 0 : 1);
    for (const record of [...this.#wanted.values()].sort((one, other) => turn(one) - turn(other))) {
      if (link.has.has(record) || link.asked.has(record)) continue;
      const resume = this.#resumeOf(link, record);
      const key = `${record.account ?? ""} ${record.wasLive} ${resume}`;
      const group = groups.get(key);
      if (group === undefined) groups.set(key, { resume, records: [record] });
      else group.records.push(record);
    }
    for (const { resume, records } of groups.values()) this.#ask(link, records, resume);
  }

  #resumeOf(link, record) {
    if (record.from !== undefined) return record.from;
    if (!this.#options.resume) return undefined;
    return (record.wasLive ? link.cursor : undefined) ?? true;
  }

  #ask(link, records, resume) {
    const { name, metadata } = this.#options;
    const [{ account }] = records;
    const data = { bindings: records.map(({ binding }) => binding) };
    if (account !== undefined) data.account_id = account;
    if (resume !== undefined) data.resume = resume;
    if (!link.isNamed && name !== undefined) data.name = name;
    if (!link.isNamed && metadata !== undefined) data.metadata = metadata;
    for (const record of records) link.asked.add(record);
    const [{ wasLive }] = records;
    link.command("subscribe", this.#tokenFor(link), data, (reply) => {
      if (reply === undefined || this.#isDone(link)) return;
      for (const record of records) link.asked.delete(record);
      // Those that are not wanted any more were unsubscribed behind the subscribe.
      const still = records.filter((record) => this.#wanted.get(record.key) === record);
      if (reply.status === "success") this.#takeSubscribed(link, still, resume, wasLive, reply.data);
      else this.#takeErrors(link, still, resume, reply.data.errors ?? []);
      if (link.asked.size === 0) link.unpaired = [];
      this.#settle(link);
    });
  }

  #takeSubscribed(link, records, resume, wasLive, { cursor, resumed, subscribed = [] }) {
    link.isNamed = true;
    link.retries = 0;
    if (link.ownAccount === undefined && subscribed.length < new Set([...link.has, ...records]).size) {
      const accounts = this.#pairedWith(link, records);
      if (accounts.size > 1) {
        // A new session asks in the order in which it shows, for all from one place.
        for (const record of records) link.has.add(record);
        link.end("which account is the token's own does not show");
        return;
      }
      const [own] = accounts;
      if (own !== undefined) this.#ownAccount = link.ownAccount = own;
    }
    const missed = records.filter(({ wasLive }) => wasLive);
    // It may have been asked for as new, and been in force on the other of two links before it was here.
    const isLater = link === this.#next || missed.some(({ from }) => from !== undefined);
    const wasMissed = missed.length > 0 && (wasLive || isLater);
    const areHad = records.length > 0 && records.every((record) => this.#hasByOtherName(link, record, resume));
    // The session goes back for these; the others have had more.
    if (resumed === true && link === this.#link) this.#keepPlaces(link);
    if (resume !== undefined) this.#standAt(link, cursor);
    for (const record of records) {
      link.has.add(record);
      link.resumes.set(record, resume);
    }
    if (resumed === true) {
      link.isReplaying = true;
      link.held = link.cursor;
    } else if (resumed === false) {
      if (areHad) link.needless += 1;
      else link.expectsWhy = true;
    } else if (wasMissed || typeof resume === "string") {
      this.#findGap(link, { reason: "reconnect" });
    }
    for (const record of records) {
      if (!record.wasLive && resume === true && cursor !== undefined) record.since = cursor;
      record.wasLive = true;
      if (link === this.#link) record.from = undefined;
    }
    if (link.ownAccount === undefined) return;
    for (const event of link.unpaired.splice(0)) {
      if (link.isOver) return;
      this.#hand(link, event, this.#recordsOf(link, event).filter((record) => missed.includes(record)), true);
    }
  }

  /** A reply said where the session stands. While something is replayed, or waits, what is before that place is still to come. */
  #standAt(link, cursor) {
    if ((link.isReplaying && timeOf(cursor) > timeOf(link.cursor)) || link.ahead.length > 0) return;
    link.before = link.cursor = cursor;
    if (cursor === undefined && link === this.#link) this.#cursor = undefined;
  }

  /**
   * The server has fewer bindings than we think: some of these are the same as those of one name that are in force, one of
   * both by the token's own account. The accounts that this may be.
   */
  #pairedWith(link, records) {
    const accounts = new Set();
    for (const { account, binding } of records) {
      for (const record of link.has) {
        const isPair = record.binding === binding && (record.account === undefined) !== (account === undefined);
        if (isPair) accounts.add(record.account ?? account);
      }
    }
    return accounts;
  }

  /** Whether the own account's other name has brought this binding from the same place already. */
  #hasByOtherName(link, { account, binding }, resume) {
    if (link.ownAccount === undefined || (account !== undefined && account !== link.ownAccount)) return false;
    const other = this.#wanted.get(keyOf(account === undefined ? link.ownAccount : undefined, binding));
    return other !== undefined && link.has.has(other) && link.resumes.get(other) === resume;
  }

  #takeErrors(link, records, resume, errors) {
    if (records.length === 0) return;
    if (anyBegins(errors, TOKEN_ERRORS)) {
      this.#refuseToken(link, errors.join("; "));
    } else if (anyBegins(errors, PASSING_ERRORS)) {
      for (const wait of this.#waitsOf(records)) wait.errors = errors;
      this.#emit("error", new BlackholeError("unavailable", `${errors.join("; ")}; it is tried again`, { errors }));
      const { pauseMs, pauseMaxMs } = this.#options;
      const step = Math.min(pauseMaxMs, pauseMs * 2 ** Math.min(link.retries, 30));
      link.retries += 1;
      link.after(Math.max(step * Math.random(), 1), () => this.#sync(link));
    } else if (errors.includes("invalid resume")) {
      if (records[0].wasLive) link.cursor = undefined;
      for (const record of records) record.from = undefined;
      this.#findGap(link, { reason: "resume", why: "invalid" });
      this.#sync(link);
    } else if (records[0].wasLive) {
      this.#askInHalves(link, records, resume, errors);
    } else {
      this.#askApart(link, records, resume, errors);
    }
  }

  /** One bad binding refuses a command: which one it is shows when fewer are asked for. */
  #askInHalves(link, records, resume, errors) {
    if (records.length === 1) {
      this.#endRecord(records[0], "refused", errors);
      return;
    }
    const half = records.length >> 1;
    this.#ask(link, records.slice(0, half), resume);
    this.#ask(link, records.slice(half), resume);
  }

  /** Subscriptions that were asked for in one go: each by itself, all or nothing. */
  #askApart(link, records, resume, errors) {
    const waits = this.#waitsOf(records);
    if (waits.length === 1) {
      waits[0].reject(new BlackholeError("rejected", errors.join("; ") || "rejected", { errors }));
      return;
    }
    const left = new Set(records);
    for (const subscription of this.#subscriptions.keys()) {
      const own = [...left].filter((record) => record.subscriptions.has(subscription));
      for (const record of own) left.delete(record);
      if (own.length > 0) this.#ask(link, own, resume);
    }
  }

  /** The waits of the subscriptions that are not confirmed and want some of these. */
  #waitsOf(records) {
    const subscriptions = new Set(records.flatMap((record) => [...record.subscriptions]));
    return [...subscriptions].map((one) => this.#subscriptions.get(one)).filter((wait) => wait !== undefined);
  }

  /** Something was answered: who has waited for it? */
  #settle(link) {
    if (link.isOver || !link.isOpen || link === this.#last) return;
    const isWhole = link.asked.size === 0 && link.has.size >= this.#wanted.size && !link.expectsWhy;
    if (link === this.#next) {
      if (isWhole && !link.isReplaying && link.isKnown) this.#takeOver();
      return;
    }
    for (const [subscription, wait] of this.#subscriptions) {
      if (wait === undefined) continue;
      const { account, bindings } = subscription;
      if (bindings.every((binding) => link.has.has(this.#wanted.get(keyOf(account, binding))))) {
        this.#subscriptions.set(subscription, undefined);
        wait.resolve(subscription);
      }
    }
    if (link.isReplaying) {
      this.#become({ name: "resuming" });
    } else if (isWhole) {
      this.#lostAt = undefined;
      this.#become({ name: "live" });
    }
  }

  /** The second link has what the first has, or will have after a time in which both are read. */
  #takeOver() {
    const first = this.#link;
    const second = this.#next;
    this.#link = second;
    this.#next = undefined;
    this.#forgetPlaces(second);
    this.#noteLife(first);
    this.#stopMove();
    if (second.gap !== undefined && this.#canFill(first, second)) {
      this.#last = first;
      this.#stopOverlap = timer(OVERLAP_MS, () => this.#endOverlap());
    } else {
      void first.leave();
      if (first.isWithoutIds) second.ahead = [];
      this.#tellGap(second);
    }
    for (const command of [...this.#commands]) this.#give(second, command);
    this.#settle(second);
    this.#moveIfGoing();
  }

  /** Whether the first brings all that the second could not resume. */
  #canFill(first, second) {
    if (first.isReplaying || first.expectsWhy || first.isWithoutIds) return false;
    return [...second.has].every((record) => first.has.has(record) || typeof second.resumes.get(record) !== "string");
  }

  /** The first of two links has brought what the second could not. */
  #endOverlap() {
    void this.#last.leave();
    this.#last = undefined;
    this.#link.gap = undefined;
    this.#handAhead(this.#link);
    this.#moveIfGoing();
  }

  /** The server of the session may have said that it goes away when there was no move to begin. */
  #moveIfGoing() {
    if (this.#link?.isGoing && this.#mayMove()) this.#moveLater();
  }

  /** Notes where what the link has would go on elsewhere. */
  #keepPlaces({ has, cursor, before }) {
    const place = has.size > 1 ? (before ?? cursor) : cursor;
    if (this.#options.resume) for (const record of has) record.from ??= place;
  }

  /** This link is the session, and up to date: what it has goes on with it. */
  #forgetPlaces(link) {
    for (const record of link.has) record.from = undefined;
  }

  // ---- What comes ----

  #takeReply(link, reply) {
    this.#explain(link);
    if (reply.status === "success") {
      link.isKnown = true;
      this.#refusals = 0;
    }
    this.#emit("reply", reply);
  }

  #takeEvent(link, event) {
    this.#explain(link);
    this.#keepForPair(link, event);
    if (!link.isOver) this.#hand(link, event, this.#recordsOf(link, event));
  }

  /** The link has come to the place of this event. */
  #moveOn(link, { cursor, replayed }) {
    if (link.held !== undefined && cursor !== undefined) {
      const isBehind = replayed === true && markOf(cursor) !== markOf(link.held) && idOf(cursor) !== idOf(link.held);
      if (!isBehind) link.held = undefined;
    }
    if (cursor !== undefined && cursor !== link.cursor && link.held === undefined) {
      link.before = link.cursor;
      link.cursor = cursor;
    }
  }

  /** Until its subscribe is answered it is not known whether a binding is the same as this one, by the own account's other name. */
  #keepForPair(link, event) {
    if (link.ownAccount !== undefined || link.asked.size === 0) return;
    const isNamed = accountOf(event.request_id) !== undefined;
    const isPair = ({ account, binding }) => binding === event.subscribed_key && (account !== undefined) !== isNamed;
    if (![...link.asked].some(isPair)) return;
    if (link.unpaired.length < UNPAIRED_MAX) link.unpaired.push(event);
    else link.end("too many events before the reply to a subscribe");
  }

  /** Gives an event to those of these records that have not had it. `isOfBefore`: the link is further on by now. */
  #hand(link, event, wanted, isOfBefore = false) {
    if (event.cursor === undefined && this.#isOfOther(link)) return;
    if (this.#isAhead(link, event, wanted)) {
      link.ahead.push({ event, wanted, isOfBefore });
      if (link.ahead.length > AHEAD_MAX) (link === this.#next ? link : this.#last).end("too many events wait for it");
      return;
    }
    if (!isOfBefore) this.#moveOn(link, event);
    this.#tell(link, event, wanted);
  }

  /** `waited`: for another link, which may have brought it long ago. */
  #tell(link, event, wanted, waited = false) {
    if (wanted.length === 0) return;
    const { cursor } = event;
    const keeps = waited || this.#state.name !== "live" || this.#next !== undefined || this.#last !== undefined;
    // Each by itself: one may have begun later than the other, or had it on a link that did not know of both.
    const records = wanted.filter((record) => {
      return cursor === undefined || this.#doubles.take(link.number, record, cursor, event.replayed === true, keeps, Date.now());
    });
    if (records.length === 0) {
      link.doubles += 1;
      return;
    }
    const subscriptions = records.flatMap((record) => [...record.subscriptions]);
    this.#emit("event", event, subscriptions);
    for (const subscription of subscriptions) subscription.take(event);
  }

  // ---- Two links, of which the second could not resume where the first stands ----

  /** Whether the event waits: the first link may have still to bring what is of before it. */
  #isAhead(link, event, wanted) {
    if (link.gap === undefined || event.cursor === undefined) return false;
    if (link.ahead.length > 0) return true;
    const first = link === this.#next ? this.#link : this.#last;
    // What is replayed begins where the first stands, so it comes in order by itself.
    return event.replayed !== true && wanted.some((record) => first.has.has(record));
  }

  /** Hands on what waits: all, or that of some records. */
  #handAhead(link, some) {
    for (const entry of some === undefined ? link.ahead.splice(0) : link.ahead) {
      const { event } = entry;
      const isMeant = (record) => some === undefined || some.includes(record);
      const wanted = entry.wanted.filter((record) => isMeant(record) && this.#wanted.get(record.key) === record);
      if (this.#isFinal()) return;
      if (some !== undefined) entry.wanted = entry.wanted.filter((record) => !isMeant(record));
      else if (!entry.isOfBefore) this.#moveOn(link, event);
      this.#tell(link, event, wanted, true);
    }
  }

  /**
   * Whether the other of two links brings what comes here without an id, by which it would be known. Until it has taken over,
   * the second brings nothing; then the first is not read on, and what it has not brought is a gap.
   */
  #isOfOther(link) {
    if (link === this.#next) {
      link.gap ??= { reason: "reconnect" };
      return true;
    }
    link.isWithoutIds = true;
    if (this.#next !== undefined) this.#next.ahead = [];
    if (this.#last === undefined) return false;
    const isOfLast = link === this.#last;
    this.#link.ahead = [];
    this.#last.end("its events have no ids");
    return isOfLast || link.isOver;
  }

  /** Those that an event is for: of one subscription of the server two, if the own account has two names. */
  #recordsOf(link, { request_id: requestId, subscribed_key: binding }) {
    const account = accountOf(requestId);
    const keys = [keyOf(account, binding)];
    if (link.ownAccount !== undefined) {
      if (account === undefined) keys.push(keyOf(link.ownAccount, binding));
      if (account === link.ownAccount) keys.push(keyOf(undefined, binding));
    }
    const records = keys.map((key) => this.#wanted.get(key)).filter((record) => record !== undefined);
    // What was subscribed anew meanwhile is not in force there.
    return link === this.#last ? records.filter((record) => link.has.has(record)) : records;
  }

  #takeNotice(link, notice) {
    const { name, data = {} } = notice;
    const isWhy = name === "gap" && data.reason === "resume";
    if (isWhy && !link.expectsWhy && link.needless > 0) {
      link.needless -= 1;
      this.#emit("notice", notice);
      return;
    }
    if (!isWhy) this.#explain(link);
    this.#emit("notice", notice);
    if (link.isOver) return;
    if (link === this.#last) {
      if (name === "gap" && !isWhy) this.#emit("gap", { ...data });
      return;
    }
    if (isWhy) {
      link.isReplaying = link.expectsWhy = false;
      link.held = undefined;
      if (link === this.#link) this.#forgetPlaces(link);
      this.#findGap(link, { reason: "resume", why: data.why });
      this.#settle(link);
    } else if (name === "gap") {
      this.#emit("gap", { ...data });
    } else if (name === "resumed") {
      link.isReplaying = false;
      link.held = undefined;
      if (link === this.#link) this.#forgetPlaces(link);
      this.#emit("resumed", { events: data.events ?? 0, doubles: link.doubles });
      link.doubles = 0;
      this.#settle(link);
    } else if (name === "going_away") {
      link.isGoing = true;
      if (link === this.#link && this.#mayMove()) this.#moveLater(data.within_ms);
    } else if (name === "subscriptions_ended") {
      this.#takeEnded(link, data);
    }
  }

  #takeEnded(link, { reason, bindings = [] }) {
    this.#handAhead(link, [...link.has].filter(({ binding }) => bindings.includes(binding)));
    // Bindings without an account are asked for again, as another's.
    if (reason === "identity") link.ownAccount = undefined;
    for (const binding of bindings) {
      const records = [...link.has].filter((record) => record.binding === binding);
      // The notice does not say of which account. Who asks again for what he has gets it.
      if (records.length === 1) this.#endRecord(records[0], reason, []);
      else for (const record of records) link.has.delete(record);
    }
    this.#sync(link);
  }

  // ---- Gaps ----

  /** What was missed before this link does not come. The first of two links may have it. */
  #findGap(link, gap) {
    if (link === this.#next && this.#link !== undefined) {
      link.gap = gap;
      return;
    }
    const from = this.#lostAt === undefined ? {} : { from: this.#lostAt, to: Date.now() };
    this.#emit("gap", { ...gap, ...from });
  }

  /** The link was to fill its gap from another, which is lost. */
  #tellGap(link) {
    const gap = link?.gap;
    if (gap === undefined) return;
    link.gap = undefined;
    this.#findGap(link, gap);
    this.#handAhead(link);
  }

  /** Another frame came than the notice that says why nothing is resumed. */
  #explain(link) {
    if (!link.expectsWhy) return;
    link.expectsWhy = false;
    this.#findGap(link, { reason: "resume" });
    this.#settle(link);
  }

  // ---- Ends ----

  /** The application does not want it any more. */
  async #drop(subscription) {
    const wait = this.#subscriptions.get(subscription);
    const { bindings } = subscription;
    await this.#remove(subscription, { reason: "unsubscribed", bindings, errors: [] });
    wait?.reject(new BlackholeError("aborted", "subscribe: unsubscribed"));
  }

  /** Resolves when no link has its bindings any more, or none of them answers. */
  #remove(subscription, end, error) {
    if (!this.#subscriptions.delete(subscription)) return Promise.resolve();
    const gone = [];
    for (const binding of subscription.bindings) {
      const record = this.#wanted.get(keyOf(subscription.account, binding));
      record?.subscriptions.delete(subscription);
      if (record?.subscriptions.size !== 0) continue;
      this.#wanted.delete(record.key);
      gone.push(record);
    }
    subscription.finish(end, error);
    const links = this.#links().filter((link) => link.isOpen && link !== this.#last);
    const done = Promise.all(links.map((link) => this.#unsubscribe(link, gone)));
    this.#syncSoon();
    return done;
  }

  #unsubscribe(link, gone) {
    const records = gone.filter((record) => link.has.delete(record) || link.asked.delete(record));
    if (records.length === 0) return Promise.resolve();
    const data = { bindings: records.map(({ binding }) => binding) };
    const [{ account }] = records;
    if (account !== undefined) data.account_id = account;
    return new Promise((resolve) => {
      link.command("unsubscribe", this.#tokenFor(link), data, (reply) => {
        resolve();
        if (reply === undefined || this.#isDone(link)) return;
        // Without an account the server takes the binding of all accounts, and the own one goes by two names.
        const isOfMore = account === undefined || account === link.ownAccount;
        if (isOfMore) for (const record of link.has) if (data.bindings.includes(record.binding)) link.has.delete(record);
        this.#sync(link);
        this.#settle(link);
      });
    });
  }

  /** The server has ended it. */
  #endRecord(record, reason, errors) {
    this.#wanted.delete(record.key);
    for (const link of this.#links()) link.has.delete(record);
    const { binding } = record;
    for (const subscription of [...record.subscriptions]) {
      const wait = this.#subscriptions.get(subscription);
      if (wait !== undefined) {
        wait.reject(new BlackholeError("rejected", `${binding}: ${errors.join("; ") || reason}`, { errors }));
        continue;
      }
      const end = { reason, bindings: [binding], errors };
      subscription.bindings = subscription.bindings.filter((one) => one !== binding);
      this.#emit("ended", end, subscription);
      if (subscription.bindings.length > 0) continue;
      this.#subscriptions.delete(subscription);
      const text = `the server has ended it: ${errors.join("; ") || reason}`;
      subscription.finish(end, new BlackholeError("rejected", text, { errors }));
    }
  }

  #refuse(why, code) {
    const state = code === undefined ? { name: "refused", why } : { name: "refused", why, code };
    void this.#finish(state, "refused", [why]);
  }

  /** Returns a promise for each connection that is being closed. */
  #finish(state, reason, errors) {
    if (this.#isFinal()) return [];
    const links = this.#links();
    this.#cursor = this.cursor;
    this.#link = this.#next = this.#last = undefined;
    for (const stop of [this.#stopPause, this.#stopMove, this.#stopOverlap, this.#stopRefresh]) stop();
    this.#forgetSignal();
    const closed = links.map((link) => link.leave());
    this.#become(state);
    const error = this.#finalError();
    for (const { wait } of [...this.#commands]) wait.reject(error);
    for (const [subscription, wait] of [...this.#subscriptions]) {
      wait?.reject(error);
      const end = { reason, bindings: subscription.bindings, errors };
      void this.#remove(subscription, end, reason === "refused" ? error : undefined);
    }
    if (reason === "refused") this.#emit("error", error);
    return closed;
  }
}

/** The address of the websocket. */
function addressOf(given, style) {
  const url = new URL(given, globalThis.location?.href);
  if (url.protocol === "http:") url.protocol = "ws:";
  if (url.protocol === "https:") url.protocol = "wss:";
  if (url.protocol !== "ws:" && url.protocol !== "wss:") throw new TypeError("an address begins with ws:// or wss://");
  url.hash = "";
  if (style !== undefined) url.searchParams.set("style", style);
  return url.href;
}

/** The ID of a cursor. */
function idOf(cursor) {
  return cursor?.split(".")[0];
}

/** The MARK of a cursor. */
function markOf(cursor) {
  return cursor?.split(".")[2];
}

/** The TIME of a cursor. */
function timeOf(cursor) {
  return Number.parseInt(cursor?.split(".")[1], 36);
}

function rejection(reply) {
  const errors = reply.data.errors ?? [];
  return new BlackholeError("rejected", errors.join("; ") || "rejected", { errors });
}
