/* Letters are the columns of a rollout; see SHORT_NAMES in rollouts.py. */
const MEASURES = {
  v: { name: "Teacher VA", unit: "nats" },
  s: { name: "Student VA", unit: "nats" },
  k: { name: "KL", unit: "nats" },
  w: { name: "Weight", unit: "" },
};
const ROWS = [
  ["o", "log p, original"], ["d", "log p, degraded"], ["v", "teacher VA, nats"],
  ["s", "student VA, nats"], ["k", "KL, nats"], ["high", "group"], ["w", "token weight"],
];
let measure = null;

/* Square root: most tokens lie close to zero and would otherwise all look white. */
const shade = (value, letter) => (isNumber(value) && value > 0 ? Math.sqrt(Math.min(1, value / DATA.scales[letter])) : 0);

function layOut(rollout) {
  let first = 0;
  return rollout.texts.map((text, place) => {
    const count = rollout.counts ? rollout.counts[place] : 1;
    const span = { text, first, count, special: rollout.special[place] };
    first += count;
    return span;
  });
}

/* Log-probs of the bytes of a character add up, and so do its advantage, KL and weight. */
function valueOf(rollout, span, letter) {
  const values = rollout[letter];
  if (!values || !span.count) return null;
  return values.slice(span.first, span.first + span.count).reduce((sum, value) => sum + (value ?? 0), 0);
}

function tokensOf(rollout, label) {
  const box = make("p", { class: "tokens", dir: "auto", role: "group", "aria-label": label });
  layOut(rollout).forEach((span, place) => {
    const isHigh = rollout.high?.slice(span.first, span.first + span.count).includes("1");
    const kinds = ["token", isHigh && "high", /^\n/.test(span.text) && "line", span.special && "special"];
    const token = make("span", {
      class: kinds.filter(Boolean).join(" "), tabindex: place ? -1 : 0, "data-name": span.special ?? null,
    }, span.text);
    token.span = span;
    token.rollout = rollout;
    box.append(token);
  });
  paint(box);
  return box;
}

function paint(root) {
  for (const token of root.querySelectorAll(".token"))
    token.style.setProperty("--v", measure ? shade(valueOf(token.rollout, token.span, measure), measure).toFixed(3) : 0);
}

function choose(letter) {
  measure = letter;
  memory.write({ measure });
  document.documentElement.style.setProperty("--hot", `var(--hot-${letter})`);
  const top = DATA.scales[letter];
  const { unit } = MEASURES[letter];
  find("#legend").replaceChildren(
    make("div", { class: "ramp" }),
    make("div", { class: "ticks" }, make("span", {}, "0"), make("span", {}, short(top / 4)), make("span", {}, `≥ ${short(top)} ${unit}`)),
  );
  paint(document);
}

function startMeasures() {
  const box = find("#measure");
  const available = Object.keys(MEASURES).filter((letter) => letter in DATA.scales);
  for (const [letter, { name }] of Object.entries(MEASURES)) {
    const isThere = available.includes(letter);
    const input = make("input", { type: "radio", name: "measure", value: letter, disabled: !isThere });
    input.addEventListener("change", () => choose(letter));
    const title = isThere ? null : "not in these rollouts";
    box.append(make("label", { title }, input, make("span", {}, name)));
  }
  const wanted = memory.read().measure;
  const letter = available.includes(wanted) ? wanted : available[0];
  if (letter) {
    box.querySelector(`[value=${letter}]`).checked = true;
    choose(letter);
  }
  const marks = find("#marks");
  const mark = () => find("#group").classList.toggle("marked", marks.checked);
  marks.addEventListener("change", mark);
  mark();
}

