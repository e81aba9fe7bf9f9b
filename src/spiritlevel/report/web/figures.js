// A figure: its controls, and what follows them.

const words = JSON.parse(document.getElementById("words").textContent);

/** A sentence of the catalogue's [reader], filled in. */
function say(key, values = {}) {
  return words[key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

/** The text of the catalogue's HTML, in which values are escaped already. */
function plain(html) {
  const box = document.createElement("template");
  box.innerHTML = html;
  return box.content.textContent;
}

function openFigure(source) {
  const it = JSON.parse(source.textContent);
  const frames = unpacked(it.frames);
  const box = source.closest("figure");
  const panels = [...box.querySelectorAll(".panel")];
  const controls = [...box.querySelectorAll("[data-control]")];
  const entries = box.querySelectorAll(".legend li");
  const gap = box.querySelector(".gap");
  const paper = box.querySelector(".settings");
  const table = dataTable(box, it);

  const at = controls.map(chosen);
  let frame = frames[position()];

  /** The number of the frame: the last control's value runs fastest. */
  function position() {
    return it.controls.reduce((sum, { values }, i) => sum * values.length + at[i], 0);
  }

  function settings() {
    const told = it.controls.map(({ label, values }, i) => say("setting", { name: label, value: values[at[i]] }));
    return told.join(words.settings);
  }

  /** What stands around the charts. */
  function follow() {
    gap.textContent = frame ? "" : say("not_run", { settings: settings() });
    box.toggleAttribute("data-gap", !frame);
    paper.textContent = settings();
    if (frame) {
      const drawn = frame.flatMap(({ series }) => (series ?? []).filter(({ y }) => y.some((one) => one !== null)));
      const used = new Set(drawn.map(({ as }) => as.entry));
      entries.forEach((entry, i) => (entry.hidden = !used.has(i)));
    }
    table.follow(frame, settings());
  }

  function update() {
    controls.forEach((control, i) => (at[i] = told(control, it.controls[i].values)));
    frame = frames[position()];
    follow();
    panels.forEach((panel, i) => {
      if (frame) describe(panel, frame[i].words);
      const title = plain(frame ? frame[i].words.title : it.title);
      const chart = panel.querySelector(".chart");
      chart.setAttribute("aria-label", say("chart_at", { title: it.title, panel: title, settings: settings() }));
    });
    for (const chart of own) draw(chart);
  }

  const own = panels.map((panel, i) => ({
    place: panel.querySelector(".chart"),
    figure: () => plotted(it.panels[i], frame && frame[i]),
  }));
  charts.push(...own);
  if (controls.length) {
    box.querySelector(".controls").hidden = false;
    let waiting = 0;
    box.querySelector(".controls").addEventListener("input", () => {
      controls.forEach((control, i) => told(control, it.controls[i].values));
      waiting ||= requestAnimationFrame(() => {
        waiting = 0;
        update();
      });
    });
    // A browser may have kept where the controls were.
    if (controls.some((control, i) => chosen(control) !== Number(control.dataset.start))) update();
  }
  follow();
  box.addEventListener("restored", update);
}

/** Which of its values a control has now. */
function chosen(control) {
  return Number((control.querySelector("[type=range]") ?? control.querySelector(":checked")).value);
}

/** The same, after the control has said it to eye and ear. */
function told(control, values) {
  const index = chosen(control);
  const slider = control.querySelector("[type=range]");
  if (slider) {
    slider.setAttribute("aria-valuetext", values[index]);
    control.querySelector("output").textContent = values[index];
  }
  return index;
}

/** Titles and axis labels of the frame: HTML of the catalogue. */
function describe(panel, { title, x, y }) {
  const parts = { ".panel-title": title, ".axis-label.y": y, ".axis-label.x": x };
  for (const [selector, html] of Object.entries(parts)) {
    const node = panel.querySelector(selector);
    if (node && node.innerHTML !== html) node.innerHTML = html;
  }
}
