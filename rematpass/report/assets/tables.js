const FATE_COLOR = { saved: "saved", recomputed: "recomputed", gradient: "gradients", output: "outputs" };
const fateDot = (fate) => el("i", { class: "dot", style: `background: var(--${FATE_COLOR[fate] || "temporaries"})` });
const bar = (n, most, role) => el("td", { class: "num" }, el("div", { class: "bar" }, n ? bytes(n) : "–", n ? el("i", { style: `width: ${Math.max(2, (84 * n) / most)}px; background: var(--${role})` }) : null));

/** Values by bytes, each with its fate and the reason; filtered by fate and by a text, sorted by a column. */
const valueTable = (() => {
  const rows = data.accounts.map((a) => ({ ...a, v: data.values[a.value] }));
  const most = Math.max(1, ...rows.map((r) => r.v.nbytes));
  const count = {};
  for (const r of rows) count[r.fate] = (count[r.fate] || 0) + 1;
  const off = new Set(["temporary", "freed", "made in backward"].filter((f) => count[f] && Object.keys(count).length > 3));
  let sort = "nbytes", limit = 40, text = "";
  const columns = [["value", null], ["bytes", "nbytes"], ["type", null], ["module, line", null], ["recompute", "seconds"], ["fate and reason", null]];
  const matches = (r) => !off.has(r.fate) && (!text || `${r.v.name} ${r.v.module} ${r.v.source} ${r.v.type} ${r.reason}`.toLowerCase().includes(text));

  function draw() {
    const found = rows.filter(matches).sort((a, b) => (sort === "seconds" ? b.seconds - a.seconds : b.v.nbytes - a.v.nbytes) || a.value - b.value);
    const head = columns.map(([name, key]) => el("th", { class: { bytes: "num", recompute: "num wide", type: "wide" }[name] || "", "aria-sort": key && key === sort ? "descending" : null },
      key ? el("button", { type: "button", onclick: () => { sort = key; draw(); } }, name + (key === sort ? " ↓" : "")) : name));
    $("values").replaceChildren(el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...found.slice(0, limit).map(row)));
    $("more").hidden = found.length <= limit;
    $("more").textContent = `Show more (${(found.length - limit).toLocaleString("en")} left)`;
    $("values-lead").textContent = `${short(found.length, "value")} of ${bytes(found.reduce((s, r) => s + r.v.nbytes, 0))}, the largest first. ` + data.left_out;
  }

  const row = (r) => el("tr", {},
    el("td", {}, el("code", { title: r.v.name }, r.v.name), r.at_peak ? el("span", { class: "peak-badge", title: "alive at the peak" }, "at peak") : null),
    bar(r.v.nbytes, most, FATE_COLOR[r.fate] || "temporaries"),
    el("td", { class: "type wide" }, el("code", {}, r.v.type)),
    el("td", { class: "where" }, r.v.module ? el("div", { class: "mono" }, r.v.module) : null, r.v.source),
    el("td", { class: "num wide" }, r.seconds ? seconds(r.seconds) : "–"),
    el("td", {}, fateDot(r.fate), " ", r.reason));

  $("fates").append(...Object.entries(count).sort((a, b) => b[1] - a[1]).map(([fate, many]) =>
    el("button", { type: "button", "aria-pressed": !off.has(fate) ? "true" : "false", onclick(event) {
      off[off.has(fate) ? "delete" : "add"](fate);
      event.currentTarget.setAttribute("aria-pressed", String(!off.has(fate)));
      draw();
    } }, fateDot(fate), `${fate} ${many.toLocaleString("en")}`)));
  $("search").addEventListener("input", (event) => { text = event.target.value.trim().toLowerCase(); limit = 40; draw(); });
  $("more").addEventListener("click", () => { limit += 200; draw(); });
  return { draw };
})();

/** Modules as a tree that folds; as many levels are open as fit in a screen. */
const moduleTable = (() => {
  const rows = data.modules, level = (m) => (m.path ? m.path.split(".").length : 0);
  const parent = (m) => (m.path.includes(".") ? m.path.slice(0, m.path.lastIndexOf(".")) : "");
  const inner = new Set(rows.filter((m) => m.path).map(parent)), open = new Set([""]);
  for (let depth = 1; depth < 12; depth++) {
    const shown = rows.filter((m) => level(m) <= depth + 1);
    if (shown.length > 26) break;
    for (const m of rows) if (level(m) === depth && inner.has(m.path)) open.add(m.path);
  }
  const most = Math.max(1, ...rows.filter((m) => m.path).map((m) => Math.max(m.saved_nbytes, m.recomputed_nbytes)));
  const visible = (m) => !m.path || (open.has(parent(m)) && (parent(m) === "" || visible({ path: parent(m) })));

  function draw() {
    const head = ["module", "saved", "recomputed", "recompute", "at the peak"].map((h, i) => el("th", { class: ["", "num", "num", "num wide", "num wide"][i] }, h));
    $("modules").replaceChildren(el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows.filter(visible).map(row)));
  }

  function row(m) {
    const toggle = () => { open[open.has(m.path) ? "delete" : "add"](m.path); draw(); };
    const fold = m.path && inner.has(m.path)
      ? el("button", { type: "button", class: "fold", "aria-expanded": String(open.has(m.path)), "aria-label": `fold ${m.path}`, onclick: toggle }, open.has(m.path) ? "▾" : "▸")
      : el("span", { class: "fold", style: "display: inline-block" });
    const name = m.path ? m.path.slice(m.path.lastIndexOf(".") + 1) : "the whole graph";
    return el("tr", {},
      el("td", { style: `padding-left: ${Math.max(0, level(m) - 1) * 16}px; white-space: nowrap`, title: m.path }, m.path ? fold : null, el("span", { class: m.path ? "mono" : "" }, name)),
      bar(m.saved_nbytes, most, "saved"), bar(m.recomputed_nbytes, most, "recomputed"),
      el("td", { class: "num wide" }, m.recompute_seconds ? seconds(m.recompute_seconds) : "–"),
      el("td", { class: "num wide" }, m.peak_nbytes ? bytes(m.peak_nbytes) : "–"));
  }
  return { draw };
})();
