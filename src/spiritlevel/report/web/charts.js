// Panels as Plotly draws them, in the colours of the reader's scheme.

// Printing counts as light, so the query asks for the screen too.
const dark = matchMedia("screen and (prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches;
/** All charts: where each is, and what gives its figure now. */
const charts = [];

const COLOUR = /^var\((--[\w-]+)\)(?:@([\d.]+))?$/;

/** A figure with each var(--name) replaced by the value that CSS gives it now. */
function painted(value, css) {
  if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map((item) => painted(item, css));
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, painted(item, css)]));
  }
  const colour = typeof value === "string" && COLOUR.exec(value);
  if (!colour) return value;
  const hex = css.getPropertyValue(colour[1]).trim();
  if (!colour[2]) return hex;
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${red}, ${green}, ${blue}, ${colour[2]})`;
}

function draw({ place, figure }) {
  if (!window.Plotly) return;
  const { data, layout } = painted(figure(), getComputedStyle(document.documentElement));
  if (touch) {
    // A finger that starts on a chart scrolls the page.
    layout.dragmode = false;
    layout.xaxis.fixedrange = layout.yaxis.fixedrange = true;
  }
  const fresh = !place.childElementCount;
  Plotly.react(place, data, layout, { displayModeBar: false, responsive: true, showTips: false });
  if (fresh) place.on("plotly_afterplot", () => scalable(place));
  scalable(place);
}

/** With a view box, paper of another width scales the drawing where it would cut it. */
function scalable(place) {
  for (const svg of place.querySelectorAll(".main-svg")) {
    svg.setAttribute("viewBox", `0 0 ${svg.getAttribute("width")} ${svg.getAttribute("height")}`);
  }
}

/** What report/pool.py wrote: {"$": n} stands for item n of the pool. */
function unpacked({ pool, value }) {
  const whole = [];
  function open(item) {
    if (Array.isArray(item)) return typeof item[0] === "number" ? item : item.map(open);
    if (item === null || typeof item !== "object") return item;
    if ("$" in item) return whole[item.$];
    return Object.fromEntries(Object.entries(item).map(([key, one]) => [key, open(one)]));
  }
  for (const item of pool) whole.push(open(item));
  return open(value);
}

/** Plotly's figure of a panel: `common` holds in all frames, `frame` is null where none was run. */
function plotted(common, frame) {
  const layout = structuredClone(common.layout);
  if (common.kind === "heatmap") {
    if (!frame) return { data: [], layout };
    Object.assign(layout.yaxis, frame.ticks);
    return { data: [heat(common, frame)], layout };
  }
  if (!frame) return { data: [], layout };
  Object.assign(layout.xaxis, frame.x);
  layout.shapes = frame.shapes;
  layout.annotations = frame.annotations;
  return { data: frame.series.flatMap((series) => lines(series, common.log[1])), layout };
}

/** The series, and behind it the area from low to high; dots have error bars instead. */
function lines({ as, x, y, low, high }, log) {
  const color = `var(--arm-${as.arm})`;
  const [dots, thin] = [as.style === "dots", as.style === "thin"];
  const [from, to] = ["%{customdata[0]:.3~g}", "%{customdata[1]:.3~g}"];
  const value = low ? `%{y:.4~g} (${say("spread", { low: from, high: to })})` : "%{y:.4~g}";
  const trace = {
    type: "scatter",
    x,
    y,
    mode: dots ? "markers" : as.marked ? "lines+markers" : "lines",
    marker: { color, symbol: as.symbol, size: dots ? 9 : 7 },
    line: { color, width: thin ? 1 : 2, dash: as.style === "dash" ? "7px,4px" : "solid" },
    opacity: thin ? 0.6 : 1,
    hovertemplate: `${as.hover}<br>${say("hover", { y: value, x: "%{x:.6~g}" })}<extra></extra>`,
  };
  if (!low) return [trace];
  trace.customdata = low.map((end, i) => [end, high[i]]);
  if (!dots) return [{ ...area(x, low, high, log), fillcolor: `${color}@0.16` }, trace];
  const reach = (above, below) => above.map((end, i) => (end === null || below[i] === null ? null : end - below[i]));
  const bars = { type: "data", symmetric: false, thickness: 1.5, width: 0, color };
  trace.error_y = { ...bars, array: reach(high, y), arrayminus: reach(y, low) };
  return [trace];
}

/** A filled area from low to high: one closed outline for each stretch without gaps. */
function area(x, low, high, log) {
  const there = (i) => [x[i], low[i], high[i]].every((value) => value !== null && value !== undefined) && (!log || low[i] > 0);
  const [xs, ys] = [[], []];
  for (let from = 0; from < x.length; from++) {
    if (!there(from)) continue;
    let to = from;
    while (there(to)) to++;
    const stretch = Array.from({ length: to - from }, (_, i) => from + i);
    const back = [...stretch].reverse();
    xs.push(...stretch.map((i) => x[i]), ...back.map((i) => x[i]), null);
    ys.push(...stretch.map((i) => low[i]), ...back.map((i) => high[i]), null);
    from = to;
  }
  return { type: "scatter", x: xs, y: ys, mode: "none", fill: "toself", hoverinfo: "skip" };
}

function heat(common, { columns, rows, z }) {
  const known = (value) => value !== null && !(common.log && value <= 0);
  return {
    ...common.trace,
    x: columns,
    y: rows.map((_, row) => row),
    z: z.map((row) => row.map((value) => (known(value) ? (common.log ? Math.log10(value) : value) : null))),
    text: z.map((row) => row.map((value) => (known(value) ? String(Number(value.toPrecision(3))) : ""))),
    customdata: rows.map((name) => columns.map(() => markup(name))),
  };
}

/** Text as Plotly takes it, which shows simple HTML and fills in %{...}. */
function markup(text) {
  const signs = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return text.replace(/[&<>"']/g, (sign) => signs[sign]).replaceAll("%{", "%&#123;");
}

/** All charts, from the top, letting the reader scroll in between. */
async function drawAll() {
  await loadPlotly();
  for (const chart of charts) {
    draw(chart);
    await new Promise((next) => setTimeout(next));
  }
  dark.addEventListener("change", () => charts.forEach(draw));
  document.documentElement.dataset.drawn = window.Plotly ? "yes" : "no";
}

/** Plotly is in the page deflated, a third of its size; the page's policy knows its hash. */
async function loadPlotly() {
  const packed = document.getElementById("plotly");
  try {
    const bytes = Uint8Array.from(atob(packed.textContent), (sign) => sign.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  } catch (error) {
    console.warn(error);
  }
  packed.remove();
  document.getElementById("no-charts").hidden = Boolean(window.Plotly);
}
