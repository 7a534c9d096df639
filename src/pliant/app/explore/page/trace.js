"use strict";
// Trace paths through recorded layers, as pliant.show.sampling does: the browser tests compare the two.
// A step holds where each of its Q outputs samples the map below with each of its T taps. Positions are (y, x).

/** Return the numbers of a base64 string of 16-bit integers with a factor. */
function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.int16), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float64Array.from({ length: bytes.length / 2 }, (_, i) => view.getInt16(2 * i, true) * packed.factor);
}

/** Unpack the arrays of an answer's steps in place. */
function ready(look) {
  for (const step of look.steps) {
    step.T = step.regular.length;
    step.Q = step.above[0] * step.above[1];
    step.moves = step.moves ? unpack(step.moves) : null;
    step.weights = step.weights ? unpack(step.weights) : null;
    step.branches = step.splits && step.T > 1;
    step.middle = [0, 1].map((d) => step.regular.reduce((sum, tap) => sum + tap[d], 0) / step.T);
  }
  return look;
}

/** Return [index, share] × 4 of the pixels of the map below that a sample reads. */
function corners(step, y, x) {
  const [H, W] = step.below;
  const clamp = step.boundary === "clamp";
  const first = clamp ? 0 : -1;
  const found = [];
  if (!(y >= first && y < H && x >= first && x < W)) return found;
  const top = Math.floor(y), left = Math.floor(x), fy = y - top, fx = x - left;
  for (let i = 0; i < 2; i++) {
    for (let j = 0; j < 2; j++) {
      const row = top + i, column = left + j;
      const share = (i ? fy : 1 - fy) * (j ? fx : 1 - fx);
      if (!clamp && (row < 0 || row >= H || column < 0 || column >= W)) continue;
      if (share > 0) found.push(Math.min(row, H - 1) * W + Math.min(column, W - 1), share);
    }
  }
  return found;
}

/** Return the chosen taps of a step, and a function for the position and weight of a tap of output q. */
function taps(step, options) {
  const perGroup = step.T / step.groups;
  const chosen = [];
  for (let t = 0; t < step.T; t++) {
    if (step.groups === 1 || !options.groups || options.groups.has(Math.floor(t / perGroup))) chosen.push(t);
  }
  const moves = options.offsets === false ? null : step.moves;
  const weights = options.modulation === false || options.offsets === false ? null : step.weights;
  const Wo = step.above[1], [sy, sx] = step.stride;
  const place = (t, q, out) => {
    const at = 2 * (t * step.Q + q);
    out.y = Math.floor(q / Wo) * sy + step.regular[t][0] + (moves ? moves[at] : 0);
    out.x = (q % Wo) * sx + step.regular[t][1] + (moves ? moves[at + 1] : 0);
    out.w = weights ? weights[t * step.Q + q] : step.weight;
    return out;
  };
  return { chosen, place };
}

/** Return where the outputs of a step lie in the image: y = scale·row + shift, the same for x. */
function centres(steps, top) {
  const scale = [1, 1], shift = [0, 0];
  for (let i = top; i >= 0; i--) {
    for (const d of [0, 1]) {
      shift[d] = shift[d] * steps[i].stride[d] + steps[i].middle[d];
      scale[d] *= steps[i].stride[d];
    }
  }
  return { scale, shift };
}

/**
 * Trace the sampling points of output q of step `top` through its `depth` topmost convolutions.
 *
 * Options: groups, the Set of offset groups to trace; modulation and offsets, false to ignore them.
 * Returns points (y, x, y, x …) in pixels of the image, weights, and their count.
 */
function trace(steps, top, q, depth, options = {}) {
  const splits = [];
  for (let i = top; i >= 0 && splits.length < depth; i--) if (steps[i].branches) splits.push(i);
  const lowest = splits.length ? splits[splits.length - 1] : top + 1;
  const Wo = steps[top].above[1];
  let paths = [{ index: [q], reach: [1], y: Math.floor(q / Wo), x: q % Wo }];
  const at = { y: 0, x: 0, w: 0 };
  for (let i = top; i >= lowest; i--) {
    const step = steps[i], { chosen, place } = taps(step, options), next = [];
    for (const path of paths) {
      let gathered = null;
      for (const t of chosen) {
        if (step.splits || !gathered) {
          gathered = { index: [], reach: [], mass: 0, y: 0, x: 0, gy: 0, gx: 0, taps: 0 };
          next.push(gathered);
        }
        for (let k = 0; k < path.index.length; k++) {
          place(t, path.index[k], at);
          const taken = path.reach[k] * at.w;
          gathered.mass += taken;
          gathered.y += taken * at.y;
          gathered.x += taken * at.x;
          const read = corners(step, at.y, at.x);
          for (let c = 0; c < read.length; c += 2) {
            const known = gathered.index.indexOf(read[c]);
            if (known < 0) {
              gathered.index.push(read[c]);
              gathered.reach.push(taken * read[c + 1]);
            } else gathered.reach[known] += taken * read[c + 1];
          }
        }
        gathered.gy += path.y * step.stride[0] + step.regular[t][0];
        gathered.gx += path.x * step.stride[1] + step.regular[t][1];
        gathered.taps += 1;
      }
    }
    for (const path of next) {
      // A path without weight stays on the grid.
      path.y = path.mass > 0 ? path.y / path.mass : path.gy / path.taps;
      path.x = path.mass > 0 ? path.x / path.mass : path.gx / path.taps;
    }
    paths = next;
  }
  const { scale, shift } = lowest > 0 ? centres(steps, lowest - 1) : { scale: [1, 1], shift: [0, 0] };
  const points = new Float64Array(2 * paths.length), weights = new Float64Array(paths.length);
  paths.forEach((path, p) => {
    points[2 * p] = path.y * scale[0] + shift[0];
    points[2 * p + 1] = path.x * scale[1] + shift[1];
    weights[p] = path.reach.reduce((sum, value) => sum + value, 0);
  });
  return { points, weights, count: paths.length };
}

/** Return the total weight, over all paths, with which output q of step `top` samples each pixel of the image. */
function support(steps, top, q, options = {}) {
  let reach = new Float64Array(steps[top].Q);
  reach[q] = 1;
  const at = { y: 0, x: 0, w: 0 };
  for (let i = top; i >= 0; i--) {
    const step = steps[i], { chosen, place } = taps(step, options);
    const below = new Float64Array(step.below[0] * step.below[1]);
    for (let p = 0; p < step.Q; p++) {
      if (reach[p] === 0) continue;
      for (const t of chosen) {
        place(t, p, at);
        const read = corners(step, at.y, at.x);
        for (let c = 0; c < read.length; c += 2) below[read[c]] += reach[p] * at.w * read[c + 1];
      }
    }
    reach = below;
  }
  return reach;
}

/** Return the response of channel i of n after local response normalization, as pliant.ops.lrn; x(j) reads one. */
function inhibited(x, i, n, radius, bias, alpha, beta) {
  let energy = 0;
  for (let j = Math.max(0, i - radius); j <= Math.min(n - 1, i + radius); j++) energy += x(j) * x(j);
  return x(i) * Math.pow(bias + alpha * energy, -beta);
}

/** Return the responses of an answer as channels of Float64Array. */
function channels(responses) {
  const bytes = Uint8Array.from(atob(responses.uint8), (c) => c.charCodeAt(0));
  const size = responses.height * responses.width;
  return Array.from({ length: responses.channels }, (_, c) =>
    Float64Array.from(bytes.subarray(c * size, (c + 1) * size), (value) => value * responses.factor));
}
