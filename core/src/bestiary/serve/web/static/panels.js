// The list of conversations at the left and the panel at the right: beside the page where it is wide enough, over it
// where it is not. Over it, the rest of the page can be neither clicked nor focused.

import { byId } from "./dom.js";
import { read, write } from "./storage.js";

const SIDES = [
  { name: "list", wide: "(min-width: 56rem)", open: true },
  { name: "panel", wide: "(min-width: 78rem)", open: true },
];

export class Panels {
  #sides = new Map();

  constructor() {
    for (const { name, wide, open } of SIDES) {
      const side = {
        name,
        media: matchMedia(wide),
        element: byId(name),
        opener: byId(`open-${name}`),
        beside: read(`bestiary.${name}`, open), // whether it is there when there is room
        over: false,
      };
      this.#sides.set(name, side);
      side.opener.addEventListener("click", () => this.toggle(name));
      byId(`close-${name}`).addEventListener("click", () => this.toggle(name));
      side.media.addEventListener("change", () => this.#apply());
    }
    byId("shade").addEventListener("click", () => this.closeOverlay());
    this.#apply();
  }

  toggle(name) {
    const side = this.#sides.get(name);
    this.set(name, !shown(side));
  }

  set(name, open) {
    const side = this.#sides.get(name);
    if (open === shown(side)) return;
    if (side.media.matches) {
      side.beside = open;
      write(`bestiary.${name}`, open);
    } else {
      for (const other of this.#sides.values()) other.over = false;
      side.over = open;
    }
    this.#apply();
    (open ? side.element.querySelector("button, [tabindex]") : side.opener).focus();
  }

  /** Whether something lay over the page and has gone. */
  closeOverlay() {
    const side = [...this.#sides.values()].find((each) => !each.media.matches && each.over);
    if (side) this.set(side.name, false);
    return Boolean(side);
  }

  #apply() {
    const sides = [...this.#sides.values()];
    for (const side of sides) {
      if (side.media.matches) side.over = false;
      side.element.hidden = !shown(side);
      side.element.classList.toggle("over", side.over);
      side.opener.setAttribute("aria-expanded", String(shown(side)));
    }
    const over = sides.find((side) => side.over);
    byId("shade").hidden = !over;
    for (const part of [byId("main"), ...sides.map(({ element }) => element)])
      part.inert = Boolean(over) && part !== over.element;
  }
}

const shown = (side) => (side.media.matches ? side.beside : side.over);

/** Tabs as WAI-ARIA describes them: arrows move, one of them is in the tab order. Returns select(name). */
export function tabs(list) {
  const all = [...list.querySelectorAll("[role=tab]")];
  const select = (chosen, focus = false) => {
    for (const tab of all) {
      const is = tab === chosen;
      tab.setAttribute("aria-selected", String(is));
      tab.tabIndex = is ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = !is;
    }
    write("bestiary.tab", chosen.id);
    if (focus) chosen.focus();
  };
  for (const [index, tab] of all.entries()) {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (step) select(all[(index + step + all.length) % all.length], true);
    });
  }
  select(all.find(({ id }) => id === read("bestiary.tab", "")) ?? all[0]);
  return (name) => select(byId(name));
}
