/** The plane of peak and seconds: the ladder's staircase, plans to compare with, the budget, the bound. */
function drawFrontier() {
  const box = $("frontier"), W = box.clientWidth, H = box.clientHeight;
  const left = 62, right = 18, top = 14, bottom = 44;
  const chosen = data.chosen, bound = data.bound || [];
  const all = [...data.frontier, ...data.others, chosen];
  const peaks = [...all.map((p) => p.peak), ...bound.map((b) => b[0])], times = [...all.map((p) => p.seconds), ...bound.map((b) => b[1])];
  if (data.summary.budget_nbytes && data.summary.budget_nbytes < 1.5 * Math.max(...peaks)) peaks.push(data.summary.budget_nbytes);
  const range = (xs) => {
    const low = Math.min(...xs), high = Math.max(...xs), room = (high - low || high || 1) * 0.07;
    return [Math.max(0, low - room), high + room];
  };
  const [x0, x1] = range(peaks), [y0, y1] = range(times);
  const X = (n) => left + ((n - x0) / (x1 - x0)) * (W - left - right);
  const Y = (s) => H - bottom - ((s - y0) / (y1 - y0)) * (H - top - bottom);
  const svg = el("svg:svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Frontier: peak against seconds of a step" });
  const add = (name, attributes, ...children) => svg.appendChild(el(`svg:${name}`, attributes, ...children));
  for (const t of ticks(x0, x1, Math.max(3, W / 120), true)) {
    add("line", { x1: X(t), x2: X(t), y1: top, y2: H - bottom, stroke: "var(--line)" });
    add("text", { x: X(t), y: H - bottom + 18, class: "axis", "text-anchor": "middle" }, tickBytes(t));
  }
  for (const t of ticks(y0, y1, 5, false)) {
    add("line", { x1: left, x2: W - right, y1: Y(t), y2: Y(t), stroke: "var(--line)" });
    add("text", { x: left - 8, y: Y(t) + 4, class: "axis", "text-anchor": "end" }, tickSeconds(t));
  }
  add("text", { x: W - right, y: H - 8, class: "axis", "text-anchor": "end" }, "peak of a step →");
  add("text", { x: left, y: H - 8, class: "axis" }, "↑ seconds of a step");
  if (bound.length) {
    const [first, last] = [bound[0], bound[bound.length - 1]];
    const edge = `M${X(first[0])} ${top}` + bound.map(([n, s]) => `L${X(n)} ${Y(s)}`).join("");
    add("path", { d: `${edge}V${H - bottom}H${left}V${top}Z`, fill: "var(--faint)", opacity: 0.14 });
    add("path", { d: edge, fill: "none", stroke: "var(--faint)", "stroke-width": 1.5, "stroke-dasharray": "5 4", id: "bound" });
    add("text", { x: X(first[0]) + 6, y: H - bottom - 8, class: "mark-label quiet" }, "no plan can be here (proven)");
  }
  const budget = data.summary.budget_nbytes;
  if (budget && budget >= x0 && budget <= x1) {
    add("line", { x1: X(budget), x2: X(budget), y1: top, y2: H - bottom, stroke: "var(--ink)", "stroke-dasharray": "2 4", id: "budget" });
    const before = X(budget) > W / 2;
    add("text", { x: X(budget) + (before ? -6 : 6), y: top + 10, class: "mark-label quiet", "text-anchor": before ? "end" : "start" }, `budget ${bytes(budget)}`);
  }
  let path = "";
  data.frontier.forEach((p, i) => { path += i ? `V${Y(p.seconds)}H${X(p.peak)}` : `M${W - right} ${Y(p.seconds)}H${X(p.peak)}`; });
  add("path", { d: `${path}V${top}`, fill: "none", stroke: "var(--accent)", "stroke-width": 2, "stroke-linejoin": "round", opacity: 0.85 });
  const radius = data.frontier.length > 60 ? 2 : 3.5;
  for (const p of data.frontier) add("circle", { cx: X(p.peak), cy: Y(p.seconds), r: radius, fill: "var(--accent)", class: "rung" });
  const labels = [];
  for (const p of data.others) {
    const s = 5, x = X(p.peak), y = Y(p.seconds);
    add("path", { d: `M${x} ${y - s}L${x + s} ${y}L${x} ${y + s}L${x - s} ${y}Z`, fill: "var(--panel)", stroke: "var(--soft)", "stroke-width": 1.8, class: "other" });
    labels.push({ x, y: y - 12, text: p.name, quiet: true });
  }
  add("circle", { cx: X(chosen.peak), cy: Y(chosen.seconds), r: 8, fill: "var(--recomputed)", stroke: "var(--panel)", "stroke-width": 2.5, id: "chosen" });
  labels.push({ x: X(chosen.peak), y: Y(chosen.seconds) - 13, text: `this plan, ${bytes(chosen.peak)}`, quiet: false });
  place(labels, W, data.frontier.map((p) => [X(p.peak), Y(p.seconds)])).forEach((l) =>
    add("text", { x: l.x + (l.end ? -14 : 14), y: l.at + 4, class: l.quiet ? "mark-label quiet" : "mark-label", "font-weight": l.quiet ? 400 : 620, "text-anchor": l.end ? "end" : "start" }, l.text));
  box.replaceChildren(svg);
  svg.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect(), px = event.clientX - frame.left, py = event.clientY - frame.top;
    const distance = (p) => Math.hypot(X(p.peak) - px, Y(p.seconds) - py);
    const near = [chosen, ...data.others, ...data.frontier].reduce((a, b) => (distance(b) < distance(a) - 0.01 ? b : a));
    if (distance(near) > 36) return hideTip();
    const more = near.peak - chosen.peak, slower = near.seconds - chosen.seconds;
    const compared = near === chosen || (!more && !slower) ? [] : [tipLine("beside this plan", `${signed(bytes(more), more)}, ${signed(seconds(slower), slower)} a step`)];
    const proven = near.above_bound === null ? [] : [tipLine("above the bound at its peak", `at most ${percent(near.above_bound)}`)];
    const name = data.frontier.includes(near) ? `a plan of the ladder (${near.name})` : near.name;
    showTip(event.clientX, event.clientY, tipTitle(name), tipLine("peak", bytes(near.peak)), tipLine("a step", seconds(near.seconds)), ...compared, ...proven);
  });
  svg.addEventListener("pointerleave", hideTip);
}

/** Labels beside their points, moved up or down until they overlap neither each other nor the ladder's points. */
function place(labels, W, dots) {
  const placed = [];
  for (const l of labels.reverse()) {
    const width = l.text.length * 7;
    l.end = l.x + width + 14 > W;
    const from = l.end ? l.x - 12 - width : l.x + 12;
    l.at = l.y;
    const clash = () => placed.some((o) => Math.abs(o.at - l.at) < 16 && from < o.to && o.from < from + width)
      || dots.some(([x, y]) => Math.abs(y - l.at) < 11 && from - 4 < x && x < from + width + 4);
    for (let i = 1; clash() && i < 12; i++) l.at = l.y + (i % 2 ? -1 : 1) * Math.ceil(i / 2) * 16;
    placed.push(Object.assign(l, { from, to: from + width }));
  }
  return placed;
}
