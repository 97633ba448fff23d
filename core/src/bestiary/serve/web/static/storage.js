// JSON in the browser's storage, which may be full, refused or written by somebody else.

/** What is kept under `key`, or `fallback` where there is nothing readable. */
export function read(key, fallback, storage = "localStorage") {
  try {
    const text = window[storage].getItem(key);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}

/** Keep a value; false where the browser would not. */
export function write(key, value, storage = "localStorage") {
  try {
    window[storage].setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export function forget(key, storage = "localStorage") {
  try {
    window[storage].removeItem(key);
  } catch {
    // Where nothing can be kept, nothing is left to forget.
  }
}
