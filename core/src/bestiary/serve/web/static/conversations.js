// The conversations of this browser. They are kept in its localStorage, and nowhere else.

import { forget, read, write } from "./storage.js";

const INDEX = "bestiary.conversations";
const ONE = "bestiary.conversation.";
const FORMAT = "bestiary.conversations/1";
const MOST = 4_000_000; // characters in all; browsers give a page about five million
const LONGEST_TITLE = 60;

export const LARGEST_FILE = 16_000_000;

export function newConversation() {
  return { id: newId(), title: "", system: "", updated: Date.now(), messages: [] };
}

export class Conversations {
  /** { id, title, updated, size } of each, the latest first. */
  list() {
    return read(INDEX, [])
      .filter((entry) => typeof entry?.id === "string")
      .sort((a, b) => b.updated - a.updated);
  }

  /** A kept conversation, or null. */
  open(id) {
    const kept = read(ONE + id, null);
    return kept && valid(kept) ? kept : null;
  }

  /** Keep it; false where there is no room. Nothing else is thrown away to make some. */
  save(conversation) {
    const size = JSON.stringify(conversation).length;
    const others = this.list().filter(({ id }) => id !== conversation.id);
    if (size + others.reduce((sum, other) => sum + other.size, 0) > MOST) return false;
    const { id, title, updated } = conversation;
    return write(ONE + id, conversation) && write(INDEX, [{ id, title, updated, size }, ...others]);
  }

  remove(id) {
    write(
      INDEX,
      this.list().filter((entry) => entry.id !== id),
    );
    forget(ONE + id);
  }

  /** All of them as a file's text. */
  exported() {
    return JSON.stringify(
      {
        format: FORMAT,
        conversations: this.list()
          .map(({ id }) => this.open(id))
          .filter(Boolean),
      },
      null,
      1,
    );
  }

  /** Add a file's conversations, beside those that are here; how many. An Error says what is wrong with the file. */
  imported(text) {
    const { format, conversations } = parsed(text);
    if (format !== FORMAT || !Array.isArray(conversations))
      throw new Error("This is no file of conversations from this page.");
    const wrong = conversations.findIndex((conversation) => !valid(conversation));
    if (wrong >= 0) throw new Error(`Conversation ${wrong + 1} of the file is not whole. Nothing was imported.`);
    for (const [index, conversation] of conversations.entries()) {
      if (!this.save({ ...conversation, id: newId() })) {
        throw new Error(
          `There is room for ${index} of the ${conversations.length} conversations only; those were imported.`,
        );
      }
    }
    return conversations.length;
  }
}

/** The start of what was asked first. */
export function titleOf({ messages }) {
  const text = (messages.find(({ role }) => role === "user")?.content ?? "").trim().replace(/\s+/g, " ");
  return text.length <= LONGEST_TITLE ? text : `${text.slice(0, LONGEST_TITLE - 1).trimEnd()}…`;
}

function parsed(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    throw new Error("This file is not JSON.");
  }
}

/** (crypto.randomUUID exists on secure pages only.) */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(36)).join("");
}

const isText = (value) => typeof value === "string";

function valid(conversation) {
  return (
    isText(conversation?.id) &&
    isText(conversation.title) &&
    isText(conversation.system) &&
    Number.isFinite(conversation.updated) &&
    Array.isArray(conversation.messages) &&
    conversation.messages.every(validMessage)
  );
}

function validMessage(message) {
  if (!isText(message?.content)) return false;
  if (message.role === "user") return true;
  if (message.role === "tool") return isText(message.tool_call_id);
  const { reasoning, tool_calls: calls, timing, error, usage, finish } = message;
  return (
    message.role === "assistant" &&
    isText(reasoning) &&
    Array.isArray(calls) &&
    typeof timing === "object" &&
    timing !== null &&
    calls.every((call) => isText(call?.id) && isText(call.name) && isText(call.arguments)) &&
    (error === null || (isText(error?.code) && isText(error.message))) &&
    (usage === null || Number.isFinite(usage?.completion)) &&
    isText(finish)
  );
}
