'use strict'
// An episode: a player in a world, the columns loaded and meshed around it, and the requests that main.js passes on.

const { Columns } = require('./columns')
const { Terrain } = require('./terrain')
const { Body } = require('./body')
const { Refused } = require('./refused')

const WORLDS = 3 // worlds kept in memory, so that returning to one is quick
const REACHABLE = 44 // blocks around the start within which goals are reachable
const BOUND = 16384 // blocks from the origin; within it float32 poses are exact to a millimetre
const SEARCH = 40 // blocks around the spawn point that are searched for a place to stand

class Session {
  constructor (config, blocks, picture) {
    this.config = config
    this.blocks = blocks
    this.picture = picture
    this.worlds = new Map() // name -> {columns, body, dirty}, the most recently used last
    this.world = null
  }

  // ---- the world ----

  async open (seed) {
    const name = this.config.mode === 'terrain' ? seed : 0
    let world = this.worlds.get(name)
    if (world === undefined) {
      const source = await this.source(seed)
      const columns = new Columns(this.blocks, source)
      world = { name, seed, source, columns, body: new Body(columns, this.blocks.registry, this.config.version), dirty: new Set() }
      columns.onChange = (x, y, z) => this.changed(world, x, z)
    }
    this.worlds.delete(name)
    this.worlds.set(name, world)
    while (this.worlds.size > WORLDS) {
      const [oldest, old] = this.worlds.entries().next().value
      for (const column of old.columns.loaded.values()) this.picture.forget(column)
      this.worlds.delete(oldest)
    }
    this.world = world
    world.columns.restore()
    return world
  }

  async source (seed) {
    if (this.config.mode === 'saved') return require('./saved').openSaved(this.config, this.blocks)
    if (this.config.mode === 'server') return require('./server').connect(this.config, this.blocks)
    const terrain = new Terrain(seed, this.blocks)
    return {
      column: (cx, cz) => terrain.column(cx, cz),
      spawn: () => {
        const { x, z, y } = terrain.village(0, 0)
        const away = 4 + seed % 24
        return { x: x + (seed & 1 ? 0 : away), y: y + 1, z: z + (seed & 1 ? away : 0) }
      }
    }
  }

  // A block has changed: mesh its column again, and the neighbouring columns whose faces and shadows it affects.
  changed (world, x, z) {
    for (const dx of [-1, 0, 1]) {
      for (const dz of [-1, 0, 1]) {
        const column = world.columns.get((x + dx) >> 4, (z + dz) >> 4)
        if (column !== undefined && column.mesh) world.dirty.add(column)
      }
    }
    this.reachableArea = null
  }

  // ---- the episode ----

  // Begin an episode. If the start is refused, the previous state is restored.
  async reset (seed, start) {
    const before = this.world && this.config.mode !== 'server' ? this.save().state : null
    try {
      await this.enter(seed, start)
    } catch (error) {
      if (error instanceof Refused && before !== null) await this.load(before)
      throw error
    }
  }

  async enter (seed, start) {
    const world = await this.open(seed)
    const { columns, body, source } = world
    const place = start || await this.spawn(world)
    const [x, y, z, yaw, pitch] = place
    if (Math.max(Math.abs(x), Math.abs(z)) > BOUND) throw new Refused(`start must lie within ${BOUND} blocks of the origin`)
    if (start && source.teleport) await source.teleport(place)
    await this.loadRound(x, z, 1)
    body.place(x, y, z, yaw, pitch)
    if (!place.trusted && !body.fits(x, y, z)) throw new Refused('start must leave room for a body 0.6 wide and 1.8 high, but there is a block at that place')
    if (!start) body.settle()
    if (source.follow) source.follow(body)
    this.reachableArea = null
    await this.surround()
  }

  // Where a player begins if no start is given: [x, y, z, yaw, pitch].
  async spawn (world) {
    const centre = await world.source.spawn()
    const yaw = ((world.seed >>> 3) % 24 - 12) * Math.PI / 12
    if (centre.exact) return Object.assign([centre.x, centre.y, centre.z, centre.yaw, centre.pitch], { trusted: true })
    for (let far = 0; far < SEARCH; far++) {
      for (const [dx, dz] of ring(far)) {
        const [x, z] = [Math.floor(centre.x) + dx, Math.floor(centre.z) + dz]
        if (!await world.columns.load(x >> 4, z >> 4)) continue
        await this.loadRound(x, z, 1)
        const y = this.ground(world, x, z)
        if (y !== null) return [x + 0.5, y, z + 0.5, yaw, 0]
      }
    }
    throw new Refused('no place to stand was found near the spawn point of this world: give a start')
  }

