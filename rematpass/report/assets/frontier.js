/** Peak against seconds: the ladder as a staircase, plans to compare with, the budget, the bound. */
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
  box.replaceChildren(svg); // before anything is drawn: only text in the document has a width
  let written = -Infinity;
  for (const t of ticks(x0, x1, Math.max(3, W / 120), true)) {
    add("line", { x1: X(t), x2: X(t), y1: top, y2: H - bottom, stroke: "var(--line)" });
    const text = add("text", { x: X(t), y: H - bottom + 18, class: "axis", "text-anchor": "middle" }, tickBytes(t));
    const half = text.getComputedTextLength() / 2;
    if (X(t) - half < written + 8 || X(t) + half > W) text.remove();
    else written = X(t) + half;
  }
  for (const t of ticks(y0, y1, 5, false)) {
    add("line", { x1: left, x2: W - right, y1: Y(t), y2: Y(t), stroke: "var(--line)" });
    add("text", { x: left - 8, y: Y(t) + 4, class: "axis", "text-anchor": "end" }, tickSeconds(t));
  }
  add("text", { x: W - right, y: H - 8, class: "axis", "text-anchor": "end" }, "peak of a step →");
  add("text", { x: left, y: H - 8, class: "axis" }, "↑ seconds of a step");
  const labels = [];
  $("bound-note").hidden = !bound.length;
  if (bound.length) {
    const first = bound[0];
    const edge = `M${X(first[0])} ${top}` + bound.map(([n, s]) => `L${X(n)} ${Y(s)}`).join("");
    add("path", { d: `${edge}V${H - bottom}H${left}V${top}Z`, fill: "var(--faint)", opacity: 0.14 });
    add("path", { d: edge, fill: "none", stroke: "var(--faint)", "stroke-width": 1.5, "stroke-dasharray": "5 4", id: "bound" });
  }
  const budget = data.summary.budget_nbytes;
  if (budget && budget >= x0 && budget <= x1) {
    add("line", { x1: X(budget), x2: X(budget), y1: top, y2: H - bottom, stroke: "var(--ink)", "stroke-dasharray": "2 4", id: "budget" });
    labels.push({ x: X(budget), y: top + 8, text: `budget ${bytes(budget)}`, quiet: true });
  }
  let path = "";
  data.frontier.forEach((p, i) => { path += i ? `V${Y(p.seconds)}H${X(p.peak)}` : `M${W - right} ${Y(p.seconds)}H${X(p.peak)}`; });
  add("path", { d: `${path}V${top}`, fill: "none", stroke: "var(--accent)", "stroke-width": 2, "stroke-linejoin": "round", opacity: 0.85 });
  const radius = data.frontier.length > 60 ? 2 : 3.5;
  for (const p of data.frontier) add("circle", { cx: X(p.peak), cy: Y(p.seconds), r: radius, fill: "var(--accent)", class: "rung" });
  for (const p of data.others) {
    const s = 5, x = X(p.peak), y = Y(p.seconds);
    add("path", { d: `M${x} ${y - s}L${x + s} ${y}L${x} ${y + s}L${x - s} ${y}Z`, fill: "var(--panel)", stroke: "var(--soft)", "stroke-width": 1.8, class: "other" });
    labels.push({ x, y, text: p.name, quiet: true });
  }
  add("circle", { cx: X(chosen.peak), cy: Y(chosen.seconds), r: 8, fill: "var(--recomputed)", stroke: "var(--panel)", "stroke-width": 2.5, id: "chosen" });
  labels.unshift({ x: X(chosen.peak), y: Y(chosen.seconds), text: `this plan, ${bytes(chosen.peak)}`, quiet: false });
  for (const label of labels) {
    label.element = add("text", { class: label.quiet ? "mark-label quiet" : "mark-label", "font-weight": label.quiet ? 400 : 620 }, label.text);
    label.width = label.element.getComputedTextLength();
  }
  const marks = [...all.map((p) => [X(p.peak), Y(p.seconds)])];
  place(labels, { left: left + 4, right: W - 4, top, bottom: H - bottom }, marks);
  svg.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect(), px = event.clientX - frame.left, py = event.clientY - frame.top;
    const distance = (p) => Math.hypot(X(p.peak) - px, Y(p.seconds) - py);
    const near = [chosen, ...data.others, ...data.frontier].reduce((a, b) => (distance(b) < distance(a) - 0.01 ? b : a));
    if (distance(near) > 36) return hideTip();
    const more = near.peak - chosen.peak, slower = near.seconds - chosen.seconds;
    const compared = near === chosen || (!more && !slower) ? [] : [tipLine("compared with this plan", `${signed(bytes(more), more)}, ${signed(seconds(slower), slower)} a step`)];
    const proven = near.above_bound === null ? [] : [tipLine("above the bound at its peak", `at most ${percent(near.above_bound)}`)];
    const name = data.frontier.includes(near) ? `a plan of the ladder (${near.name})` : near.name;
    showTip(event.clientX, event.clientY, tipTitle(name), tipLine("peak", bytes(near.peak)), tipLine("a step", seconds(near.seconds)), ...compared, ...proven);
  });
  svg.addEventListener("pointerleave", hideTip);
}

/**
 * Put each label near its point: inside the frame, over no label placed before it and, if possible, over no mark.
 * Places are tried by distance: right of the point, left of it, centred; on its own line, then above and below.
 */
function place(labels, frame, marks) {
  const height = 16, placed = [];
  const overlaps = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  for (const label of labels) {
    const boxes = [];
    for (let line = 0; line * height < frame.bottom - frame.top; line++)
      for (const y of line ? [label.y - line * height, label.y + line * height] : [label.y])
        for (const x of [label.x + 12, label.x - 12 - label.width, label.x - label.width / 2]) {
          const left = Math.max(frame.left, Math.min(frame.right - label.width, x));
          boxes.push({ left, right: left + label.width, top: y - height / 2, bottom: y + height / 2 });
        }
    const free = boxes.filter((b) => b.top >= frame.top && b.bottom <= frame.bottom && !placed.some((other) => overlaps(b, other)));
    const clear = (b) => !marks.some(([x, y]) => overlaps(b, { left: x - 6, right: x + 6, top: y - 6, bottom: y + 6 }));
    const box = free.find(clear) || free[0];
    if (!box) { label.element.remove(); continue; } // pointing at the mark still names it
    placed.push(box);
    label.element.setAttribute("x", box.left);
    label.element.setAttribute("y", box.top + height / 2 + 4);
  }
}
