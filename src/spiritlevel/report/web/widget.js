// Batch normalization of the reader's own numbers.

const MOST = 40;
const DECIMAL = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const DEFAULTS = { numbers: "1, 3, 5", eps: "0.00001", gamma: "1", beta: "0" };

/** What is wrong with an input: a key of the catalogue's [widget], and the values that it names. */
class Problem extends Error {
  constructor(field, key, values = {}) {
    super(key);
    Object.assign(this, { field, key, values });
  }
}

/** A number from text, or null. A typed minus sign may be the typographic one. */
function number(text) {
  const plain = text.trim().replace("−", "-");
  return DECIMAL.test(plain) && Number.isFinite(Number(plain)) ? Number(plain) : null;
}

function numbersIn(text) {
  const words = text.split(/[\s,;，；、]+/).filter((word) => word !== "");
  if (words.length === 0) throw new Problem("numbers", "empty");
  if (words.length > MOST) throw new Problem("numbers", "too_many", { n: words.length, most: MOST });
  return words.map((word) => {
    const value = number(word);
    if (value === null) throw new Problem("numbers", "not_a_number", { text: word });
    return value;
  });
}

function parameter(name, symbol, text) {
  const value = number(text);
  if (value === null) throw new Problem(name, "not_a_parameter", { name: symbol, text: text.trim() });
  if (name === "eps" && value < 0) throw new Problem(name, "negative_eps", { text: text.trim() });
  return value;
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Batch normalization of one feature, as while training: the variance is the biased one. */
function normalize(values, { eps, gamma, beta }) {
  const centre = mean(values);
  const differences = values.map((value) => value - centre);
  const squares = differences.map((difference) => difference ** 2);
  const variance = mean(squares);
  if (!Number.isFinite(variance)) throw new Problem("numbers", "too_large");
  if (variance + eps === 0) throw new Problem("eps", "division");
  const normalized = differences.map((difference) => difference / Math.sqrt(variance + eps));
  const outputs = normalized.map((value) => gamma * value + beta);
  const after = mean(normalized.map((value) => (value - mean(normalized)) ** 2));
  return { values, differences, squares, normalized, outputs, mean: centre, variance, after };
}

function widget(form) {
  const { texts, bell } = JSON.parse(document.getElementById("widget-data").textContent);
  const problem = document.getElementById("widget-problem");
  const out = (name) => form.querySelector(`[data-result="${name}"]`);
  const curve = { place: document.getElementById("bell"), figure: () => bell };
  const filled = (key, values) => texts[key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
  const fields = Object.keys(DEFAULTS).map((name) => [name, form.elements.namedItem(name)]);
  const inputs = Object.fromEntries(fields);
  const marks = bell.data[bell.data.length - 1];

  function row(cells) {
    const line = document.createElement("tr");
    for (const cell of cells) line.insertCell().textContent = shown(cell);
    return line;
  }

  /** No result at all: old numbers beside new input would be wrong. */
  function clear() {
    for (const name of ["mean", "variance", "deviation", "after"]) out(name).textContent = "–";
    out("note").textContent = "";
    out("rows").replaceChildren();
    Object.assign(marks, { x: [], y: [], text: [] });
  }

  function show(it) {
    out("mean").textContent = shown(it.mean);
    out("variance").textContent = shown(it.variance);
    out("deviation").textContent = shown(Math.sqrt(it.variance));
    out("after").textContent = shown(it.after);
    out("note").textContent = it.variance === 0 ? texts.flat : "";
    const columns = [it.values, it.differences, it.squares, it.normalized, it.outputs];
    const rows = it.values.map((_, i) => row(columns.map((column) => column[i])));
    out("rows").replaceChildren(...rows);
    marks.x = it.normalized;
    marks.y = it.normalized.map((z) => Math.exp((-z * z) / 2) / Math.sqrt(2 * Math.PI));
    // Equal values share one mark, and one name.
    marks.text = it.values.map((value, i) => (it.values.indexOf(value) === i ? shown(value) : ""));
    const reach = Math.max(4.3, ...it.normalized.map((z) => Math.abs(z) + 0.3));
    bell.layout.xaxis.range = [-reach, reach];
  }

  function update() {
    for (const input of Object.values(inputs)) input.removeAttribute("aria-invalid");
    try {
      const values = numbersIn(inputs.numbers.value);
      const eps = parameter("eps", "ε", inputs.eps.value);
      const gamma = parameter("gamma", "γ", inputs.gamma.value);
      const beta = parameter("beta", "β", inputs.beta.value);
      show(normalize(values, { eps, gamma, beta }));
      problem.textContent = "";
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      problem.textContent = filled(error.key, error.values);
      inputs[error.field].setAttribute("aria-invalid", "true");
      clear();
    }
    draw(curve);
  }

  const CHANGES = { add: (value) => value + 50, times: (value) => value * 1000 };

  /** The numbers moved or scaled, as far as they can be read; everything as at first on "reset". */
  function change(name) {
    if (name === "reset") {
      for (const [field, text] of Object.entries(DEFAULTS)) inputs[field].value = text;
    } else {
      const known = inputs.numbers.value.split(/[\s,;，；、]+/).map(number).filter((value) => value !== null);
      const changed = known.map((value) => Number(CHANGES[name](value).toPrecision(12)));
      inputs.numbers.value = changed.join(", ");
    }
    update();
  }

  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", update);
  form.addEventListener("click", (event) => {
    const name = event.target.closest("[data-change]")?.dataset.change;
    if (name) change(name);
  });
  update();
  return curve;
}
