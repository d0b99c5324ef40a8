"use strict";

// What the page computes: any row of softmax(q k) from its factors, and the patches that hold most of it.
const MEAN = -1;
const decoded = new Map();

function bytes(text) {
  const raw = atob(text);
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}

/** The factors of a block's logits as typed arrays: one scale for each head and token, then small integers. */
function factors(block) {
  if (!decoded.has(block.id)) {
    const buffer = bytes(byId(block.id).textContent).buffer;
    const whole = block.bits === 8 ? Int8Array : Int16Array;
    const tokens = block.heads * block.keys;
    let at = 0;
    const take = (type, length) => {
      const part = new type(buffer, at, length);
      at += part.byteLength;
      return part;
    };
    const [queryScale, keyScale] = [take(Float32Array, tokens), take(Float32Array, tokens)];
    const [query, key] = [take(whole, tokens * block.width), take(whole, tokens * block.width)];
    decoded.set(block.id, { query, key, queryScale, keyScale });
  }
  return decoded.get(block.id);
}

/** softmax(q k) of one query in one head: a weight for each key, prefix tokens first. */
function headWeights(block, head, token) {
  const { query, key, queryScale, keyScale } = factors(block);
  const row = head * block.keys + token;
  const out = new Float64Array(block.keys);
  let largest = -Infinity;
  for (let j = 0, at = head * block.keys * block.width; j < block.keys; j++) {
    let logit = 0;
    for (let i = row * block.width, end = i + block.width; i < end; i++, at++) logit += query[i] * key[at];
    out[j] = logit * queryScale[row] * keyScale[head * block.keys + j];
    largest = Math.max(largest, out[j]);
  }
  let total = 0;
  for (let j = 0; j < out.length; j++) total += out[j] = Math.exp(out[j] - largest);
  return out.map((value) => value / total);
}

/** The same for a head, or for the mean over all of them. */
function weights(block, head, token) {
  if (head !== MEAN) return headWeights(block, head, token);
  const out = new Float64Array(block.keys);
  for (let each = 0; each < block.heads; each++) {
    headWeights(block, each, token).forEach((value, j) => { out[j] += value / block.heads; });
  }
  return out;
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

/** The fewest patches that hold a share of the weight of all, as `evaluation/masks.py` finds them. */
function keptPatches(patches, mass) {
  const order = Array.from(patches.keys()).sort((a, b) => patches[a] - patches[b]);
  const dropped = (1 - mass + 1e-9) * sum(patches);
  const kept = new Uint8Array(patches.length);
  let reached = 0;
  for (const i of order) kept[i] = (reached += patches[i]) > dropped;
  return kept;
}

/** The sides between kept patches and others, as a path in units of patches. */
function edge(kept, [rows, columns]) {
  const is = (r, c) => r >= 0 && c >= 0 && r < rows && c < columns && kept[r * columns + c] === 1;
  let path = "";
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      if (!is(r, c)) continue;
      if (!is(r - 1, c)) path += `M${c} ${r}h1`;
      if (!is(r + 1, c)) path += `M${c} ${r + 1}h1`;
      if (!is(r, c - 1)) path += `M${c} ${r}v1`;
      if (!is(r, c + 1)) path += `M${c + 1} ${r}v1`;
    }
  }
  return path;
}
