// The GPU in JupyterLab's status bar: the numbers of the page "My GPU", and a link to it.
//
// A prebuilt extension of JupyterLab 4 without a build: it offers what webpack's module federation would (`init`
// with the shared modules, `get` for this extension), and takes from JupyterLab what it needs. It asks the lab's own
// server (gpuspawner_status.py) every five seconds, and only while the page is seen.
"use strict";
(() => {
  const POLL_MS = 5000;
  const ID = "gpuspawner-status:plugin";
  const SMI = "nvidia-smi shows the whole GPU. What counts for your quota is this number.";
  let scope = {};

  /** A module of JupyterLab's own, in the version that it shares. */
  async function shared(name) {
    const [version] = Object.values(scope[name] || {});
    if (!version) throw new Error(`JupyterLab doesn't share ${name}`);
    return (await version.get())();
  }

  const span = (milliseconds) => {
    const minutes = Math.max(0, Math.floor(milliseconds / 60000));
    const hours = Math.floor(minutes / 60);
    return hours ? `${hours} h ${minutes % 60} min` : `${minutes} min`;
  };

  /** The line in the bar: memory of the quota, compute, what is left of the time. */
  function line(use, now) {
    if (use === undefined || !use.memory) return "GPU: not known now";
    const parts = use.simulated ? ["simulated"] : [use.memory.text, use.compute.text];
    if (use.turn) parts.unshift(use.turn);
    if (use.ends_at) parts.push(`${span(Date.parse(use.ends_at) - now)} left`);
    return `GPU ${parts.join(" · ")}`;
  }

  /** What the bar has no room for. */
  function help(use) {
    if (use === undefined || !use.memory) return "The GPU broker has not told the use of your GPU. Open My GPU.";
    const lines = [`GPU memory of your quota: ${use.memory.text}${use.memory.left ? ` (${use.memory.left})` : ""}`];
    if (!use.simulated) lines.push(`Compute: ${use.compute.text}`);
    if (use.ends_at) {
      const end = new Date(use.ends_at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
      lines.push(`Your server ends at ${end}`);
    }
    if (!use.simulated) lines.push(SMI);
    return [...lines, "Open My GPU"].join("\n");
  }

  function draw(link, use) {
    const level = (use && use.memory && use.memory.level) || "";
    link.textContent = line(use, Date.now());
    link.title = help(use);
    link.dataset.level = level;
    link.style.fontWeight = level ? "bold" : "";
    link.style.textDecoration = level === "danger" ? "underline" : "none";
    if (use && use.page_url) link.href = use.page_url;
  }

  /** Asks the server while the page is seen; null: this server has no GPU, and it is not asked again. */
  function follow(ask, onUse) {
    let timer;
    const look = async () => {
      clearTimeout(timer);
      if (document.hidden) return;
      const use = await ask().catch(() => undefined);
      if (use === null) return;
      onUse(use);
      clearTimeout(timer);
      timer = setTimeout(look, POLL_MS);
    };
    document.addEventListener("visibilitychange", look);
    look();
  }

  async function plugin() {
    const [{ IStatusBar }, { ServerConnection }, { Widget }] = await Promise.all(
      ["@jupyterlab/statusbar", "@jupyterlab/services", "@lumino/widgets"].map(shared),
    );
    const settings = ServerConnection.makeSettings();
    const ask = async () => {
      const answer = await ServerConnection.makeRequest(`${settings.baseUrl}gpuspawner/use`, {}, settings);
      return answer.ok ? answer.json() : undefined;
    };
    const activate = (app, statusBar) => {
      const link = document.createElement("a");
      Object.assign(link, { target: "_blank", rel: "noopener", className: "jp-StatusBar-TextItem" });
      link.id = "gpuspawner-status";
      link.style.color = "inherit";
      let item;
      follow(ask, (use) => {
        draw(link, use);
        if (item || !use) return;
        item = new Widget({ node: document.createElement("div") });
        item.node.append(link);
        statusBar.registerStatusItem(ID, { item, align: "left", rank: 90 });
      });
    };
    return { id: ID, description: "Shows the use of the GPU quota.", autoStart: true, requires: [IStatusBar], activate };
  }

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB["gpuspawner-status"] = {
    init: (modules) => { scope = modules; },
    get: async (name) => {
      if (name !== "./extension") throw new Error(`there is no ${name} here`);
      const made = { __esModule: true, default: await plugin() };
      return () => made;
    },
  };
})();
