// Which records a number comes from: the keys, as the list at the end of the page has them.

/** [0, 1, 2, 7] from "0-2,7", as report/page.py wrote it. */
function indicesIn(text) {
  return text.split(",").flatMap((part) => {
    const [from, to = from] = part.split("-").map(Number);
    return Array.from({ length: to - from + 1 }, (_, i) => from + i);
  });
}

function traced(details) {
  details.addEventListener("toggle", () => {
    const list = details.querySelector("ol");
    if (!details.open || list.childElementCount) return;
    for (const index of indicesIn(details.dataset.records)) {
      const link = document.createElement("a");
      link.href = `#record-${index}`;
      link.textContent = document.querySelector(`#record-${index} code`).textContent;
      list.appendChild(document.createElement("li")).append(link);
    }
  });
  details.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !details.open) return;
    details.open = false;
    details.querySelector("summary").focus();
  });
}

/** A link into a closed list opens it. */
function openTarget() {
  const target = location.hash.startsWith("#record-") && document.getElementById(location.hash.slice(1));
  if (!target) return;
  target.closest("details").open = true;
  target.scrollIntoView({ block: "center" });
}
