'use strict'
// A world on a Minecraft server. mineflayer provides the connection; physics and rendering are our own, as for the other worlds.
// The player's position is sent to the server at every tick. Block changes and forced moves from the server are applied at once.

const mineflayer = require('mineflayer')
const { Vec3 } = require('vec3')
const { flatten } = require('./columns')
const { Refused } = require('./refused')

const JOIN = 30 // seconds to join the server
const QUIET = 1.5 // seconds without a new column after which no more are expected
const MOVE = 3 // seconds for a /tp to take effect
const POLL = 5 // milliseconds

const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))

async function connect (config, blocks) {
  const where = `${config.host}:${config.port}`
  const bot = mineflayer.createBot({
    host: config.host, port: config.port, username: config.username, auth: 'offline', version: config.version, physicsEnabled: false, hideErrors: true,
    checkTimeoutInterval: 300 * 1000 // an agent may take minutes between two steps
  })
  const state = { gone: null, columns: null, body: null, moved: 0, arrived: Date.now(), last: 0 }
  const lost = why => { if (state.gone === null) state.gone = why }
  bot.on('error', error => lost(error.code === 'ECONNREFUSED' ? 'no server listens there' : error.message))
  bot.on('kicked', reason => lost('kicked: ' + (typeof reason === 'string' ? reason : JSON.stringify(reason))))
  bot.on('end', reason => lost('the connection ended: ' + reason))
  bot.on('death', () => bot.respawn())
  const check = () => { if (state.gone !== null) throw new Error(`the Minecraft server ${where} is gone (${state.gone})`) }

  let spawned = false
  bot.once('spawn', () => { spawned = true })
  const end = Date.now() + JOIN * 1000
  while (!spawned) {
    check()
    if (Date.now() > end) throw new Error(`the player could not join the Minecraft server ${where} within ${JOIN} s`)
    await sleep(POLL)
  }
  bot.world.on('chunkColumnLoad', () => { state.arrived = Date.now() })
  bot.on('blockUpdate', (old, now) => { if (state.columns && now) state.columns.update(now.position.x, now.position.y, now.position.z, now.stateId) })
  bot.on('forcedMove', () => {
    state.moved++
    if (state.body) Object.assign(state.body.player.entity, { position: bot.entity.position.clone(), velocity: new Vec3(0, 0, 0) })
  })
  const home = bot.entity.position.clone()

  // Send the body's position and view direction to the server.
  const sendPose = body => {
    const { position, yaw, pitch, onGround } = body.player.entity
    bot.entity.position = position.clone()
    Object.assign(bot.entity, { yaw, pitch, onGround })
    bot._client.write('position_look', {
      x: position.x, y: position.y, z: position.z, yaw: Math.fround(180 - yaw * 180 / Math.PI), pitch: Math.fround(-pitch * 180 / Math.PI), onGround, flags: { onGround }
    })
  }

  // Ask the server to move the player. Returns whether it did.
  const move = async ([x, y, z]) => {
    bot.chat(`/tp ${bot.username} ${x} ${y} ${z}`)
    for (const until = Date.now() + MOVE * 1000; Date.now() < until; await sleep(POLL)) {
      check()
      if (bot.entity.position.distanceTo(new Vec3(x, y, z)) < 0.05) return true
    }
    return false
  }

  return {
    check,
    column: (cx, cz) => { const column = bot.world.getColumn(cx, cz); return column ? flatten(column) : null },
    // Wait until all columns in view have arrived, or no more arrive: the server's view distance may be shorter than ours.
    await: async (columns, cx, cz, reach) => {
      state.columns = columns
      state.arrived = Date.now()
      for (;;) {
        check()
        let missing = 0
        for (let dx = -reach; dx <= reach; dx++) for (let dz = -reach; dz <= reach; dz++) if (!bot.world.getColumn(cx + dx, cz + dz)) missing++
        if (missing === 0 || Date.now() - state.arrived > QUIET * 1000) return
        if (state.body) sendPose(state.body) // some servers send columns only to players that move
        await sleep(POLL)
      }
    },
    // Return to where the player joined if the server allows it, else start at the present position.
    spawn: async () => {
      state.body = null
      if (bot.entity.position.distanceTo(home) > 0.05) await move([home.x, home.y, home.z])
      const { x, y, z } = bot.entity.position
      await waitForColumn(bot, check, x, z)
      return { exact: true, x, y, z, yaw: 0, pitch: 0 }
    },
    teleport: async place => {
      state.body = null
      if (!await move(place)) throw new Refused('the server did not move the player to the start: allow the player to use /tp')
      await waitForColumn(bot, check, place[0], place[2])
    },
    follow: body => {
      state.body = body
      body.onDug = (x, y, z) => {
        for (const status of [0, 2]) bot._client.write('block_dig', { status, location: { x, y, z }, face: 1, sequence: 0 })
      }
      sendPose(body)
    },
    tick: async body => {
      sendPose(body)
      if (!config.realtime) return
      const wait = state.last + 50 - Date.now() // servers reject players that move faster than real time
      if (wait > 0) await sleep(wait)
      state.last = Date.now()
    }
  }
}

async function waitForColumn (bot, check, x, z) {
  for (const until = Date.now() + JOIN * 1000; !bot.world.getColumn(Math.floor(x) >> 4, Math.floor(z) >> 4);) {
    check()
    if (Date.now() > until) throw new Error('the server sent no column at the player\'s position')
    await sleep(POLL)
  }
}

module.exports = { connect }
