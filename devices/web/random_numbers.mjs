// Random numbers that every device makes alike, as edgefl/random_numbers.py; docs/protocol.md has the definitions.
//
// Seeds may be numbers, BigInts or text: beyond 2^53 a number is no longer exact.

import { sha256 } from "./bundle.mjs";

const WORD = (1n << 64n) - 1n;

/** The first 8 bytes, little-endian, of the SHA-256 of `text`: a BigInt. */
export async function keyOf(text) {
  const bytes = (await sha256(new TextEncoder().encode(text))).slice(0, 16).match(/../g);
  return BigInt(`0x${bytes.reverse().join("")}`);
}

/** The first `count` numbers of SplitMix64 started at `key` (Steele, Lea, Flood, OOPSLA 2014). */
export function words(key, count) {
  return BigUint64Array.from({ length: count }, (_, i) => {
    let z = (BigInt(i + 1) * 0x9e3779b97f4a7c15n + key) & WORD;
    z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & WORD;
    z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & WORD;
    return z ^ (z >> 31n);
  });
}

/** The indices 0..examples-1 in the order of one epoch; without a seed (null), as they are. */
export async function orderOf(examples, { seed, device, epoch }) {
  const order = Array.from({ length: examples }, (_, i) => i);
  if (seed === null) return order;
  const places = words(await keyOf(`${seed}/${device}/${epoch}`), examples);
  return order.sort((a, b) => (places[a] < places[b] ? -1 : places[a] > places[b] ? 1 : a - b));
}

/** The seed of a program's random numbers, 0 to 2^63 - 1: a BigInt. 0 without a seed (null). */
export async function seedOf(seed, device) {
  return seed === null ? 0n : (await keyOf(`${seed}/${device}/program`)) >> 1n;
}

/** `count` standard normal numbers: what the feed "noise" of a task with this seed holds. */
export async function normals(seed, count) {
  const drawn = words(await keyOf(`${seed}/noise`), 2 * count);
  const fraction = (word) => Number(word >> 11n) * 2 ** -53;
  return Float32Array.from({ length: count }, (_, i) => {
    const [u, v] = [fraction(drawn[2 * i]), fraction(drawn[2 * i + 1])];
    return Math.sqrt(-2 * Math.log1p(-u)) * Math.cos(2 * Math.PI * v);
  });
}

// What a program draws from its seed. The program does so itself; these are for whoever wants to see that it does.

const STREAMS = [0x9e3779b9, 0x7f4a7c15];

/** A bijection of 32-bit words that spreads every bit; `key` goes in after the first multiplication. */
function mix(x, key = 0) {
  x = Math.imul(x ^ (x >>> 16), 0x21f0aaad) ^ key;
  x = Math.imul(x ^ (x >>> 15), 0xd35a2d97);
  return (x ^ (x >>> 15)) >>> 0;
}

/** Two 32-bit keys of one call: of a seed, a training step and the call's number (site) within one forward pass. */
export function keys(seed, step, site) {
  const [s, t] = [BigInt(seed), BigInt(step)].map((n) => Number(BigInt.asUintN(32, n)));
  return STREAMS.map((stream) => (mix(mix(s ^ stream) ^ t) ^ mix((mix(stream) + site) | 0)) >>> 0);
}

/** `count` numbers of 24 bits: u / 2^24 is uniform in [0, 1). */
export function uniform(seed, step, site, count) {
  const [first, second] = keys(seed, step, site);
  return Uint32Array.from({ length: count }, (_, i) => mix(i ^ first, second) >>> 8);
}

/** Which of `count` elements dropout with probability `p` keeps: u / 2^24 < 1 - p, in 32-bit floats. */
export function kept(seed, step, site, count, p) {
  const bound = Math.fround(1 - p);
  return Array.from(uniform(seed, step, site, count), (u) => u * 2 ** -24 < bound);
}
