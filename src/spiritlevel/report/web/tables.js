// The numbers of a figure as a table, built when the reader opens it.

/** Five figures, as people write them. */
function shown(value) {
  const size = Math.abs(value);
  const far = size >= 1e7 || (size !== 0 && size < 1e-4);
  const text = far ? value.toExponential(3) : String(Number(value.toPrecision(5)));
  return text.replaceAll("-", "−");
}

function dataTable(box, it) {
  const details = box.querySelector("details.data");
  const place = details.querySelector(".tables");
  let frame = null;
  let settings = "";

  function build() {
    if (!details.open) return;
    const tables = frame ? frame.map((panel) => (panel.rows ? mapTable(panel) : linesTable(panel))) : [];
    const note = document.createElement("p");
    note.textContent = frame ? settings : say("not_run", { settings });
    place.replaceChildren(...(note.textContent ? [note] : []), ...tables.map(scrolling));
  }

  details.addEventListener("toggle", build);
  details.querySelector("button").addEventListener("click", () => save(it, frame, settings));
  return {
    follow(now, told) {
      [frame, settings] = [now, told];
      build();
    },
  };
}

function scrolling(table) {
  const box = document.createElement("div");
  Object.assign(box, { className: "scroll", tabIndex: 0 });
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", table.caption.textContent);
  box.append(table);
  return box;
}

function titled(panel) {
  const table = document.createElement("table");
  const values = Object.entries(panel.words).map(([name, html]) => [name, plain(html)]);
  table.className = "numbers";
  table.createCaption().textContent = say(panel.rows ? "table_map" : "table", Object.fromEntries(values));
  return table;
}

function headed(table, names) {
  const row = table.createTHead().insertRow();
  for (const name of names) row.append(head(name, "col"));
  return table.createTBody();
}

function head(text, scope) {
  const cell = document.createElement("th");
  cell.scope = scope;
  cell.textContent = text;
  return cell;
}

/** A row for each x, a column for each series; where a series has several values, all of them. */
function linesTable(panel) {
  const table = titled(panel);
  const body = headed(table, [plain(panel.words.x), ...namesOf(panel.series)]);
  const columns = panel.series.map(({ x, y, low, high }) => {
    const found = new Map();
    x.forEach((at, i) => {
      if (y[i] === null) return;
      const spread = low && low[i] !== null && high[i] !== null;
      const ends = spread ? ` (${say("spread", { low: shown(low[i]), high: shown(high[i]) })})` : "";
      found.set(at, [...(found.get(at) ?? []), shown(y[i]) + ends]);
    });
    return found;
  });
  const every = new Set(panel.series.flatMap(({ x }) => x));
  for (const at of [...every].sort((a, b) => a - b)) {
    const row = body.insertRow();
    row.append(head(shown(at), "row"));
    for (const column of columns) row.insertCell().textContent = (column.get(at) ?? ["–"]).join("; ");
  }
  return table;
}

/** The names of the series, with the way they are drawn where two have the same. */
function namesOf(series) {
  const names = series.map(({ as }) => plain(as.name));
  return names.map((name, i) => {
    const alone = names.indexOf(name) === names.lastIndexOf(name);
    return alone ? name : say("drawn", { name, style: words[`style_${series[i].as.style}`] });
  });
}

function mapTable(panel) {
  const table = titled(panel);
  const body = headed(table, [plain(panel.words.y), ...panel.columns.map(shown)]);
  panel.rows.forEach((name, i) => {
    const row = body.insertRow();
    row.append(head(name, "row"));
    for (const value of panel.z[i]) row.insertCell().textContent = value === null ? "–" : shown(value);
  });
  return table;
}

// ---- the same as a file ---------------------------------------------------------------------------

/** Comma-separated values: a line for each point, of all panels. */
function csv(frame) {
  const lines = [["panel", "series", "x", "y", "low", "high"]];
  for (const panel of frame ?? []) {
    const title = plain(panel.words.title);
    if (panel.rows) {
      panel.rows.forEach((name, i) => panel.columns.forEach((x, j) => lines.push([title, name, x, panel.z[i][j], null, null])));
      continue;
    }
    const names = namesOf(panel.series);
    panel.series.forEach(({ x, y, low, high }, i) => {
      x.forEach((at, j) => lines.push([title, names[i], at, y[j], low ? low[j] : null, high ? high[j] : null]));
    });
  }
  return lines.map((line) => line.map(field).join(",")).join("\r\n") + "\r\n";
}

function field(value) {
  if (value === null) return "";
  if (typeof value === "number") return String(value);
  // A spreadsheet takes what begins like this for a formula.
  const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return `"${safe.replaceAll('"', '""')}"`;
}

function save(it, frame, settings) {
  const link = document.createElement("a");
  link.download = `${[it.id, ...settings.split(/[^\w.-]+/)].filter(Boolean).join("-")}.csv`;
  link.href = URL.createObjectURL(new Blob(["\ufeff", csv(frame)], { type: "text/csv" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
