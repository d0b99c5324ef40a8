// Shares of width and height (0 to 1) say where the query is, since the grids of two models can differ.
const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("page").textContent);
const palette = bytes(page.palette);
const CLASS_TOKEN = "class token";
const chosen = {
  scene: 0, fromEnd: 0, head: MEAN, query: { token: CLASS_TOKEN }, pinned: false, mass: 1, opacity: 0.75, brighten: false,
};
let pointer = null;
let panels = [];
let drawing = 0;

// ---- what is chosen, for one model

const scene = () => page.scenes[chosen.scene];
const blockOf = (model) => model.blocks[Math.max(0, model.blocks.length - 1 - chosen.fromEnd)];
const headOf = (block) => block.heads > 1 && chosen.head < block.heads ? chosen.head : MEAN;
const headName = (block, head) =>
  block.heads === 1 ? "one head" : head === MEAN ? `mean of ${block.heads} heads` : `head ${head}`;
const asked = () => !chosen.pinned && pointer ? pointer : chosen.query;

function patchAt(block, place) {
  const [rows, columns] = block.grid;
  const row = Math.min(rows - 1, Math.floor(place.y * rows));
  const column = Math.min(columns - 1, Math.floor(place.x * columns));
  return { row, column, index: row * columns + column };
}

/** The query's number in a block; null where the model has no such token. */
function tokenOf(block, query) {
  const token = query.token ? block.tokens.indexOf(query.token) : block.tokens.length + patchAt(block, query).index;
  return token < 0 ? null : token;
}

// ---- drawing

/** One pixel for each patch, from 0 to the largest weight; small ones and those not kept let the photograph through. */
function paint(canvas, patches, [rows, columns], opacity, kept) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const largest = Math.max(...patches) || 1;
  const least = opacity ** 2;
  for (let i = 0; i < patches.length; i++) {
    const value = (patches[i] / largest) ** (chosen.brighten ? 0.5 : 1);
    const dropped = kept && !kept[i];
    const shade = dropped ? 0 : Math.round(255 * value);
    image.data.set(palette.subarray(3 * shade, 3 * shade + 3), 4 * i);
    image.data[4 * i + 3] = 255 * opacity * (least + (1 - least) * (dropped ? 0.5 : value));
  }
  context.putImageData(image, 0, 0);
}

