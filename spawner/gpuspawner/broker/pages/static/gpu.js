// Keeps a page up to date: by server-sent events, or by fetching the part that changes where events don't get through.
// Only elements that differ are replaced. Without this script the page shows the state of its last load.

const live = document.getElementById("gpu-live");
const lost = document.getElementById("gpu-lost");
const pollSeconds = Number(live.dataset.seconds);
const longestSeconds = 30;
// The server sends something at least every 15 s.
const silenceSeconds = 40;
// A proxy that keeps events back shows itself by silence at the start.
const firstSeconds = 6;
const tryEventsAgainSeconds = 300;
// A page with a thousand GPUs is long: it is fetched so seldom that it takes no more than this.
const mostBytesPerSecond = 40_000;

let lastNews = new Date();
let stop = () => {};

// ---- what is shown

// What the server sent last for each part: what the script wrote into it since then doesn't count as a difference.
const sent = new Map([...live.querySelectorAll("[data-live]")].map((part) => [part.id, part.innerHTML]));

function swapPart(part, nodes, html) {
  if (sent.get(part.id) === html) return;
  sent.set(part.id, html);
  // A question that is open stays open, what is marked stays marked, and the focus stays where it is.
  const open = [...part.querySelectorAll("details[open][id]")].map((each) => each.id);
  const rows = [...part.querySelectorAll("tr[id]:has(details[open])")].map((row) => row.id);
  const marked = [...part.querySelectorAll("input:checked")].map((input) => input.id);
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  const again = focused && (focused.id || focused.closest("[id]")?.id);
  part.replaceChildren(...nodes);
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  for (const id of rows) document.getElementById(id)?.querySelector("details")?.setAttribute("open", "");
  for (const id of marked) {
    const box = document.getElementById(id);
    if (box) box.checked = true;
  }
  if (focused) {
    const target = document.getElementById(again);
    (focused.matches("summary") ? target?.querySelector("summary") : target)?.focus();
  }
}

function swapPage(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html");
  for (const part of live.querySelectorAll("[data-live]")) {
    const next = fresh.getElementById(part.id);
    if (!next) continue;
    // The element itself is not replaced, so a screen reader keeps watching it and reads only the changes.
    part.hidden = next.hidden;
    swapPart(part, next.childNodes, next.innerHTML);
  }
  showClocks();
  dropFulfilledWish();
}

function swapSections(sections) {
  for (const [id, html] of Object.entries(sections)) {
    const part = document.getElementById(id);
    if (!part) continue;
    const template = document.createElement("template");
    template.innerHTML = html;
    swapPart(part, template.content.childNodes, template.innerHTML);
  }
  showClocks();
  dropFulfilledWish();
}

function showReadings(readings) {
  for (const meter of live.querySelectorAll("[data-lease]")) {
    const values = readings[meter.dataset.lease]?.[meter.dataset.kind];
    if (!values) continue;
    const [text, width, left, level] = values;
    const bar = meter.querySelector(".progress-bar");
    if (!bar) continue;
    meter.querySelector("[data-text]").textContent = text;
    meter.querySelector("[data-left]").textContent = left ? ` · ${left}` : "";
    bar.style.width = `${width}%`;
    bar.className = `progress-bar${level ? ` bg-${level}` : ""}`;
    bar.parentElement.setAttribute("aria-valuenow", width);
    bar.parentElement.setAttribute("aria-valuetext", text);
  }
}

// The server writes times in UTC; here they become those of the viewer's time zone.
function showClocks() {
  for (const time of document.querySelectorAll("time[data-clock], time[data-moment]")) {
    const at = new Date(time.dateTime);
    const day = { year: "numeric", month: "short", day: "numeric", timeZoneName: "short" };
    const style = "clock" in time.dataset ? {} : day;
    const text = at.toLocaleString([], { ...style, hour: "2-digit", minute: "2-digit" });
    if (time.textContent !== text) time.textContent = text;
  }
}

// "Your server gets a GPU when it is its turn" is wrong as soon as it has one: a wish goes when it is fulfilled.
function dropFulfilledWish() {
  const banner = document.querySelector("[data-wish]");
  const badge = banner && live.querySelector(`[data-turn-of="${banner.dataset.wishOf}"]`);
  if (badge && (badge.dataset.turn === "awake") === (banner.dataset.wish === "awake")) banner.remove();
}

function tell(sentence) {
  if (lost.textContent !== sentence) lost.textContent = sentence;
  lost.hidden = sentence === "";
}

// What may no longer be true is grey. Without a login the buttons can't work either.
function showStale(stale, usable) {
  live.classList.toggle("gpu-stale", stale);
  live.inert = stale && !usable;
}

function heard() {
  lastNews = new Date();
  tell("");
  showStale(false, true);
}

function tellLost() {
  const since = lastNews.toLocaleTimeString();
  tell(`No news from the broker since ${since}: what you see is from then. Running servers are not affected; whether a place in the queue is kept is not known now. Trying again.`);
  showStale(true, true);
}

