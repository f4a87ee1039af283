'use strict'
// The triangles of a column, from prismarine-viewer's section geometry: a pure function of the column and its eight neighbours.
//
// A vertex is 24 bytes: x, y, z float32 from the column's corner; u, v float32 in the atlas; red, green, blue, 255 as bytes. The colour
// is the product of biome tint, ambient occlusion and the brightness of the face's direction.

const { Vec3 } = require('vec3')
const { getSectionGeometry } = require('prismarine-viewer/viewer/lib/models')

const BYTES = 24
const INSET = 1 / 64 // texture coordinates are inset by this share, or the edges would show the next texture in the atlas
const ABSENT = { variant: [], biome: { name: 'plains' } } // stands for what is not drawn: air, and blocks with six opaque neighbours

// The world as getSectionGeometry sees it: nine columns, and which blocks of a section of the middle column are visible.
class Neighbourhood {
  constructor (blocks) {
    this.blocks = blocks
    this.biomes = blocks.registry.biomes
    this.fallback = this.biomes[1]
    this.inLeaves = false
    this.near = new Array(9)
    this.visible = new Uint8Array(4096)
  }

  enter (cx, cz, near) {
    this.x = cx * 16
    this.z = cz * 16
    this.near = near
  }

  // Mark the visible blocks of the section that begins at height y. Returns their number.
  markVisible (y) {
    const { opaque, drawn } = this.blocks
    const middle = this.near[4].blocks
    let count = 0
    for (let i = 0; i < 4096; i++) {
      const at = (y << 8) | i
      const state = middle[at]
      let show = 0
      if (drawn[state] === 1) {
        const x = i & 15
        const z = (i >> 4) & 15
        const hidden = opaque[state] === 1 &&
          (at >= 65280 ? false : opaque[middle[at + 256]] === 1) && (at < 256 || opaque[middle[at - 256]] === 1) &&
          opaque[x < 15 ? middle[at + 1] : this.near[7].blocks[at - 15]] === 1 && opaque[x > 0 ? middle[at - 1] : this.near[1].blocks[at + 15]] === 1 &&
          opaque[z < 15 ? middle[at + 16] : this.near[5].blocks[at - 240]] === 1 && opaque[z > 0 ? middle[at - 16] : this.near[3].blocks[at + 240]] === 1
        if (!hidden) { show = 1; count++ }
      }
      this.visible[i] = show
    }
    this.cursor = null
    return count
  }

  // The first position object passed in is the cursor that scans the section. Visibility matters only for it, not for its neighbours.
  getBlock (position) {
    if (this.cursor === null) this.cursor = position
    const x = Math.floor(position.x) - this.x
    const y = Math.floor(position.y)
    const z = Math.floor(position.z) - this.z
    const isCursor = position === this.cursor
    if (isCursor && this.visible[((y & 15) << 8) | (z << 4) | x] === 0) return ABSENT
    const column = this.near[3 * ((x + 16) >> 4) + ((z + 16) >> 4)]
    const state = y < 0 || y >= 256 ? 0 : column.blocks[(y << 8) | ((z & 15) << 4) | (x & 15)]
    let block = this.blocks.of(state)
    if (isCursor) this.inLeaves = block.isLeaves
    else if (this.inLeaves && block.isLeaves) block = block.dense // omits faces between leaves: half of all triangles in a forest
    block.position = new Vec3(x + this.x, y, z + this.z)
    block.biome = this.biomes[column.biomes[((z & 15) << 4) | (x & 15)]] || this.fallback
    return block
  }
}

// Returns {vertices: ArrayBuffer, parts: [opaque, holed, liquid], low, high}. The parts are lists of vertex indices: of opaque faces, of
// faces whose texture has transparent pixels, and of liquids. low and high are the column's range in height.
// isHoled(u, v): whether the texture at (u, v) has transparent pixels.
function meshColumn (world, column, near, isHoled) {
  world.enter(column.cx, column.cz, near)
  const sections = []
  for (let y = 0; y <= column.top; y += 16) {
    if (world.markVisible(y) === 0) continue
    const section = getSectionGeometry(column.cx * 16, y, column.cz * 16, world, null) // variants are known already, so no models are needed
    if (section.indices.length) sections.push({ ...section, y })
  }
  const total = sections.reduce((sum, section) => sum + section.positions.length / 3, 0)
  const vertices = new ArrayBuffer(total * BYTES)
  const floats = new Float32Array(vertices)
  const bytes = new Uint8Array(vertices)
  const parts = [[], [], []]
  let first = 0
  for (const { positions, normals, colors, uvs, indices, y } of sections) {
    const count = positions.length / 3
    // Liquids come last. Their faces have 4 vertices and 12 indices (both sides), all others 4 and 6.
    const liquid = (indices.length - count / 4 * 6) / 6 * 4
    for (let i = 0; i < count; i++) {
      const f = (first + i) * 6
      const corner = 8 * (i >> 2) // first of the face's four vertices; 0 and 3 are opposite corners
      floats[f] = positions[3 * i] + 8
      floats[f + 1] = positions[3 * i + 1] + 8 + y
      floats[f + 2] = positions[3 * i + 2] + 8
      floats[f + 3] = uvs[2 * i] + INSET * (0.5 * (uvs[corner] + uvs[corner + 6]) - uvs[2 * i])
      floats[f + 4] = uvs[2 * i + 1] + INSET * (0.5 * (uvs[corner + 1] + uvs[corner + 7]) - uvs[2 * i + 1])
      const light = i < count - liquid ? brightness(normals[3 * i], normals[3 * i + 1], normals[3 * i + 2]) : 255
      const b = (first + i) * BYTES + 20
      for (let c = 0; c < 3; c++) bytes[b + c] = Math.round(Math.min(colors[3 * i + c], 1) * light)
      bytes[b + 3] = 255
    }
    const split = (count - liquid) / 4 * 6
    for (let i = 0; i < indices.length; i += 6) {
      const corner = 8 * (indices[i] >> 2)
      const holed = isHoled(0.5 * (uvs[corner] + uvs[corner + 6]), 0.5 * (uvs[corner + 1] + uvs[corner + 7]))
      const part = parts[i >= split ? 2 : holed ? 1 : 0]
      for (let k = i; k < i + 6; k++) part.push(indices[k] + first)
    }
    first += count
  }
  const low = sections.length ? sections[0].y : 0
  const high = sections.length ? sections[sections.length - 1].y + 16 : 0
  return { vertices, parts, low, high }
}

// Minecraft's brightness of a face by its direction (up 1, north and south 0.8, east and west 0.6, down 0.5), as a byte.
function brightness (x, y, z) {
  return 255 * (y > 0.5 ? 1 : y < -0.5 ? 0.5 : 0.6 * x * x + 0.8 * z * z)
}

module.exports = { Neighbourhood, meshColumn, BYTES }
