'use strict'
// A saved world (Anvil): the folder that holds level.dat and region/, or the region folder itself. Files are opened for reading only;
// the reader of prismarine-provider-anvil opens them for writing and pads them.

const fs = require('fs')
const path = require('path')
const zlib = require('zlib')
const nbt = require('prismarine-nbt')
const { flatten } = require('./columns')
const { Refused } = require('./refused')

const SECTOR = 4096 // bytes
const INFLATE = { 1: zlib.gunzipSync, 2: zlib.inflateSync, 3: data => data }

async function openSaved ({ world, version }) {
  const regions = fs.existsSync(path.join(world, 'region')) ? path.join(world, 'region') : world
  if (!fs.existsSync(regions) || !fs.readdirSync(regions).some(name => /^r\.-?\d+\.-?\d+\.mca$/.test(name))) {
    throw new Refused(`${world} holds no saved world: a folder with region/r.X.Z.mca is needed`)
  }
  const { nbtChunkToPrismarineChunk } = require('prismarine-provider-anvil/src/chunk')(version)
  const files = new Map()
  const level = await readLevel(path.join(regions, '..', 'level.dat'))
  return {
    column: async (cx, cz) => {
      const data = readChunk(files, regions, cx, cz)
      return data ? flatten(nbtChunkToPrismarineChunk((await nbt.parse(data)).parsed)) : empty()
    },
    spawn: () => ({ x: level.SpawnX || 0, z: level.SpawnZ || 0 })
  }
}

// A chunk that is not in the save is empty.
const empty = () => ({ blocks: new Uint16Array(65536), biomes: new Uint8Array(256).fill(1) })

// The NBT of a chunk, or null if it is not in the save. A region file begins with a table of 1024 chunk locations (offset, sectors).
function readChunk (files, regions, cx, cz) {
  const name = `r.${cx >> 5}.${cz >> 5}.mca`
  if (!files.has(name)) {
    const file = path.join(regions, name)
    files.set(name, fs.existsSync(file) ? fs.openSync(file, 'r') : null)
  }
  const file = files.get(name)
  if (file === null) return null
  const location = Buffer.alloc(4)
  fs.readSync(file, location, 0, 4, 4 * ((cx & 31) + 32 * (cz & 31)))
  const first = location.readUIntBE(0, 3)
  if (first === 0) return null
  const head = Buffer.alloc(5)
  fs.readSync(file, head, 0, 5, first * SECTOR)
  const data = Buffer.alloc(head.readUInt32BE(0) - 1)
  fs.readSync(file, data, 0, data.length, first * SECTOR + 5)
  const inflate = INFLATE[head[4]]
  if (!inflate) throw new Refused(`${name} holds a chunk with unknown compression ${head[4]}; known are ${Object.keys(INFLATE).join(', ')}`)
  return inflate(data)
}

async function readLevel (file) {
  if (!fs.existsSync(file)) return {}
  return nbt.simplify((await nbt.parse(fs.readFileSync(file))).parsed).Data || {}
}

module.exports = { openSaved }
