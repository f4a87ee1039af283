'use strict'
// Properties of each block state, read once from minecraft-data: shapes for collisions, models for rendering.

const fs = require('fs')
const path = require('path')
const { getVersion } = require('prismarine-viewer/viewer/lib/version')

const ASSETS = path.join(path.dirname(require.resolve('prismarine-viewer/package.json')), 'public')
const STEP = 0.25 // blocks; lower shapes (snow layers, carpets) do not stop a body

class Blocks {
  constructor (version) {
    const assets = getVersion(version)
    if (assets === null) throw new Error(`no block models for Minecraft ${version}`)
    this.version = version
    this.registry = require('prismarine-registry')(version)
    this.Block = require('prismarine-block')(this.registry)
    this.models = JSON.parse(fs.readFileSync(path.join(ASSETS, 'blocksStates', assets + '.json')))
    this.atlasFile = path.join(ASSETS, 'textures', assets + '.png')
    this.states = []
    const count = 1 + Object.values(this.registry.blocks).reduce((most, block) => Math.max(most, block.maxStateId), 0)
    this.known = new Uint8Array(count)
    this.opaque = new Uint8Array(count) // 1: fills its cell and hides what is behind it
    this.solid = new Uint8Array(count) // 1: stops a body
    this.drawn = new Uint8Array(count) // 1: has a model to draw
    this.of(0)
  }

  // The block of a state. The object is shared: its position and biome are those that were set last.
  of (state) {
    let block = this.states[state]
    if (block === undefined) {
      block = this.states[state] = this.Block.fromStateId(state, 1)
      const shapes = block.shapes || []
      block.isCube = shapes.length === 1 && shapes[0].every((side, i) => side === (i < 3 ? 0 : 1))
      block.variant = variantsOf(block, this.models)
      block.isLeaves = block.name.endsWith('_leaves')
      if (block.isLeaves) block.dense = Object.assign(Object.create(block), { transparent: false })
      this.opaque[state] = block.isCube && !block.transparent ? 1 : 0
      this.solid[state] = block.boundingBox === 'block' && shapes.some(shape => shape[4] > STEP) ? 1 : 0
      this.drawn[state] = block.variant.length > 0 ? 1 : 0
      this.known[state] = 1
    }
    return block
  }

  // Fill the tables for these states.
  register (states) {
    for (let i = 0; i < states.length; i++) if (this.known[states[i]] === 0) this.of(states[i])
  }

  named (name, properties) {
    const block = this.registry.blocksByName[name]
    if (block === undefined) throw new Error(`Minecraft ${this.version} has no block ${name}`)
    return properties ? this.Block.fromProperties(block.id, properties, 1).stateId : block.defaultState
  }
}

// The models that a block is drawn with. The viewer's own function draws no stairs: their name contains "air".
function variantsOf (block, models) {
  if (/^(air|cave_air|void_air|barrier|structure_void|light)$/.test(block.name)) return []
  const entry = models[block.name] || models.missing_texture
  const first = apply => Array.isArray(apply) ? apply[0] : apply
  let found = []
  if (entry && entry.variants) {
    const match = Object.entries(entry.variants).find(([when]) => matches(block, when))
    if (match) found = [first(match[1])]
  } else if (entry && entry.multipart) {
    found = entry.multipart.filter(part => matches(block, part.when)).map(part => first(part.apply))
  }
  return found.filter(variant => variant && variant.model)
}

// Whether a block has the properties that a model requires: 'a=b,c=d', {a: 'b|c'}, {OR: [...]}, {AND: [...]} or nothing.
function matches (block, when) {
  if (!when) return true
  if (typeof when === 'string') when = Object.fromEntries(when.split(',').map(pair => pair.split('=')))
  if (when.OR) return when.OR.some(each => matches(block, each))
  if (when.AND) return when.AND.every(each => matches(block, each))
  const has = block.getProperties()
  return Object.entries(when).every(([name, values]) => has[name] === undefined || String(values).split('|').includes(String(has[name])))
}

module.exports = { Blocks }
