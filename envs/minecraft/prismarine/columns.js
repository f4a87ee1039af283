'use strict'
// The blocks of one world, in columns of 16 x 16 x 256 blocks as flat arrays. Index: (y << 8) | (z << 4) | x.
// Columns come from a source: the terrain of a seed, a saved world, or a server.

const { Vec3 } = require('vec3')

const HEIGHT = 256
const key = (cx, cz) => (cx + 32768) * 65536 + (cz + 32768)

class Columns {
  // source.column(cx, cz): {blocks: Uint16Array, biomes: Uint8Array [256]}, or null if there is none, or a promise of either
  constructor (blocks, source) {
    this.blocks = blocks
    this.source = source
    this.loaded = new Map()
    this.edits = new Map() // 'x,y,z' -> [x, y, z, present state, original state]
    this.onChange = () => {} // called with (x, y, z) of every block that changes
  }

  get (cx, cz) { return this.loaded.get(key(cx, cz)) }

  // The column, from memory or from the source; null if the source does not have it (yet).
  async load (cx, cz) {
    const loaded = this.get(cx, cz)
    if (loaded !== undefined) return loaded
    const found = await this.source.column(cx, cz)
    if (!found) return null
    const column = { cx, cz, biomes: found.biomes, blocks: found.blocks, top: topOf(found.blocks) }
    this.blocks.register(column.blocks.subarray(0, (column.top + 1) << 8))
    this.loaded.set(key(cx, cz), column)
    for (const [x, y, z, state] of this.edits.values()) if (x >> 4 === cx && z >> 4 === cz) this.put(column, x, y, z, state)
    return column
  }

  drop (cx, cz) { this.loaded.delete(key(cx, cz)) }

  // The block state of a cell; -1 where no column is loaded, air above and below the world.
  state (x, y, z) {
    const column = this.get(x >> 4, z >> 4)
    if (column === undefined) return -1
    return y < 0 || y >= HEIGHT ? 0 : column.blocks[(y << 8) | ((z & 15) << 4) | (x & 15)]
  }

  // The interface that prismarine-physics needs: a block with its position, or null where no column is loaded.
  getBlock (position) {
    const x = Math.floor(position.x)
    const y = Math.floor(position.y)
    const z = Math.floor(position.z)
    const state = this.state(x, y, z)
    if (state < 0) return null
    const block = Object.create(this.blocks.of(state)) // not the shared object, since the physics holds several blocks at once
    block.position = new Vec3(x, y, z)
    return block
  }

  put (column, x, y, z, state) {
    this.blocks.of(state)
    column.blocks[(y << 8) | ((z & 15) << 4) | (x & 15)] = state
    if (state !== 0) column.top = Math.max(column.top, y)
    this.onChange(x, y, z)
  }

  // Apply a block change that the server reports.
  update (x, y, z, state) {
    const column = this.get(x >> 4, z >> 4)
    if (column !== undefined && y >= 0 && y < HEIGHT && this.state(x, y, z) !== state) this.put(column, x, y, z, state)
  }

  // Apply a block change by the player. `restore` undoes it.
  edit (x, y, z, state) {
    const before = this.state(x, y, z)
    if (before < 0 || before === state || y < 0 || y >= HEIGHT) return
    const name = `${x},${y},${z}`
    const old = this.edits.get(name)
    const first = old === undefined ? before : old[4]
    if (state === first) this.edits.delete(name)
    else this.edits.set(name, [x, y, z, state, first])
    this.put(this.get(x >> 4, z >> 4), x, y, z, state)
  }

  restore () {
    const edits = [...this.edits.values()]
    this.edits.clear()
    for (const [x, y, z, , before] of edits) this.update(x, y, z, before)
  }
}

function topOf (blocks) {
  let at = blocks.length - 1
  while (at > 0 && blocks[at] === 0) at--
  return at >> 8
}

// Convert a column of prismarine-chunk to flat arrays.
function flatten (chunk) {
  const blocks = new Uint16Array(HEIGHT << 8)
  const biomes = new Uint8Array(256)
  const lowest = (chunk.minY || 0) >> 4
  const at = { x: 0, y: 0, z: 0 }
  for (let layer = 0; layer < 16; layer++) {
    const section = chunk.sections[layer - lowest]
    if (!section || (section.isEmpty && section.isEmpty())) continue
    for (let y = layer * 16; y < layer * 16 + 16; y++) {
      for (let z = 0; z < 16; z++) {
        for (let x = 0; x < 16; x++) {
          at.x = x; at.y = y; at.z = z
          blocks[(y << 8) | (z << 4) | x] = chunk.getBlockStateId(at)
        }
      }
    }
  }
  const level = Math.min(topOf(blocks), HEIGHT - 1)
  for (let z = 0; z < 16; z++) for (let x = 0; x < 16; x++) biomes[z * 16 + x] = chunk.getBiome(new Vec3(x, level, z))
  return { blocks, biomes }
}

module.exports = { Columns, flatten, HEIGHT }
