const data = JSON.parse(document.getElementById("data").textContent);
const ROLES = data.roles;
for (const table of ["values", "accounts", "modules", "runs", "intervals"]) data[table] = rows(data[table]);

/** Rows out of the columns that page.py writes. */
function rows({ texts, numbers }) {
  const columns = [...Object.entries(texts), ...Object.entries(numbers)], made = [];
  for (let i = 0; i < (columns[0] || [0, []])[1].length; i++)
    made.push(Object.fromEntries(columns.map(([name, cells]) => [name, name in texts ? data.strings[cells[i]] : cells[i]])));
  return made;
}

const $ = (id) => document.getElementById(id);

/** An element of HTML, or of SVG where the name starts with "svg:"; children are elements or text. */
function el(name, attributes = {}, ...children) {
  const svg = name.startsWith("svg:");
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((c) => c !== null && c !== undefined));
  return made;
}

function bytes(n) {
  const sign = n < 0 ? "-" : "", size = Math.abs(n);
  if (size < 1024) return `${sign}${Math.round(size)} B`;
  let scale = 1;
  for (const unit of ["KiB", "MiB", "GiB", "TiB"]) {
    scale *= 1024;
    if (size / scale < 1023.995 || unit === "TiB") return `${sign}${(size / scale).toFixed(2)} ${unit}`;
  }
}

function seconds(s) {
  if (!s) return "0 s";
  for (const [unit, scale] of [["ns", 1e9], ["us", 1e6], ["ms", 1e3]])
    if (Math.abs(s) * scale < 999.995) return `${(s * scale).toFixed(2)} ${unit}`;
  return `${s.toFixed(2)} s`;
}

const percent = (share) => `${(100 * share).toFixed(1)}%`;
const signed = (text, value) => (value < 0 ? "−" : "+") + text.replace("-", "");
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const short = (n, one) => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;

/** Round numbers from 0 or low to high, about so many; bytes get powers of two. */
function ticks(low, high, about, binary) {
  const rough = (high - low) / about || 1;
  const base = binary ? 2 ** Math.floor(Math.log2(rough)) : 10 ** Math.floor(Math.log10(rough));
  const step = base * (binary ? (rough / base > 1.5 ? 2 : 1) : [1, 2, 5, 10].find((m) => m * base >= rough));
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high * (1 + 1e-9); t += step) found.push(t);
  return found;
}

/** A tick's bytes without needless decimals: "64 MiB", "1.5 GiB". */
const tickBytes = (n) => bytes(n).replace(/\.00 /, " ").replace(/(\.\d)0 /, "$1 ");
const tickSeconds = (s) => seconds(s).replace(/\.00 /, " ").replace(/(\.\d)0 /, "$1 ");

function showTip(x, y, ...lines) {
  const tip = $("tip");
  tip.replaceChildren(...lines);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, x + 16 + box.width > innerWidth - 8 ? x - 16 - box.width : x + 16)}px`;
  tip.style.top = `${Math.max(8, Math.min(y + 14, innerHeight - box.height - 8))}px`;
}
const hideTip = () => { $("tip").hidden = true; };
const tipTitle = (text) => el("div", { class: "t" }, text);
const tipLine = (key, text) => el("div", {}, el("span", { class: "k" }, `${key} `), text);
