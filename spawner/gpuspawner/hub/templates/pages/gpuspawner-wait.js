// Follows the start of a server: its steps, its place in the queue, its end.
(function () {
  "use strict";
  const RETRY_MS = 1000;
  const LONGEST_RETRY_MS = 10000;
  const SILENCE_MS = 10000;
  const DONE = -1;
  const find = (id) => document.getElementById(id);
  // The server's API address is this one without "/progress": /hub/api/users/ada/servers/train/progress?_xsrf=…
  const progressUrl = new URL(JSON.parse(find("gpu-start-data").textContent).progress_url, window.location);
  const serverUrl = new URL(progressUrl);
  serverUrl.pathname = progressUrl.pathname.replace(/\/progress$/, "");
  const page = find("gpu-start");
  const steps = find("gpu-steps") ? [...find("gpu-steps").children] : [];
  const STATES = { done: "(done)", active: "(now)", todo: "(to do)", failed: "(failed)" };
  const TITLES = { start: "Starting", wait: "Waiting for a GPU", failed: "Did not start" };
  const LEFT = "gpuspawner-left:" + serverUrl.pathname;
  let stopping = false;

  // Whether the start was cancelled on purpose in this tab, whose "Back" leads to this page once more. A browser that
  // stores nothing for the page throws.
  function wasLeft() {
    try {
      return sessionStorage.getItem(LEFT) !== null;
    } catch (error) {
      return false;
    }
  }

  function noteLeft(left) {
    try {
      if (left) sessionStorage.setItem(LEFT, "yes");
      else sessionStorage.removeItem(LEFT);
    } catch (error) {
      console.warn(error);
    }
  }

  function setState(state) {
    page.dataset.state = state;
    document.title = TITLES[state] + " · JupyterHub";
  }

  function setStep(item, state) {
    item.dataset.state = state;
    item.querySelector(".gpu-step-state").textContent = STATES[state];
  }

  const clock = (text) => new Date(text).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

  const MINUTE_MS = 60000;
  const nearestMinute = (text) => new Date(Math.round(new Date(text) / MINUTE_MS) * MINUTE_MS);
  const hoursAndMinutes = (at) => at.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });

  // The likely wait on the clock of this browser, if the sentence has other times; and how the place has moved since the
  // wait began.
  function showQueue(item, queue, sentence) {
    const range = item.querySelector(".gpu-range");
    const ends = queue && queue.latest_at ? [queue.earliest_at, queue.latest_at].map(nearestMinute) : [];
    range.hidden = ends.every((at) => sentence.includes(hoursAndMinutes(at)));
    if (!range.hidden) {
      const [from, to] = ends.map(clock);
      const likely = from === to ? "about " + to : "between " + from + " and " + to;
      range.textContent = "On your clock: " + likely + ".";
    }
    const until = find("gpu-until");
    until.hidden = !(queue && queue.ends_at);
    if (!until.hidden) {
      until.textContent = "If no GPU is free by " + clock(queue.ends_at)
        + ", the wait ends and your server does not start. You can start it again then.";
    }
    const moved = item.querySelector(".gpu-moved");
    moved.hidden = !queue;
    if (queue) {
      const since = "Waiting since " + clock(queue.since);
      moved.textContent = queue.first_position > queue.position
        ? since + ": number " + queue.first_position + " in line then, number " + queue.position + " now."
        : since + ".";
    }
  }

  function showSteps(event) {
    const active = steps.findIndex((item) => item.dataset.step === event.step);
    if (active < 0) return;
    steps.forEach((item, number) => {
      item.hidden = Boolean(event.steps) && !event.steps.includes(item.dataset.step);
      setStep(item, number < active ? "done" : number === active ? "active" : "todo");
    });
    const item = steps[active];
    item.querySelector(".gpu-step-detail").textContent = event.message || "";
    const pull = item.querySelector(".gpu-pull");
    if (pull) {
      pull.hidden = event.part_percent === undefined || event.part_percent === null;
      if (!pull.hidden) pull.value = event.part_percent;
    }
    if (item.querySelector(".gpu-range")) showQueue(item, event.queue, event.message || "");
    for (const each of steps.slice(0, active)) {
      for (const part of each.querySelectorAll(".gpu-pull, .gpu-range, .gpu-moved")) part.hidden = true;
    }
    setState(event.queue ? "wait" : "start");
  }

  function show(event) {
    const line = document.createElement("div");
    line.className = "progress-log-event";
    line.textContent = event.message || "";
    if (line.textContent) {
      find("progress-message").textContent = line.textContent;
      find("progress-log").append(line);
    }
    showSteps(event);
  }

  // A start that has ended without a server. `html` is the hub's, and escaped there.
  function fail(event) {
    setState("failed");
    for (const item of steps) {
      if (item.dataset.state !== "active") continue;
      setStep(item, "failed");
      // What it said last, "1st in line", is no longer so.
      for (const part of item.querySelectorAll(".gpu-step-detail")) part.textContent = "";
      for (const part of item.querySelectorAll(".gpu-pull, .gpu-range, .gpu-moved")) part.hidden = true;
    }
    const problem = find("gpu-problem");
    if (event.html_message) problem.innerHTML = event.html_message;
    else problem.textContent = event.message;
    problem.hidden = false;
    find("progress-message").textContent = (problem.querySelector(".gpu-failure") || problem).textContent;
    find("start-again").hidden = problem.querySelector(".gpu-links") !== null;
    find("gpu-buttons").hidden = true;
  }

  // Returns whether this was the last event of the start.
  function take(event) {
    if (!stopping) {
      noteLeft(false); // this is another start
      if (event.failed) fail(event);
      else show(event);
      page.dataset.heard = "yes";
      if (event.ready) {
        window.location.reload(); // the hub redirects to the server
      }
    }
    return Boolean(event.ready || event.failed);
  }

  // Reads the stream of events. Returns DONE after the last one, else the HTTP status, or 0 if the hub does not answer.
  // An EventSource does not work here: configurable-http-proxy keeps the stream open when the hub was killed, and only
  // the hub's empty lines (every 8 s) show that the hub is alive.
  async function follow() {
    const request = new AbortController();
    let silence = window.setTimeout(() => request.abort(), SILENCE_MS);
    try {
      const answer = await fetch(progressUrl, {
        signal: request.signal, redirect: "manual", headers: { Accept: "text/event-stream" },
      });
      if (!answer.ok) {
        return answer.status;
      }
      find("progress-log").replaceChildren();
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        window.clearTimeout(silence);
        silence = window.setTimeout(() => request.abort(), SILENCE_MS);
        const lines = (text + part.value).split("\n");
        text = lines.pop();
        for (const line of lines) {
          if (line.startsWith("data:") && take(JSON.parse(line.slice(5)))) {
            return DONE;
          }
        }
      }
      return answer.status;
    } catch (error) {
      return 0;
    } finally {
      window.clearTimeout(silence);
      request.abort();
    }
  }

  // Later and later, and not all at once: a lecture hall that asks each second keeps the hub from what it is asked about.
  const pause = (attempt) => {
    const longest = Math.min(RETRY_MS * 2 ** attempt, LONGEST_RETRY_MS);
    return new Promise((resolve) => window.setTimeout(resolve, longest * (0.5 + Math.random() / 2)));
  };

  async function run() {
    for (let attempt = 0; ; attempt += 1) {
      const status = await follow();
      if (status === DONE || stopping) {
        return;
      }
      if (status === 400 || status === 404) {
        await lose();
        return;
      }
      if (status === 401 || status === 403) {
        window.location.reload(); // log in again
        return;
      }
      if (status !== 200) {
        find("progress-message").textContent = "The hub does not answer. Trying again …";
        find("progress-message").className = "alert alert-warning";
        page.dataset.heard = "no"; // whether the place stays is not known now
      } else {
        attempt = 0;
      }
      await pause(attempt);
      find("progress-message").className = steps.length ? "visually-hidden" : "";
    }
  }

  async function lose() {
    const page = await fetch(window.location, { redirect: "manual" }).catch(() => null);
    if (page !== null && page.type === "opaqueredirect") {
      window.location.reload(); // the server is running
      return;
    }
    fail({
      message: wasLeft()
        ? "You cancelled this start. If you had a place in the queue, you have given it up."
        : "This start has ended: the hub was restarted, or the server was stopped. If you had a place in the "
          + "queue, you have lost it.",
    });
  }

  function tell(kind, sentence) {
    const status = find("stop-server-status");
    status.className = "alert mt-3 alert-" + kind;
    status.textContent = sentence;
    status.hidden = false;
  }

  // Stops this server, and goes to `target` when it has ended.
  async function stop(target) {
    const button = find("stop-server-btn");
    stopping = true;
    button.disabled = true;
    tell("info", "Cancelling the start …");
    let problem = "the hub does not answer";
    try {
      let answer = await fetch(serverUrl, { method: "DELETE" });
      for (let attempt = 0; answer.status === 202; attempt += 1) { // the server is still stopping
        await pause(attempt);
        answer = await fetch(serverUrl, { method: "DELETE" });
      }
      if (answer.ok || answer.status === 404) {
        noteLeft(true);
        window.location.assign(target);
        return;
      }
      problem = (await answer.json()).message || answer.statusText;
    } catch (error) {
      console.error(error);
    }
    stopping = false;
    button.disabled = false;
    tell("danger", "The start was not cancelled: " + problem + ". Try again.");
  }

  find("stop-server-btn").addEventListener("click", () => stop(find("start-again").firstElementChild.href));
  const meanwhile = find("gpu-meanwhile");
  if (meanwhile && meanwhile.dataset.keepsPlace === "false") {
    meanwhile.addEventListener("click", (event) => {
      event.preventDefault();
      stop(meanwhile.href);
    });
  }
  run();
  window._jupyterhub_page_loaded = true;
})();
