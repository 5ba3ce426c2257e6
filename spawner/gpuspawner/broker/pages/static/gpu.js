// Keeps the GPU page up to date: fetches the part that changes and replaces only the elements that differ.
// Without this script the page shows the state of its last load.

const live = document.getElementById("gpu-live");
const lost = document.getElementById("gpu-lost");
const normalSeconds = Number(live.dataset.seconds);
const longestSeconds = 30;

let seconds = normalSeconds;
let timer;
let lastNews = new Date();

function swap(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html");
  for (const part of live.querySelectorAll("[data-live]")) {
    const next = fresh.getElementById(part.id);
    if (!next) continue;
    // The element itself is not replaced, so a screen reader keeps watching it and reads only the changes.
    part.hidden = next.hidden;
    if (part.innerHTML === next.innerHTML) continue;
    const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
    const marked = [...part.querySelectorAll("input:checked")].map((input) => input.id);
    const open = [...part.querySelectorAll("tr:has(details[open])")].map((row) => row.id);
    part.replaceChildren(...next.childNodes);
    for (const id of marked) {
      const box = document.getElementById(id);
      if (box) box.checked = true;
    }
    for (const id of open) document.getElementById(id)?.querySelector("details")?.setAttribute("open", "");
    if (focused) document.getElementById(focused)?.focus();
  }
}

function tell(sentence) {
  if (lost.textContent !== sentence) lost.textContent = sentence;
  lost.hidden = sentence === "";
}

async function update() {
  try {
    const answer = await fetch(live.dataset.url, {
      cache: "no-cache",
      credentials: "same-origin",
      headers: { "X-XSRFToken": window.jhdata.xsrf_token },
      signal: AbortSignal.timeout(10_000),
    });
    if (answer.status === 401 || answer.status === 403) {
      tell("Your login has ended. Reload this page to log in again.");
      return false;
    }
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    swap(await answer.text());
    lastNews = new Date();
    seconds = normalSeconds;
    tell("");
  } catch {
    seconds = Math.min(2 * seconds, longestSeconds);
    tell(`No news from the broker since ${lastNews.toLocaleTimeString()}. Running servers are not affected. Trying again.`);
  }
  return true;
}

async function follow() {
  clearTimeout(timer);
  // A hidden page sends no requests; it updates when it is shown again.
  if (document.hidden) return;
  if (await update()) timer = setTimeout(follow, 1000 * seconds);
}

document.addEventListener("visibilitychange", follow);
timer = setTimeout(follow, 1000 * seconds);
