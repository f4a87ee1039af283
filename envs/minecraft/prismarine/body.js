'use strict'
// The player's body. One call of `tick` simulates 50 ms with prismarine-physics, which uses Minecraft's constants.

const { Vec3 } = require('vec3')
const { Physics, PlayerState } = require('prismarine-physics')
const { RaycastIterator } = require('prismarine-world').iterators

const STANDING = 1.62 // blocks from the feet to the eyes
const SNEAKING = 1.27
const REACH = 4.5 // blocks within which a block can be dug
const TURN = Math.PI / 12 // radians per turn or look action
const SETTLE = 40 // ticks for a placed body to come to rest

const NUMBERS = ['x', 'y', 'z', 'vx', 'vy', 'vz', 'heading', 'turns', 'pitch', 'onGround', 'isInWater', 'isInLava', 'isInWeb',
  'isCollidedHorizontally', 'isCollidedVertically', 'jumpTicks', 'jumpQueued', 'sneaking', 'digX', 'digY', 'digZ', 'digTicks', 'ticks']

class Body {
  constructor (columns, registry, version) {
    this.columns = columns
    this.physics = Physics(registry, columns)
    this.player = { version, inventory: { slots: [] }, jumpTicks: 0, jumpQueued: false, fireworkRocketDuration: 0 }
    this.onDug = (x, y, z) => columns.edit(x, y, z, 0) // called when a block has been dug
  }

  // Stand at (x, y, z) with mineflayer's yaw (radians, 0 along -z, counter-clockwise) and pitch (radians, up positive).
  place (x, y, z, yaw, pitch) {
    this.player.entity = {
      position: new Vec3(x, y, z), velocity: new Vec3(0, 0, 0), yaw, pitch, effects: {}, attributes: undefined, elytraFlying: false,
      onGround: false, isInWater: false, isInLava: false, isInWeb: false, isCollidedHorizontally: false, isCollidedVertically: false
    }
    this.player.jumpTicks = 0
    this.player.jumpQueued = false
    this.heading = yaw
    this.turns = 0 // counted, so that 24 turns of 15 degrees give exactly the same yaw again
    this.sneaking = false
    this.dig = { x: 0, y: 0, z: 0, ticks: 0 }
    this.ticks = 0
  }

  // Whether a body (0.6 wide, 1.8 high) fits at (x, y, z). The tolerance of 1 mm admits positions rounded to float32.
  fits (x, y, z) {
    const edge = 0.3 - 1e-3
    for (let by = Math.floor(y + 1e-3); by <= Math.floor(y + 1.8 - 1e-3); by++) {
      for (let bx = Math.floor(x - edge); bx <= Math.floor(x + edge); bx++) {
        for (let bz = Math.floor(z - edge); bz <= Math.floor(z + edge); bz++) {
          const state = this.columns.state(bx, by, bz)
          if (state < 0) return false
          for (const s of this.columns.blocks.of(state).shapes) {
            const across = x + edge > bx + s[0] && x - edge < bx + s[3] && z + edge > bz + s[2] && z - edge < bz + s[5]
            if (across && y + 1.8 - 1e-3 > by + s[1] && y + 1e-3 < by + s[4]) return false
          }
        }
      }
    }
    return true
  }

  // Fall to the ground, or float to the surface of water, and set the tick count to 0.
  settle () {
    for (let i = 0; i < SETTLE; i++) this.tick({})
    this.player.entity.velocity = new Vec3(0, 0, 0)
    this.ticks = 0
  }

  // Turn by multiples of 15 degrees. Left and up are positive.
  turn (left, up) {
    const entity = this.player.entity
    this.turns = (((this.turns + left) % 24) + 24) % 24
    entity.yaw = wrap(this.heading + this.turns * TURN)
    entity.pitch = limit(entity.pitch + up * TURN)
  }

