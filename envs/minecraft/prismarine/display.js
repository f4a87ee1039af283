'use strict'
// `gl` needs an X display. Each process starts its own Xvfb, so that every machine renders with the same software renderer.
// With -terminate Xvfb exits after its last client, even if the client was killed, so none is left behind.

const { spawn } = require('child_process')

function startDisplay ({ startTimeout = 60 }) {
  return new Promise((resolve, reject) => {
    const options = ['-displayfd', '3', '-screen', '0', '64x64x24', '-nolisten', 'tcp', '-terminate']
    const xvfb = spawn('Xvfb', options, { stdio: ['ignore', 2, 2, 'pipe'] })
    const timer = setTimeout(() => reject(new Error('Xvfb did not report its display number')), startTimeout * 1000)
    let output = ''
    xvfb.on('error', error => {
      clearTimeout(timer)
      if (error.code !== 'ENOENT') reject(error)
      else if (process.env.DISPLAY) resolve() // frames then depend on that display's driver
      else reject(new Error('Xvfb is missing, and there is no other display: apt-get install xvfb libgl1-mesa-dri'))
    })
    xvfb.on('exit', code => { clearTimeout(timer); reject(new Error(`Xvfb ended with code ${code}`)) })
    xvfb.stdio[3].on('data', data => {
      output += data
      if (!output.includes('\n')) return
      clearTimeout(timer)
      process.env.DISPLAY = ':' + output.trim()
      resolve()
    })
    process.on('exit', () => xvfb.kill('SIGTERM'))
  })
}

module.exports = { startDisplay }
