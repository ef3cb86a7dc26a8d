// Reads the page of metrics (the text format of Prometheus) and makes figures of two readings: rates and quantiles.
//
// Invariants: pure, knows no DOM and no clock. A figure that cannot be told is `null`, never 0: a counter that fell
// (the process was restarted), a histogram that nothing was added to, a name that is not on the page.

/** The samples of one page of metrics. */
class MetricsPage {
  /** By name: `[{labels: {…}, value}]`, in the order of the page. */
  #samples = new Map();

  /** Reads a page. Lines that are no samples are passed over. Linear in the page. */
  constructor(page) {
    for (const line of page.split("\n")) {
      const sample = metricsSample(line);
      if (sample === null) continue;
      const known = this.#samples.get(sample.name);
      if (known) known.push(sample);
      else this.#samples.set(sample.name, [sample]);
    }
  }

  /** The value of a name without labels, or `null`. */
  value(name) {
    const [first] = this.samples(name);
    return first ? first.value : null;
  }

  /** The samples of a name, one for each set of labels. */
  samples(name) {
    return this.#samples.get(name) ?? [];
  }

  /** The sum over all labels of a name, or `null`. */
  sum(name) {
    const samples = this.samples(name);
    return samples.length === 0 ? null : samples.reduce((sum, { value }) => sum + value, 0);
  }

  /** A histogram: upper bounds of its buckets, rising to `Infinity`, and how many fell into each; or `null`. */
  histogram(name) {
    const buckets = this.samples(`${name}_bucket`)
      .map(({ labels, value }) => ({ bound: metricsNumber(labels.le ?? ""), cumulative: value }))
      .sort((one, other) => one.bound - other.bound);
    if (buckets.length === 0) return null;
    return {
      bounds: buckets.map(({ bound }) => bound),
      counts: buckets.map(({ cumulative }, at) => cumulative - (at > 0 ? buckets[at - 1].cumulative : 0)),
    };
  }
}

/** `+Inf` is how the format writes infinity. */
function metricsNumber(text) {
  if (/^\+?Inf$/i.test(text)) return Infinity;
  if (/^-Inf$/i.test(text)) return -Infinity;
  return text === "" ? NaN : Number(text);
}

/** A line `NAME VALUE`, `NAME{KEY="TEXT",…} VALUE`, or one of them with a time behind; `null`: another line. */
function metricsSample(line) {
  const name = /^[a-zA-Z_:][a-zA-Z0-9_:]*/.exec(line)?.[0];
  if (name === undefined) return null;
  const labels = {};
  let rest = line.slice(name.length);
  if (rest.startsWith("{")) {
    const label = /\s*[{,]\s*([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"/y;
    let end = 0;
    for (let found = label.exec(rest); found !== null; found = label.exec(rest)) {
      labels[found[1]] = found[2].replace(/\\(.)/g, (_, escaped) => (escaped === "n" ? "\n" : escaped));
      end = label.lastIndex;
    }
    const close = /\s*[{,]?\s*}/y;
    close.lastIndex = end;
    if (!close.test(rest)) return null;
    rest = rest.slice(close.lastIndex);
  }
  const value = metricsNumber(/^\s+(\S+)/.exec(rest)?.[1] ?? "");
  return Number.isNaN(value) ? null : { name, labels, value };
}

/** How much a counter grew a second between two readings that are `seconds` apart; `null`: that cannot be told. */
function metricsRate(before, after, seconds) {
  if (before === null || after === null || !(seconds > 0) || after < before) return null;
  return (after - before) / seconds;
}

/** What was added to a histogram between two readings; `null`: nothing was, or that cannot be told. */
function metricsGrowth(before, after) {
  if (before === null || after === null || before.counts.length !== after.counts.length) return null;
  const counts = after.counts.map((count, at) => count - before.counts[at]);
  const isGrowth = counts.every((count) => count >= 0) && counts.some((count) => count > 0);
  return isGrowth ? { bounds: after.bounds, counts } : null;
}

/**
 * The quantile `share` (0 to 1) of a histogram, as the buckets allow: `value` is taken on a straight line through its
 * bucket; `sign` is `"<"` in the first bucket (it is less than `value`), `">"` in the last (it is more), else `""`.
 */
function metricsQuantile(histogram, share) {
  if (histogram === null) return null;
  const { bounds, counts } = histogram;
  const rank = share * counts.reduce((sum, count) => sum + count, 0);
  let below = 0;
  for (const [at, count] of counts.entries()) {
    if (count > 0 && below + count >= rank) {
      const low = at > 0 ? bounds[at - 1] : 0;
      if (bounds[at] === Infinity) return { value: low, sign: ">" };
      if (at === 0) return { value: bounds[0], sign: "<" };
      return { value: low + (bounds[at] - low) * ((rank - below) / count), sign: "" };
    }
    below += count;
  }
  return null;
}