  // Turn by degrees, with the signs of MineRL's camera: right and down are positive.
  look (right, down) {
    const entity = this.player.entity
    entity.yaw = this.heading = wrap(entity.yaw - right * Math.PI / 180)
    this.turns = 0
    entity.pitch = limit(entity.pitch - down * Math.PI / 180)
  }

  tick (keys) {
    const on = name => keys[name] === 1
    const control = { forward: on('forward'), back: on('back'), left: on('left'), right: on('right'), jump: on('jump'), sneak: on('sneak') }
    control.sprint = on('sprint') && control.forward && !control.sneak
    this.sneaking = control.sneak
    this.physics.simulatePlayer(new PlayerState(this.player, control), this.columns).apply(this.player)
    if (on('attack')) this.attack()
    else this.dig.ticks = 0
    this.ticks++
  }

  // Dig the block in view. It breaks after as many ticks as it takes without a tool.
  attack () {
    const entity = this.player.entity
    const target = this.target()
    if (target === null) { this.dig.ticks = 0; return }
    const { x, y, z } = target.position
    const same = this.dig.ticks > 0 && this.dig.x === x && this.dig.y === y && this.dig.z === z
    this.dig = { x, y, z, ticks: same ? this.dig.ticks + 1 : 1 }
    if (this.dig.ticks * 50 >= target.digTime(null, false, entity.isInWater, !entity.onGround, [], {})) {
      this.onDug(x, y, z)
      this.dig.ticks = 0
    }
  }

  target () {
    const { yaw, pitch, position } = this.player.entity
    const flat = Math.cos(pitch)
    const direction = new Vec3(-Math.sin(yaw) * flat, Math.sin(pitch), -Math.cos(yaw) * flat)
    const ray = new RaycastIterator(position.offset(0, this.eyes, 0), direction, REACH)
    for (let cell = ray.next(); cell; cell = ray.next()) {
      const block = this.columns.getBlock(cell)
      if (block && ray.intersect(block.shapes, block.position)) return block
    }
    return null
  }

  get eyes () { return this.sneaking ? SNEAKING : STANDING }

  pose () {
    const { position, yaw, pitch } = this.player.entity
    return [position.x, position.y, position.z, yaw, pitch]
  }

  // Everything that the next tick depends on, as an array of numbers.
  save () {
    const { entity } = this.player
    const all = {
      ...entity, ...this, ...position3(entity), jumpTicks: this.player.jumpTicks, jumpQueued: this.player.jumpQueued,
      digX: this.dig.x, digY: this.dig.y, digZ: this.dig.z, digTicks: this.dig.ticks
    }
    return [...NUMBERS.map(name => Number(all[name])), entity.yaw]
  }

  load (numbers) {
    const all = Object.fromEntries(NUMBERS.map((name, i) => [name, numbers[i]]))
    this.place(all.x, all.y, all.z, numbers[NUMBERS.length], all.pitch)
    const entity = this.player.entity
    entity.velocity = new Vec3(all.vx, all.vy, all.vz)
    for (const name of ['onGround', 'isInWater', 'isInLava', 'isInWeb', 'isCollidedHorizontally', 'isCollidedVertically']) entity[name] = all[name] === 1
    this.player.jumpTicks = all.jumpTicks
    this.player.jumpQueued = all.jumpQueued === 1
    this.heading = all.heading
    this.turns = all.turns
    this.sneaking = all.sneaking === 1
    this.dig = { x: all.digX, y: all.digY, z: all.digZ, ticks: all.digTicks }
    this.ticks = all.ticks
  }
}

function position3 ({ position, velocity }) {
  return { x: position.x, y: position.y, z: position.z, vx: velocity.x, vy: velocity.y, vz: velocity.z }
}

function wrap (angle) {
  const turned = angle - 2 * Math.PI * Math.floor((angle + Math.PI) / (2 * Math.PI))
  return turned >= Math.PI ? -Math.PI : turned
}

const limit = pitch => Math.min(Math.max(pitch, -Math.PI / 2), Math.PI / 2)

module.exports = { Body, wrap }