function visible(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

function cell(rollout, letter, index) {
  if (letter === "high") return rollout.high ? (rollout.high[index] === "1" ? "high" : "low") : null;
  const value = rollout[letter]?.[index];
  return value === undefined ? null : letter === "w" ? short(value) : fixed(value);
}

function likelihood(rollout, span) {
  const bars = make("div", { class: "likely", "aria-hidden": "true" });
  for (const [letter, name] of [["o", "original"], ["d", "degraded"]]) {
    const value = valueOf(rollout, span, letter);
    if (value === null) continue;
    const bar = make("i", { class: letter === "d" ? "blind" : null });
    bar.style.width = `${Math.exp(value) * 100}%`;
    bars.append(make("span", {}, name), bar, make("span", {}, percent(Math.exp(value))));
  }
  return bars;
}

function showDetails(token) {
  const { span, rollout } = token;
  const indices = Array.from({ length: span.count }, (_, n) => span.first + n);
  const table = make("table");
  for (const [letter, name] of ROWS) {
    const cells = indices.map((index) => cell(rollout, letter, index));
    if (cells.every((text) => text === null)) continue;
    table.append(make("tr", { class: letter === measure ? "chosen" : null },
      make("th", { scope: "row" }, name), ...cells.slice(0, 6).map((text) => make("td", {}, text ?? "–"))));
  }
  const many = span.count > 1 ? ` · ${span.count} tokens share this text` : "";
  const box = find("#details");
  box.replaceChildren(
    make("div", {}, make("span", { class: "piece" }, span.special ?? visible(span.text)),
      make("span", { style: "color: var(--muted)" }, `  token ${span.first + 1} of ${rollout.length}${many}`)),
    likelihood(rollout, span), table,
  );
  box.hidden = false;
  placeDetails(token);
}

const whereOnScreen = (token) => token.getClientRects()[0] || token.getBoundingClientRect();

/* The token whose numbers are shown, and where it was on the screen then. */
let detailed = { token: null, top: 0 };

function placeDetails(token) {
  const box = find("#details");
  const at = whereOnScreen(token);
  detailed = { token, top: at.top };
  const size = box.getBoundingClientRect();
  const below = at.bottom + 10 + size.height < innerHeight;
  box.style.left = `${Math.max(12, Math.min(at.left, innerWidth - size.width - 12))}px`;
  box.style.top = `${below ? at.bottom + 10 : Math.max(8, at.top - size.height - 10)}px`;
}

const hideDetails = () => { find("#details").hidden = true; };

/* The token in the next or previous line that stands closest below or above. */
function inNextLine(tokens, from, direction) {
  const start = from.getBoundingClientRect();
  let best = null;
  let line = null;
  for (let n = tokens.indexOf(from) + direction; n >= 0 && n < tokens.length; n += direction) {
    const box = tokens[n].getBoundingClientRect();
    if (Math.abs(box.top - start.top) < start.height / 2) continue;
    if (line === null) line = box.top;
    if (Math.abs(box.top - line) > start.height / 2) break;
    const distance = Math.abs(box.left - start.left);
    if (!best || distance < best.distance) best = { distance, token: tokens[n] };
  }
  return best?.token;
}

function moveFocus(event) {
  if (!event.target.matches(".token") || event.altKey || event.ctrlKey || event.metaKey) return;
  const tokens = [...event.target.parentElement.children];
  const at = tokens.indexOf(event.target);
  const next = {
    ArrowRight: () => tokens[at + 1], ArrowLeft: () => tokens[at - 1],
    ArrowDown: () => inNextLine(tokens, event.target, 1), ArrowUp: () => inNextLine(tokens, event.target, -1),
    Home: () => tokens[0], End: () => tokens.at(-1),
  }[event.key];
  if (event.key === "Escape") hideDetails();
  if (!next) return;
  event.preventDefault();
  const token = next();
  if (!token) return;
  event.target.tabIndex = -1;
  token.tabIndex = 0;
  token.focus();
}

function startTokens() {
  const root = find("#group");
  root.addEventListener("pointerover", (event) => { if (event.target.matches(".token")) showDetails(event.target); });
  root.addEventListener("pointerout", (event) => { if (event.target.matches(".token")) hideDetails(); });
  root.addEventListener("focusin", (event) => { if (event.target.matches(".token")) showDetails(event.target); });
  root.addEventListener("focusout", hideDetails);
  root.addEventListener("keydown", moveFocus);
  /* Scrolling moves the text away from a resting pointer; a focused token takes its numbers with it.
     A browser may report a scroll that ended before the pointer arrived: the token has not moved since. */
  addEventListener("scroll", () => {
    if (find("#details").hidden || whereOnScreen(detailed.token).top === detailed.top) return;
    const focused = document.activeElement;
    if (focused.matches(".token:focus-visible")) placeDetails(focused);
    else hideDetails();
  }, { passive: true, capture: true });
}
