const filters = () => Object.fromEntries(new FormData(find("#filters")));
const nameOf = (group) => [group.run, group.source, group.step, group.problem, group.view, group.prompt].join("|");
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);
const groupVa = (group) => mean(group.rollouts.map((rollout) => rollout.va).filter(isNumber)) ?? 0;
const outcome = (rollout) => ({ true: "right", false: "wrong" })[rollout.correct] || "none";
let shown = [];
let selected = null;

const spread = (values) => Math.max(...values) - Math.min(...values);
const isValidation = (group) => (group.source === "validation" ? 1 : 0);
const ORDERS = {
  step: (a, b) => isValidation(a) - isValidation(b) || a.step - b.step || a.run - b.run,
  problem: (a, b) => a.problem.localeCompare(b.problem, undefined, { numeric: true }) || a.step - b.step,
  "va-down": (a, b) => groupVa(b) - groupVa(a),
  "va-up": (a, b) => groupVa(a) - groupVa(b),
  spread: (a, b) => spread(b.rollouts.map((r) => r.weight ?? 0)) - spread(a.rollouts.map((r) => r.weight ?? 0)),
  right: (a, b) => mean(a.rollouts.map((r) => (r.correct ? 1 : 0))) - mean(b.rollouts.map((r) => (r.correct ? 1 : 0))),
  length: (a, b) => Math.max(...b.rollouts.map((r) => r.length)) - Math.max(...a.rollouts.map((r) => r.length)),
};

const rolloutFits = (rollout, wanted) =>
  (!wanted.correct || outcome(rollout) === wanted.correct) && (!Number(wanted.va) || (rollout.va ?? 0) >= Number(wanted.va));

function groupFits(group, wanted) {
  const words = (wanted.problem || "").trim().toLowerCase();
  return (!wanted.run || group.run === Number(wanted.run))
    && (!wanted.source || group.source === wanted.source)
    && (!wanted.step || group.step === Number(wanted.step))
    && (!words || `${group.problem} ${group.prompt} ${group.answer ?? ""}`.toLowerCase().includes(words))
    && group.rollouts.some((rollout) => rolloutFits(rollout, wanted));
}

function dots(group) {
  const box = make("span", { class: "dots", "aria-label": `${group.rollouts.filter((r) => r.correct).length} right` });
  for (const rollout of group.rollouts)
    box.append(make("span", { class: outcome(rollout) }, { right: "●", wrong: "○", none: "·" }[outcome(rollout)]));
  return box;
}

function place(group) {
  const parts = [];
  if (DATA.runs.length > 1) parts.push(DATA.runs[group.run]);
  if (group.source !== "scores") parts.push(`step ${group.step}`);
  if (group.source === "validation") parts.push("validation");
  if (group.view === "degraded") parts.push("degraded view");
  return parts.join(" · ");
}

function listItem(group) {
  const key = group.original[0] || group.degraded[0];
  const item = make("li", { role: "option", tabindex: -1, "aria-selected": "false" },
    key ? make("img", { src: DATA.pictures[key], alt: "", loading: "lazy" }) : make("span"),
    make("span", {}, make("span", { class: "words", dir: "auto" }, group.prompt || group.problem),
      make("span", { class: "meta" }, place(group), dots(group), `VA ${fixed(groupVa(group), 2)}`)));
  item.group = group;
  return item;
}

function applyFilters() {
  const wanted = filters();
  find("#filters").elements.vaText.value = short(Number(wanted.va));
  shown = DATA.groups.filter((group) => groupFits(group, wanted)).sort(ORDERS[wanted.sort]);
  const rollouts = shown.flatMap((group) => group.rollouts).filter((rollout) => rolloutFits(rollout, wanted));
  const all = DATA.groups.reduce((sum, group) => sum + group.rollouts.length, 0);
  find("#count").textContent = `${rollouts.length} of ${all} rollouts, ${shown.length} problems`;
  find("#groups").replaceChildren(...shown.map(listItem));
  select(shown.find((group) => selected && nameOf(group) === nameOf(selected)) || shown[0] || null);
  memory.write({ filters: wanted });
}

function select(group, takeFocus = false) {
  selected = group;
  for (const item of find("#groups").children) {
    const isIt = item.group === group;
    item.setAttribute("aria-selected", String(isIt));
    item.tabIndex = isIt ? 0 : -1;
    if (isIt && takeFocus) item.focus();
  }
  hideDetails();
  find("#group").replaceChildren(...(group ? drawGroup(group) : [make("p", { class: "empty" }, "No rollout fits these filters.")]));
  if (group) memory.write({ group: nameOf(group) });
}

