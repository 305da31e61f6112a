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
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    localStorage.setItem(KEY, theme);
  };
  const label = "Change between light and dark";
  return h("button", { class: "icon", type: "button", "aria-label": label, onclick: change }, "◐");
}

function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
