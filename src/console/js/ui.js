// What all views build with: elements, texts, numbers as people read them, copying and saving.
//
// Invariants: text goes in as text (`textContent`), so nothing foreign becomes HTML. Text from outside that stands in a line
// of ours is isolated (`foreign`), so marks that turn the direction of writing stay within it. A live region gets at most
// one line a second.

/** Lines that a screen reader is told, at most one for this many milliseconds; of those that come between, the last. */
const UI_ANNOUNCE_EVERY = 1000;

/** How long a short message stays. */
const UI_TOAST_FOR = 4000;

/**
 * An element. `attributes`: `class`, `data-…`, `aria-…` and the like; those that begin with `on` are listeners, such as
 * `onclick`; `null` and `false` are left out. Children are elements or texts.
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.replace(/^on/, ""), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** The element with this id, which the page has. */
export function byId(id) {
  return document.getElementById(id);
}

/** Text from outside. It cannot turn the direction of what stands around it. */
export function foreign(text, attributes = {}) {
  return el("bdi", attributes, String(text));
}

/** Marks that are not seen, but turn the direction of writing or hide text: shown as JSON writes them. */
const HIDDEN_MARKS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** The text with its hidden marks as `\u202e`; within JSON it stays the same JSON. */
export function showMarks(text) {
  return text.replace(HIDDEN_MARKS, (mark) => `\\u${mark.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** A small drawing of lines, from the `d` of a path in a square of 20. */
export function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

/** `1234567` as `1,234,567`. */
export function countText(number) {
  return new Intl.NumberFormat("en").format(number);
}

/** A number in three digits or so: `0.42`, `3.1`, `87`, `12.3 k`, `4.5 M`. */
export function shortText(number) {
  const size = Math.abs(number);
  if (size >= 1e9) return `${(number / 1e9).toFixed(1)} G`;
  if (size >= 1e6) return `${(number / 1e6).toFixed(1)} M`;
  if (size >= 1e4) return `${(number / 1e3).toFixed(1)} k`;
  if (size >= 100 || Number.isInteger(number)) return countText(Math.round(number));
  if (size >= 10) return number.toFixed(1);
  return number.toFixed(2);
}

/** Bytes, in units of 1,024. */
export function bytesText(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${unit === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}

/** Seconds as `420 µs`, `3.1 ms`, `12 s`, `4 min 10 s`, `3 h 20 min`, `5 d 3 h`. */
export function durationText(seconds) {
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 60) return `${Number.isInteger(seconds) || seconds >= 10 ? Math.round(seconds) : seconds.toFixed(1)} s`;
  const whole = Math.floor(seconds);
  const pair = (big, bigName, small, smallName) => (small > 0 ? `${big} ${bigName} ${small} ${smallName}` : `${big} ${bigName}`);
  if (whole < 3600) return pair(Math.floor(whole / 60), "min", whole % 60, "s");
  if (whole < 86400) return pair(Math.floor(whole / 3600), "h", Math.floor((whole % 3600) / 60), "min");
  return pair(Math.floor(whole / 86400), "d", Math.floor((whole % 86400) / 3600), "h");
}

/** The time of day of a moment in Unix milliseconds, to the millisecond: `14:03:27.512`. */
export function timeText(milliseconds) {
  const at = new Date(milliseconds);
  const two = (number) => String(number).padStart(2, "0");
  const rest = String(at.getMilliseconds()).padStart(3, "0");
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}.${rest}`;
}

/** Calls `run` once nothing has called for `wait` milliseconds. */
export function debounce(wait, run) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...given), wait);
  };
}

/** Calls `run` at the next frame, however often it is asked for before; a tab that is not seen has none, so it waits. */
export function perFrame(run) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      run();
    });
  };
}

/** Shows a short message, which goes by itself. `tone`: `good`, `warn`, `bad` or nothing. */
export function toast(text, tone = "") {
  const shown = el("div", { class: "toast", "data-tone": tone }, String(text));
  byId("toasts").append(shown);
  setTimeout(() => shown.remove(), UI_TOAST_FOR);
}

/** Tells a screen reader something, and shows nothing. */
export const announce = (() => {
  let waiting = null;
  let timer = 0;
  const tell = () => {
    timer = 0;
    if (waiting === null) return;
    byId("announcer").replaceChildren(el("p", {}, waiting));
    waiting = null;
    timer = setTimeout(tell, UI_ANNOUNCE_EVERY);
  };
  return (text) => {
    waiting = String(text);
    if (timer === 0) tell();
  };
})();

/** Puts a text on the clipboard; also where the browser lets that be done by a selection only, because the page came by HTTP. */
export async function copyText(text, what = "Copied") {
  try {
    await (navigator.clipboard?.writeText(text) ?? Promise.reject()).catch(() => copySelection(text));
    toast(what, "good");
  } catch {
    toast("The browser does not let this page copy", "bad");
  }
}

function copySelection(text) {
  const area = el("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = text;
  // What is outside of an open dialog cannot be selected.
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("refused");
}

/** Hands the user a file. `text`: its text, or a list of its parts. */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text].flat(), { type }));
  const link = el("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** A moment as it stands in the name of a file: `2026-11-26T14-03-27`. */
export function stampText() {
  return new Date().toISOString().slice(0, 19).replaceAll(":", "-");
}

/** Asks before something is done that cannot be undone. Resolves to whether it is to be done. */
export function confirmFirst(title, text, yes) {
  return new Promise((resolve) => {
    const id = `confirm-${Math.random().toString(36).slice(2)}`;
    const dialog = el("dialog", { "aria-labelledby": id });
    let answer = false;
    dialog.append(
      el(
        "div",
        { class: "stack" },
        el("h2", { id }, title),
        el("p", {}, text),
        el(
          "div",
          { class: "row end" },
          el("button", { class: "plain", onclick: () => dialog.close() }, "Cancel"),
          el("button", { class: "danger", onclick: () => ((answer = true), dialog.close()) }, yes),
        ),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** What a view says while it has nothing to show: a heading, texts or elements below it. */
export function emptyState(title, ...below) {
  return el("div", { class: "empty" }, el("h3", {}, title), ...below);
}

/** Sets the text of an element, if it is another than it has: nothing is drawn anew for nothing. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
