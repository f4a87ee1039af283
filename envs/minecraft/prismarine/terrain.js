'use strict'
// The world of one seed, generated column by column: hills, lakes, six biomes, villages joined by paths, trees, and distinctive landmarks.
// A column depends on (seed, chunk) only, so the order of generation does not matter.
// Nothing here calls a trigonometric function, since their last bit may differ between builds of Node.

const HEIGHT = 256
const SEA = 30 // height of the water's surface
const CELL = 7 // chunks along a side of a cell; each cell has one village
const RADIUS = 2 // chunks from a village's centre to its edge

// ---- numbers from a seed ----

// A 32 bit hash of four integers.
function hash (seed, a, b, c) {
  let h = seed ^ Math.imul(a, 0x85ebca6b) ^ Math.imul(b, 0xc2b2ae35) ^ Math.imul(c, 0x27d4eb2f)
  h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d)
  h = Math.imul(h ^ (h >>> 12), 0x297a2d39)
  h = Math.imul(h ^ (h >>> 15), 0x85ebca6b)
  return (h ^ (h >>> 16)) >>> 0
}

// A stream of random numbers: each call with n gives a whole number from 0 to n - 1.
function stream (seed, a, b, purpose) {
  let i = 0
  return n => Math.floor(hash(seed, a, b, purpose * 1000 + i++) / 4294967296 * n)
}

const smooth = t => t * t * (3 - 2 * t)
const clamp = (value, low, high) => Math.min(Math.max(value, low), high)

// Smooth noise in [0, 1) with features of `size` blocks.
function noise (seed, x, z, size, purpose) {
  const gx = Math.floor(x / size)
  const gz = Math.floor(z / size)
  const fx = smooth(x / size - gx)
  const fz = smooth(z / size - gz)
  const at = (i, k) => hash(seed, gx + i, gz + k, purpose) / 4294967296
  const near = at(0, 0) + fx * (at(1, 0) - at(0, 0))
  const far = at(0, 1) + fx * (at(1, 1) - at(0, 1))
  return near + fz * (far - near)
}

// ---- the land ----

// Of each biome: its name in Minecraft, the ground's top block, the blocks below it, tenths of a tree per chunk, its wood, and its plants.
const BIOMES = [
  { name: 'plains', cover: 'grass_block', under: 'dirt', trees: 6, wood: 'oak', plants: ['grass', 'grass', 'poppy', 'dandelion', 'cornflower'] },
  { name: 'forest', cover: 'grass_block', under: 'dirt', trees: 55, wood: 'birch', plants: ['grass', 'fern', 'lily_of_the_valley'] },
  { name: 'desert', cover: 'sand', under: 'sandstone', trees: 0, wood: null, plants: ['dead_bush', 'cactus'] },
  { name: 'snowy_taiga', cover: 'snow_block', under: 'dirt', trees: 25, wood: 'spruce', plants: ['fern'] },
  { name: 'savanna', cover: 'grass_block', under: 'coarse_dirt', trees: 10, wood: 'acacia', plants: ['grass', 'grass', 'dead_bush'] },
  { name: 'badlands', cover: 'red_sand', under: 'terracotta', trees: 0, wood: null, plants: ['dead_bush'] }
]
const COLOURS = ['red', 'yellow', 'lime', 'light_blue', 'magenta', 'orange', 'white', 'black', 'blue', 'cyan', 'pink', 'purple']
const WOODS = ['oak', 'birch', 'spruce', 'acacia']

class Terrain {
  constructor (seed, blocks) {
    this.seed = seed | 0
    this.blocks = blocks
    this.names = new Map()
    this.villages = new Map()
    this.biomeIds = BIOMES.map(biome => (blocks.registry.biomesByName[biome.name] || { id: 1 }).id)
  }

  id (name, properties) {
    const key = properties ? name + JSON.stringify(properties) : name
    if (!this.names.has(key)) this.names.set(key, this.blocks.named(name, properties))
    return this.names.get(key)
  }

  // Index into BIOMES, from two low-frequency noises: warmth and wetness.
  biome (x, z) {
    const warmth = 0.7 * noise(this.seed, x, z, 150, 11) + 0.3 * noise(this.seed, x, z, 40, 12)
    const wetness = 0.7 * noise(this.seed, x, z, 130, 13) + 0.3 * noise(this.seed, x, z, 35, 14)
    if (warmth < 0.36) return 3
    if (warmth > 0.62) return wetness < 0.45 ? 2 : wetness > 0.58 ? 5 : 4
    return wetness > 0.5 ? 1 : 0
  }