  // Height of the feet of a player that stands at (x, z) under open sky on dry ground; null where a player should not begin.
  ground (world, x, z) {
    const { columns } = world
    const { blocks } = this
    let y = columns.get(x >> 4, z >> 4).top
    while (y > 0 && blocks.solid[columns.state(x, y, z)] === 0) {
      if (blocks.of(columns.state(x, y, z)).name === 'water') return null
      y--
    }
    const below = blocks.of(columns.state(x, y, z))
    if (!below.isCube && below.name !== 'grass_path' && below.name !== 'dirt_path') return null
    if (/leaves|log|wool|planks|glass|glowstone|concrete|terracotta$/.test(below.name)) return null // roofs and trees
    return world.body.fits(x + 0.5, y + 1, z + 0.5) ? y + 1 : null
  }

  // Turn, run some ticks, then load and mesh what is in view.
  async step ({ ticks, keys = {}, turn, look, camera }) {
    const { body, source } = this.world
    if (source.check) source.check()
    if (turn || look) body.turn(turn || 0, look || 0)
    if (camera) body.look(camera[1], camera[0])
    for (let i = 0; i < ticks; i++) {
      body.tick(keys)
      if (source.tick) await source.tick(body)
      const [x, , z] = body.pose()
      if (Math.floor(x) >> 4 !== this.at[0] || Math.floor(z) >> 4 !== this.at[1]) await this.surround()
    }
    if (!body.pose().every(Number.isFinite)) throw new Error('the physics gave a pose that is not finite: ' + body.pose())
  }

  // ---- columns around the player ----

  async loadRound (x, z, reach) {
    const [cx, cz] = [Math.floor(x) >> 4, Math.floor(z) >> 4]
    for (let dx = -reach; dx <= reach; dx++) for (let dz = -reach; dz <= reach; dz++) await this.world.columns.load(cx + dx, cz + dz)
  }

  // Load and mesh the columns in view, and drop distant ones.
  async surround () {
    const { columns, body, source } = this.world
    const { reach } = this.config
    const [x, , z] = body.pose()
    const [cx, cz] = this.at = [Math.floor(x) >> 4, Math.floor(z) >> 4]
    if (source.await) await source.await(columns, cx, cz, reach + 1)
    for (let dx = -reach - 1; dx <= reach + 1; dx++) for (let dz = -reach - 1; dz <= reach + 1; dz++) await columns.load(cx + dx, cz + dz)
    for (const [dx, dz] of this.picture.order) this.mesh(columns.get(cx + dx, cz + dz))
    const far = 2 * reach + 6
    for (const column of columns.loaded.values()) {
      if (Math.abs(column.cx - cx) <= far && Math.abs(column.cz - cz) <= far) continue
      this.picture.forget(column)
      columns.drop(column.cx, column.cz)
      this.world.dirty.delete(column)
    }
    this.ahead = jobs(reach, cx, cz, body)
  }

  mesh (column) {
    if (column === undefined || (column.mesh !== undefined && !this.world.dirty.has(column))) return false
    this.world.dirty.delete(column)
    return this.picture.build(this.world.columns, column)
  }

  // Between two requests: generate or mesh a few of the columns that come into view next, so that entering the next chunk takes less time.
  // Frames do not depend on this. Only for generated terrain, whose columns are ready at once.
  prepare (count) {
    if (this.config.mode !== 'terrain' || this.world === null) return
    const { columns } = this.world
    for (let done = 0; done < count && this.ahead.length;) {
      const [cx, cz, mesh] = this.ahead[this.ahead.length - 1]
      this.ahead.pop()
      if (mesh) { if (this.mesh(columns.get(cx, cz))) done++ } else if (columns.get(cx, cz) === undefined) { columns.load(cx, cz); done++ }
    }
  }

  // ---- queries ----

  draw (height, width, pixels) {
    const { columns, body, dirty } = this.world
    for (const column of [...dirty]) this.mesh(column)
    const [x, y, z, yaw, pitch] = body.pose()
    this.picture.draw(columns, [x, y + body.eyes, z], yaw, pitch, height, width, pixels)
  }

  pose () { return this.world.body.pose() }

  get ticks () { return this.world.body.ticks }

  async loadBox (low, high) {
    for (let cx = low[0] >> 4; cx <= (high[0] - 1) >> 4; cx++) {
      for (let cz = low[2] >> 4; cz <= (high[2] - 1) >> 4; cz++) if (Math.max(Math.abs(cx), Math.abs(cz)) * 16 <= BOUND) await this.world.columns.load(cx, cz)
    }
  }

