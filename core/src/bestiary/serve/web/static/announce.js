// What a screen reader is told. One region, spoken to at the start and the end of things, never for a token.

import { byId } from "./dom.js";
import { plural } from "./format.js";

const LONGEST = 600; // characters of an answer that are read out without being asked for

export function announce(text) {
  const region = byId("announcer");
  region.textContent = "";
  requestAnimationFrame(() => (region.textContent = text)); // the same words a second time are news as well
}

export function announceAnswer(text) {
  const words = text.trim().split(/\s+/).length;
  announce(text.length <= LONGEST ? `Answer: ${text}` : `The answer is complete, ${plural(words, "word")}.`);
}
