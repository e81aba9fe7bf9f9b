// The page of a probe: the map that the reader chooses, and one layer's line below it.

const metric = document.getElementById("metric");
const layer = document.getElementById("layer");
const maps = [...document.querySelectorAll("figure.map")];
const wide = matchMedia("(min-width: 60rem)");
/** What is known of each map that was shown, as a promise. */
const opened = new Map();
/** The map that is shown. */
let now = null;

/** What report/shell.py deflated. */
async function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).text();
}

async function openMap(box) {
  const source = box.querySelector(".packed");
  source.textContent = await inflated(source.textContent);
  const { title, panels, frames } = JSON.parse(source.textContent);
  openFigure(source);
  const chart = charts.at(-1);
  const figure = chart.figure;
  const found = { box, chart, title, common: panels[0], frame: unpacked(frames)[0][0] };
  chart.figure = () => {
    const whole = figure();
    whole.layout.shapes = framed();
    Object.assign(whole.layout.xaxis, stepsAxis(found.frame.columns));
    // The usual grey of what was not read looks like the middle of a scale with two ends.
    whole.layout.plot_bgcolor = "var(--muted)@0.5";
    const { tickvals } = found.frame.ticks;
    if (wide.matches) whole.layout.yaxis.ticktext = tickvals.map((row) => markup(shortened(found.frame.rows[row])));
    return whole;
  };
  return found;
}

/** Steps are whole numbers; a few of them have a tick each. */
function stepsAxis(steps) {
  const ticks = steps.length <= 5 ? { tickvals: steps } : { nticks: wide.matches ? 8 : 4 };
  return { ...ticks, exponentformat: "none", tickangle: 0 };
}

/** A layer's name where there is room: both ends, as report/heatmap.py has it for a phone. */
function shortened(name) {
  return name.length <= 44 ? name : `${name.slice(0, 20)}…${name.slice(-23)}`;
}

/** The chosen layer's row of the map, in a frame. */
function framed() {
  const row = Number(layer.value);
  const line = { color: "var(--text)", width: 1.5 };
  return [{ type: "rect", xref: "paper", x0: 0, x1: 1, y0: row - 0.5, y1: row + 0.5, line }];
}

async function showMap() {
  const box = document.getElementById(`figure-${metric.value}`);
  for (const one of maps) one.hidden = one !== box;
  if (!opened.has(box)) opened.set(box, openMap(box));
  const found = await opened.get(box);
  if (box.hidden) return; // another was chosen meanwhile
  now = found;
  offerLayers();
  draw(now.chart);
  // It may have been drawn while another was shown, for a window of another size.
  if (window.Plotly) Plotly.Plots.resize(now.chart.place);
  listen();
  showLayer();
}

/** The layers of the map that is shown; the one that was chosen stays so if it is there. */
function offerLayers() {
  const chosen = layer.selectedOptions[0]?.textContent;
  layer.replaceChildren(...now.frame.rows.map((name, row) => new Option(name, row)));
  layer.value = String(Math.max(0, now.frame.rows.indexOf(chosen)));
}

/** A click on the map chooses a layer, once Plotly has drawn it. */
function listen() {
  const { place } = now.chart;
  if (!place.on || place.dataset.heard) return;
  place.dataset.heard = "yes";
  place.on("plotly_click", ({ points }) => {
    layer.value = String(points[0].y);
    showLayer();
  });
}

function showLayer() {
  const { place } = now.chart;
  if (window.Plotly && place.childElementCount) {
    Plotly.relayout(place, painted({ shapes: framed() }, getComputedStyle(document.documentElement)));
  }
  const { words } = now.frame;
  document.querySelector("#trace .axis-label.y").textContent = plain(words.z);
  line.place.setAttribute("aria-label", inWords());
  draw(line);
}

function inWords() {
  const values = { metric: now.title, layer: layer.selectedOptions[0].textContent };
  const { columns, z } = now.frame;
  const read = z[Number(layer.value)].map((value, i) => [columns[i], value]).filter(([, value]) => value !== null);
  if (!read.length) return say("trace_nothing", values);
  const [[from, first], [to, last]] = [read[0], read.at(-1)];
  return say("trace_at", { ...values, from, to, first: shown(first), last: shown(last) });
}

const line = { place: document.getElementById("trace-chart"), figure: lineFigure };

/** The chosen layer over the steps, in the band of all layers of the map. */
function lineFigure() {
  const { layout, axes } = JSON.parse(document.getElementById("trace-data").textContent);
  if (!now) return { data: [], layout };
  Object.assign(layout.yaxis, axes[metric.value]);
  const { columns, z } = now.frame;
  const log = now.common.log;
  Object.assign(layout.xaxis, stepsAxis(columns));
  const every = columns.map((_, at) => z.map((row) => row[at]).filter((value) => value !== null && !(log && value <= 0)));
  const end = (which) => every.map((values) => (values.length ? which(...values) : null));
  const y = z[Number(layer.value)].map((value) => (log && value <= 0 ? null : value));
  return {
    data: [
      { ...area(columns, end(Math.min), end(Math.max), log), fillcolor: "var(--arm-batch)@0.14" },
      {
        type: "scatter",
        x: columns,
        y,
        mode: columns.length > 12 ? "lines" : "lines+markers",
        marker: { color: "var(--arm-batch)", symbol: "square", size: 7 },
        line: { color: "var(--arm-batch)", width: 2 },
        hovertemplate: `${say("hover", { y: "%{y:.4~g}", x: "%{x}" })}<extra></extra>`,
      },
    ],
    layout,
  };
}

async function begin() {
  if (maps.length) {
    document.getElementById("choice").hidden = document.getElementById("trace").hidden = false;
    metric.addEventListener("input", showMap);
    layer.addEventListener("input", showLayer);
    charts.push(line);
    // Without what inflates them no chart can be drawn, which drawAll says.
    await showMap().catch((error) => console.warn(error));
  }
  await drawAll();
  if (now) listen();
}

begin();