  // Height of the land without villages, in blocks, not rounded.
  wild (x, z) {
    const hills = 22 * noise(this.seed, x, z, 90, 1) + 8 * noise(this.seed, x, z, 38, 2) + 2.5 * noise(this.seed, x, z, 13, 3)
    return SEA - 9 + hills
  }

  // The village of a cell: its central chunk, its centre and ground height in blocks, its wood and its colour.
  village (i, k) {
    const key = `${i},${k}`
    let found = this.villages.get(key)
    if (found === undefined) {
      const draw = stream(this.seed, i, k, 21)
      const cx = i * CELL + RADIUS + draw(CELL - 2 * RADIUS)
      const cz = k * CELL + RADIUS + draw(CELL - 2 * RADIUS)
      const x = cx * 16 + 8
      const z = cz * 16 + 8
      found = { cx, cz, x, z, y: Math.round(clamp(this.wild(x, z), SEA + 2, SEA + 12)), wood: WOODS[draw(4)], wool: COLOURS[draw(12)] }
      this.villages.set(key, found)
    }
    return found
  }

  // The villages of the cell of a chunk and of its neighbours: all that can affect the chunk's column.
  around (cx, cz) {
    const i = Math.floor(cx / CELL)
    const k = Math.floor(cz / CELL)
    const all = []
    for (let di = -1; di <= 1; di++) for (let dk = -1; dk <= 1; dk++) all.push([this.village(i + di, k + dk), i + di, k + dk])
    return all
  }

  // The paths near a chunk. Each leads from a village to the next one along x or along z.
  paths (cx, cz) {
    const found = []
    for (const [from, i, k] of this.around(cx, cz)) {
      found.push({ alongX: true, from, to: this.village(i + 1, k), salt: hash(this.seed, i, k, 31) })
      found.push({ alongX: false, from, to: this.village(i, k + 1), salt: hash(this.seed, i, k, 32) })
    }
    return found
  }

  column (cx, cz) {
    const draft = new Draft(this, cx, cz)
    const villages = this.around(cx, cz).map(entry => entry[0])
    const paths = this.paths(cx, cz)
    for (let z = 0; z < 16; z++) for (let x = 0; x < 16; x++) this.ground(draft, x, z, villages, paths)
    const home = villages.find(village => Math.abs(cx - village.cx) <= RADIUS && Math.abs(cz - village.cz) <= RADIUS)
    if (home) build(draft, home)
    else adorn(draft)
    return { blocks: draft.blocks, biomes: draft.biomes }
  }

  ground (draft, x, z, villages, paths) {
    const bx = draft.x + x
    const bz = draft.z + z
    const kind = this.biome(bx, bz)
    const biome = BIOMES[kind]
    let height = this.wild(bx, bz)
    let onPath = false
    for (const village of villages) {
      const away = Math.max(Math.abs(bx - village.x), Math.abs(bz - village.z))
      const share = smooth(clamp((72 - away) / 32, 0, 1)) // 1 within 40 blocks of the centre, 0 beyond 72
      height += share * (village.y - height)
      const inside = away < 38
      if (inside && (Math.abs(bx - village.x) < 2 || Math.abs(bz - village.z) < 2)) onPath = true
    }
    for (const path of paths) {
      const along = path.alongX ? bx : bz
      const [begin, end] = path.alongX ? [path.from.x, path.to.x] : [path.from.z, path.to.z]
      if (along < begin || along > end) continue
      const t = (along - begin) / (end - begin)
      const [here, there] = path.alongX ? [path.from.z, path.to.z] : [path.from.x, path.to.x]
      const bend = 4 * t * (1 - t) * 14 * (noise(path.salt, along, 0, 30, 33) - 0.5)
      const off = Math.abs((path.alongX ? bz : bx) - (here + smooth(t) * (there - here) + bend))
      const level = path.from.y + t * (path.to.y - path.from.y)
      const share = smooth(clamp((9 - off) / 7, 0, 1))
      height += share * (Math.max(0.5 * height + 0.5 * level, SEA + 1) - height) // a causeway through lakes, a cutting through hills
      if (off < 1.6) onPath = true
    }
    const top = Math.round(height)
    draft.top[z * 16 + x] = top
    draft.kind[z * 16 + x] = kind
    draft.biomes[z * 16 + x] = this.biomeIds[kind]
    draft.path[z * 16 + x] = onPath ? 1 : 0
    const wet = top < SEA
    const cover = onPath ? 'gravel' : wet ? (top > SEA - 3 ? 'sand' : 'gravel') : biome.cover
    draft.fill(x, z, 0, 0, this.id('bedrock'))
    draft.fill(x, z, 1, top - 4, this.id('stone'))
    draft.fill(x, z, Math.max(1, top - 3), top - 1, this.id(kind === 5 ? banded(top) : wet ? 'dirt' : biome.under))
    draft.fill(x, z, top, top, this.id(cover))
    if (wet) {
      draft.fill(x, z, top + 1, SEA, this.id('water'))
      if (kind === 3) draft.fill(x, z, SEA, SEA, this.id('packed_ice'))
    }
  }
}

