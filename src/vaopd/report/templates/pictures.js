const NAMES = { original: "original", teacher: "teacher's", degraded: "degraded" };

function picturePair(group, number) {
  const pair = make("div", { class: "pair" });
  for (const view of Object.keys(NAMES)) {
    const key = group[view][number];
    if (!key) continue;
    const button = make("button", { type: "button", "aria-label": `Enlarge the ${NAMES[view]} image and compare` },
      make("img", { src: DATA.pictures[key], alt: `${NAMES[view]} image of the problem` }), make("small", {}, NAMES[view]));
    button.addEventListener("click", () => openViewer(group, number, view));
    pair.append(button);
  }
  return pair.children.length ? pair : null;
}

/* Original to the left of the slider, degraded to its right; both are the teacher's if it has images of its own. */
function openViewer(group, number, view) {
  const [original, degraded] = [group.teacher[number] || group.original[number], group.degraded[number]];
  const viewer = find("#viewer");
  const stage = make("div", { class: "stage" }, make("img", { src: DATA.pictures[original || degraded], alt: "original image" }));
  const close = make("button", { type: "button" }, "Close");
  close.addEventListener("click", () => viewer.close());
  const controls = make("div", { class: "controls" });
  if (original && degraded) {
    const cut = make("input", { type: "range", min: 0, max: 100, value: view === "degraded" ? 25 : 75, "aria-label": "Share of the original image" });
    const show = () => stage.style.setProperty("--cut", `${cut.value}%`);
    cut.addEventListener("input", show);
    stage.append(make("img", { class: "over", src: DATA.pictures[degraded], alt: "degraded image" }), make("div", { class: "edge" }));
    controls.append("degraded", cut, "original");
    show();
  }
  controls.append(close);
  viewer.replaceChildren(stage, controls);
  viewer.showModal();
}

function startViewer() {
  const viewer = find("#viewer");
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
}
