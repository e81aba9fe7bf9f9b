// While the run goes, the page is written anew, and read anew from where the reader was.

const STATE = "spiritlevel";
/** Longer than a run takes from one page to the next, in ms: the costliest cells take minutes. */
const STALE = 600_000;

/** What the reader has set: fields, what is open, where the page stands, and the focus. */
function readerState() {
  const fields = [...document.querySelectorAll("input[id], input[name]")];
  const set = fields.filter((field) => field.type !== "radio" || field.checked);
  const open = [...document.querySelectorAll("details[id]")].filter((one) => one.open);
  const marks = [...document.querySelectorAll("main :is(section, figure, details)[id]")].filter(visible);
  const top = marks.filter((one) => one.getBoundingClientRect().top <= 1).at(-1);
  return {
    fields: Object.fromEntries(set.map((field) => [fieldName(field), field.value])),
    open: open.map((one) => one.id),
    top: top?.id ?? null,
    offset: top ? -top.getBoundingClientRect().top : scrollY,
    focus: document.activeElement?.id || null,
  };
}

const visible = (one) => one.checkVisibility?.() ?? one.offsetParent !== null;
const fieldName = (field) => (field.type === "radio" ? field.name : field.id || field.name);

/** The state that was kept, once; null if there is none. */
function keptState() {
  try {
    const kept = history.state?.[STATE] ?? null;
    if (kept) history.replaceState(null, "");
    if (kept) return kept;
  } catch {
    // Then it is in the address.
  }
  const [, text] = /^#state=(.*)$/.exec(location.hash) ?? [];
  if (!text) return null;
  try {
    return JSON.parse(decodeURIComponent(text));
  } catch {
    return null;
  }
}

function keep(state) {
  try {
    history.replaceState({ [STATE]: state }, "");
    history.scrollRestoration = "manual";
  } catch {
    location.hash = `state=${encodeURIComponent(JSON.stringify(state))}`;
  }
}

function restore(state) {
  for (const field of document.querySelectorAll("input[id], input[name]")) {
    const value = state.fields[fieldName(field)];
    if (value === undefined) continue;
    if (field.type === "radio") field.checked = field.value === value;
    else field.value = value;
  }
  for (const id of state.open) {
    const details = document.getElementById(id);
    if (!details) continue;
    details.open = true;
    // Its own event comes later, and what it shows has a height.
    details.dispatchEvent(new Event("toggle"));
  }
  for (const figure of document.querySelectorAll("figure:has([data-control])")) figure.dispatchEvent(new Event("restored"));
  document.getElementById("widget").dispatchEvent(new Event("input"));
  const top = state.top && document.getElementById(state.top);
  const from = top ? top.getBoundingClientRect().top + scrollY : 0;
  scrollTo({ top: from + state.offset, behavior: "instant" });
  if (state.focus) document.getElementById(state.focus)?.focus({ preventScroll: true });
  // The browser would put the page where it was, which is another place if the page has grown.
  addEventListener("load", () => setTimeout(() => (history.scrollRestoration = "auto")));
}

/** The page reads itself anew every so many seconds, unless it is paused, hidden or in use.
 *  Returns what begins it. */
function live(banner) {
  const every = Number(banner.dataset.seconds) * 1000;
  const pause = banner.querySelector("button");
  const written = Date.parse(banner.dataset.written);
  const stale = banner.querySelector("#stale");
  let due = Infinity;
  let busy = 0;
  for (const kind of ["input", "pointerdown", "keydown"]) {
    addEventListener(kind, () => (busy = Date.now() + 1500), { capture: true });
  }
  pause.hidden = false;
  pause.addEventListener("click", () => {
    pause.setAttribute("aria-pressed", String(!paused()));
    due = paused() ? Infinity : Date.now() + every;
  });
  const paused = () => pause.getAttribute("aria-pressed") === "true";
  return () => {
    if (!paused()) due = Date.now() + every;
    setInterval(() => {
      stale.hidden = Date.now() - written < STALE;
      if (document.hidden || Date.now() < Math.max(due, busy)) return;
      due = Infinity;
      keep(readerState());
      location.reload();
    }, 250);
  };
}
