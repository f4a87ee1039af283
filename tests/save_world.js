'use strict'
// A small saved world for a test: node save_world.js FOLDER VERSION. Flat stone at y = 10, a golden pillar at (5, 11..13, -3), spawn at (2, 3).
const fs = require('fs')
const path = require('path')
const zlib = require('zlib')
const { Vec3 } = require('vec3')
const nbt = require('prismarine-nbt')

async function main (folder, version) {
  const registry = require('prismarine-registry')(version)
  const Chunk = require('prismarine-chunk')(version)
  const { Anvil } = require('prismarine-provider-anvil')
  const regions = path.join(folder, 'region')
  fs.mkdirSync(regions, { recursive: true })
  const store = new (Anvil(version))(regions)
  for (let cx = -2; cx <= 1; cx++) {
    for (let cz = -2; cz <= 1; cz++) {
      const chunk = new Chunk()
      for (let x = 0; x < 16; x++) for (let z = 0; z < 16; z++) chunk.setBlockStateId(new Vec3(x, 10, z), registry.blocksByName.stone.defaultState)
      if (cx === 0 && cz === -1) for (let y = 11; y < 14; y++) chunk.setBlockStateId(new Vec3(5, y, 13), registry.blocksByName.gold_block.defaultState)
      await store.save(cx, cz, chunk)
    }
  }
  await store.close()
  const level = { type: 'compound', name: '', value: { Data: nbt.comp({ SpawnX: nbt.int(2), SpawnY: nbt.int(11), SpawnZ: nbt.int(3) }) } }
  fs.writeFileSync(path.join(folder, 'level.dat'), zlib.gzipSync(nbt.writeUncompressed(level)))
}

main(...process.argv.slice(2)).catch(error => { console.error(error); process.exit(1) })