// The block of a badlands layer at a height.
function banded (height) {
  return ['terracotta', 'orange_terracotta', 'white_terracotta', 'brown_terracotta'][height & 3]
}

// A column under construction. `set` ignores positions outside it, so a structure that crosses the edge is cut off there.
class Draft {
  constructor (terrain, cx, cz) {
    this.terrain = terrain
    this.cx = cx
    this.cz = cz
    this.x = cx * 16
    this.z = cz * 16
    this.blocks = new Uint16Array(HEIGHT * 256)
    this.biomes = new Uint8Array(256)
    this.top = new Int16Array(256)
    this.kind = new Uint8Array(256)
    this.path = new Uint8Array(256)
  }

  fill (x, z, low, high, state) {
    for (let y = Math.max(low, 0); y <= high; y++) this.blocks[(y << 8) | (z << 4) | x] = state
  }

  set (x, y, z, name, properties) {
    if (x < 0 || x > 15 || z < 0 || z > 15 || y < 0 || y >= HEIGHT) return
    this.blocks[(y << 8) | (z << 4) | x] = name === 'air' ? 0 : this.terrain.id(name, properties)
  }

  // Set a block only where there is air.
  add (x, y, z, name) {
    if (x >= 0 && x <= 15 && z >= 0 && z <= 15 && this.blocks[(y << 8) | (z << 4) | x] === 0) this.set(x, y, z, name)
  }

  // Height of the ground, or -1 in water and on paths.
  free (x, z) {
    const at = z * 16 + x
    return this.top[at] < SEA || this.path[at] ? -1 : this.top[at]
  }

  // Whether a rectangle is dry and has no path.
  clear (x0, z0, x1, z1) {
    for (let z = z0; z <= z1; z++) for (let x = x0; x <= x1; x++) if (this.free(x, z) < 0) return false
    return true
  }
}

// ---- villages ----

// A chunk of a village: the square with the well in the central chunk, elsewhere one house or a field.
function build (draft, village) {
  const draw = stream(draft.terrain.seed, draft.cx, draft.cz, 41)
  const dx = draft.cx - village.cx
  const dz = draft.cz - village.cz
  if (dx === 0 && dz === 0) return well(draft, village)
  if (dx !== 0 && dz !== 0 && draw(10) < 2) return field(draft, village.y, draw)
  const onRoad = dx === 0 || dz === 0
  // A road through the chunk's middle leaves 5 blocks on each side.
  const x0 = onRoad && dx === 0 ? (draw(2) ? 1 : 10) : 2 + draw(3)
  const z0 = onRoad && dz === 0 ? (draw(2) ? 1 : 10) : 2 + draw(3)
  const width = onRoad && dx === 0 ? 5 : 6 + draw(4)
  const depth = onRoad && dz === 0 ? 5 : 6 + draw(4)
  house(draft, x0, z0, width, depth, village, draw)
  for (const [x, z] of [[0, 0], [15, 15]]) if (draw(3) === 0) lamp(draft, x, z, village)
}

function well (draft, village) {
  const { y, wool } = village
  for (let x = 3; x <= 12; x++) for (let z = 3; z <= 12; z++) draft.set(x, y, z, (x + z) & 1 ? 'stone_bricks' : 'polished_andesite')
  for (let x = 6; x <= 9; x++) {
    for (let z = 6; z <= 9; z++) {
      const rim = x === 6 || x === 9 || z === 6 || z === 9
      const corner = (x === 6 || x === 9) && (z === 6 || z === 9)
      draft.set(x, y, z, rim ? 'cobblestone' : 'water')
      if (rim) draft.set(x, y + 1, z, 'cobblestone')
      if (corner) for (let dy = 2; dy <= 3; dy++) draft.set(x, y + dy, z, 'oak_fence')
      draft.set(x, y + 4, z, wool + '_wool')
    }
  }
  for (let dy = 5; dy <= 12; dy++) draft.set(7, y + dy, 7, dy > 9 ? wool + '_wool' : 'oak_log')
}

