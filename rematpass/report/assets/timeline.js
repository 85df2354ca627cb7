/**
 * Memory over the step, on a canvas: a band per tensor, stacked by role, the oldest at the bottom of its role. If
 * several ops share a pixel, the one with the most live bytes is drawn, so that no peak is lost.
 */
const timeline = (() => {
  const T = data, runs = data.runs, n = runs.length, canvas = $("timeline").children[0], over = $("timeline").children[1];
  const left = 62, right = 10, top = 18, bottom = 26;
  const intervals = T.intervals, order = intervals.map((_, i) => i).sort((a, b) => intervals[a].role - intervals[b].role || intervals[a].born - intervals[b].born);
  const alive = Array.from({ length: n }, () => []);
  for (const i of order) for (let p = intervals[i].born; p <= intervals[i].end; p++) alive[p].push(i);
  const even = Array.from({ length: n + 1 }, (_, p) => p / n);
  const total = runs.reduce((sum, r) => sum + r.seconds, 0) || 1;
  const timed = [0];
  for (const r of runs) timed.push(timed[timed.length - 1] + r.seconds / total);
  let edges = even, from = 0, to = 1, shown = [], scale = 1, focus = null, drag = null, labels = [];

  const X = (t) => left + ((t - from) / (to - from)) * (canvas.clientWidth - left - right);
  const Y = (b) => canvas.clientHeight - bottom - b * scale;

  /** The pieces at one position from the bottom up: [interval or -1, role, low, high]. */
  function pieces(p) {
    const found = [];
    let low = 0, k = 0;
    const there = alive[p];
    for (let role = 0; role < ROLES.length; role++) {
      const roof = low + T.by_role[role][p];
      for (; k < there.length && intervals[there[k]].role === role; k++) {
        const high = Math.min(low + intervals[there[k]].nbytes, roof);
        if (high > low) found.push([there[k], role, low, high]);
        low = high;
      }
      if (roof > low) found.push([-1, role, low, roof]);
      low = roof;
    }
    return found;
  }

  function columns() {
    const found = [];
    for (let p = 0; p < n; p++) {
      if (edges[p + 1] <= from || edges[p] >= to) continue;
      const a = Math.round(Math.max(X(edges[p]), left)), b = Math.round(Math.min(X(edges[p + 1]), canvas.clientWidth - right));
      const last = found[found.length - 1];
      if (b > a) found.push({ p, a, b });
      else if (!last || last.b < a + 1) found.push({ p, a, b: a + 1 });
      else if (runs[p].live > runs[last.p].live) last.p = p;
    }
    return found;
  }

  function fit(c) {
    const ratio = devicePixelRatio || 1, g = c.getContext("2d");
    c.width = c.clientWidth * ratio;
    c.height = c.clientHeight * ratio;
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    return g;
  }

  /** Write a text, unless it would cover one that was written before it. */
  function write(g, text, x, y, align) {
    const width = g.measureText(text).width, start = align === "right" ? x - width : x;
    const box = { text, left: start, right: start + width, top: y - 7, bottom: y + 7 };
    if (labels.some((o) => box.left < o.right + 4 && o.left < box.right + 4 && box.top < o.bottom && o.top < box.bottom)) return;
    labels.push(box);
    g.textAlign = align;
    g.fillText(text, x, y);
  }

  function draw() {
    labels = [];
    const g = fit(canvas), W = canvas.clientWidth, H = canvas.clientHeight;
    scale = (H - top - bottom) / (T.peak * 1.04 || 1);
    const fills = ROLES.map((r) => color(r)), shade = color("shade"), line = color("line"), soft = color("soft");
    g.textBaseline = "middle";
    for (const t of ticks(0, T.peak * 1.04, 5, true)) {
      g.fillStyle = line;
      g.fillRect(left, Math.round(Y(t)), W - left - right, 1);
      g.fillStyle = soft;
      write(g, tickBytes(t), left - 8, Y(t), "right");
    }
    shown = columns();
    const open = new Map(), longest = new Map();
    const flush = (key, r) => {
      const y = Y(r.high), h = (r.high - r.low) * scale;
      g.fillStyle = fills[r.role];
      g.fillRect(r.a, y, r.b - r.a, h + 0.5);
      if (r.i >= 0 && r.i % 3) {
        g.fillStyle = `rgba(${shade}, ${0.09 * (r.i % 3)})`;
        g.fillRect(r.a, y, r.b - r.a, h);
      }
      if (h > 3) {
        g.fillStyle = `rgba(${shade}, .38)`;
        g.fillRect(r.a, y, r.b - r.a, 0.75);
      }
      const best = longest.get(r.i);
      if (r.i >= 0 && (!best || best.b - best.a < r.b - r.a)) longest.set(r.i, r);
    };
    for (const c of shown) {
      const seen = new Set();
      for (const [i, role, low, high] of pieces(c.p)) {
        const key = i < 0 ? -1 - role : i, r = open.get(key);
        seen.add(key);
        if (r && r.low === low && r.high === high && r.b === c.a) r.b = c.b;
        else {
          if (r) flush(key, r);
          open.set(key, { i, role, low, high, a: c.a, b: c.b });
        }
      }
      for (const [key, r] of open) if (!seen.has(key)) { flush(key, r); open.delete(key); }
    }
    for (const [key, r] of open) flush(key, r);
    frame(g, W, H);
    nameBands(g, longest);
    highlight();
  }

  function nameBands(g, longest) {
    g.fillStyle = "#fff";
    g.save();
    g.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    for (const [i, r] of longest) {
      const v = data.values[intervals[i].value], h = (r.high - r.low) * scale, name = v.module ? `${v.module} · ${v.name}` : v.name;
      if (h >= 14 && g.measureText(name).width + 12 < r.b - r.a) write(g, name, r.a + 6, Y(r.high) + h / 2 + 0.5, "left");
    }
    g.restore();
  }

  function frame(g, W, H) {
    const ink = color("ink"), soft = color("soft"), y = Math.round(Y(T.peak)) + 0.5, split = X(edges[T.first_backward]);
    g.strokeStyle = ink;
    g.setLineDash([4, 3]);
    g.lineWidth = 1;
    g.beginPath();
    g.moveTo(left, y);
    g.lineTo(W - right, y);
    g.stroke();
    g.setLineDash([]);
    g.fillStyle = ink;
    const atPeak = X(edges[T.peak_at]) < W / 2;
    write(g, `peak ${bytes(T.peak)}`, atPeak ? W - right : left + 2, y - 9, atPeak ? "right" : "left");
    g.fillStyle = soft;
    const inside = split > left && split < W - right;
    if (inside) g.fillRect(Math.round(split), top, 1, H - top - bottom + 6);
    if (split > left + 60) write(g, "forward", left, H - 10, "left");
    if (split < W - right - 70) write(g, "backward", Math.max(split, left) + (inside ? 6 : 0), H - 10, "left");
    if (from > 0 || to < 1) write(g, "double-click to zoom out", W - right, H - 10, "right");
  }

  /** The op and the piece under a point of the canvas. */
  function at(x, y) {
    const c = shown.find((s) => x >= s.a && x < s.b);
    if (!c) return null;
    const b = (canvas.clientHeight - bottom - y) / scale;
    return { ...c, piece: pieces(c.p).find(([, , low, high]) => b >= low && b < high) || null };
  }

  function highlight() {
    const g = fit(over);
    if (drag && Math.abs(drag.x - drag.start) > 4) {
      g.fillStyle = color("accent");
      g.globalAlpha = 0.2;
      g.fillRect(drag.start, top, drag.x - drag.start, canvas.clientHeight - top - bottom);
      g.globalAlpha = 1;
    }
    if (!focus) return;
    g.fillStyle = color("ink");
    g.globalAlpha = 0.35;
    g.fillRect((focus.a + focus.b) / 2, top, 1, canvas.clientHeight - top - bottom);
    if (!focus.piece || focus.piece[0] < 0) return;
    g.globalAlpha = 0.5;
    for (const c of shown)
      for (const [i, , low, high] of pieces(c.p)) if (i === focus.piece[0]) g.fillRect(c.a, Y(high), c.b - c.a, Math.max(1, (high - low) * scale));
  }

  const opName = (p) => `${runs[p].op}${runs[p].copy ? " (recomputed)" : ""}`;

  /** Describe what is alive while the op in focus runs; with an event, also the tensor that it points at. */
  function describe(event) {
    const p = focus.p, sums = ROLES.map((r, k) => [r, T.by_role[k][p]]).filter((s) => s[1]);
    const where = [runs[p].module, runs[p].source].filter(Boolean).join(", ");
    $("readout").replaceChildren(el("b", {}, bytes(runs[p].live)), ` while ${p < T.first_backward ? "forward" : "backward"} runs `, el("b", {}, opName(p)), where ? ` (${where})` : "", ": " + sums.map(([r, s]) => `${r} ${bytes(s)}`).join(", "));
    if (!event) return;
    if (!focus.piece) return hideTip();
    const [i, role, low, high] = focus.piece;
    if (i < 0) return showTip(event.clientX, event.clientY, tipTitle(ROLES[role] === "others" ? "saved by the other calls of the step" : `smaller ${ROLES[role]}`), tipLine("together", bytes(high - low)));
    const t = intervals[i], v = data.values[t.value], again = t.copy ? `, copy ${t.copy}` : "";
    const lines = [el("div", { class: "t" }, el("span", { class: "dot", style: `background: var(--${ROLES[role]}); margin-right: 7px` }), `${v.name}${again}`)];
    lines.push(el("div", { class: "mono" }, v.type), tipLine("", `${bytes(t.nbytes)}, ${ROLES[role]}`));
    if (v.module) lines.push(tipLine("module", v.module));
    if (v.source) lines.push(tipLine("line", v.source));
    lines.push(tipLine("lives", `from ${opName(t.born)} to ${opName(t.end)}, ${short(t.end - t.born + 1, "op")}`));
    showTip(event.clientX, event.clientY, ...lines);
  }

  const local = (event) => { const r = over.getBoundingClientRect(); return [event.clientX - r.left, event.clientY - r.top]; };
  const unitAt = (x) => Math.min(1, Math.max(0, from + ((x - left) / (canvas.clientWidth - left - right)) * (to - from)));
  over.addEventListener("pointermove", (event) => {
    const [x, y] = local(event);
    if (drag) drag.x = x;
    focus = at(x, y);
    highlight();
    if (focus) describe(event);
    else hideTip();
  });
  over.addEventListener("pointerdown", (event) => { if (event.pointerType === "mouse") drag = { start: local(event)[0], x: local(event)[0] }; });
  addEventListener("pointerup", () => {
    if (drag && Math.abs(drag.x - drag.start) > 8) {
      const [a, b] = [unitAt(Math.min(drag.start, drag.x)), unitAt(Math.max(drag.start, drag.x))];
      if (b - a > 1e-4) [from, to] = [a, b];
    }
    const was = drag;
    drag = null;
    if (was) draw();
  });
  over.addEventListener("pointerleave", () => { focus = null; hideTip(); highlight(); });
  over.addEventListener("dblclick", () => { [from, to] = [0, 1]; draw(); });
  over.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !shown.length) return;
    event.preventDefault();
    const k = focus ? shown.findIndex((c) => c.p === focus.p) + by : shown.findIndex((c) => c.p === T.peak_at);
    focus = { ...shown[Math.max(0, Math.min(shown.length - 1, k))], piece: null };
    highlight();
    describe(null);
  });
  for (const [id, which] of [["by-op", even], ["by-time", timed]])
    $(id).addEventListener("click", () => {
      [edges, from, to] = [which, 0, 1];
      $("by-op").setAttribute("aria-pressed", which === even);
      $("by-time").setAttribute("aria-pressed", which === timed);
      draw();
    });
  $("legend").append(...ROLES.map((r, k) => [r, Math.max(0, ...T.by_role[k])]).filter((x) => x[1] > T.peak / 1000)
    .map(([r, most]) => el("span", {}, el("i", { class: "dot", style: `background: var(--${r})` }), `${r}, at most ${bytes(most)}`)));
  return { draw, labels: () => labels, rest() { focus = { p: T.peak_at, a: 0, b: 0, piece: null }; if (n) describe(null); focus = null; } };
})();
