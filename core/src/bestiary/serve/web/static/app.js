// Puts the page together.

import { Api } from "./api.js";
import { Banner } from "./banner.js";
import { showCard } from "./card.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { Conversations } from "./conversations.js";
import { askKey, notice, prepareDialogs } from "./dialogs.js";
import { byId } from "./dom.js";
import { Live } from "./live.js";
import { Log } from "./log.js";
import { ModelChoice } from "./models.js";
import { Panels, tabs } from "./panels.js";
import { Server } from "./server.js";
import { Settings } from "./settings.js";
import { prepareShortcuts } from "./shortcuts.js";
import { Sidebar } from "./sidebar.js";
import { copy } from "./copy.js";

const THEMES = { light: "dark", dark: "light" };

const api = new Api(askKey);
const server = new Server(api);
const store = new Conversations();
const settings = new Settings();
const models = new ModelChoice(server);
const chat = new Chat({ api, server, store, request: () => ({ model: models.chosen, ...settings.request() }) });
const panels = new Panels();
const select = tabs(byId("tabs"));
const log = new Log(chat);
const composer = new Composer(chat, () => leadToWrongSetting());
const sidebar = new Sidebar({
  chat,
  store,
  notice,
  close: () => panels.closeOverlay(),
  focusComposer: () => composer.focus(),
});
const live = new Live(server);
new Banner(server, () => api.unlock());

chat.addEventListener("notice", ({ detail }) => notice(detail));
chat.addEventListener("shown", () => {
  byId("system").value = chat.conversation.system;
  byId("clear").disabled = chat.conversation.messages.length === 0;
  document.title = chat.conversation.title ? `${chat.conversation.title} – Bestiary` : "Bestiary";
});
server.addEventListener("change", () => {
  showCard(server.info, server.state);
  settings.setDefaults(server.info?.defaults);
});
byId("system").addEventListener("input", (event) => chat.setSystem(event.target.value));
byId("clear").addEventListener("click", () => chat.clear());
byId("state").addEventListener("click", () => showTab("tab-model"));
byId("theme").addEventListener("click", changeTheme);
byId("help").addEventListener("click", () => byId("help-dialog").showModal());
byId("tab-live").addEventListener("click", () => live.update());
addEventListener("pagehide", () => chat.leave());
addEventListener("pageshow", () => chat.comeBack());

prepareDialogs();
prepareShortcuts(
  [
    { key: "/", label: "write a message", run: () => composer.focus() },
    { key: "n", label: "new conversation", run: () => sidebar.startNew() },
    { key: "e", label: "edit the last message", run: () => log.edit() },
    { key: "r", label: "answer again", run: () => chat.regenerate() },
    { key: "c", label: "copy the last answer", run: copyLast },
    { key: "l", label: "list of conversations", run: () => panels.toggle("list") },
    { key: "s", label: "settings, model and live pictures", run: () => panels.toggle("panel") },
    { key: "d", label: "dark or light", run: changeTheme },
    { key: "?", label: "this list", run: () => byId("help-dialog").showModal() },
  ],
  escape,
);

log.show();
chat.dispatchEvent(new Event("shown"));
showCard(null, "starting");
server.start();
composer.focus();

function escape() {
  if (!panels.closeOverlay()) chat.stop();
}

function showTab(name) {
  panels.set("panel", true);
  select(name);
}

function leadToWrongSetting() {
  const { wrong } = settings;
  if (!wrong) return false;
  showTab("tab-settings");
  wrong.closest("details")?.setAttribute("open", "");
  wrong.reportValidity();
  return true;
}

async function copyLast() {
  const answer = chat.conversation.messages.findLast(({ role }) => role === "assistant");
  if (answer?.content)
    notice({ text: (await copy(answer.content)) ? "The last answer was copied." : "The browser refused to copy." });
}

function changeTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const theme = THEMES[document.documentElement.dataset.theme ?? system];
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("bestiary.theme", theme);
  } catch {
    // Chosen for this visit only.
  }
}