function place(rect, patch) {
  rect.style.display = patch ? "" : "none";
  if (!patch) return;
  rect.setAttribute("x", patch.column);
  rect.setAttribute("y", patch.row);
}

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 2 : 1)} %`;
const at = (patch) => `row ${patch.row}, column ${patch.column}`;

function draw() {
  for (const panel of panels) drawPanel(panel);
  drawTools();
  const started = ++drawing;
  const waiting = panels.flatMap((panel) => strip(panel));
  const next = () => {
    const until = performance.now() + 8;
    while (started === drawing && waiting.length && performance.now() < until) waiting.shift()();
    if (started === drawing && waiting.length) requestAnimationFrame(next);
    else if (started === drawing) document.body.dataset.drawn = started;
  };
  requestAnimationFrame(next);
}

function drawPanel(panel) {
  const block = blockOf(panel.model);
  const query = asked();
  const token = tokenOf(block, query);
  const patch = query.token ? null : patchAt(block, query);
  panel.all(".stage rect.query").forEach((rect) => place(rect, patch));
  place(panel.one("rect.pointer"), chosen.pinned && pointer ? patchAt(block, pointer) : null);
  panel.one("svg").setAttribute("viewBox", `0 0 ${block.grid[1]} ${block.grid[0]}`);
  panel.one(".missing").hidden = token !== null;
  panel.one(".missing").textContent = `This model has no ${query.token}: choose a patch.`;
  drawTiles(panel, block);
  if (token !== null) drawMaps(panel, block, token, patch);
}

function drawMaps(panel, block, token, patch) {
  const heads = Array.from({ length: block.heads }, (_, head) => headWeights(block, head, token));
  const mean = heads[0].map((_, j) => sum(heads.map((row) => row[j])) / heads.length);
  const head = headOf(block);
  const shown = head === MEAN ? mean : heads[head];
  const patches = shown.subarray(block.tokens.length);
  const kept = chosen.mass < 1 ? keptPatches(patches, chosen.mass) : new Uint8Array(patches.length).fill(1);
  paint(panel.one(".heat"), patches, block.grid, chosen.opacity, kept);
  const line = chosen.mass < 1 ? edge(kept, block.grid) : "";
  panel.all("path").forEach((path) => path.setAttribute("d", line));
  panel.headTiles.forEach((tile, i) => {
    paint(tile, (i === 0 ? mean : heads[i - 1]).subarray(block.tokens.length), block.grid, 1);
  });
  drawReadout(panel, block, { shown, patches, kept, patch });
}

/** The weight under the pointer of a pinned query, else the largest; then where all of the query's attention goes. */
function drawReadout(panel, block, { shown, patches, kept, patch }) {
  const onPatches = sum(patches);
  const inside = sum(patches.filter((_, i) => kept[i]));
  const largest = patches.indexOf(Math.max(...patches));
  const reading = chosen.pinned && pointer ? patchAt(block, pointer).index : largest;
  const where = { row: Math.floor(reading / block.grid[1]), column: reading % block.grid[1] };
  panel.one(".readout").textContent = `${patch ? at(patch) : asked().token} → ${at(where)}: weight ` +
    `${patches[reading].toPrecision(4)}, ${percent(patches[reading] / onPatches)} of what patches get` +
    (reading === largest ? ", the largest" : "");
  panel.one(".top").textContent = patches[largest].toPrecision(3);
  const count = kept.reduce((total, each) => total + each, 0);
  const shares = {
    prefix: [sum(shown) - onPatches, `on ${besides(block)}`],
    kept: [inside, chosen.mass < 1 ? `on ${count} of ${kept.length} patches` : `on ${count} patches`],
    rest: [onPatches - inside, "on the others"],
  };
  panel.one(".shares").replaceChildren(...Object.entries(shares).flatMap(([name, [share, text]]) => {
    panel.one(`.masses .${name}`).style.flexGrow = share;
    return share > 1e-9 ? [keyed(name, `${percent(share)} ${text}`)] : [];
  }));
}

/** What keys a block has besides patches. */
function besides({ tokens }) {
  const kinds = [tokens[0] === CLASS_TOKEN ? CLASS_TOKEN : "", tokens.at(-1) !== CLASS_TOKEN ? "registers" : ""];
  return kinds.filter(Boolean).join(" and ");
}

function keyed(name, text) {
  const element = document.createElement("span");
  const mark = document.createElement("i");
  mark.className = `key ${name}`;
  element.append(mark, text);
  return element;
}

/** The tiles of heads and blocks; built anew only where their number changes. */
function drawTiles(panel, block) {
  const head = headOf(block);
  const labels = block.heads === 1 ? ["0"] : ["mean", ...Array.from({ length: block.heads }, (_, i) => String(i))];
  panel.headTiles = tiles(panel.one(".heads"), labels, head + 1, "head", (i) => choose({ head: i - 1 }));
  const blocks = panel.model.blocks;
  const current = blocks.indexOf(block);
  panel.blockTiles = tiles(panel.one(".blocks"), blocks.map((each) => String(each.number)), current, "block",
    (i) => choose({ fromEnd: blocks.length - 1 - i }));
  panel.one(".heads-title").textContent = `Heads of block ${block.number}`;
  panel.one(".blocks-title").textContent = `Blocks, ${headName(block, head)}`;
}

function tiles(parent, labels, pressed, kind, pick) {
  if (parent.children.length !== labels.length) {
    parent.replaceChildren(...labels.map((label, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(document.createElement("canvas"), label);
      button.setAttribute("aria-label", label === "mean" ? "mean over the heads" : `${kind} ${label}`);
      button.addEventListener("click", () => pick(i));
      return button;
    }));
    arrange(parent);
  }
  Array.from(parent.children).forEach((button, i) => button.setAttribute("aria-pressed", i === pressed));
  return Array.from(parent.querySelectorAll("canvas"));
}

/** As many columns as leave no tile narrower than the style sheet asks, in rows of nearly equal length. */
function arrange(group) {
  const most = Math.max(1, Math.floor(group.clientWidth / getComputedStyle(group).getPropertyValue("--least")));
  const count = group.children.length;
  group.style.setProperty("--columns", Math.ceil(count / Math.ceil(count / most)));
}

/** The work of drawing each block's tile, the chosen one first. */
function strip(panel) {
  const current = panel.model.blocks.indexOf(blockOf(panel.model));
  const order = panel.model.blocks.map((_, i) => i).sort((a, b) => Math.abs(a - current) - Math.abs(b - current));
  return order.map((i) => () => {
    const block = panel.model.blocks[i];
    const token = tokenOf(block, asked());
    if (token === null) return;
    paint(panel.blockTiles[i], weights(block, headOf(block), token).subarray(block.tokens.length), block.grid, 1);
  });
}

function drawTools() {
  const query = asked();
  byId("unpin").hidden = !chosen.pinned;
  byId("hint").textContent = query.token ? "hover or click a patch" : at(patchAt(blockOf(panels[0].model), query));
  for (const name of ["mass", "opacity"]) {
    byId(name).value = Math.round(100 * chosen[name]);
    byId(name).nextElementSibling.textContent = `${byId(name).value} %`;
  }
  byId("brighten").checked = chosen.brighten;
  byId("panels").style.setProperty("--opacity", chosen.opacity);
  byId("tokens").querySelectorAll("button").forEach((button) => {
    button.setAttribute("aria-pressed", query.token === button.value);
  });
  const ramp = Float64Array.from({ length: 256 }, (_, i) => i);
  for (const panel of panels) paint(panel.one(".scale canvas"), ramp, [1, 256], 1);
}

// ---- choosing

/** Change what is chosen, draw, and say it to who cannot see it. */
function choose(change) {
  Object.assign(chosen, change);
  draw();
  byId("said").textContent = panels.map((panel) => {
    const block = blockOf(panel.model);
    return `Block ${block.number}, ${headName(block, headOf(block))}. ${panel.one(".readout").textContent}`;
  }).join(" ");
}

function follow(place) {
  pointer = place;
  draw();
}

const mostHeads = () => Math.max(...panels.map((panel) => blockOf(panel.model).heads));
/** Class token and registers of the models shown, each once. */
const allTokens = () => [...new Set(panels.flatMap((panel) => blockOf(panel.model).tokens))];
const mostBlocks = () => Math.max(...panels.map((panel) => panel.model.blocks.length));

function moveBlock(by) {
  choose({ fromEnd: Math.min(mostBlocks() - 1, Math.max(0, chosen.fromEnd - by)) });
}

function moveHead(by) {
  const count = mostHeads() + 1;
  choose({ head: (chosen.head + 1 + by + count) % count - 1 });
}

function moveScene(by) {
  showScene((chosen.scene + by + page.scenes.length) % page.scenes.length);
}

/** From a token of no place the query enters at the middle. */
function movePatch(rows, columns) {
  const block = blockOf(panels[0].model);
  const from = chosen.query.token ? null : patchAt(block, chosen.query);
  const [height, width] = block.grid;
  const row = from ? Math.min(height - 1, Math.max(0, from.row + rows)) : Math.floor(height / 2);
  const column = from ? Math.min(width - 1, Math.max(0, from.column + columns)) : Math.floor(width / 2);
  choose({ query: { x: (column + 0.5) / width, y: (row + 0.5) / height }, pinned: true });
}

function askToken(token) {
  if (allTokens().includes(token)) choose({ query: { token }, pinned: true });
}

function nextRegister() {
  const registers = allTokens().filter((token) => token !== CLASS_TOKEN);
  askToken(registers[(registers.indexOf(chosen.query.token) + 1) % registers.length]);
}

const KEYS = {
  ArrowUp: () => movePatch(-1, 0), ArrowDown: () => movePatch(1, 0),
  ArrowLeft: () => movePatch(0, -1), ArrowRight: () => movePatch(0, 1),
  "[": () => moveBlock(-1), "]": () => moveBlock(1), PageUp: () => moveBlock(-1), PageDown: () => moveBlock(1),
  h: () => moveHead(1), H: () => moveHead(-1), m: () => choose({ head: MEAN }),
  c: () => askToken(CLASS_TOKEN), r: nextRegister, t: () => byId("mass").focus(),
  n: () => moveScene(1), p: () => moveScene(-1), "?": () => byId("help").showModal(),
  Escape: () => document.activeElement.type === "range" ? document.activeElement.blur() : choose({ pinned: false }),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const sliding = event.target.type === "range" && /^(Arrow|Page)/.test(event.key);
  const digit = /^[0-9]$/.test(event.key) && Number(event.key) < mostHeads();
  const act = digit ? () => choose({ head: Number(event.key) }) : KEYS[event.key] || KEYS[event.key.toLowerCase()];
  if (sliding || !act) return;
  event.preventDefault();
  act();
}

// ---- building

function share(event) {
  const box = event.currentTarget.getBoundingClientRect();
  const inside = (value) => Math.min(0.999999, Math.max(0, value));
  return { x: inside((event.clientX - box.left) / box.width), y: inside((event.clientY - box.top) / box.height) };
}

function onClick(panel, event) {
  const clicked = share(event);
  const block = blockOf(panel.model);
  const again = chosen.pinned && !chosen.query.token
    && patchAt(block, chosen.query).index === patchAt(block, clicked).index;
  choose(again ? { pinned: false } : { query: clicked, pinned: true });
}

function buildPanel(model) {
  const element = byId("panel").content.firstElementChild.cloneNode(true);
  const panel = {
    model, element, one: (what) => element.querySelector(what), all: (what) => element.querySelectorAll(what),
  };
  panel.one(".title").textContent = panel.one("h2").title = model.title;
  panel.one(".note").textContent = model.note;
  panel.one("img").src = scene().picture;
  panel.one("img").classList.toggle("coarse", scene().size[0] <= 128);
  const stage = panel.one(".stage");
  stage.setAttribute("aria-label", `${scene().name}, ${model.title}`);
  stage.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") follow(share(event)); });
  stage.addEventListener("pointerleave", () => follow(null));
  stage.addEventListener("click", (event) => onClick(panel, event));
  return panel;
}

/** A button for the class token; the registers behind their common name. */
function buildTokens() {
  byId("tokens").replaceChildren(...allTokens().flatMap((token) => {
    const [kind, number] = token.split(" ");
    const button = document.createElement("button");
    Object.assign(button, { type: "button", value: token, textContent: token === CLASS_TOKEN ? token : number });
    button.setAttribute("aria-label", token);
    button.addEventListener("click", () => askToken(token));
    const label = document.createElement("span");
    Object.assign(label, { className: "label", textContent: `${kind}s` });
    return number === "1" ? [label, button] : [button];
  }));
}

function showScene(number) {
  decoded.clear();
  chosen.scene = number;
  pointer = null;
  const { name, size, models, about } = scene();
  panels = models.map(buildPanel);
  byId("name").textContent = name;
  byId("which").textContent = page.scenes.length > 1 ? `${number + 1} of ${page.scenes.length}` : "";
  byId("about").textContent = about;
  const main = byId("panels");
  main.dataset.models = models.length;
  main.toggleAttribute("data-beside", models.length === 1 || size[0] < size[1]);
  main.toggleAttribute("data-tall", size[0] < size[1]);
  main.style.setProperty("--aspect", size[0] / size[1]);
  main.replaceChildren(...panels.map((panel) => panel.element));
  if (chosen.query.token && !allTokens().includes(chosen.query.token)) chosen.query = { x: 0.5, y: 0.5 };
  buildTokens();
  Array.from(byId("scenes").children).forEach((button, i) => button.setAttribute("aria-pressed", i === number));
  choose({});
}

function buildScenes() {
  byId("scenes").hidden = page.scenes.length < 2;
  byId("scenes").replaceChildren(...page.scenes.map(({ name, picture }, i) => {
    const button = document.createElement("button");
    const image = document.createElement("img");
    Object.assign(image, { src: picture, alt: "", loading: "lazy", decoding: "async" });
    button.type = "button";
    button.title = name;
    button.setAttribute("aria-label", name);
    button.append(image);
    button.addEventListener("click", () => showScene(i));
    return button;
  }));
}

byId("mass").addEventListener("input", (event) => choose({ mass: event.target.value / 100 }));
byId("opacity").addEventListener("input", (event) => choose({ opacity: event.target.value / 100 }));
byId("smooth").addEventListener("change", (event) => document.body.classList.toggle("smooth", event.target.checked));
byId("brighten").addEventListener("change", (event) => choose({ brighten: event.target.checked }));
byId("unpin").addEventListener("click", () => choose({ pinned: false }));
byId("help-button").addEventListener("click", () => byId("help").showModal());
document.addEventListener("keydown", onKey);
addEventListener("resize", () => document.querySelectorAll(".tiles").forEach(arrange));
buildScenes();
showScene(0);
