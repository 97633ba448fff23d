// Numbers as people read them.

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (value) => grouped.format(value);

/** 134515008 → "135 M". */
export function short(value) {
  for (const [size, unit] of [
    [1e12, " T"],
    [1e9, " B"],
    [1e6, " M"],
    [1e4, " k"],
  ]) {
    if (value >= size) return digits(value / (unit === " k" ? 1e3 : size)) + unit;
  }
  return count(value);
}

/** Three significant digits, never in exponents: 0.123, 1.23, 12.3, 123, 1,234. */
export function digits(value) {
  const size = Math.abs(value);
  if (size >= 100) return grouped.format(value);
  return String(Number(value.toPrecision(size < 1 ? 2 : 3)));
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.001) return `${digits(value * 1e6)} µs`;
  if (value < 1) return `${digits(value * 1e3)} ms`;
  if (value < 60) return `${digits(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return `${Math.floor(value / 3600)} h ${Math.round((value % 3600) / 60)} min`;
}

export function bytes(value) {
  for (const [size, unit] of [
    [2 ** 40, "TiB"],
    [2 ** 30, "GiB"],
    [2 ** 20, "MiB"],
    [2 ** 10, "KiB"],
  ]) {
    if (value >= size) return `${digits(value / size)} ${unit}`;
  }
  return `${value} B`;
}

export const percent = (share) => (share > 0 && share < 0.01 ? "<1 %" : `${Math.round(share * 100)} %`);

export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}
