// Everything above, put to work.

function copying(button) {
  const command = document.getElementById("command");
  const label = button.textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = button.dataset.copied;
    } catch {
      getSelection().selectAllChildren(command);
      button.textContent = button.dataset.failed;
    }
    setTimeout(() => (button.textContent = label), 3000);
  });
}

copying(document.getElementById("copy"));
charts.push(widget(document.getElementById("widget")));
document.querySelectorAll(".figure-data").forEach(openFigure);
document.querySelectorAll("details.traced").forEach(traced);
addEventListener("hashchange", openTarget);
openTarget();

const banner = document.getElementById("live");
const begin = banner && live(banner);
const state = keptState();
if (state) restore(state);
// On a busy machine drawing may take longer than the page has until it is read anew.
drawAll().then(() => begin?.());
