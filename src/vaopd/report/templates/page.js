"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const find = (selector) => document.querySelector(selector);

/* Text goes in as text nodes only, so nothing that a model wrote is ever read as markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const fixed = (value, digits = 3) => (isNumber(value) ? value.toFixed(digits) : "–");
function short(value) {
  if (!isNumber(value)) return "–";
  if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(1);
  return Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}
const percent = (value) => (isNumber(value) ? `${(value * 100).toFixed(1)}%` : "–");

/* What the reader chose outlives a reload; some browsers refuse storage to local files. */
const memory = {
  key: `vaopd:${location.pathname}`,
  read() {
    try { return JSON.parse(sessionStorage.getItem(this.key)) || {}; } catch { return {}; }
  },
  write(values) {
    try { sessionStorage.setItem(this.key, JSON.stringify({ ...this.read(), ...values })); } catch { /* refused */ }
  },
};

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  document.dispatchEvent(new Event("themechange"));
}

function startTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => memory.read().theme || (system.matches ? "dark" : "light");
  setTheme(chosen());
  system.addEventListener("change", () => setTheme(chosen()));
  find("#theme").addEventListener("click", () => {
    memory.write({ theme: document.documentElement.dataset.theme === "dark" ? "light" : "dark" });
    setTheme(chosen());
  });
}

/* A reader in the middle of something is not interrupted. */
function startReload() {
  if (!DATA.reloadSeconds) return;
  let last = Date.now();
  let held = Boolean(memory.read().held);
  const hold = find("#hold");
  const show = () => { hold.setAttribute("aria-pressed", String(held)); hold.textContent = held ? "Go on" : "Hold"; };
  const reload = () => { memory.write({ scroll: scrollY }); location.reload(); };
  for (const name of ["pointermove", "keydown", "scroll", "pointerdown"])
    addEventListener(name, () => { last = Date.now(); }, { passive: true });
  find("#reload").addEventListener("click", reload);
  hold.addEventListener("click", () => { held = !held; memory.write({ held }); show(); });
  show();
  setInterval(() => {
    const isIdle = Date.now() - last > DATA.reloadSeconds * 1000;
    if (isIdle && !held && !document.hidden && !find("#viewer").open) reload();
  }, 1000);
}
