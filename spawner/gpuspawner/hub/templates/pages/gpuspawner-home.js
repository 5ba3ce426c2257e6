// A new named server is chosen on the spawn page, with the name as it was typed. Without options there, JupyterHub's own
// handlers start it at once: so these listeners come before them.
(function () {
  "use strict";
  if (!window.jhdata.options_form) return;
  require(["utils"], (utils) => {
    function choose(event, row) {
      event.preventDefault();
      event.stopImmediatePropagation();
      const input = row.querySelector(".new-server-name");
      const name = utils.sanitise_display_name(input.value);
      if (!name) {
        input.focus();
        return;
      }
      const path = ["spawn", window.jhdata.user, utils.safe_slug(name)].map(encodeURIComponent).join("/");
      window.location.assign(window.jhdata.base_url + path + "?display_name=" + encodeURIComponent(name));
    }

    document.addEventListener("click", (event) => {
      const button = event.target.closest(".new-server-btn");
      if (button !== null) choose(event, button.closest(".home-server-row"));
    }, true);
    document.addEventListener("keypress", (event) => {
      if (event.key === "Enter" && event.target.matches(".new-server-name")) choose(event, event.target.closest(".home-server-row"));
    }, true);
  });
})();