function drawGroup(group) {
  const text = make("p", { class: "text", dir: "auto" });
  /* The only markup from outside the page: escaped and checked MathML from mathematics.py. */
  if (group.promptHtml) text.innerHTML = group.promptHtml; else text.textContent = group.prompt;
  const pairs = group.original.map((_, number) => picturePair(group, number)).filter(Boolean);
  const question = make("section", { class: "question", "aria-label": "Problem" },
    pairs.length ? make("div", {}, ...pairs) : make("p", { class: "answer" }, "No picture was stored with these rollouts."),
    make("div", {}, make("p", { class: "where" }, [place(group), group.problem].filter(Boolean).join(" · ")), text,
      group.answer === null ? null : make("p", { class: "answer" }, "Reference answer ", make("b", {}, group.answer))));
  const wanted = filters();
  return [question, ...group.rollouts.map((rollout) => drawRollout(rollout, group, rolloutFits(rollout, wanted)))];
}

function drawRollout(rollout, group, fits) {
  const verdict = { right: "✓ right", wrong: "✗ wrong", none: "not graded" }[outcome(rollout)];
  const head = make("header", {}, make("b", {}, `Sibling ${rollout.sibling}`), make("span", { class: outcome(rollout) }, verdict));
  if (rollout.weight !== null) {
    const bar = make("i");
    bar.style.width = `${Math.min(100, rollout.weight * 100)}%`;
    head.append(make("span", { class: "weight" }, "weight", make("span", { class: "meter", "aria-hidden": "true" }, bar), make("b", {}, fixed(rollout.weight))));
  }
  const facts = [rollout.va !== null && `VA ${fixed(rollout.va)} nats`, isNumber(rollout.studentVa) && `student VA ${fixed(rollout.studentVa)}`,
    `${rollout.length} tokens`, rollout.finish === "length" && "cut at the length limit"];
  head.append(...facts.filter(Boolean).map((fact) => make("span", {}, fact)));
  const box = make("section", { class: fits ? "response" : "response dimmed", "aria-label": `Sibling ${rollout.sibling}` }, head,
    tokensOf(rollout, `Tokens of sibling ${rollout.sibling}; arrow keys move between them`));
  if (rollout.reading) {
    const reading = make("div", { class: "reading", dir: "auto" });
    reading.innerHTML = rollout.reading;
    reading.prepend(make("small", {}, "rendered"));
    box.append(reading);
  }
  return box;
}

function fillSelect(name, entries) {
  const field = find("#filters").elements[name];
  field.append(make("option", { value: "" }, "all"), ...entries.map(([value, text]) => make("option", { value }, text)));
  field.closest("label").hidden = entries.length < 2;
}

function moveInList(event) {
  const at = shown.indexOf(selected);
  const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: shown.length - 1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  if (shown[next]) select(shown[next], true);
}

function startRollouts() {
  if (!find("#filters")) return;
  const unique = (key) => [...new Set(DATA.groups.map((group) => group[key]))].sort((a, b) => (a > b ? 1 : -1));
  fillSelect("run", unique("run").map((run) => [run, DATA.runs[run]]));
  fillSelect("source", unique("source").map((name) => [name, name]));
  fillSelect("step", unique("step").map((step) => [step, `step ${step}`]));
  const form = find("#filters");
  const highest = Math.max(0, ...DATA.groups.flatMap((group) => group.rollouts.map((rollout) => rollout.va ?? 0)));
  form.elements.va.max = highest || 1;
  form.elements.va.step = (highest || 1) / 100;
  const remembered = memory.read();
  for (const [name, value] of Object.entries(remembered.filters || {}))
    if (form.elements[name]) form.elements[name].value = value;
  selected = DATA.groups.find((group) => nameOf(group) === remembered.group) || null;
  form.addEventListener("input", applyFilters);
  form.addEventListener("submit", (event) => event.preventDefault());
  find("#groups").addEventListener("click", (event) => {
    const item = event.target.closest("li");
    if (item) select(item.group, true);
  });
  find("#groups").addEventListener("keydown", moveInList);
  startTokens();
  startMeasures();
  startViewer();
  applyFilters();
}
