'use strict'
// A real Minecraft server on loopback for tests: node flying_squid.js VERSION [PORT]. Prints "port N" and runs until its input ends.
const say = text => process.stdout.write(text + '\n')
console.log = () => {}
const version = process.argv[2]
const server = require('flying-squid').createMCServer({
  motd: 'test', port: Number(process.argv[3] || 0), host: '127.0.0.1', 'max-players': 4, 'online-mode': false, logging: false, gameMode: 0, difficulty: 0, kickTimeout: 30000, plugins: {},
  generation: { name: 'superflat', options: { worldHeight: 80, seed: 5 } }, modpe: false, 'view-distance': 8, 'everybody-op': true, 'max-entities': 10, version, noConsole: true,
  'player-list-text': { header: { text: '' }, footer: { text: '' } }
})
server.once('listening', port => say('port ' + (port || server._server.socketServer.address().port)))
process.stdin.resume()
process.stdin.on('end', () => process.exit(0))
process.on('uncaughtException', error => process.stderr.write(error.stack + '\n'))
