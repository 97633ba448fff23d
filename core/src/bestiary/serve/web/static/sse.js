// Server-sent events out of a response's body (HTML standard, 9.2.6), as they come.

const LONGEST = 16 * 1024 * 1024;

/** The events of a stream of bytes: { event, data }. Ends where the stream ends; a half event at its end is dropped. */
export async function* events(stream) {
  let event = "";
  let data = [];
  for await (const line of lines(stream)) {
    if (line === "") {
      if (data.length > 0) yield { event: event || "message", data: data.join("\n") };
      event = "";
      data = [];
      continue;
    }
    const colon = line.indexOf(":");
    if (colon === 0) continue; // a comment: the server's heartbeat
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") data.push(value);
    else if (field === "event") event = value;
  }
}

/** Lines ended by \n, \r\n or \r, wherever the chunks were cut. */
async function* lines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let afterReturn = false;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      let text = value;
      if (afterReturn && text.startsWith("\n")) text = text.slice(1);
      afterReturn = text.endsWith("\r");
      const parts = (rest + text).split(/\r\n|\n|\r/);
      rest = parts.pop();
      if (rest.length > LONGEST) throw new Error("The server sent a line without an end.");
      yield* parts;
    }
  } finally {
    await reader.cancel().catch(() => {}); // a stream that already failed has nothing left to cancel
  }
}
