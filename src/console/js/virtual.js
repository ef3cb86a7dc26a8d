// A window into a list of many rows: only those that are seen are in the document.
//
// Invariants: rows are equally high, as the style says. The document holds the rows that are seen, VIRTUAL_MARGIN above and
// below them, and the one with the focus, in the order of the list. A row keeps its element as long as the row is there,
// whatever comes before it, so a key is pressed on the row that the user sees, and a screen reader keeps its place. Only
// the elements of rows that go are used again.

/** Rows drawn above and below those that are seen, so that a fast scroll shows no blank. */
const VIRTUAL_MARGIN = 8;

/** The rows `[first, end)` to draw of `count`, in a viewport of `height` that is scrolled down by `top`. */
function virtualRange({ count, rowHeight, top, height }) {
  if (count === 0 || !(rowHeight > 0)) return { first: 0, end: 0 };
  const from = Math.floor(Math.max(0, top) / rowHeight) - VIRTUAL_MARGIN;
  const to = Math.ceil((Math.max(0, top) + height) / rowHeight) + VIRTUAL_MARGIN;
  const end = Math.min(count, to);
  return { first: Math.max(0, Math.min(from, end - 1)), end };
}

/** The list on the page. The cost of drawing is that of what is seen. */
class VirtualList {
  #rows = [];
  /** By the key of a row: its element. */
  #drawn = new Map();
  /** By the element of a row: its key. */
  #keys = new WeakMap();
  #rowHeight = 0;
  #viewport;
  #space;
  #keyOf;
  #create;
  #fill;

  /**
   * `viewport`: what scrolls; `space`: inside it, takes the rows. `keyOf(row)`: what names a row. `create()`: an empty
   * element of a row. `fill(element, row, at)`: writes a row, the `at`th, into an element; called again with each
   * drawing, so it changes only what differs.
   */
  constructor({ viewport, space, keyOf, create, fill }) {
    this.#viewport = viewport;
    this.#space = space;
    this.#keyOf = keyOf;
    this.#create = create;
    this.#fill = fill;
    /** Draws with the next frame of the screen, once however often it is asked for. */
    this.refresh = perFrame(() => this.#draw());
    viewport.addEventListener("scroll", this.refresh, { passive: true });
    new ResizeObserver(() => {
      this.#rowHeight = 0;
      this.refresh();
    }).observe(viewport);
  }

  /** All rows of the list, also those that are not drawn. */
  get rows() {
    return this.#rows;
  }

  /** How many rows are in the document. */
  get drawn() {
    return this.#drawn.size;
  }

  /** Shows other rows. Unless the list stands at its top, the first row that is seen stays where it is on the screen. */
  setRows(rows) {
    const top = this.#viewport.scrollTop;
    const height = this.#rowHeight;
    const at = height > 0 && top > 1 ? Math.ceil(top / height) : -1;
    const seen = this.#rows[at];
    this.#rows = rows;
    if (seen !== undefined) {
      const key = this.#keyOf(seen);
      const now = rows.findIndex((row) => this.#keyOf(row) === key);
      if (now >= 0 && now !== at) {
        // A scroll beyond the end would be cut.
        this.#space.style.height = `${rows.length * height}px`;
        this.#viewport.scrollTop = now * height - (at * height - top);
      }
    }
    this.refresh();
  }

  /** Scrolls as little as shows the `at`th row, and draws it. Returns its element, or `null`: there is none. */
  show(at) {
    if (at < 0 || at >= this.#rows.length) return null;
    const rowHeight = this.#measure();
    const { scrollTop: top, clientHeight: height } = this.#viewport;
    this.#space.style.height = `${this.#rows.length * rowHeight}px`;
    if (at * rowHeight < top) this.#viewport.scrollTop = at * rowHeight;
    else if ((at + 1) * rowHeight > top + height) this.#viewport.scrollTop = (at + 1) * rowHeight - height;
    this.#draw();
    return this.#drawn.get(this.#keyOf(this.#rows[at])) ?? null;
  }

  #draw() {
    // While the list is not seen it has no height, and its place would be lost.
    if (this.#viewport.clientHeight === 0) return;
    const rowHeight = this.#measure();
    const { scrollTop: top, clientHeight: height } = this.#viewport;
    const { first, end } = virtualRange({ count: this.#rows.length, rowHeight, top, height });
    this.#space.style.height = `${this.#rows.length * rowHeight}px`;
    const wanted = this.#withFocused(first, end);
    const keys = new Set(wanted.map((at) => this.#keyOf(this.#rows[at])));
    // Elements of rows that go are used for rows that come: in turn, so that after a jump none has to be moved.
    const before = this.#drawn;
    const free = [...this.#space.children].filter((element) => !keys.has(this.#keys.get(element)));
    const elements = wanted.map((at) => before.get(this.#keyOf(this.#rows[at])) ?? free.shift() ?? this.#create());
    for (const element of free) element.remove();
    this.#drawn = new Map();
    let next = this.#space.firstElementChild;
    for (const [index, at] of wanted.entries()) {
      const [row, element] = [this.#rows[at], elements[index]];
      const key = this.#keyOf(row);
      this.#drawn.set(key, element);
      this.#keys.set(element, key);
      this.#fill(element, row, at);
      element.style.transform = `translateY(${at * rowHeight}px)`;
      if (element === next) next = next.nextElementSibling;
      else this.#space.insertBefore(element, next);
    }
  }

  /** The rows of the range and the one with the focus. */
  #withFocused(first, end) {
    const wanted = Array.from({ length: end - first }, (_, at) => first + at);
    const focused = this.#space.ownerDocument.activeElement;
    if (!this.#space.contains(focused)) return wanted;
    const [key] = [...this.#drawn].find(([, element]) => element.contains(focused)) ?? [];
    const at = this.#rows.findIndex((row) => this.#keyOf(row) === key);
    if (at >= 0 && at < first) wanted.unshift(at);
    if (at >= end) wanted.push(at);
    return wanted;
  }

  /** How high a row is: looked at once after each change of the viewport's size. */
  #measure() {
    if (this.#rowHeight > 0) return this.#rowHeight;
    const probe = this.#create();
    this.#space.append(probe);
    this.#rowHeight = probe.offsetHeight;
    probe.remove();
    return this.#rowHeight;
  }
}
