'use strict'
// One Minecraft world with one player, controlled over a Unix socket. A request runs some ticks of 50 ms and draws one frame.
// Nothing moves between requests, so the same requests give the same frames and poses, bit for bit.
//
//   node main.js '{"socket": PATH, "frames": PATH, "version": "1.16.5", "mode": "terrain" | "saved" | "server", ...}'
//
// A message is its length (uint32, little endian) followed by JSON. A reply whose JSON holds `bytes: n` is followed by n raw bytes.
// Frames go into the file `frames`, which both sides map into memory: RGBA, the top row first. When the socket closes, this process exits.

const fs = require('fs')
const net = require('net')
const path = require('path')

// Libraries print. All output goes to the log.
console.log = console.info = console.warn = (...words) => process.stderr.write(words.join(' ') + '\n')

const config = JSON.parse(process.argv[2])
const { startDisplay } = require('./display')
const { Blocks } = require('./blocks')
const { Picture } = require('./picture')
const { Session } = require('./session')
const { Refused } = require('./refused')

const OWNER_TIMEOUT = 3000 // milliseconds that the owner may take to exit after the socket closed

const frames = fs.openSync(config.frames, 'r+')
const socket = net.connect(config.socket)
socket.on('close', orphaned)
socket.on('error', () => process.exit(1))
process.on('unhandledRejection', error => console.log('unhandled', error && error.stack))

let pixels = Buffer.alloc(0)
let session = null

function reply (message, bytes) {
  const text = Buffer.from(JSON.stringify(bytes ? { ...message, bytes: bytes.length } : message))
  const length = Buffer.alloc(4)
  length.writeUInt32LE(text.length)
  socket.write(Buffer.concat(bytes ? [length, text, bytes] : [length, text]))
}

async function start () {
  await startDisplay(config)
  const blocks = new Blocks(config.version)
  const picture = new Picture(blocks, config.reach, config.fieldOfView)
  session = new Session(config, blocks, picture)
  reply({ hello: 1, renderer: picture.name, node: process.version, minecraft: config.version })
}

// Draw a frame into the shared file.
function show (height, width) {
  const size = height * width * 4
  if (pixels.length !== size) pixels = Buffer.alloc(size)
  session.draw(height, width, pixels)
  fs.writeSync(frames, pixels, 0, size, 0)
}

async function answer (request) {
  if (request.op === 'draw') { show(...request.size); return reply({}) }
  if (request.op === 'solid') return reply({}, session.solid(request.low, request.high, await session.loadBox(request.low, request.high)))
  if (request.op === 'reachable') { const { area, bytes } = session.reachable(); return reply({ area }, bytes) }
  if (request.op === 'save') return reply(session.save())
  if (request.op === 'reset') await session.reset(request.seed, request.start)
  else if (request.op === 'step') await session.step(request)
  else if (request.op === 'load') await session.load(request.state)
  else throw new Error(`unknown request ${request.op}`)
  if (request.size) show(...request.size)
  reply({ pose: session.pose(), ticks: session.ticks })
  if (request.op === 'step') session.prepare(request.ticks)
}

let received = Buffer.alloc(0)
let queue = Promise.resolve()
socket.on('connect', () => { queue = queue.then(start).catch(fail) })
socket.on('data', data => {
  received = received.length ? Buffer.concat([received, data]) : data
  while (received.length >= 4 && received.length >= 4 + received.readUInt32LE(0)) {
    const end = 4 + received.readUInt32LE(0)
    const request = JSON.parse(received.subarray(4, end))
    received = received.subarray(end)
    if (request.op === 'close') process.exit(0)
    queue = queue.then(() => answer(request)).catch(fail)
  }
})

// The socket closed without a "close" request: the owner was probably killed, which may take effect only after the socket has closed.
// If so, remove its folder.
function orphaned () {
  const end = Date.now() + OWNER_TIMEOUT
  setInterval(() => {
    const alone = process.ppid !== config.owner
    if (alone) fs.rmSync(path.dirname(config.socket), { recursive: true, force: true })
    if (alone || Date.now() > end) process.exit(0)
  }, 20)
}

// An error that the user can correct is sent as `refused`. Any other error is a fault, and its stack goes to the log.
function fail (error) {
  if (error instanceof Refused) return reply({ refused: error.message })
  console.log(error.stack || error)
  reply({ error: String(error.message || error) })
}