  // Which cells of a box stop a body, as bytes [X, Z, Y]. Cells that are not loaded do, and so do cells below and above the world.
  solid (low, high) {
    const [nx, ny, nz] = [0, 1, 2].map(i => Math.max(high[i] - low[i], 0))
    const bytes = Buffer.alloc(nx * ny * nz, 1)
    let at = 0
    for (let x = low[0]; x < high[0]; x++) {
      for (let z = low[2]; z < high[2]; z++, at += ny) {
        const column = this.world.columns.get(x >> 4, z >> 4)
        if (column === undefined) continue
        const place = ((z & 15) << 4) | (x & 15)
        for (let y = Math.max(low[1], 0); y < Math.min(high[1], 256); y++) bytes[at + y - low[1]] = this.blocks.solid[column.blocks[(y << 8) | place]]
      }
    }
    return bytes
  }

  // The cells within REACHABLE blocks that can be reached on foot over dry ground: {area: [x, z, side], bytes [X, Z]}.
  reachable () {
    if (this.reachableArea) return this.reachableArea
    const { columns, body } = this.world
    const side = 2 * REACHABLE + 1
    const bytes = Buffer.alloc(side * side)
    const [x, y, z] = body.pose().map(Math.floor)
    const free = (bx, by, bz) => {
      const state = columns.state(bx, by, bz)
      return state >= 0 && this.blocks.solid[state] === 0 && !/water|lava/.test(this.blocks.of(state).name)
    }
    const stands = (bx, by, bz) => !free(bx, by - 1, bz) && free(bx, by, bz) && free(bx, by + 1, bz) && this.blocks.solid[columns.state(bx, by - 1, bz)] === 1
    const heights = new Int16Array(side * side)
    const queue = [[x, y, z]]
    bytes[REACHABLE * side + REACHABLE] = 1
    for (let i = 0; i < queue.length; i++) {
      const [bx, by, bz] = queue[i]
      for (const [dx, dz] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        const [ux, uz] = [bx + dx - x + REACHABLE, bz + dz - z + REACHABLE]
        if (ux < 0 || uz < 0 || ux >= side || uz >= side || bytes[ux * side + uz]) continue
        for (const dy of [0, 1, -1, -2, -3]) {
          if (!stands(bx + dx, by + dy, bz + dz) || (dy > 0 && !free(bx, by + 2, bz)) || (dy < 0 && !free(bx + dx, by + 1, bz + dz))) continue
          bytes[ux * side + uz] = 1
          heights[ux * side + uz] = by + dy
          queue.push([bx + dx, by + dy, bz + dz])
          break
        }
      }
    }
    this.reachableArea = { area: [x - REACHABLE, z - REACHABLE, side], bytes }
    return this.reachableArea
  }

  // ---- states ----

  save () {
    if (this.config.mode === 'server') throw new Refused('a server does not export its state')
    return { state: { seed: this.world.seed, body: this.world.body.save(), edits: [...this.world.columns.edits.values()].map(edit => edit.slice(0, 4)) } }
  }

  async load ({ seed, body, edits }) {
    if (this.config.mode === 'server') throw new Refused('a server cannot be set back to an earlier state')
    const world = await this.open(seed)
    world.body.load(body)
    for (const [x, y, z, state] of edits) {
      await world.columns.load(x >> 4, z >> 4)
      world.columns.edit(x, y, z, state)
    }
    this.reachableArea = null
    await this.surround()
  }
}

// The columns just beyond the view, which may come into view next. The last entry is needed first: those ahead of the body come last.
function jobs (reach, cx, cz, body) {
  const yaw = body.pose()[3]
  const [ax, az] = [-Math.sin(yaw), -Math.cos(yaw)]
  const all = []
  for (let dx = -reach - 2; dx <= reach + 2; dx++) {
    for (let dz = -reach - 2; dz <= reach + 2; dz++) {
      const ring = Math.max(Math.abs(dx), Math.abs(dz))
      const front = dx * ax + dz * az
      if (ring === reach + 2) all.push([cx + dx, cz + dz, false, front])
      if (ring === reach + 1) all.push([cx + dx, cz + dz, true, front - 2.5]) // after its neighbours
    }
  }
  return all.sort((a, b) => a[3] - b[3] || a[0] - b[0] || a[1] - b[1])
}

// Offsets at Chebyshev distance `far`.
function ring (far) {
  if (far === 0) return [[0, 0]]
  const all = []
  for (let i = -far; i < far; i++) all.push([i, -far], [far, i], [-i, far], [-far, -i])
  return all
}

module.exports = { Session }
