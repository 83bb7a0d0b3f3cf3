const DASHES = [[], [6, 4], [2, 3], [9, 3, 2, 3], [12, 4], [4, 2, 1, 2], [9, 3, 2, 3, 2, 3], [1, 5]];
const plots = [];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const hueOf = (series) => css(`--c${series.hue % 6}`);
const dashOf = (series) => DASHES[series.dash % DASHES.length];
const showValue = (unit) => (_, value) => (!isNumber(value) ? "" : unit === "percent" ? percent(value) : short(value));

/* All series over one axis. Points of a scatter may share an x, which a join would merge. */
function table(chart) {
  if (chart.kind !== "scatter") return uPlot.join(chart.series.map((series) => [series.x, series.y]));
  const points = chart.series.flatMap((series, n) => series.x.map((x, i) => [x, n, series.y[i]]));
  points.sort((a, b) => a[0] - b[0]);
  const columns = chart.series.map((_, n) => points.map((point) => (point[1] === n ? point[2] : null)));
  return [points.map((point) => point[0]), ...columns];
}

/* The first quantity of a scatter has full dots and the others hollow ones, in every run. */
const dotFill = (series) => (series.dot ? css("--surface") : `${hueOf(series)}cc`);

/* The line or dot of a series as it is drawn in the plot, for the legend. */
function sample(series, chart) {
  const draw = (tag, attributes, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const shape = chart.kind === "scatter"
    ? draw("circle", { cx: 14, cy: 5, r: 3, fill: dotFill(series), stroke: hueOf(series), "stroke-width": 1.3 })
    : draw("line", { x1: 0, x2: 28, y1: 5, y2: 5, stroke: hueOf(series), "stroke-width": 2, "stroke-dasharray": dashOf(series).join(" ") });
  return draw("svg", { class: "sample", width: 28, height: 10, "aria-hidden": "true" }, shape);
}

function seriesOptions(series, chart) {
  const stroke = hueOf(series);
  const base = { label: series.label, stroke, width: 1.8, dash: dashOf(series), value: showValue(chart.unit), spanGaps: true };
  if (chart.kind === "scatter") {
    return { ...base, paths: () => null, points: { show: true, size: 6, width: 1.3, fill: dotFill(series), stroke } };
  }
  if (chart.kind === "steps")
    return { ...base, paths: uPlot.paths.stepped({ align: 1 }), points: { show: false }, fill: `${stroke}1f` };
  const few = series.marks || series.x.length < 12;
  return { ...base, points: { show: few, size: 6, fill: css("--surface"), stroke } };
}

function axes(chart) {
  const look = { stroke: css("--muted"), font: "11px system-ui, sans-serif", ticks: { show: false } };
  const grid = { stroke: css("--line"), width: 1 };
  const values = (_, marks) => marks.map((mark) => (mark === null ? "" : chart.unit === "percent" ? `${Math.round(mark * 1000) / 10}%` : short(mark)));
  return [
    { ...look, grid: { show: false }, size: 28, label: chart.x, labelSize: 18, labelGap: 0, labelFont: look.font, gap: 4,
      values: (_, marks) => marks.map((mark) => (Number.isInteger(mark) || chart.x !== "step" ? String(Number(mark.toFixed(3))) : "")) },
    { ...look, grid, size: 52, values, gap: 4 },
  ];
}

function yRange(chart) {
  return (_, low, high) => {
    if (low === null) return [0, 1];
    const room = (high - low || Math.abs(high) || 1) * 0.08;
    const bottom = chart.unit === "percent" || low >= 0 && low < high * 0.5 ? 0 : low - room;
    return [bottom, chart.unit === "percent" ? Math.min(1.02, Math.max(high + room, 0.02)) : high + room];
  };
}

function draw(chart, plot, place) {
  const options = {
    width: Math.max(200, plot.clientWidth), height: 230, axes: axes(chart), padding: [8, 16, 0, 0],
    scales: { x: { time: false }, y: { range: yRange(chart) } },
    cursor: { points: { size: 7 }, focus: { prox: 24 } }, focus: { alpha: 0.35 },
    hooks: { setLegend: [(drawn) => { place.textContent = isNumber(drawn.cursor.idx) ? `${chart.x} ${short(drawn.data[0][drawn.cursor.idx])}` : ""; }] },
    series: [{ label: chart.x }, ...chart.series.map((series) => seriesOptions(series, chart))],
  };
  const drawn = new uPlot(options, table(chart), plot);
  /* The first row is the axis, which is no line; its value stands beside the title. */
  plot.querySelector(".u-legend tr").remove();
  for (const [number, name] of plot.querySelectorAll(".u-legend th").entries()) {
    name.prepend(sample(chart.series[number], chart));
    name.tabIndex = 0;
    name.setAttribute("role", "button");
    name.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      name.click();
    });
  }
  return drawn;
}

function summary(chart) {
  const ends = chart.series.map((series) => `${series.label} from ${short(series.y[0])} to ${short(series.y.at(-1))}`);
  return `${chart.title}, ${chart.unit || "plain number"} by ${chart.x}. ${ends.join("; ")}.`;
}

function addChart(chart, root) {
  const plot = make("div", { class: "plot", role: "img", "aria-label": summary(chart) });
  const unit = chart.unit && chart.unit !== "percent" && chart.kind === "line" ? chart.unit : "";
  const place = make("i");
  root.append(make("figure", { class: "chart", id: chart.id ? `chart-${chart.id}` : null },
    make("figcaption", {}, place, make("b", {}, chart.title), make("span", {}, chart.caption || unit)), plot));
  const entry = { chart, plot, place, drawn: draw(chart, plot, place) };
  plots.push(entry);
  new ResizeObserver(() => {
    const width = Math.max(200, plot.clientWidth);
    if (width !== entry.drawn.width) entry.drawn.setSize({ width, height: 230 });
  }).observe(plot);
}

function startCharts() {
  for (const [name, charts] of [["#advantage-charts", DATA.advantageCharts], ["#curve-charts", DATA.curveCharts]])
    for (const chart of charts) addChart(chart, find(name));
  /* Colours of a canvas do not follow the style sheet by themselves. */
  document.addEventListener("themechange", () => {
    for (const entry of plots) {
      entry.drawn.destroy();
      entry.drawn = draw(entry.chart, entry.plot, entry.place);
    }
  });
}
