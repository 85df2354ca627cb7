function cards() {
  const s = data.summary, fastest = data.frontier[0], share = s.recompute_seconds / (s.step_seconds - s.recompute_seconds || 1);
  const span = s.ceiling - s.floor || 1, place = (n) => `${Math.max(0, Math.min(100, (100 * (n - s.floor)) / span))}%`;
  const card = (label, big, ...notes) => el("div", { class: "card" }, el("div", { class: "label" }, label), el("div", { class: "big" }, big), ...notes);
  const note = (text) => el("div", { class: "note" }, text);
  const mark = s.budget_nbytes && s.budget_nbytes <= s.ceiling ? el("b", { style: `left: ${place(s.budget_nbytes)}`, title: `budget ${bytes(s.budget_nbytes)}` }) : null;
  const gauge = el("div", { class: "gauge" }, el("i", { style: `width: ${place(s.planned_peak)}` }), mark);
  const ends = el("div", { class: "ends" }, el("span", {}, `floor ${bytes(s.floor)}`), el("span", {}, `ceiling ${bytes(s.ceiling)}`));
  $("cards").append(
    card("Planned peak of a step", bytes(s.planned_peak), gauge, ends),
    card("Saved for backward", bytes(s.saved_nbytes), note(`${short(s.saved_values, "value")}`)),
    card("Recomputed in backward", short(s.recomputed_ops, "op"), note(`${seconds(s.recompute_seconds)}, ${percent(share)} of a step`)),
    card("A step", seconds(s.step_seconds), note(`the fastest plan: ${seconds(fastest.seconds)}; both by the cost model for ${data.hardware}`),
      data.gap === null ? null : note(`at most ${percent(data.gap)} above the proven bound for this budget`)));
}

function writeTexts() {
  const s = data.summary;
  $("subtitle").textContent = `budget: ${s.budget} · ${short(data.ops, "op")}, planned by ${s.solver} in ${seconds(s.planning_seconds)} · plan ${s.plan_hash}`;
  $("origin").textContent = data.origin;
  $("buys").textContent = `${data.more_memory} ${data.less_memory}`;
  $("fine").textContent = data.fine_print;
  if (s.fallback) {
    $("fallback").textContent = `The planner failed; this is the fallback plan. Reason: ${s.fallback}`;
    $("fallback").hidden = false;
  }
}

function drawAll() {
  drawFrontier();
  timeline.draw();
}

writeTexts();
cards();
moduleTable.draw();
valueTable.draw();
drawAll();
timeline.rest();
document.documentElement.dataset.ready = "true";
addEventListener("resize", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
