/** Light or dark: as the system has it, until the user chooses. */

import { h } from "../core/dom.js";

const KEY = "latentfarm-theme";

/** Apply what the user has chosen in this browser. */
export function chosenTheme() {
  const chosen = localStorage.getItem(KEY);
  if (chosen) document.documentElement.dataset.theme = chosen;
}

/** @returns {HTMLButtonElement} */
export function themeButton() {
  const change = () => {
    const { dataset } = document.documentElement;
    const isDark = dataset.theme ? dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    dataset.theme = isDark ? "light" : "dark";
    localStorage.setItem(KEY, dataset.theme);
  };
  const label = "Change between light and dark";
  return h("button", { class: "icon", type: "button", "aria-label": label, onclick: change }, "◐");
}
