// Keeps the spawn page up to date: fetches the page again, and replaces what is marked with data-live. What the user has
// chosen stays. While nothing changes it asks less and less often. Without this script the page shows the state of its
// last load, and everything else works.
(function () {
  "use strict";
  const SECONDS = 8;
  const SLOWER = 1.25;
  const LONGEST_SECONDS = 30;
  const form = document.getElementById("spawn_form");
  const stale = document.getElementById("gpu-stale");
  let seconds = SECONDS;
  let timer = 0;
  let sent = false;

  // The chosen card in few words, for a screen reader when it changes: "One GPU: Free now".
  function chosen() {
    const radio = form.querySelector(".gpu-tier input:checked");
    if (radio === null) return "";
    const part = (name) => document.getElementById(radio.id + name).textContent.trim();
    return part("-title") + ": " + part("-badge");
  }

  // Returns whether anything has changed.
  function swap(html) {
    const fresh = new DOMParser().parseFromString(html, "text/html");
    const before = chosen();
    let changed = false;
    for (const part of form.querySelectorAll("[data-live]")) {
      const next = fresh.getElementById(part.id);
      if (next === null) continue;
      part.hidden = next.hidden;
      if (part.innerHTML === next.innerHTML) continue;
      part.replaceChildren(...next.childNodes);
      changed = true;
    }
    for (const card of form.querySelectorAll(".gpu-tier")) {
      const next = fresh.getElementById(card.id);
      if (next === null) continue;
      card.dataset.state = next.dataset.state;
      card.querySelector("input").disabled = next.querySelector("input").disabled;
    }
    if (chosen() !== before) document.getElementById("gpu-news").textContent = chosen();
    return changed;
  }

  async function update() {
    try {
      // Not with the page's query: options in it would start the server. By the empty one, the hub's log knows these requests.
      const answer = await fetch(window.location.pathname + "?next=", {
        redirect: "manual",
        headers: { Accept: "text/html" },
        signal: AbortSignal.timeout(10000),
      });
      if (answer.type === "opaqueredirect" || answer.status === 401 || answer.status === 403) {
        window.location.assign(window.location.pathname); // the server is starting, or the login has ended
        return;
      }
      if (!answer.ok) throw new Error("status " + answer.status);
      const html = await answer.text();
      if (sent) return;
      seconds = swap(html) ? SECONDS : Math.min(SLOWER * seconds, LONGEST_SECONDS);
      stale.hidden = true;
    } catch (error) {
      seconds = Math.min(2 * seconds, LONGEST_SECONDS);
      stale.hidden = sent;
    }
  }

  // A hidden page sends no requests; it updates when it is shown again. Pages of a class that were opened at the same time
  // don't ask at the same time.
  async function follow(now) {
    window.clearTimeout(timer);
    if (document.hidden || sent) return;
    if (now) await update();
    timer = window.setTimeout(follow, 1000 * seconds * (0.75 + Math.random() / 2), true);
  }

  form.addEventListener("submit", () => {
    sent = true;
    const button = form.querySelector("[type=submit]");
    button.disabled = true;
    button.textContent = "Starting …";
  });
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) window.location.reload(); // back from the next page: the button works again
  });
  document.addEventListener("visibilitychange", () => follow(true));
  follow(false);
})();