function house (draft, x0, z0, width, depth, village, draw) {
  const y = village.y
  const wall = ['_planks', '_planks', 'stone_bricks', 'bricks', 'white_terracotta'][draw(5)]
  const walls = wall === '_planks' ? village.wood + '_planks' : wall
  const trim = COLOURS[draw(12)] + '_wool'
  const tall = 3 + draw(2)
  const facesX = draw(2) === 1
  for (let x = 0; x < width; x++) {
    for (let z = 0; z < depth; z++) {
      const edge = x === 0 || z === 0 || x === width - 1 || z === depth - 1
      const corner = (x === 0 || x === width - 1) && (z === 0 || z === depth - 1)
      draft.set(x0 + x, y, z0 + z, 'cobblestone')
      for (let dy = 1; dy <= tall; dy++) {
        const window = dy === 2 && !corner && (x + z) % 2 === 0
        draft.set(x0 + x, y + dy, z0 + z, !edge ? 'air' : corner ? village.wood + '_log' : window ? 'glass' : walls)
      }
      draft.set(x0 + x, y + tall + 1, z0 + z, edge ? trim : village.wood + '_planks')
      if (!edge) for (let dy = 2; dy <= Math.min(x, z, width - 1 - x, depth - 1 - z); dy++) draft.set(x0 + x, y + tall + dy, z0 + z, trim)
    }
  }
  const [doorX, doorZ] = facesX ? [0, depth >> 1] : [width >> 1, 0]
  for (let dy = 1; dy <= 2; dy++) draft.set(x0 + doorX, y + dy, z0 + doorZ, 'air')
  draft.set(x0 + (width >> 1), y + tall, z0 + (depth >> 1), 'glowstone')
  draft.set(x0 + width - 2, y + 1, z0 + depth - 2, ['crafting_table', 'bookshelf', 'barrel', 'melon'][draw(4)])
}

function field (draft, y, draw) {
  const crop = ['wheat', 'carrots', 'potatoes', 'beetroots'][draw(4)]
  const age = crop === 'beetroots' ? 3 : 7
  for (let x = 3; x <= 12; x++) {
    for (let z = 3; z <= 12; z++) {
      const edge = x === 3 || x === 12 || z === 3 || z === 12
      draft.set(x, y, z, edge ? 'oak_log' : x === 7 ? 'water' : 'farmland')
      if (!edge && x !== 7) draft.set(x, y + 1, z, crop, { age })
    }
  }
}

function lamp (draft, x, z, village) {
  for (let dy = 1; dy <= 3; dy++) draft.set(x, village.y + dy, z, 'cobblestone_wall')
  draft.set(x, village.y + 4, z, 'glowstone')
}

// ---- outside villages ----

// A chunk outside villages: one in four has a landmark or a hut; then trees and plants.
function adorn (draft) {
  const draw = stream(draft.terrain.seed, draft.cx, draft.cz, 51)
  const kind = draw(16)
  const colour = COLOURS[draw(12)]
  const other = COLOURS[draw(12)]
  const builders = [tower, pyramid, arch, obelisk]
  if (kind < 3) builders[draw(4)](draft, draw, colour, other)
  else if (kind === 3 && draft.clear(4, 4, 10, 10)) {
    const village = { y: draft.free(7, 7), wood: WOODS[draw(4)] }
    for (let x = 3; x <= 11; x++) for (let z = 3; z <= 11; z++) level(draft, x, z, village.y)
    house(draft, 4, 4, 6, 6, village, draw)
  }
  plant(draft, draw)
}

// Set the ground of one cell to a height.
function level (draft, x, z, y) {
  const top = draft.top[z * 16 + x]
  for (let dy = Math.min(top, y) + 1; dy <= y; dy++) draft.set(x, dy, z, 'cobblestone')
  for (let dy = y + 1; dy <= Math.max(top, y) + 1; dy++) draft.set(x, dy, z, 'air')
  draft.top[z * 16 + x] = y
  draft.path[z * 16 + x] = 1 // nothing is planted here
}