function tellLoggedOut() {
  const since = lastNews.toLocaleTimeString();
  tell(`Your login has ended. Reload this page to log in again. What you see is from ${since} and may no longer be true: a place in the queue may be lost.`);
  showStale(true, false);
}

class LoggedOut extends Error {}

async function ask(url, signal) {
  const answer = await fetch(url, {
    cache: "no-cache",
    credentials: "same-origin",
    headers: { "X-XSRFToken": window.jhdata.xsrf_token },
    signal,
  });
  if (answer.status === 401 || answer.status === 403) throw new LoggedOut();
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  return answer;
}

const pause = (seconds, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

// ---- by events

// Fetches the part that changes. News that come meanwhile, or too soon after the last time, are fetched together later.
let fetching = false;
let again = false;
let nextFetch = 0;

async function refresh(signal) {
  again = true;
  if (fetching) return;
  fetching = true;
  try {
    while (again && !signal.aborted) {
      await pause(Math.max(0, nextFetch - Date.now()) / 1000, signal);
      again = false;
      if (!signal.aborted) await fetchPage(signal);
    }
  } catch {
    // The stream itself says when the connection or the login is lost.
  } finally {
    fetching = false;
  }
}

async function fetchPage(signal) {
  const html = await (await ask(live.dataset.url, signal)).text();
  nextFetch = Date.now() + (1000 * html.length) / mostBytesPerSecond;
  swapPage(html);
}

async function handle(name, data, signal) {
  if (name === "sections") swapSections(JSON.parse(data));
  else if (name === "readings") showReadings(JSON.parse(data));
  else if (name === "changed") refresh(signal);
}

// Follows one stream to its end. Returns whether anything came.
async function followEvents(signal) {
  const ended = new AbortController();
  const end = () => ended.abort();
  signal.addEventListener("abort", end, { once: true });
  let watchdog = setTimeout(end, 1000 * firstSeconds);
  let came = false;
  try {
    const answer = await ask(live.dataset.events, ended.signal);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ; ) {
      const { value, done } = await reader.read();
      if (done) return came;
      came = true;
      clearTimeout(watchdog);
      watchdog = setTimeout(end, 1000 * silenceSeconds);
      heard();
      const events = (text + value).split("\n\n");
      text = events.pop();
      for (const event of events) {
        const [, name, data] = event.match(/^event: (\w+)\ndata: (.*)$/) ?? [];
        if (name) await handle(name, data, ended.signal);
      }
    }
  } catch (error) {
    if (error instanceof LoggedOut) throw error;
    return came;
  } finally {
    clearTimeout(watchdog);
    signal.removeEventListener("abort", end);
    ended.abort();
  }
}

// ---- by polling

async function poll(until, signal) {
  let seconds = pollSeconds;
  while (!signal.aborted && Date.now() < until) {
    try {
      const limit = AbortSignal.any([signal, AbortSignal.timeout(10_000)]);
      await fetchPage(limit);
      heard();
      seconds = Math.max(pollSeconds, (nextFetch - Date.now()) / 1000);
    } catch (error) {
      if (error instanceof LoggedOut) throw error;
      if (signal.aborted) return;
      seconds = Math.min(2 * seconds, longestSeconds);
      tellLost();
    }
    await pause(seconds, signal);
  }
}

async function follow(signal) {
  let silent = 0;
  while (!signal.aborted) {
    if (live.dataset.events && silent < 2) {
      const came = await followEvents(signal);
      if (signal.aborted) return;
      silent = came ? 0 : silent + 1;
      if (!came) tellLost();
      await pause(came ? 0.2 + Math.random() : 1, signal);
    } else {
      await poll(live.dataset.events ? Date.now() + 1000 * tryEventsAgainSeconds : Infinity, signal);
      silent = 1;
    }
  }
}

// While the hub restarts it knows nobody. The page loads again by itself as soon as it may be read again, also after a
// login in another tab.
async function awaitLogin(signal) {
  while (!signal.aborted) {
    await pause(pollSeconds, signal);
    try {
      await ask(live.dataset.url, AbortSignal.any([signal, AbortSignal.timeout(10_000)]));
    } catch {
      continue;
    }
    window.location.reload();
    return;
  }
}

function begin() {
  stop();
  // A hidden page asks for nothing; it is brought up to date when it is shown again.
  if (document.hidden) return;
  const controller = new AbortController();
  stop = () => controller.abort();
  follow(controller.signal).catch((error) => {
    if (!(error instanceof LoggedOut)) throw error;
    tellLoggedOut();
    return awaitLogin(controller.signal);
  });
}

// A double click sends a form once. A page that "Back" shows again may send it again.
const SENT_MS = 5_000;
const submitted = new WeakSet();
function sendOnce(event) {
  const form = event.target;
  if (form.method !== "post") return;
  if (submitted.has(form)) {
    event.preventDefault();
    return;
  }
  submitted.add(form);
  window.setTimeout(() => submitted.delete(form), SENT_MS);
}

document.addEventListener("submit", sendOnce);
document.addEventListener("visibilitychange", begin);
showClocks();
dropFulfilledWish();
begin();
