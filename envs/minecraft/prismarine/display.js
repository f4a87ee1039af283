'use strict'
// `gl` needs an X display. Each process has its own Xvfb, so that pictures come from the same software renderer on every machine,
// and so that nothing is left when it ends: with -terminate Xvfb ends by itself after its last client is gone, killed or not.

const { spawn } = require('child_process')

function startDisplay ({ startTimeout = 60 }) {
  return new Promise((resolve, reject) => {
    const options = ['-displayfd', '3', '-screen', '0', '64x64x24', '-nolisten', 'tcp', '-terminate']
    const xvfb = spawn('Xvfb', options, { stdio: ['ignore', 2, 2, 'pipe'] })
    const timer = setTimeout(() => reject(new Error('Xvfb did not say which display it has')), startTimeout * 1000)
    let said = ''
    xvfb.on('error', error => {
      clearTimeout(timer)
      if (error.code !== 'ENOENT') reject(error)
      else if (process.env.DISPLAY) resolve() // pictures then depend on that display's driver
      else reject(new Error('Xvfb is missing, and there is no other display: apt-get install xvfb libgl1-mesa-dri'))
    })
    xvfb.on('exit', code => { clearTimeout(timer); reject(new Error(`Xvfb ended with code ${code}`)) })
    xvfb.stdio[3].on('data', data => {
      said += data
      if (!said.includes('\n')) return
      clearTimeout(timer)
      process.env.DISPLAY = ':' + said.trim()
      resolve()
    })
    process.on('exit', () => xvfb.kill('SIGTERM'))
  })
}

module.exports = { startDisplay }
