// The last two minutes of the server's statistics, and the rates that follow from them.

const LONGEST = 120; // samples, one a second

export class History {
  #samples = [];

  /** Add what /server/stats said. Counters that went back mean another engine process: no rate spans that. */
  add(stats) {
    const before = this.#samples.at(-1)?.stats;
    if (before && stats.t < before.t) this.#samples.length = 0; // another server at the same address
    if (before && stats.t === before.t) return;
    this.#samples.push({ stats, ...rates(before, stats) });
    if (this.#samples.length > LONGEST) this.#samples.shift();
  }

  /** A gap: nothing is known of the time until the next sample. */
  interrupt() {
    if (this.#samples.length > 0 && this.#samples.at(-1).stats) this.#samples.push({ stats: null });
  }

  get latest() {
    return this.#samples.at(-1)?.stats ?? null;
  }

  /** One value a sample, oldest first; null where there is none. */
  series(value) {
    return this.#samples.map((sample) => (sample.stats ? (value(sample) ?? null) : null));
  }

  /** Share of prompt tokens found in the prefix cache, over what is kept here; null where none were looked up. */
  get hitRate() {
    const known = this.#samples.filter(({ queried }) => queried !== undefined);
    const queried = known.reduce((sum, sample) => sum + sample.queried, 0);
    return queried > 0 ? known.reduce((sum, sample) => sum + sample.hits, 0) / queried : null;
  }
}

function rates(before, after) {
  if (
    !before ||
    after.t <= before.t ||
    after.restarts !== before.restarts ||
    after.tokens.generated < before.tokens.generated
  )
    return {};
  const seconds = after.t - before.t;
  return {
    generated: (after.tokens.generated - before.tokens.generated) / seconds,
    queried: after.prefix.queried_tokens - before.prefix.queried_tokens,
    hits: after.prefix.hit_tokens - before.prefix.hit_tokens,
  };
}