function tower (draft, draw, colour, other) {
  const x = 3 + draw(7)
  const z = 3 + draw(7)
  if (!draft.clear(x, z, x + 3, z + 3)) return
  const y = draft.free(x + 1, z + 1)
  const tall = 9 + draw(10)
  const band = 2 + draw(3)
  for (let i = 0; i < 4; i++) {
    for (let k = 0; k < 4; k++) {
      level(draft, x + i, z + k, y)
      for (let dy = 1; dy <= tall; dy++) draft.set(x + i, y + dy, z + k, (Math.floor(dy / band) & 1 ? colour : other) + '_concrete')
      if ((i === 0 || i === 3) && (k === 0 || k === 3)) draft.set(x + i, y + tall + 1, z + k, 'glowstone')
    }
  }
}

function pyramid (draft, draw, colour) {
  const x = 1 + draw(4)
  const z = 1 + draw(4)
  if (!draft.clear(x, z, x + 8, z + 8)) return
  const y = draft.free(x + 4, z + 4)
  for (let i = 0; i < 9; i++) {
    for (let k = 0; k < 9; k++) {
      level(draft, x + i, z + k, y)
      const tall = 1 + Math.min(i, k, 8 - i, 8 - k)
      for (let dy = 1; dy <= tall; dy++) draft.set(x + i, y + dy, z + k, dy === 5 ? 'gold_block' : colour + '_terracotta')
    }
  }
}

function arch (draft, draw, colour) {
  const x = 3 + draw(5)
  const z = 3 + draw(7)
  if (!draft.clear(x, z, x + 6, z + 1)) return
  const y = draft.free(x + 3, z)
  const tall = 6 + draw(3)
  for (let i = 0; i < 7; i++) {
    for (let k = 0; k < 2; k++) {
      const leg = i < 2 || i > 4
      level(draft, x + i, z + k, y)
      for (let dy = leg ? 1 : tall - 1; dy <= tall; dy++) draft.set(x + i, y + dy, z + k, dy === tall ? colour + '_wool' : 'quartz_block')
    }
  }
}

function obelisk (draft, draw, colour) {
  const x = 3 + draw(9)
  const z = 3 + draw(9)
  if (!draft.clear(x, z, x + 1, z + 1)) return
  const y = draft.free(x, z)
  const tall = 7 + draw(6)
  for (let i = 0; i < 2; i++) {
    for (let k = 0; k < 2; k++) {
      level(draft, x + i, z + k, y)
      for (let dy = 1; dy <= tall; dy++) draft.set(x + i, y + dy, z + k, dy > tall - 2 ? colour + '_stained_glass' : 'chiseled_stone_bricks')
    }
  }
}

function plant (draft, draw) {
  const biome = BIOMES[draft.kind[8 * 16 + 8]]
  const trees = Math.floor((biome.trees + draw(10)) / 10)
  for (let n = 0; n < trees; n++) {
    const x = 2 + draw(12)
    const z = 2 + draw(12)
    const tall = 4 + draw(3)
    const y = draft.free(x, z)
    if (y > 0 && draft.blocks[((y + 1) << 8) | (z << 4) | x] === 0) tree(draft, x, y, z, tall, biome.wood)
  }
  for (let n = draw(14); n > 0; n--) {
    const x = draw(16)
    const z = draw(16)
    const name = biome.plants[draw(biome.plants.length)]
    const y = draft.free(x, z)
    if (y < 0 || BIOMES[draft.kind[z * 16 + x]] !== biome) continue
    if (name === 'cactus') {
      if (x > 0 && x < 15 && z > 0 && z < 15) for (let dy = 1; dy <= 2; dy++) draft.add(x, y + dy, z, name)
    } else draft.add(x, y + 1, z, name)
  }
}

function tree (draft, x, y, z, tall, wood) {
  const cone = wood === 'spruce'
  const flat = wood === 'acacia'
  const lowest = cone ? 2 : flat ? tall : tall - 2
  for (let dy = lowest; dy <= tall + 1; dy++) {
    const reach = cone ? ((tall + 1 - dy) & 1 ? 2 : 1) : dy > tall - (flat ? -1 : 1) ? 1 : 2
    for (let dx = -reach; dx <= reach; dx++) {
      for (let dz = -reach; dz <= reach; dz++) {
        if (Math.abs(dx) + Math.abs(dz) < 2 * reach) draft.add(x + dx, y + dy, z + dz, wood + '_leaves')
      }
    }
  }
  draft.add(x, y + tall + 2 - (flat ? 1 : 0), z, wood + '_leaves')
  for (let dy = 1; dy <= tall; dy++) draft.set(x, y + dy, z, wood + '_log')
}

module.exports = { Terrain, SEA }
